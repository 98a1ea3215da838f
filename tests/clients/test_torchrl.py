"""TorchRL's recurrent modules branch on ``isinstance(layer, nn.LSTM)``."""

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
modules, tensordict = client("torchrl.modules"), client("tensordict")


def make(name, library, **options):
    layer = getattr(library, name)(3, 4, batch_first=True, dtype=torch.float64, **options)
    keys = ["x", "h", "c"][: 2 + (name == "LSTM")]
    outputs = ["y", *(("next", key) for key in keys[1:])]
    return getattr(modules, f"{name}Module")(**{name.lower(): layer}, in_keys=keys, out_keys=outputs)


def episodes(name, layers, with_resets):
    """Two rows of six steps; with episodes that begin in mid-sequence."""
    torch.manual_seed(1)
    begins = torch.zeros(2, 6, 1, dtype=torch.bool)
    begins[:, 0] = True
    if with_resets:
        begins[0, 2] = begins[1, 5] = True
    states = {key: torch.randn(2, 6, layers, 4, dtype=torch.float64) for key in ("h", "c")[: 1 + (name == "LSTM")]}
    return tensordict.TensorDict({"x": torch.randn(2, 6, 3, dtype=torch.float64), "is_init": begins, **states}, [2, 6])


@pytest.mark.parametrize("with_resets", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_whole_episodes_are_as_with_torchs_layer(name, options, with_resets, monkeypatch):
    theirs = make(name, nn, **options)
    ours = fused_rnn.swap(make(name, nn, **options))
    ours.load_state_dict(theirs.state_dict())
    layer = getattr(ours, name.lower())
    assert type(layer) is getattr(fused_rnn, name)
    kinds = []
    run = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x, *args: kinds.append(type(x)) or run(x, *args))
    given = episodes(name, options.get("num_layers", 1), with_resets)
    with modules.set_recurrent_mode(True):
        found, expected = ours(given.clone()), theirs(given.clone())
    assert kinds == [nn.utils.rnn.PackedSequence if with_resets else torch.Tensor], "the branch of torch.nn's layers"
    for key in theirs.out_keys:
        torch.testing.assert_close(found[key], expected[key])
    gradients = []
    for module, results in ((ours, found), (theirs, expected)):
        results["y"].square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_single_steps_of_a_collector(name):
    theirs = make(name, nn)
    ours = fused_rnn.swap(make(name, nn))
    ours.load_state_dict(theirs.state_dict())
    step = episodes(name, 1, False)[:, 0]
    found, expected = ours(step.clone()), theirs(step.clone())
    for key in theirs.out_keys:
        torch.testing.assert_close(found[key], expected[key])
