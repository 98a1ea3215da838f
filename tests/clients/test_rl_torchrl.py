"""``examples/rl/recurrent_torchrl.py``: the cases of torchrl's own tests with our modules against torchrl's."""

import importlib

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client, quiet
from support.paths import EXAMPLES
from support.processes import run_python

pytestmark = pytest.mark.filterwarnings("ignore")
modules, tensordict = client("torchrl.modules"), client("tensordict")
NAMES = ["LSTM", "GRU"]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "rl")
    with quiet():
        return importlib.import_module("recurrent_torchrl")


@pytest.mark.parametrize("options", [[], ["--gru"]], ids=str)
def test_both_libraries_learn_alike(options, tmp_path):
    printed = run_python(EXAMPLES / "rl" / "recurrent_torchrl.py", "--quick", "--out", tmp_path, *options)
    assert "largest difference of a weight after the first update" in printed
    assert printed.count("turns the right way") == 2
    (picture,) = tmp_path.glob("*.svg")
    assert picture.stat().st_size > 1000


def pair(example, name, **options):
    """Ours and torchrl's with the same weights, in float64, in recurrent mode; and the keys of states."""
    kinds = getattr(example, f"ResetMask{name}"), getattr(modules, f"{name}Module")
    states = ["h", "c"] if name == "LSTM" else ["h"]
    keys = {"in_keys": ["x", *states], "out_keys": ["y", *(("next", key) for key in states)]}
    ours, theirs = (kind(3, 4, default_recurrent_mode=True, **keys, **options).double() for kind in kinds)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, states


def episodes(states, shape, layers=1, stored="at the rows' beginnings", share=0.3):
    """Episodes begin in mid-row with a probability of ``share``; ``stored``: where states are not zero."""
    torch.manual_seed(1)
    begins = torch.rand(*shape, 1) < share
    data = {"x": torch.randn(*shape, 3).double(), "is_init": begins}
    for key in states:
        state = torch.randn(*shape, layers, 4).double()
        if stored == "at the rows' beginnings":
            state[..., 1:, :, :] *= ~begins[..., 1:, :, None]
        data[key] = state
    if stored == "nowhere":
        data = {key: value for key, value in data.items() if key not in states}
    return tensordict.TensorDict(data, shape)


def assert_same(ours, theirs, given):
    results, gradients = [], []
    for module in (ours, theirs):
        module.zero_grad()
        data = module(given.clone())
        outputs = [data[key] for key in module.out_keys]
        sum((output * torch.linspace(0, 1, output.numel()).view_as(output)).sum() for output in outputs).backward()
        results.append(outputs)
        gradients.append([parameter.grad.clone() for parameter in module.parameters()])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def count_calls(monkeypatch, module):
    """Of the padded way."""
    calls, name = [], "_lstm" if hasattr(module, "lstm") else "_gru"
    run = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **options: calls.append(name) or run(*args, **options))
    return calls


@pytest.mark.parametrize("stored", ["at the rows' beginnings", "nowhere"])
@pytest.mark.parametrize("shape", [(9,), (5, 9), (2, 3, 9)], ids=str)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_whole_rows_in_one_call(example, name, layers, shape, stored, monkeypatch):
    ours, theirs, states = pair(example, name, num_layers=layers)
    padded = count_calls(monkeypatch, ours)
    assert_same(ours, theirs, episodes(states, shape, layers, stored))
    assert padded == []


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_resets(example, name):
    ours, theirs, states = pair(example, name)
    assert_same(ours, theirs, episodes(states, (3, 6), share=0.0))


@pytest.mark.parametrize("name", NAMES)
def test_states_stored_where_episodes_begin_go_torchrls_way(example, name, monkeypatch):
    ours, theirs, states = pair(example, name)
    padded = count_calls(monkeypatch, ours)
    assert_same(ours, theirs, episodes(states, (5, 9), stored="everywhere"))
    assert padded


@pytest.mark.parametrize("name", NAMES)
def test_bidirectional_layers_go_torchrls_way(example, name):
    ours, theirs, states = pair(example, name, bidirectional=True)
    assert_same(ours, theirs, episodes(states, (5, 9), layers=2, stored="nowhere"))


