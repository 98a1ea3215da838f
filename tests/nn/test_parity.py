"""Random layers on random sequences against torch.nn with the same weights: all outputs, all gradients."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn.tools.verify import TOLERANCE, relative_error

KINDS = {
    "LSTM": (nn.LSTM, fused_rnn.LSTM, {}),
    "GRU": (nn.GRU, fused_rnn.GRU, {}),
    "RNN tanh": (nn.RNN, fused_rnn.RNN, {"nonlinearity": "tanh"}),
    "RNN relu": (nn.RNN, fused_rnn.RNN, {"nonlinearity": "relu"}),
}
CELLS = {
    "LSTM": (nn.LSTMCell, fused_rnn.LSTMCell, {}),
    "GRU": (nn.GRUCell, fused_rnn.GRUCell, {}),
    "RNN tanh": (nn.RNNCell, fused_rnn.RNNCell, {"nonlinearity": "tanh"}),
    "RNN relu": (nn.RNNCell, fused_rnn.RNNCell, {"nonlinearity": "relu"}),
}
# float64: each result alone; only the order of sums differs. float32: all results together, against torch.nn in
# float64, since a single gradient may be left by cancellation (1 - y * y at y = 0.999, with one unit). 16 bits:
# likewise, with `verify`'s tolerance.
LIMIT = {**TOLERANCE, torch.float64: 1e-11, torch.float32: 1e-5}
# A ReLU's argument that changes sign by rounding changes all later results; `verify` covers ReLU in 16 bits.
DTYPES_OF_RELU = (torch.float64, torch.float32)

layers = st.fixed_dictionaries(
    {
        "input_size": st.integers(1, 20),
        "hidden_size": st.integers(1, 20),
        "num_layers": st.integers(1, 3),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "bidirectional": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.0, 0.3, 1.0]),
        "proj_size": st.integers(0, 19),
    }
)
sequences = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 9),
        "batch": st.integers(0, 9),
        "form": st.sampled_from(["padded", "padded", "unbatched", "packed", "packed unsorted", "lengths"]),
        "states": st.booleans(),
        "contiguous": st.booleans(),
        "training": st.booleans(),
        "dtype": st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float16]),
        "frozen": st.sets(st.integers(0, 30), max_size=8),
        "seed": st.integers(0, 2**31),
    }
)


@pytest.mark.parametrize("kind", KINDS)
@given(layer=layers, sequence=sequences)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_layer_equals_torch(kind, no_reference, layer, sequence):
    theirs_class, ours_class, extra = KINDS[kind]
    layer = dict(layer)
    proj_size = layer.pop("proj_size")
    if kind == "LSTM":
        layer["proj_size"] = min(proj_size, layer["hidden_size"] - 1)
    if kind == "RNN relu" and sequence["dtype"] not in DTYPES_OF_RELU:
        sequence = {**sequence, "dtype": torch.float32}
    if sequence["dtype"] != torch.float64 or sequence["form"] == "lengths":
        layer["dropout"] = 0.0  # torch.nn's twin, in float64 or packed, would draw another mask
    if sequence["form"].startswith("packed") and sequence["batch"] == 0:
        sequence = {**sequence, "batch": 1}  # torch has no empty packed sequence
    torch.manual_seed(sequence["seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout with one layer
        theirs = theirs_class(**layer, **extra, dtype=torch.float64)
        ours = ours_class(**layer, **extra, dtype=sequence["dtype"])
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())  # rounded to ours
    inputs = make_inputs(theirs, layer, sequence)
    expected = run(theirs, inputs, sequence, torch.float64)
    found = run(ours, inputs, sequence, sequence["dtype"])
    assert_close(found, expected, sequence["dtype"])


@pytest.mark.parametrize("kind", CELLS)
@given(
    input_size=st.integers(1, 20),
    hidden_size=st.integers(0, 20),
    bias=st.booleans(),
    batch=st.none() | st.integers(0, 9),
    states=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**31),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cell_equals_torch(kind, no_reference, input_size, hidden_size, bias, batch, states, dtype, seed):
    torch.manual_seed(seed)
    theirs_class, ours_class, extra = CELLS[kind]
    theirs = theirs_class(input_size, hidden_size, bias, **extra, dtype=torch.float64)
    ours = ours_class(input_size, hidden_size, bias, **extra, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    rows = () if batch is None else (batch,)
    tensors = [torch.randn(*rows, input_size, dtype=dtype)]
    if states:
        tensors += [torch.randn(*rows, hidden_size, dtype=dtype) for _ in range(1 + (kind == "LSTM"))]

    def call(cell, to):
        own = [t.to(to).requires_grad_() for t in tensors]
        hx = None if not states else tuple(own[1:]) if kind == "LSTM" else own[1]
        results = cell(own[0], hx)
        results = list(results) if isinstance(results, tuple) else [results]
        return results, own + list(cell.parameters())

    expected = with_gradients(*call(theirs, torch.float64))
    found = with_gradients(*call(ours, dtype))
    assert_close(found, expected, dtype)


# ---- helpers ---------------------------------------------------------------------------------------------------------


def make_inputs(module, layer, sequence):
    """Sequence and states, exactly representable in every dtype."""
    steps, batch = sequence["steps"], sequence["batch"]
    shape = (batch, steps) if layer["batch_first"] else (steps, batch)
    if sequence["form"] == "unbatched":
        shape = (steps,)
    x = torch.randn(*shape, module.input_size)
    if not sequence["contiguous"]:
        x = torch.randn(*shape, 2 * module.input_size)[..., ::2]
    rows = () if sequence["form"] == "unbatched" else (batch,)
    count = layer["num_layers"] * (1 + layer["bidirectional"])
    widths = (module.proj_size or module.hidden_size, module.hidden_size)[: 1 + isinstance(module, nn.LSTM)]
    states = [torch.randn(count, *rows, width) for width in widths] if sequence["states"] else []
    if not sequence["contiguous"] and rows:
        states = [s.transpose(0, 1).contiguous().transpose(0, 1) for s in states]
    lengths = torch.randint(1, steps + 1, (batch,))
    if batch:
        lengths[torch.randint(batch, ())] = steps
    if sequence["form"] == "packed":
        lengths = lengths.sort(descending=True).values
    return x.bfloat16().half(), [s.bfloat16().half() for s in states], lengths


def run(module, inputs, sequence, dtype):
    """Outputs, then gradients of everything that requires them, for output gradients from a fixed seed."""
    x, states, lengths = inputs
    form, batch_first = sequence["form"], module.batch_first
    tensors = [t.detach().to(dtype) for t in (x, *states)] + list(module.parameters())
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i not in sequence["frozen"])
    x, states = tensors[0], tensors[1 : 1 + len(states)]
    hx = None if not states else tuple(states) if isinstance(module, (nn.LSTM, fused_rnn.LSTM)) else states[0]
    module.train(sequence["training"])
    options = {}
    if form.startswith("packed") or (form == "lengths" and len(lengths) and not is_ours(module)):
        x = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=form == "packed")
    elif form == "lengths":
        options = {"lengths": lengths} if is_ours(module) else {}
    torch.manual_seed(1)  # dropout
    output, state = module(x, hx, **options)
    if isinstance(output, PackedSequence):
        if form == "lengths":  # torch.nn has lengths only by packing
            output = nn.utils.rnn.pad_packed_sequence(output, batch_first, total_length=sequence["steps"])[0]
        else:
            assert all(a is b for a, b in zip(output[1:], x[1:], strict=True))
            output = output.data
    results = [output, *(state if isinstance(state, tuple) else (state,))]
    return with_gradients(results, [t for t in tensors if t.requires_grad])


def is_ours(module):
    return type(module).__module__.startswith("fused_rnn")


def with_gradients(results, tensors):
    if not tensors:
        assert not any(r.requires_grad for r in results)
        return results
    seed = torch.Generator().manual_seed(2)
    weights = [torch.randn(r.shape, generator=seed).to(r.dtype) for r in results]
    return [r.detach() for r in results] + list(torch.autograd.grad(results, tensors, weights, allow_unused=True))


def assert_close(found, expected, dtype):
    assert [r is None for r in found] == [r is None for r in expected]
    found, expected = ([r for r in results if r is not None] for results in (found, expected))
    assert [r.shape for r in found] == [r.shape for r in expected]
    if dtype != torch.float64:
        found, expected = ([torch.cat([r.flatten() for r in results])] for results in (found, expected))
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        error = relative_error(ours, theirs)
        assert error <= LIMIT[dtype], f"result {i}: relative error {error:.1e}"
