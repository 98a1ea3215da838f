"""Streams: the frozen module's bits, states, buffers, and what they refuse."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn
from support.modules import F64, LAYERS, every_layer, make_pair, make_states, tensors_of

pytestmark = pytest.mark.usefixtures("no_reference")


def layer_of(kind="lstm", dtype=torch.float32, **options):
    return make_pair(kind, dtype=dtype, **options)[0].eval()


def as_module(model, x, state):
    """A step of the frozen module: output ``[B, P]`` and states."""
    batch_first = model.batch_first
    output, state = model(x.unsqueeze(1 if batch_first else 0), state)
    return output.squeeze(1 if batch_first else 0), state


def computed(layer):
    return parametrizations.weight_norm(layer, "weight_hh_l0")


def assert_equal(found, expected):
    found, expected = tensors_of(found), tensors_of(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


# ---- the same bits as the module's -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(LAYERS),
    dtype=st.sampled_from([torch.float32, F64, torch.bfloat16, torch.float16]),
    batch=st.sampled_from([1, 2, 17]),
    num_layers=st.sampled_from([1, 3]),
    hidden=st.sampled_from([1, 5, 64]),
    width=st.sampled_from([1, 7, 64]),
    options=st.fixed_dictionaries({"bias": st.booleans(), "batch_first": st.booleans()}),
    of_ids=st.booleans(),
    is_frozen=st.booleans(),
)
def test_a_step_has_the_bits_of_the_frozen_modules(
    kind, dtype, batch, num_layers, hidden, width, options, of_ids, is_frozen, poisoned
):
    if kind == "lstm_projected":
        hidden = max(hidden, 3)
    model = make_pair(kind, width, hidden, dtype=dtype, num_layers=num_layers, **options)[0].eval()
    twin = fused_rnn.freeze(copy.deepcopy(model))
    stream = fused_rnn.Stream(fused_rnn.freeze(model) if is_frozen else model, batch=batch)
    state = make_states(model, batch, dtype)
    stream.state = state
    with torch.no_grad():
        for _ in range(3):
            x = torch.randint(width, (batch,)) if of_ids else torch.randn(batch, width, dtype=dtype)
            expected, state = as_module(twin, x, state)
            assert_equal(stream.step(x), expected)
            assert_equal(stream.state, state)


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
def test_wide_layers_on_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = fused_rnn.freeze(fused_rnn.LSTM(300, 320, 2))
        stream, state = fused_rnn.Stream(model, batch=3), None
        for _ in range(3):
            x = torch.randn(3, 300)
            expected, state = as_module(model, x, state)
            assert_equal((stream.step(x), stream.state), (expected, state))
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_stack_of_different_widths(cell):
    stack = fused_rnn.Stack(cell, 3, [5, 2, 4]).eval()
    stream, frozen = fused_rnn.Stream(stack, batch=2), fused_rnn.freeze(copy.deepcopy(stack))
    state = None
    for _ in range(3):
        x = torch.randn(2, 3)
        output, state = frozen(x[None], state)
        assert_equal((stream.step(x), stream.state), (output[0], state))
    other = fused_rnn.Stream(stack, batch=2)
    other.state = state
    x = torch.randn(2, 3)
    assert_equal(other.step(x), stream.step(x))


# ---- buffers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_output_is_overwritten_by_the_next_step():
    stream = fused_rnn.Stream(layer_of())
    first = stream.step(torch.randn(1, 3))
    kept, second = first.clone(), stream.step(torch.randn(1, 3))
    assert second is first and not torch.equal(kept, second)
    out = torch.empty(1, 4)
    x = torch.randn(1, 3)
    twin = copy.deepcopy(stream)
    assert stream.step(x, out=out) is out
    assert torch.equal(out, twin.step(x)) and torch.equal(second, first)


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_output_may_be_the_next_input(num_layers):
    model = make_pair("gru", 64, 64, dtype=torch.float32, num_layers=num_layers)[0]
    stream, twin = fused_rnn.Stream(model, batch=2), fused_rnn.Stream(model, batch=2)
    x = torch.randn(2, 64)
    found = stream.step(x)
    expected = twin.step(x).clone()
    for _ in range(3):
        found, expected = stream.step(found), twin.step(expected.clone()).clone()
        assert torch.equal(found, expected)
    in_place = expected.clone()
    assert torch.equal(stream.step(in_place, out=in_place), twin.step(expected))


@torch.no_grad()
def test_any_strides():
    stream = fused_rnn.Stream(layer_of(), batch=2)
    twin = copy.deepcopy(stream)
    x = torch.randn(3, 2).t()
    assert torch.equal(stream.step(x), twin.step(x.contiguous()))
    negated = torch._neg_view(torch.randn(2, 3))
    assert torch.equal(stream.step(negated), twin.step(negated.clone()))


def test_results_overwritten_under_autograd_are_noticed():
    stream = fused_rnn.Stream(layer_of().requires_grad_(False))
    head = nn.Linear(4, 1)
    loss = head(stream.step(torch.randn(1, 3))).sum()
    stream.step(torch.randn(1, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- states ----------------------------------------------------------------------------------------------------------


@every_layer
@torch.no_grad()
def test_states_are_copied_in_and_out(kind):
    stream = fused_rnn.Stream(layer_of(kind, num_layers=2), batch=2)
    given = make_states(stream.model, dtype=torch.float32)
    stream.state = given
    found = stream.state
    assert_equal(found, given)
    stream.step(torch.randn(2, 3))
    assert_equal(found, given)
    stream.state = pickle.loads(pickle.dumps(found))
    assert_equal(stream.state, given)
    stream.state = None
    assert not any(state.any() for state in tensors_of(stream.state))


@torch.no_grad()
@pytest.mark.parametrize(
    "rows", [1, [1], (1,), torch.tensor([1]), torch.tensor([False, True, False]), [False, True, False]]
)
def test_reset_zeroes_these_rows(rows):
    stream = fused_rnn.Stream(layer_of(num_layers=2), batch=3)
    stream.state = given = make_states(stream.model, 3, torch.float32)
    stream.reset(rows)
    for found, before in zip(stream.state, given, strict=True):
        assert not found[:, 1].any() and torch.equal(found[:, [0, 2]], before[:, [0, 2]])
    stream.reset([])
    stream.reset()
    assert not any(state.any() for state in stream.state)


@torch.inference_mode()
def test_a_stream_made_in_inference_mode_works_outside():
    stream = fused_rnn.Stream(layer_of())
    with torch.inference_mode(False), torch.no_grad():
        stream.step(torch.randn(1, 3))
        stream.reset(0)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_copies(copied, is_frozen):
    model = layer_of()
    stream = fused_rnn.Stream(fused_rnn.freeze(model) if is_frozen else model, batch=2)
    stream.step(torch.randn(2, 3))
    other, x = copied(stream), torch.randn(2, 3)
    assert (other.model is model) == (copied is copy.copy) and other.batch == 2
    expected = stream.step(x).clone()
    assert torch.equal(other.step(x), expected)
    assert_equal(other.state, stream.state)
    stream.reset()
    assert all(state.any() for state in other.state)


def test_the_model_stays_as_it_is():
    model = layer_of()
    fused_rnn.Stream(model)
    model(torch.randn(5, 2, 3))[0].sum().backward()
    assert model.weight_ih_l0.grad is not None


@torch.no_grad()
def test_threads_with_a_stream_each():
    model, x = fused_rnn.freeze(layer_of()), torch.randn(50, 1, 3)
    expected = model(x)[0]
    wrong = []

    def run():
        stream = fused_rnn.Stream(model)
        with torch.no_grad():
            if not all(torch.equal(stream.step(x_t), y_t) for x_t, y_t in zip(x, expected, strict=True)):
                wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_repr():
    assert repr(fused_rnn.Stream(layer_of(), batch=2)) == "fused_rnn.Stream(fused_rnn.LSTM(3, 4), batch=2)"


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fused_rnn.Stream(nn.LSTM(3, 4)), TypeError, r"must be a fused_rnn\.LSTM.*got LSTM; fused_rnn\.swap"),
        (lambda: fused_rnn.Stream(nn.Sequential(layer_of())), TypeError, "got Sequential"),
        (lambda: fused_rnn.Stream(fused_rnn.LSTMCell(3, 4)), TypeError, "got LSTMCell"),
        (lambda: fused_rnn.Stream(3), TypeError, "got int"),
        (lambda: fused_rnn.Stream(layer_of(bidirectional=True)), ValueError, "bidirectional"),
        (
            lambda: fused_rnn.Stream(fused_rnn.Stack("gru", 3, [3], skip="residual")),
            NotImplementedError,
            "skip='residual'",
        ),
        (
            lambda: fused_rnn.Stream(fused_rnn.GRU(3, 4, device="meta")),
            RuntimeError,
            "on cpu, but the model is on meta",
        ),
        (
            lambda: fused_rnn.Stream(parametrizations.weight_norm(layer_of(), "weight_hh_l0")),
            RuntimeError,
            "parametrized",
        ),
        (lambda: fused_rnn.Stream(layer_of(), batch=0), ValueError, "at least 1, got 0"),
        (lambda: fused_rnn.Stream(layer_of(), batch=2.0), TypeError, "must be an int, got float"),
        (lambda: fused_rnn.Stream(layer_of(), batch=True), TypeError, "must be an int, got bool"),
    ],
)
def test_models_that_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Sub(torch.Tensor):
    pass


@torch.no_grad()
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0] * 3] * 2, TypeError, "x must be a Tensor, got list"),
        (torch.zeros(2, 3).as_subclass(Sub), TypeError, "plain tensor, got a Sub"),
        (torch.zeros(2, 3, device="meta"), RuntimeError, "x must be on cpu, got meta"),
        (torch.zeros(2, 4), RuntimeError, r"x must be \[2, 3\], got \[2, 4\]"),
        (torch.zeros(1, 2, 3), RuntimeError, r"x must be \[2, 3\], got \[1, 2, 3\]"),
        (torch.zeros(2, 3, dtype=F64), ValueError, r"x dtype \(torch.float64\) does not match weight dtype"),
        (torch.zeros(2, dtype=torch.int32), ValueError, "ids are torch.int64"),
        (torch.zeros(2, 3, dtype=torch.long), RuntimeError, r"x must be \[2\] for ids, got \[2, 3\]"),
        (torch.tensor([0, 3]), RuntimeError, r"ids must lie between 0 and 2, .*got 3 in row 1"),
        (torch.tensor([-1, 0]), RuntimeError, "got -1 in row 0"),
    ],
)
def test_inputs_that_are_refused(x, error, message):
    stream = fused_rnn.Stream(layer_of(), batch=2)
    stream.state = given = make_states(stream.model, dtype=torch.float32)
    with pytest.raises(error, match=message):
        stream.step(x)
    assert_equal(stream.state, given)


@torch.no_grad()
@pytest.mark.parametrize(
    ("out", "error"),
    [
        ([0.0], TypeError),
        (torch.empty(2, 3), RuntimeError),
        (torch.empty(2, 4, dtype=F64), RuntimeError),
        (torch.empty(4, 2).t(), RuntimeError),
        (torch.empty(2, 4, device="meta"), RuntimeError),
    ],
)
def test_outputs_that_are_refused(out, error):
    with pytest.raises(error, match="out must be"):
        fused_rnn.Stream(layer_of(), batch=2).step(torch.zeros(2, 3), out=out)


@torch.no_grad()
def test_states_and_rows_that_are_refused():
    stream = fused_rnn.Stream(layer_of(), batch=2)
    h = torch.zeros(1, 2, 4)
    for state, error, message in (
        (h, TypeError, r"hx must be a tuple \(h_0, c_0\)"),
        ((h, h[0]), RuntimeError, r"Expected hidden\[1\] size \[1, 2, 4\], got \[2, 4\]"),
        ((h.double(), h), RuntimeError, "hx dtype"),
    ):
        with pytest.raises(error, match=message):
            stream.state = state
    with pytest.raises(TypeError, match="a tuple of 2 states"):
        fused_rnn.Stream(fused_rnn.Stack("gru", 3, [4, 4])).state = h
    for rows, error, message in (
        (2, IndexError, r"rows must lie between 0 and 1, got \[2\]"),
        ([-1], IndexError, "between 0 and 1"),
        ([0.0], TypeError, "rows must be"),
        ([[0]], TypeError, "rows must be"),
        ([True], RuntimeError, r"a mask of rows must be \[2\], got \[1\]"),
    ):
        with pytest.raises(error, match=message):
            stream.reset(rows)


def test_gradients_are_refused():
    stream = fused_rnn.Stream(layer_of())
    with pytest.raises(RuntimeError, match="a Stream has no gradients"):
        stream.step(torch.randn(1, 3))
    stream.model.requires_grad_(False)
    stream.step(torch.randn(1, 3))
    with pytest.raises(RuntimeError, match="a Stream has no gradients"):
        stream.step(torch.randn(1, 3, requires_grad=True))
    with pytest.raises(RuntimeError, match="a Stream has no gradients"):
        stream.step(torch.randn(1, 3), out=torch.empty(1, 4, requires_grad=True))


def replaced(layer):
    layer.weight_ih_l0 = nn.Parameter(torch.zeros_like(layer.weight_ih_l0))


def replaced_memory(layer):
    layer.weight_ih_l0.data = torch.zeros_like(layer.weight_ih_l0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced, "was replaced; make another Stream"),
        (replaced_memory, "was replaced"),
        (lambda layer: layer.bias_hh_l1.add_(1), "was changed in place"),
        (lambda layer: layer.double(), "was replaced"),
        (computed, "was replaced"),
    ],
)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_changed_weights_are_refused(change, message, is_frozen):
    model = layer_of(num_layers=2)
    stream = fused_rnn.Stream(fused_rnn.freeze(model) if is_frozen else model)
    stream.step(torch.randn(1, 3))
    change(model)
    with pytest.raises(RuntimeError, match=message):
        stream.step(torch.randn(1, 3))
    assert fused_rnn.Stream(layer_of(num_layers=2)).step(torch.randn(1, 3)).isfinite().all()


@torch.no_grad()
def test_freed_input():
    x = torch.randn(1, 3)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage was freed"):
        fused_rnn.Stream(layer_of()).step(x)
