"""Constructors, attributes and public methods, compared with torch.nn's."""

import inspect
import pydoc

import pytest
import torch
from torch import nn

import fused_rnn
from support.modules import (
    DEEP,
    F64,
    KINDS,
    LAYERS,
    assert_same_error,
    every_kind,
)

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


WRONG_FOR_ALL = [
    {"dropout": -0.1},
    {"dropout": 1.5},
    {"dropout": True},
    {"dropout": float("nan")},
    {"dropout": "0.5"},
    {"dropout": None},
    {"bias": 1},
    {"bias": "True"},
    {"batch_first": 0},
    {"input_size": 3.0},
    {"hidden_size": "4"},
    {"input_size": 0},
    {"hidden_size": -4},
    {"num_layers": 0},
    {"num_layers": 2.0},
]
WRONG = [(name, options) for name in ("LSTM", "GRU", "RNN") for options in WRONG_FOR_ALL] + [
    ("LSTM", {"proj_size": -1}),
    ("LSTM", {"proj_size": 4}),
    ("GRU", {"proj_size": 0}),
    ("GRU", {"proj_size": 2}),
    ("GRU", {"nonlinearity": "tanh"}),
    ("RNN", {"proj_size": 0}),
    ("RNN", {"proj_size": 2}),
    ("RNN", {"nonlinearity": "gelu"}),
    ("RNN", {"activation": "tanh"}),
]


@pytest.mark.parametrize(("name", "options"), WRONG, ids=str)
def test_constructor_refuses_what_torch_refuses(name, options):
    options = {"input_size": 3, "hidden_size": 4, **options}
    assert_same_error(getattr(fused_rnn, name), getattr(nn, name), **options)


def test_rnn_takes_its_nonlinearity_as_fourth_argument():
    assert_same_error(fused_rnn.RNN, nn.RNN, 3, 4, 2, "gelu")
    ours, theirs = (cls(3, 4, 2, "relu", False, True, 0.5, True) for cls in (fused_rnn.RNN, nn.RNN))
    assert attributes(ours) == attributes(theirs)


def attributes(module):
    names = [*module.__constants__, "nonlinearity"]
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("LSTM", (3, 4, 2, False, True, 0.5, True, 2, "cpu", F64)),
        ("GRU", (3, 4, 2, False, True, 0.5, True)),
        ("RNN", (3, 4, 2, "relu", False, True, 0.5, True)),
        ("LSTMCell", (3, 4, False, "cpu", F64)),
        ("GRUCell", (3, 4, False, "cpu", F64)),
        ("RNNCell", (3, 4, False, "relu", "cpu", F64)),
    ],
)
def test_positional_arguments_are_torchs(name, arguments):
    for count in range(2, len(arguments) + 1):
        ours, theirs = (getattr(library, name)(*arguments[:count]) for library in (fused_rnn, nn))
        assert attributes(ours) == attributes(theirs)
        assert repr(ours) == f"fused_rnn.{theirs!r}"
        assert {n: (p.shape, p.dtype) for n, p in ours.named_parameters()} == {
            n: (p.shape, p.dtype) for n, p in theirs.named_parameters()
        }


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_have_torchs_signature(name):
    ours, theirs = (inspect.signature(getattr(library, name)).parameters for library in (fused_rnn, nn))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_layers_show_their_arguments():
    lstm, gru, rnn = (
        {p.name: p.default for p in inspect.signature(getattr(fused_rnn, name)).parameters.values()}
        for name in ("LSTM", "GRU", "RNN")
    )
    assert list(lstm)[:4] == ["input_size", "hidden_size", "num_layers", "bias"]
    del lstm["proj_size"]
    assert list(gru.items()) == list(lstm.items())
    assert list(rnn)[3] == "nonlinearity" and rnn.pop("nonlinearity") == "tanh"
    assert rnn == lstm
    for name in ("LSTM", "GRU", "RNN"):
        kind = getattr(fused_rnn, name)
        assert f"{name}(input_size: " in pydoc.plain(pydoc.render_doc(kind))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_dropout_in_one_layer_warns_as_torch_does(name):
    messages = []
    for library in (fused_rnn, nn):
        with pytest.warns(UserWarning, match="dropout option") as caught:
            getattr(library, name)(3, 4, dropout=0.5)
        messages.append([str(warning.message) for warning in caught])
    assert messages[0] == messages[1]


@every_kind
def test_same_seed_gives_bit_identical_weights(kind):
    variants = [{}, {"bias": False}]
    variants += [DEEP] if kind in LAYERS else []
    our_class, torch_class, own_options = KINDS[kind]
    for options in variants:
        drawn = []
        for cls in (our_class, torch_class):
            torch.manual_seed(1)
            module = cls(3, 4, **own_options, **options)
            first = {name: p.detach().clone() for name, p in module.named_parameters()}
            module.reset_parameters()
            drawn.append((first, module.state_dict(), torch.get_rng_state()))
        for ours, theirs in zip(drawn[0][:2], drawn[1][:2], strict=True):
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert torch.equal(drawn[0][2], drawn[1][2])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_has_every_public_attribute_of_torch(name):
    assert set(dir(getattr(torch.nn, name))) <= set(dir(getattr(fused_rnn, name)))


def test_public_helpers_equal_torchs():
    ours, theirs = (module.LSTM(3, 5, 2, proj_size=4) for module in (fused_rnn, torch.nn))
    x = torch.randn(6, 2, 3)
    assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    hx = (torch.randn(2, 2, 4), torch.randn(2, 2, 5))
    ours.check_forward_args(x, hx, None)
    order = torch.tensor([1, 0])
    torch.testing.assert_close(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
