"""Streams: the frozen module's bits, states, buffers, and what they refuse."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fused_rnn
from support.modules import F64, LAYERS, every_layer, make_pair, make_states, tensors_of
from support.streams import assert_equal, layer_of

pytestmark = pytest.mark.usefixtures("no_reference")


def as_module(model, x, state):
    """A step of the frozen module: output ``[B, P]`` and states."""
    batch_first = model.batch_first
    output, state = model(x.unsqueeze(1 if batch_first else 0), state)
    return output.squeeze(1 if batch_first else 0), state


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


@torch.no_grad()
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("own_out", [False, True])
def test_a_bound_step_is_a_step(ids, own_out):
    stream = fused_rnn.Stream(layer_of(num_layers=2), batch=2)
    twin = copy.deepcopy(stream)
    x = torch.zeros(2, dtype=torch.int64) if ids else torch.zeros(2, 3)
    out = torch.empty(2, 4) if own_out else None
    run = stream.bind(x, out)
    for _ in range(3):
        x.copy_(torch.randint(3, (2,)) if ids else torch.randn(2, 3))
        found = run()
        assert torch.equal(found, twin.step(x))
        assert found is (out if own_out else stream.step(x)), "a buffer that is not the one given"
        twin.state = stream.state


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
