"""Layers and cells with weights of 8 bits against the same arithmetic in plain torch (support/quantized.py)."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fused_rnn
from fused_rnn.tools.verify import relative_error
from support import quantized
from support.modules import (
    DEEP,
    every_cell,
    every_layer,
    make_input,
    make_packed,
    make_pair,
    make_states,
    tensors_of,
)

pytestmark = pytest.mark.usefixtures("no_reference")
F32 = torch.float32
FORMATS = ("int8", "int8-weights-only")
# Of float32's roundings alone: one integer that differed would be an error of about 1e-3.
LIMIT = 1e-5
every_format = pytest.mark.parametrize("weights", FORMATS)


def float_layer(kind, *sizes, **options):
    return make_pair(kind, *sizes, dtype=F32, **options)[0].eval()


def errors(found, expected):
    """The largest error of any result, relative to its norm; infinite if shapes differ."""
    found = tensors_of(found)
    assert [tuple(t.shape) for t in found] == [tuple(t.shape) for t in expected]
    assert all(t.dtype == F32 for t in found)
    return max((relative_error(one, other) for one, other in zip(found, expected, strict=True)), default=0.0)


@torch.no_grad()
def assert_like_reference(make, weights):
    """``make()``: a float layer, arguments and options; until all roundings are decided, so that every error counts."""
    for _ in range(60):
        layer, args, options = make()
        run = quantized.run_cell if hasattr(layer, "weight_ih") else quantized.run_layers
        expected, is_decided = run(layer, *args, weights=weights, **options)
        if is_decided:
            break
    else:
        raise AssertionError("some rounding was close to a tie, each time")
    is_lstm_layer = getattr(layer, "mode", "") == "LSTM"
    cells = {"return_cells": True} if is_lstm_layer and len(expected) == 4 else {}
    found = fused_rnn.freeze(layer, weights=weights)(*args, **options, **cells)
    assert errors(found, expected) <= LIMIT
    if cells:
        assert errors(layer(*args, **options), expected[:3]) <= LIMIT


def cases(kind):
    """Layouts and options of a layer's call, by name: functions of no arguments."""
    states = lambda layer, batch=3: make_states(layer, batch=batch, dtype=F32)  # noqa: E731
    input = lambda layer, steps=5, batch=3: make_input(layer, steps, batch, F32)  # noqa: E731

    def case(arguments, *sizes, **options):
        def make():
            layer = float_layer(kind, *(sizes or (5, 6)), **options)
            args, masks = arguments(layer)
            return layer, args, masks

        return make

    return {
        "plain": case(lambda layer: ((input(layer),), {})),
        "states": case(lambda layer: ((input(layer), states(layer)), {})),
        "no bias": case(lambda layer: ((input(layer), states(layer)), {}), bias=False),
        "deep": case(lambda layer: ((input(layer), states(layer)), {}), **DEEP),
        "batch first": case(lambda layer: ((input(layer), states(layer)), {}), batch_first=True),
        "unbatched": case(lambda layer: ((input(layer, batch=None), states(layer, None)), {})),
        "one step": case(lambda layer: ((input(layer, 1), states(layer)), {})),
        "one row": case(lambda layer: ((input(layer, 4, 1), states(layer, 1)), {})),
        "one step of one row": case(lambda layer: ((input(layer, 1, 1), states(layer, 1)), {}), num_layers=2),
        "one unit": case(lambda layer: ((input(layer),), {}), 1, 3),
        "wide": case(lambda layer: ((input(layer, 2, 2), states(layer, 2)), {}), 70, 37),
        "many rows": case(lambda layer: ((input(layer, 2, 29), states(layer, 29)), {}), 5, 17),
        "lengths": case(
            lambda layer: ((input(layer), states(layer)), {"lengths": torch.tensor([3, 5, 1])}), bidirectional=True
        ),
        "length 0": case(lambda layer: ((input(layer), states(layer)), {"lengths": torch.tensor([0, 5, 2])})),
        "reset": case(
            lambda layer: ((input(layer), states(layer)), {"reset_mask": torch.rand(5, 3) < 0.3}), bidirectional=True
        ),
        "both masks": case(
            lambda layer: (
                (input(layer), states(layer)),
                {"lengths": torch.tensor([3, 5, 1]), "reset_mask": torch.rand(5, 3) < 0.4},
            ),
            **DEEP,
        ),
        "packed": case(lambda layer: ((make_packed([4, 1, 5], 5, dtype=F32), states(layer)), {}), **DEEP),
        "ids": case(lambda layer: ((torch.randint(5, (4, 3)), states(layer)), {}), **DEEP),
        "ids of a large vocabulary": case(lambda layer: ((torch.randint(300, (4, 3)), states(layer)), {}), 300, 6),
        "transposed input": case(lambda layer: ((input(layer).transpose(0, 1), states(layer, 5)), {})),
        "every other number": case(lambda layer: ((torch.randn(5, 3, 10)[..., ::2], states(layer)), {})),
    }


