"""What a stream refuses: models, inputs, states, gradients, and weights that changed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn
from support.modules import F64, make_states
from support.streams import assert_equal, layer_of


def computed(layer):
    return parametrizations.weight_norm(layer, "weight_hh_l0")


def test_a_bound_step_refuses_what_a_step_does():
    stream = fused_rnn.Stream(layer_of(), batch=2)
    x = torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="a Stream has no gradients"):
        stream.bind(x)
    with torch.no_grad():
        run = stream.bind(x)
    with pytest.raises(RuntimeError, match="a Stream has no gradients"):
        run()
    with torch.no_grad():
        for wrong, error, message in (
            (torch.randn(3, 2).t(), ValueError, "must be contiguous"),
            (torch._neg_view(torch.randn(2, 3)), ValueError, "must be contiguous"),
            (torch.randn(3, 3), RuntimeError, r"must be \[2, 3\]"),
            (torch.randn(2, 3, dtype=torch.float64), ValueError, "does not match weight dtype"),
        ):
            with pytest.raises(error, match=message):
                stream.bind(wrong)
        with pytest.raises(RuntimeError, match="out must be"):
            stream.bind(x, torch.empty(2, 5))
        x.data = torch.randn(2, 3)
        with pytest.raises(RuntimeError, match="bind it again"):
            run()
        run = stream.bind(x)
        x.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="bind it again"):
            run()
        square = torch.randn(4, 4)
        run = fused_rnn.Stream(fused_rnn.GRU(4, 4), batch=4).bind(square)
        square.t_()
        with pytest.raises(RuntimeError, match="bind it again"):
            run()
        x = torch.randn(2, 3)
        run = stream.bind(x)
        x.resize_(1, 3)
        with pytest.raises(RuntimeError, match="bind it again"):
            run()
        x = torch.randn(2, 3)
        run = stream.bind(x)
        x.data = torch._neg_view(x.data)
        with pytest.raises(RuntimeError, match="bind it again"):
            run()
        run = stream.bind(torch.randn(2, 3))
        stream.model.weight_ih_l0.add_(1)
        with pytest.raises(RuntimeError, match="was changed in place"):
            run()


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
def test_changed_weights_of_one_number_are_refused():
    """Tensors of one number can be compared, so equal ones must not pass for the same."""
    for change in (
        lambda layer: setattr(layer, "weight_ih_l0", nn.Parameter(layer.weight_ih_l0.clone())),
        lambda layer: layer.bias_ih_l0.mul_(1),
    ):
        stream = fused_rnn.Stream(fused_rnn.RNN(1, 1))
        stream.step(torch.randn(1, 1))
        change(stream.model)
        with pytest.raises(RuntimeError, match=r"was (replaced|changed in place)"):
            stream.step(torch.randn(1, 1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "message"), [(replaced_memory, "replaced"), (lambda m: m.weight_hh_l0.add_(1), "changed in place")]
)
def test_weights_changed_between_freezing_and_the_stream_are_refused(change, message):
    model = fused_rnn.freeze(layer_of())
    change(model)
    with pytest.raises(RuntimeError, match=message):
        fused_rnn.Stream(model)


@torch.no_grad()
def test_freed_input():
    x = torch.randn(1, 3)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage was freed"):
        fused_rnn.Stream(layer_of()).step(x)