def test_projections_and_no_biases(example):
    ours, theirs, _ = pair(example, "LSTM", bias=False)
    assert_same(ours, theirs, episodes(["h", "c"], (4, 7)))
    ours, theirs, _ = pair(example, "LSTM", proj_size=2)
    assert_same(ours, theirs, episodes(["h", "c"], (4, 7), stored="nowhere"))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_single_steps(example, name, shape):
    ours, theirs, states = pair(example, name)
    with modules.set_recurrent_mode(False):
        assert_same(ours, theirs, episodes(states, (*shape, 1), stored="everywhere")[..., 0])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_its_single_steps(example, name):
    """The states of episodes' last steps, and all outputs; a collector's states, cleared where episodes begin."""
    ours, _, states = pair(example, name)
    rows = episodes(states, (4, 8), stored="at the rows' beginnings")
    rows["is_init"][:, 0] = False  # at a row's beginning the stored state counts
    whole, carried = ours(rows.clone()), {key: rows[key][:, 0] for key in states}
    for t in range(8):
        step = rows[:, t].clone().update(carried)
        with modules.set_recurrent_mode(False):
            step = ours(step)
        torch.testing.assert_close(step["y"], whole["y"][:, t])
        carried = {key: step["next", key] for key in states}
        last = rows["is_init"][:, t + 1, 0] if t < 7 else torch.ones(4, dtype=torch.bool)
        for key in states:
            torch.testing.assert_close(whole["next", key][:, t], carried[key] * last[:, None, None])


@pytest.mark.parametrize("name", NAMES)
def test_burn_in(example, name):
    """torchrl's BurnInTransform runs the module over the first steps."""
    transform = client("torchrl.envs.transforms").BurnInTransform
    found = []
    ours, theirs, states = pair(example, name)
    given = episodes(states, (3, 9))
    for module in (ours, theirs):
        found.append(module(transform([module], burn_in=4)(given.clone()))["y"])
    assert found[0].shape == (3, 5, 4)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_sequence_and_by_keywords(example, name):
    ours, theirs, states = pair(example, name)
    given = episodes(states, (3, 6))
    head = client("tensordict.nn").TensorDictModule(nn.Linear(4, 2).double(), in_keys=["y"], out_keys=["z"])
    found = [
        client("tensordict.nn").TensorDictSequential(module, head)(given.clone())["z"] for module in (ours, theirs)
    ]
    torch.testing.assert_close(*found)
    arguments = {"x": given["x"], "is_init": given["is_init"], **{key: given[key] for key in states}}
    torch.testing.assert_close(ours(**arguments)[0], theirs(**arguments)[0])


@pytest.mark.parametrize("name", NAMES)
def test_dropout_between_layers(example, name):
    ours, theirs, states = pair(example, name, num_layers=2, dropout=0.5)
    given = episodes(states, (5, 9), layers=2)
    assert not torch.equal(ours(given.clone())["y"], ours(given.clone())["y"])
    torch.testing.assert_close(ours.eval()(given.clone())["y"], theirs.eval()(given.clone())["y"])


@pytest.mark.parametrize("name", NAMES)
def test_torchrls_python_layer_stays_torchrls(example, name):
    ours, theirs, states = pair(example, name)
    ours, theirs, given = ours.float(), theirs.float(), episodes(states, (3, 6)).float()
    given["is_init"] = given["is_init"].bool()
    expected = theirs(given.clone())["y"]
    torch.testing.assert_close(ours.make_python_based()(given.clone())["y"], expected)
    torch.testing.assert_close(ours.make_cudnn_based()(given.clone())["y"], expected)
    ours, theirs, _ = pair(example, name, python_based=True)
    assert_same(ours, theirs, episodes(states, (3, 6)))


@pytest.mark.parametrize("name", NAMES)
def test_refusals(example, name):
    kind = getattr(example, f"ResetMask{name}")
    with pytest.raises(example.Unsupported, match=r"recurrent_backend='scan'.*expected 'pad' or 'auto'"):
        kind(3, 4, in_key="x", out_key="y", recurrent_backend="scan")
    own = type("Own", (getattr(nn, name),), {})(3, 4, batch_first=True)
    with pytest.raises(example.Unsupported, match=rf"around .*\.Own; expected torch\.nn\.{name}"):
        kind(in_key="x", out_key="y", **{name.lower(): own})
    with pytest.raises(ValueError, match="batch_first=True"):
        layer = getattr(fused_rnn, name)(3, 4)
        kind(in_key="x", out_key="y", **{name.lower(): layer})
    with pytest.raises(KeyError, match="x"):
        kind(3, 4, in_key="x", out_key="y", default_recurrent_mode=True)(episodes([], (2, 3)).exclude("x"))
