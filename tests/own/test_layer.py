"""The surface of own cells: declarations, layers, calls, copies and pickles. Layers run the Python function."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import zoo

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6


@fused_rnn.cell(gates=4, states=("h", "c"))
def same_as_lstm(x, r, h, c):
    """An LSTM."""
    i, f, g, o = x + r
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@fused_rnn.cell(gates=3, states=("h",))
def same_as_gru(x, r, h):
    x_reset, x_z, x_n = x
    r_reset, r_z, r_n = r
    n = torch.tanh(x_n + torch.sigmoid(x_reset + r_reset) * r_n)
    return n + torch.sigmoid(x_z + r_z) * (h - n)


@fused_rnn.cell(gates=1, states=("h", "top"), initial={"top": float("-inf"), "h": 0.5})
def with_maximum(x, r, h, top):
    h = torch.tanh(x[0] + r[0] + 0.1 * h)
    return h, torch.maximum(top, h)


PAIRS = {"lstm": (same_as_lstm, nn.LSTM, fused_rnn.LSTM), "gru": (same_as_gru, nn.GRU, fused_rnn.GRU)}
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "batch_first": True, "bidirectional": True},
]


def slow(cell, *args, **kwargs):
    return cell.layer(*args, compiled=False, **kwargs)


def twins(name, **options):
    """The same layer by an own cell, by torch.nn and by this library."""
    cell, *classes = PAIRS[name]
    layer = slow(cell, INPUT, HIDDEN, **options)
    others = [kind(INPUT, HIDDEN, **options) for kind in classes]
    for other in others:
        other.load_state_dict(layer.state_dict())
    return layer, *others


def same(found, expected):
    if isinstance(expected, (tuple, list)):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        torch.testing.assert_close(found, expected)


# ---- layers and calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_parameters_are_those_of_torch(name, options):
    torch.manual_seed(1)
    layer = slow(PAIRS[name][0], INPUT, HIDDEN, **options)
    torch.manual_seed(1)
    theirs = PAIRS[name][1](INPUT, HIDDEN, **options)
    assert list(layer.state_dict()) == list(theirs.state_dict())
    same(list(layer.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_results_and_gradients_are_those_of_torch(name, options):
    layer, theirs, _ = twins(name, **options)
    x = torch.randn(BATCH, STEPS, INPUT)
    results = []
    for module in (layer, theirs):
        output, state = module(x)
        _, again = module(x, state)
        output.square().sum().backward()
        results.append((output, state, again, [p.grad for p in module.parameters()]))
    same(*results)


@pytest.mark.parametrize("name", PAIRS)
def test_our_options_of_a_call(name):
    layer, _, ours = twins(name, bidirectional=True)
    x = torch.randn(STEPS, BATCH, INPUT)
    resets = torch.rand(STEPS, BATCH) < 0.4
    calls = [
        {"lengths": [5, 3, 0]},
        {"reset_mask": resets},
        {"lengths": torch.tensor([2, 5, 4]), "reset_mask": resets},
        {"grad_clip": 0.01},
    ]
    for options in calls:
        gradients = []
        for module in (layer, ours):
            module.zero_grad()
            output, state = module(x, **options)
            output.square().sum().backward()
            gradients.append((output, state, [p.grad.clone() for p in module.parameters()]))
        same(*gradients)


@pytest.mark.parametrize("name", PAIRS)
def test_packed_unbatched_and_ids(name):
    layer, _, ours = twins(name)
    x = torch.randn(STEPS, BATCH, INPUT)
    packed = pack_padded_sequence(x, [2, 5, 4], enforce_sorted=False)
    (found, state), (expected, expected_state) = layer(packed), ours(packed)
    same(pad_packed_sequence(found), pad_packed_sequence(expected))
    same(state, expected_state)
    same(layer(x[:, 0]), ours(x[:, 0]))
    ids = torch.randint(INPUT, (STEPS, BATCH))
    same(layer(ids), ours(ids))


def test_half_precision_and_autocast():
    layer, _, ours = twins("gru")
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = layer(x)
        assert output.dtype == ours(x)[0].dtype == torch.bfloat16
    assert layer.half()(x.half())[0].dtype == torch.float16


def test_dropout_is_between_layers_in_training():
    layer = slow(same_as_gru, INPUT, HIDDEN, num_layers=2, dropout=0.9)
    x = torch.randn(STEPS, BATCH, INPUT)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_states_begin_as_declared_and_again_after_a_reset():
    layer = slow(with_maximum, INPUT, HIDDEN)
    x = torch.randn(STEPS, BATCH, INPUT)
    states = torch.full((1, BATCH, HIDDEN), 0.5), torch.full((1, BATCH, HIDDEN), -torch.inf)
    output, (h, top) = layer(x)
    same(layer(x, states), (output, (h, top)))
    torch.testing.assert_close(top[0], output.max(0).values)
    resets = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    resets[3] = True
    output, (h, top) = layer(x, reset_mask=resets)
    same(layer(x[3:]), (output[3:], (h, top)))


def test_own_parameters_have_their_names_and_init():
    torch.manual_seed(0)
    layer = slow(zoo.peephole_lstm, INPUT, HIDDEN, bidirectional=True, init={"p_f": 2.0, "bias_ih": nn.init.zeros_})
    names = [f"p_{gate}_l0{suffix}" for suffix in ("", "_reverse") for gate in "ifo"]
    assert [name for name in layer.state_dict() if name.startswith("p_")] == names
    assert (layer.p_f_l0 == 2).all() and not layer.bias_ih_l0_reverse.any()
    bound = HIDDEN**-0.5
    assert layer.p_i_l0.shape == (HIDDEN,) and 0 < layer.p_i_l0.abs().max() <= bound
    layer(torch.randn(STEPS, BATCH, INPUT))[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() for p in layer.parameters())


def test_no_recurrent_matrix():
    layer = slow(zoo.min_gru, INPUT, HIDDEN)
    assert set(layer.state_dict()) == {"weight_ih_l0", "bias_ih_l0"}


def test_one_state_is_a_tensor_and_several_are_a_tuple():
    x = torch.randn(STEPS, BATCH, INPUT)
    assert slow(zoo.janet, INPUT, HIDDEN)(x)[1].shape == (1, BATCH, HIDDEN)
    states = slow(zoo.slstm, INPUT, HIDDEN)(x)[1]
    assert isinstance(states, tuple) and [s.shape for s in states] == [(1, BATCH, HIDDEN)] * 4


def test_the_reference_takes_weights():
    layer = slow(zoo.peephole_lstm, INPUT, HIDDEN)
    x = torch.randn(STEPS, BATCH, INPUT)
    peepholes = torch.stack([layer.p_i_l0, layer.p_f_l0, layer.p_o_l0])
    weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0, peepholes]
    same(zoo.peephole_lstm.reference(x, None, weights), layer(x))
    same(zoo.peephole_lstm.reference(x, None, weights, lengths=[1, 2, 3]), layer(x, lengths=[1, 2, 3]))


def test_a_cell_is_still_its_function():
    x, r, h, c = torch.randn(4, 2), torch.randn(4, 2), torch.randn(2), torch.randn(2)
    same(same_as_lstm(x, r, h, c), same_as_lstm.function(x, r, h, c))
    assert same_as_lstm.__doc__ == "An LSTM." and same_as_lstm.__name__ == "same_as_lstm"


def test_repr():
    assert repr(zoo.indrnn) == "<fused_rnn.cell indrnn: gates=1, states=('h',), params=('u',), recurrent=False>"
    layer = slow(same_as_lstm, 4, 6, num_layers=2, bidirectional=True)
    assert repr(layer) == "same_as_lstm(4, 6, num_layers=2, bidirectional=True, compiled=False)"


# ---- copies and pickles ----------------------------------------------------------------------------------------------


def test_copies_and_pickles_of_layers():
    layer = slow(zoo.peephole_lstm, INPUT, HIDDEN)
    x = torch.randn(STEPS, BATCH, INPUT)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.cell is zoo.peephole_lstm and other.weight_ih_l0 is not layer.weight_ih_l0
        same(other(x), layer(x))


def test_a_cell_that_its_name_does_not_lead_to_is_not_pickled():
    @fused_rnn.cell(gates=1, states=("h",))
    def local(x, r, h):
        return torch.tanh(x + r)[0]

    unnamed = fused_rnn.cell(gates=1, states=("h",))(lambda x, r, h: torch.tanh(x + r)[0])
    for cell in (local, unnamed):
        with pytest.raises(pickle.PicklingError, match="pickled by its name"):
            pickle.dumps(slow(cell, 2, 3))
        assert copy.deepcopy(slow(cell, 2, 3)).cell is cell


def test_a_name_makes_a_cell_of_a_plain_call_picklable(monkeypatch):
    cell = fused_rnn.cell(lambda x, r, h: torch.tanh(x + r)[0], gates=1, states=("h",), name="named_cell")
    monkeypatch.setattr(sys.modules[__name__], "named_cell", cell, raising=False)
    monkeypatch.setitem(sys.modules, cell.__module__, sys.modules[__name__])
    assert pickle.loads(pickle.dumps(cell)) is cell


# ---- errors ----------------------------------------------------------------------------------------------------------


def step(x, r, h):
    return torch.tanh(x + r)[0]


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "gates must be an int", {"gates": 1.0}),
        (ValueError, "gates must be 1 to 8, got 9", {"gates": 9}),
        (ValueError, "1 to 8 states, got 0", {"states": ()}),
        (TypeError, "states must be a tuple of names", {"states": "h"}),
        (ValueError, "names that Python can use, got 'a b'", {"states": ("a b",)}),
        (ValueError, "different names", {"states": ("h", "h")}),
        (TypeError, r"must take \(x, r, h, c\)", {"states": ("h", "c")}),
        (TypeError, r"must take \(x, r, h, \*, p\)", {"params": ("p",)}),
        (TypeError, r"must take \(x, h\)", {"recurrent": False}),
        (ValueError, "initial names 'c'", {"initial": {"c": 1.0}}),
        (ValueError, r"initial\['h'\] must be a number", {"initial": {"h": float("nan")}}),
        (ValueError, "init names 'p'", {"init": {"p": 1.0}}),
        (TypeError, r"init\['bias_ih'\] must be a number or a function", {"init": {"bias_ih": "zeros"}}),
        (TypeError, "init must be a dict", {"init": [1.0]}),
        (TypeError, "initial must be a dict", {"initial": [1.0]}),
        (TypeError, "recurrent must be a bool, got str", {"recurrent": "no"}),
        (TypeError, "name must be a str, got int", {"name": 3}),
        (ValueError, "params may not be named 'weight_hh'", {"params": ("weight_hh",)}),
    ],
)
def test_wrong_declarations(error, message, options):
    with pytest.raises(error, match=message):
        fused_rnn.cell(**({"gates": 1, "states": ("h",)} | options))(step)


def test_only_functions_are_cells():
    with pytest.raises(TypeError, match="must be a function, got int"):
        fused_rnn.cell(3, gates=1, states=("h",))


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": 0},
        {"input_size": 3.0},
        {"hidden_size": 0},
        {"hidden_size": 3.0},
        {"num_layers": 0},
        {"num_layers": 1.5},
        {"bias": 1},
        {"batch_first": None},
        {"dropout": 1.5},
        {"dropout": True},
        {"dropout": float("nan")},
        {"dropout": "half"},
    ],
    ids=str,
)
def test_wrong_arguments_of_layers_get_torchs_errors(options):
    """Those of the installed version: older ones let some of them pass."""
    results = []
    for make in (nn.GRU, zoo.janet.layer):
        arguments = {"input_size": 4, "hidden_size": 3} | options | ({} if make is nn.GRU else {"compiled": False})
        try:
            make(**arguments)
            results.append(None)
        except (TypeError, ValueError) as error:
            results.append((type(error), str(error)))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "proj_size argument is only supported for LSTM, not janet", {"proj_size": 2}),
        (ValueError, "init names 'forget'", {"init": {"forget": 1.0}}),
        (TypeError, "init must be a dict", {"init": 3}),
    ],
)
def test_wrong_arguments_of_ours(error, message, options):
    with pytest.raises(error, match=message):
        slow(zoo.janet, **({"input_size": 4, "hidden_size": 3} | options))


def test_dropout_of_a_single_layer_warns():
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        slow(zoo.janet, 4, 3, dropout=0.5)


def test_other_dtypes_are_not_compiled():
    with pytest.raises(RuntimeError, match=r"float32, float64, bfloat16 and float16, not for torch\.complex64"):
        zoo.janet.layer(4, 3, dtype=torch.complex64)


def test_wrong_states_of_calls():
    x = torch.randn(STEPS, BATCH, INPUT)
    state = torch.zeros(1, BATCH, HIDDEN)
    with pytest.raises(TypeError, match=r"slstm: hx must be a tuple \(h_0, c_0, n_0, m_0\) of Tensors, got tuple of 2"):
        slow(zoo.slstm, INPUT, HIDDEN)(x, (state, state))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        slow(zoo.janet, INPUT, HIDDEN)(x, state[..., 1:])
    with pytest.raises(RuntimeError, match="input_size"):
        slow(zoo.janet, INPUT, HIDDEN)(x[..., 1:])


def test_a_refused_formula_is_refused_by_its_layer():
    cell = fused_rnn.cell(lambda x, r, h: (x + r).sum(0), gates=2, states=("h",), name="mixing")
    with pytest.raises(ValueError, match=r"mixing: torch\.Tensor\.sum mixes units.*test_layer\.py"):
        slow(cell, 2, 3)


def test_what_cannot_be_done():
    layer = slow(zoo.janet, 4, 3)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script"):
        torch.jit.script(layer)
    with pytest.raises(RuntimeError, match="compiled=False"):
        fused_rnn.freeze(layer)
