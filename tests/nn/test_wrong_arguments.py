"""Wrong arguments of forward fail as they do in torch.nn, or with a clearer message."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import functional
from support.modules import (
    DEEP,
    F64,
    assert_same_error,
    error_of,
    every_cell,
    every_kind,
    every_layer,
    has_two_states,
    make_input,
    make_packed,
    make_pair,
    make_states,
    tensors_of,
)

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


def cut(states, dim, size):
    narrowed = [state.narrow(dim, 0, size) for state in tensors_of(states)]
    return tuple(narrowed) if isinstance(states, tuple) else narrowed[0]


WRONG_FOR_LAYERS = {
    "input of 0 dimensions": lambda m: (torch.tensor(1.0, dtype=F64),),
    "input of 1 dimension": lambda m: (torch.ones(3, dtype=F64),),
    "input of 4 dimensions": lambda m: (torch.ones(1, 5, 2, 3, dtype=F64),),
    "float32 input": lambda m: (make_input(m, dtype=torch.float32),),
    "integer input": lambda m: (make_input(m).long(),),
    "float32 input, unbatched": lambda m: (make_input(m, batch=None, dtype=torch.float32),),
    "input size": lambda m: (make_input(m)[..., :2],),
    "input size, unbatched": lambda m: (make_input(m, batch=None)[..., :2],),
    "batch of hx": lambda m: (make_input(m), make_states(m, 3)),
    "layers of hx": lambda m: (make_input(m), cut(make_states(m), 0, 3)),
    "width of hx": lambda m: (make_input(m), cut(make_states(m), 2, 1)),
    "layers of hx, unbatched": lambda m: (make_input(m, batch=None), cut(make_states(m, None), 0, 3)),
    "dimensions of hx": lambda m: (make_input(m), make_states(m, None)),
    "dimensions of hx, unbatched": lambda m: (make_input(m, batch=None), make_states(m)),
    "no steps": lambda m: (make_input(m, steps=0),),
    "no steps, unbatched": lambda m: (make_input(m, steps=0, batch=None),),
    "no steps, no rows": lambda m: (make_input(m, steps=0, batch=0), make_states(m, 0)),
}
WRONG_FOR_LSTM = {
    "width of c": lambda m: (make_input(m), (make_states(m)[0], make_states(m)[1][..., :1])),
    "dimensions of c": lambda m: (make_input(m), (make_states(m)[0], make_states(m, None)[1])),
    "dimensions of h": lambda m: (make_input(m), (make_states(m, None)[0], make_states(m)[1])),
    "batch of c": lambda m: (make_input(m), (make_states(m)[0], make_states(m, 3)[1])),
}


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("wrong", WRONG_FOR_LAYERS)
def test_layers_refuse_what_torch_refuses(kind, batch_first, wrong):
    ours, theirs = make_pair(kind, **DEEP, batch_first=batch_first)
    assert_same_error(ours, theirs, *WRONG_FOR_LAYERS[wrong](theirs))


@pytest.mark.parametrize("wrong", [*WRONG_FOR_LSTM, "width of hx"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_lstm_refuses_what_torch_refuses(proj_size, wrong):
    ours, theirs = make_pair("lstm", proj_size=proj_size)
    assert_same_error(ours, theirs, *{**WRONG_FOR_LAYERS, **WRONG_FOR_LSTM}[wrong](theirs))


@every_layer
@pytest.mark.parametrize("wrong", ["input size", "float32 input", "batch of hx", "layers of hx", "width of hx"])
def test_packed_input_raises_the_errors_of_padded_input(kind, wrong):
    ours, theirs = make_pair(kind, **DEEP)
    input, *hx = WRONG_FOR_LAYERS[wrong](theirs)
    for enforce_sorted in (False, True):
        packed = pack_padded_sequence(input, torch.tensor([5, 3]), enforce_sorted=enforce_sorted)
        found, expected = error_of(ours, packed, *hx), error_of(theirs, input, *hx)
        assert (type(found), str(found)) == (type(expected), str(expected))


WRONG_FOR_CELLS = {
    "input of 0 dimensions": lambda m: (torch.tensor(1.0, dtype=F64),),
    "input of 3 dimensions": lambda m: (torch.ones(1, 2, 3, dtype=F64),),
    "input size": lambda m: (make_input(m)[..., :2],),
    "input size, unbatched": lambda m: (make_input(m, batch=None)[..., :2], make_states(m, None)),
    "batch of hx": lambda m: (make_input(m), make_states(m, 3)),
    "width of hx": lambda m: (make_input(m), cut(make_states(m), 1, 3)),
    "width of hx, unbatched": lambda m: (make_input(m, batch=None), cut(make_states(m, None), 0, 3)),
    "hx of 0 dimensions": lambda m: (make_input(m), broadcast_states(m, ())),
    "hx of 3 dimensions": lambda m: (make_input(m), broadcast_states(m, (1, 2, 4))),
}


def broadcast_states(module, shape):
    state = torch.ones(shape, dtype=F64)
    return (state, state) if has_two_states(module) else state


@every_cell
@pytest.mark.parametrize("wrong", WRONG_FOR_CELLS)
def test_cells_refuse_what_torch_refuses(kind, wrong):
    ours, theirs = make_pair(kind)
    assert_same_error(ours, theirs, *WRONG_FOR_CELLS[wrong](theirs))


@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (1, 2, 4)])
def test_lstm_cell_checks_its_second_state_as_torch_does(shape):
    ours, theirs = make_pair("lstm_cell")
    states = (torch.ones(2, 4, dtype=F64), torch.ones(shape, dtype=F64))
    assert_same_error(ours, theirs, make_input(theirs), states)


def test_rnn_cell_of_unknown_nonlinearity_fails_when_called():
    ours, theirs = (cls(3, 4, nonlinearity="gelu") for cls in (fused_rnn.RNNCell, nn.RNNCell))
    assert_same_error(ours, theirs, torch.ones(2, 3))


# Where torch.nn raises an internal error, ours names the argument.
@pytest.mark.parametrize(
    ("kind", "arguments", "exception", "message"),
    [
        ("lstm", lambda m: ([[1.0]],), TypeError, "LSTM: input must be a Tensor or a PackedSequence, got list"),
        ("gru_cell", lambda m: (3,), TypeError, "GRUCell: input must be a Tensor"),
        ("gru", lambda m: (make_input(m), (make_states(m),)), TypeError, "GRU: hx must be a Tensor, got tuple"),
        ("rnn_tanh", lambda m: (make_input(m), 0), TypeError, "RNN: hx must be a Tensor, got int"),
        ("lstm", lambda m: (make_input(m), make_states(m)[0]), TypeError, r"hx must be a tuple \(h_0, c_0\)"),
        ("lstm", lambda m: (make_input(m), (make_states(m)[0],) * 3), TypeError, "got tuple of 3"),
        ("lstm", lambda m: (make_input(m), (make_states(m)[0], None)), TypeError, "hx must be a tuple"),
        ("lstm_cell", lambda m: (make_input(m), make_states(m)[0]), TypeError, "LSTMCell: hx must be a tuple"),
        (
            "gru",
            lambda m: (make_input(m), make_states(m).float()),
            RuntimeError,
            r"hx dtype \(torch.float32\) does not match weight dtype \(torch.float64\)",
        ),
        ("gru_cell", lambda m: (make_input(m).float(),), RuntimeError, "Convert input: input.to"),
        ("gru_cell", lambda m: (make_input(m), make_states(m).half()), RuntimeError, "hx dtype"),
        ("gru_cell", lambda m: (make_input(m), make_states(m, None)), RuntimeError, "should also be 2-D but got 1-D"),
        ("lstm", lambda m: (make_input(m).to("meta"),), RuntimeError, "not on the same device: meta and cpu"),
        ("gru", lambda m: (make_input(m), make_states(m).to("meta")), RuntimeError, "Input and hx are not on"),
        ("rnn_relu_cell", lambda m: (make_input(m).to("meta"),), RuntimeError, "Input and weights are not on"),
    ],
)
def test_wrong_types_dtypes_and_devices_are_named(kind, arguments, exception, message):
    ours, theirs = make_pair(kind)
    error_of(theirs, *arguments(theirs))  # torch fails as well
    with pytest.raises(exception, match=message):
        ours(*arguments(theirs))


@every_kind
def test_unsupported_dtype_is_named(kind):
    ours, _ = make_pair(kind)
    ours.to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="must be float32, float64, bfloat16 or float16, got Float8_e4m3fn"):
        ours(make_input(ours).to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("device", "exception", "message"),
    [
        ("cuda", RuntimeError, "built without CUDA.*FUSED_RNN_CUDA=1 pip install"),
        ("mps", NotImplementedError, r"runs on cpu and cuda, not on mps.*\.to\('cpu'\)"),
        ("xpu", NotImplementedError, "runs on cpu and cuda, not on xpu"),
    ],
)
def test_unsupported_device_is_named_with_a_remedy(monkeypatch, device, exception, message):
    monkeypatch.setattr(fused_rnn.ops.library, "cuda_archs", list)
    with pytest.raises(exception, match=message):
        fused_rnn.ops.checks.check_device(torch.device(device))


@pytest.mark.parametrize("with_gradients", [True, False])
def test_functions_name_wrong_weights_and_layers(with_gradients):
    """As far as a module cannot have them."""
    scalars = [torch.tensor(1.0)] * 4
    with torch.set_grad_enabled(with_gradients):
        for num_layers in (0, -1):
            with pytest.raises(ValueError, match="num_layers must be greater than zero"):
                functional.lstm(torch.ones(5, 2, 3), None, [], num_layers=num_layers)
        with pytest.raises(RuntimeError, match=r"LSTM: weights\[0\] \(weight_ih\) must be 2-D, got \[\]"):
            functional.lstm(torch.ones(5, 2, 3), None, scalars)
        with pytest.raises(RuntimeError, match=r"LSTMCell: weights\[0\] \(weight_ih\) must be 2-D, got \[\]"):
            functional.lstm_cell(torch.ones(2, 3), None, *scalars)
        with pytest.raises(TypeError, match=r"GRUCell: weights\[1\] must be a Tensor, got int"):
            functional.gru_cell(torch.ones(2, 3), None, torch.ones(12, 3), 4)


def mask_of(*shape):
    return torch.zeros(shape, dtype=torch.bool)


@every_layer
@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"lengths": torch.tensor([5.0, 3.0])}, TypeError, "lengths must be integers, got torch.float32"),
        ({"lengths": torch.tensor([True, True])}, TypeError, "lengths must be integers, got torch.bool"),
        ({"lengths": [5, 3, 1]}, ValueError, r"one entry for each of the 2 rows, got shape \[3\]"),
        ({"lengths": torch.tensor(5)}, ValueError, r"got shape \[\]"),
        ({"lengths": torch.tensor([[5, 3]])}, ValueError, r"got shape \[1, 2\]"),
        ({"lengths": [6, 3]}, RuntimeError, "between 0 and the number of steps, 5, got 6 for row 0"),
        ({"lengths": [5, -1]}, RuntimeError, "between 0 and the number of steps, 5, got -1 for row 1"),
        ({"reset_mask": [[True]]}, TypeError, "reset_mask must be a bool tensor, got list"),
        ({"reset_mask": mask_of(5, 2).long()}, TypeError, "must be a bool tensor, got torch.int64"),
        ({"reset_mask": mask_of(2, 5)}, ValueError, r"must be \[T, B\] = \[5, 2\], got \[2, 5\]"),
        ({"reset_mask": mask_of(5)}, ValueError, r"must be \[T, B\] = \[5, 2\], got \[5\]"),
    ],
)
def test_wrong_lengths_and_reset_masks_are_named(kind, options, exception, message):
    ours, _ = make_pair(kind)
    with pytest.raises(exception, match=message):
        ours(make_input(ours), **options)


@every_layer
def test_reset_mask_is_laid_out_as_the_input(kind):
    batch_first, _ = make_pair(kind, batch_first=True)
    with pytest.raises(ValueError, match=r"must be \[B, T\] \(batch_first\) = \[2, 5\], got \[5, 2\]"):
        batch_first(make_input(batch_first), reset_mask=mask_of(5, 2))
    with pytest.raises(ValueError, match=r"must be \[T\] = \[5\], got \[5, 1\]"):
        batch_first(make_input(batch_first, batch=None), reset_mask=mask_of(5, 1))
    with pytest.raises(ValueError, match=r"= \[2, 4\], got \[2, 5\]"):
        batch_first(make_packed([3, 4]), reset_mask=mask_of(2, 5))


@every_layer
def test_packed_input_refuses_lengths(kind):
    ours, _ = make_pair(kind)
    with pytest.raises(ValueError, match="a PackedSequence has its lengths already, so lengths must be None"):
        ours(make_packed([3, 4]), lengths=[3, 4])