@every_format
@pytest.mark.parametrize("case", cases("lstm"))
@every_layer
def test_layers(kind, case, weights):
    assert_like_reference(cases(kind)[case], weights)


@every_format
@pytest.mark.parametrize(("batch", "with_states"), [(None, True), (1, True), (3, False), (3, True)])
@every_cell
def test_cells(kind, batch, with_states, weights):
    def make():
        cell = float_layer(kind, 5, 6)
        hx = (make_states(cell, batch, F32),) if with_states else ()
        return cell, (make_input(cell, batch=batch, dtype=F32), *hx), {}

    assert_like_reference(make, weights)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"]),
    weights=st.sampled_from(FORMATS),
    steps=st.integers(1, 4),
    batch=st.integers(1, 9),
    input_size=st.integers(1, 40),
    hidden=st.integers(1, 40),
    options=st.fixed_dictionaries({"bias": st.booleans(), "bidirectional": st.booleans()}),
    width=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_sizes(kind, weights, steps, batch, input_size, hidden, options, width, seed):
    torch.manual_seed(seed)
    if kind == "lstm" and 0 < width < hidden:
        options = options | {"proj_size": width}
    layer = float_layer(kind, input_size, hidden, **options)
    input, states = make_input(layer, steps, batch, F32), make_states(layer, batch, F32)
    expected, is_decided = quantized.run_layers(layer, input, states, weights=weights)
    assume(is_decided)
    found = tensors_of(fused_rnn.freeze(layer, weights=weights)(input, states))
    assert errors(found, expected[: len(found)]) <= LIMIT


@every_format
@every_layer
@torch.no_grad()
def test_empty_batch(kind, weights):
    layer = float_layer(kind, **DEEP)
    expected = tensors_of(layer(torch.randn(5, 0, 3)))
    found = tensors_of(fused_rnn.freeze(layer, weights=weights)(torch.randn(5, 0, 3)))
    assert [t.shape for t in found] == [t.shape for t in expected]


# ---- the same bits ---------------------------------------------------------------------------------------------------


def large_layers():
    for kind in ("lstm", "gru", "rnn_tanh"):
        yield kind, (20, 47), {"num_layers": 2, "bidirectional": True}, 7
        yield kind, (20, 150 if kind == "lstm" else 520), {}, 1  # a team of threads, each with some of the units
    yield "lstm_projected", (20, 200), {"proj_size": 131}, 2


@every_format
@pytest.mark.parametrize(("kind", "sizes", "options", "batch"), list(large_layers()), ids=str)
@torch.no_grad()
def test_threads_and_pieces_give_the_same_bits(kind, sizes, options, batch, weights, poisoned):
    layer = fused_rnn.freeze(float_layer(kind, *sizes, **options), weights=weights)
    input, states = make_input(layer, 40, batch, F32), make_states(layer, batch, F32)
    torch.set_num_threads(1)
    expected = tensors_of(layer(input, states))
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, tensors_of(layer(input, states)), expected))
    if layer.bidirectional:
        return
    outputs = []
    # A float sum of a single row has an order of its own; those of integers are exact.
    for piece in input.split([1, 13, 26] if weights == "int8" else [2, 13, 25]):
        output, states = layer(piece, states)
        outputs.append(output)
    assert all(map(torch.equal, tensors_of((torch.cat(outputs), states)), expected))


@every_format
@every_layer
@torch.no_grad()
def test_a_row_has_the_same_bits_in_any_batch(kind, weights):
    options = {"proj_size": 11} if kind == "lstm_projected" else {}
    layer = fused_rnn.freeze(float_layer(kind, 21, 19, **options), weights=weights)
    input = make_input(layer, 4, 30, F32)
    expected = layer(input)[0]
    order = torch.randperm(30)
    assert torch.equal(layer(input[:, order])[0], expected[:, order])
    for first, last in ((0, 2), (2, 15), (15, 30)):
        assert torch.equal(layer(input[:, first:last])[0], expected[:, first:last])
    louder = input.clone()
    louder[:, 3] *= 1e4
    others = [row for row in range(30) if row != 3]
    assert torch.equal(layer(louder)[0][:, others], expected[:, others])


# ---- extremes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "w"), [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("size", [2, 33, 1000])
@torch.no_grad()
def test_sums_of_the_largest_integers_do_not_saturate(size, x, w):
    """Every product is 127 * 127: pairs of them, of which one is unsigned, would exceed 16 bits."""
    layer = fused_rnn.RNN(size, 5, nonlinearity="relu", bias=False)
    for weight in layer.parameters():
        weight.fill_(w)
    fused_rnn.freeze(layer, weights="int8")
    h0 = torch.full((1, 3, 5), x)
    output = layer(torch.full((1, 3, size), x), h0)[0]
    torch.testing.assert_close(output, torch.full((1, 3, 5), max(0.0, x * w * (size + 5))))


@torch.no_grad()
def test_mixed_signs_of_the_largest_integers():
    layer = fused_rnn.RNN(64, 48, nonlinearity="relu", bias=False)
    for weight in layer.parameters():
        weight.copy_(torch.where(torch.rand_like(weight) < 0.5, 3.0, -3.0))
    input, h0 = (torch.where(torch.rand(shape) < 0.9, 1.0, -1.0) for shape in ((1, 6, 64), (1, 6, 48)))
    expected = layer(input, h0)[0]
    torch.testing.assert_close(fused_rnn.freeze(layer, weights="int8")(input, h0)[0], expected)


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-20, 1e20, 1e30])
@every_format
@torch.no_grad()
def test_inputs_and_weights_of_any_size(weights, size):
    """What is tiny may become 0, and nothing becomes anything else."""
    layer = fused_rnn.RNN(8, 5, nonlinearity="relu", bias=False)
    input = torch.randn(3, 4, 8)
    expected = layer(input)[0]
    limit = 0.05 * expected.abs().max()
    fused_rnn.freeze(layer, weights=weights)
    found = layer(input * size)[0] / size
    small = size < 1e-37
    assert (found - expected).abs().max() <= (expected.abs().max() if small else limit)
    fused_rnn.thaw(layer)
    if size < 1e20:
        layer.weight_ih_l0.mul_(size)
        fused_rnn.freeze(layer, weights=weights)
        found = layer(input)[0]
        assert (found / size - expected).abs().max() <= (2 * expected.abs().max() if small else limit)


@every_layer
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@every_format
@torch.no_grad()
def test_a_row_with_nan_or_infinity_has_nan_alone(kind, wrong, weights):
    options = {"proj_size": 2} if kind == "lstm_projected" else {}
    layer = fused_rnn.freeze(float_layer(kind, 5, 6, **options), weights=weights)
    input = torch.randn(6, 4, 5)
    expected = layer(input)[0]
    input[2, 1, 3] = wrong
    found = layer(input)[0]
    assert torch.equal(found[:, [0, 2, 3]], expected[:, [0, 2, 3]]) and torch.equal(found[:2], expected[:2])
    if weights == "int8" or wrong != wrong:
        assert found[2:, 1].isnan().all()
    else:  # as in float32: an infinite gate may be a number
        twin = fused_rnn.thaw(layer)(input)[0]
        assert torch.equal(found.isnan(), twin.isnan())


@every_cell
@torch.no_grad()
def test_a_state_with_nan_gives_nan(kind):
    cell = fused_rnn.freeze(float_layer(kind, 5, 6), weights="int8")
    states = make_states(cell, 3, F32)
    (states[0] if isinstance(states, tuple) else states)[1, 2] = torch.nan
    found = tensors_of(cell(torch.randn(3, 5), states))
    assert all(t[1].isnan().all() and not t[[0, 2]].isnan().any() for t in found)
