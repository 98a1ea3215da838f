"""torch.compile: one operator per layer, one graph for any T and B, the results of eager calls."""

from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import fused_rnn
from fused_rnn import functional
from support.compiled import Compiled
from support.modules import CELLS, DEEP, as_leaves, make_input, make_packed, make_pair, make_states, tensors_of

pytestmark = [
    # torch.compile instantiates autograd functions itself, against torch's own advice.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.usefixtures("no_reference", "forgetful"),
]


def outputs_and_gradients(call, weights, *args, **options):
    args = as_leaves(args)
    outputs = tensors_of(call(*args, **options))
    loss = sum(output.square().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, [*tensors_of(args), *weights])]


def assert_same(compiled, call, weights, *args, **options):
    found, expected = (outputs_and_gradients(c, weights, *args, **options) for c in (compiled, call))
    torch.testing.assert_close(found, expected)


def assert_same_without_gradients(compiled, call, *args, **options):
    """Without gradients an eager call takes the fast path, a compiled one does not."""
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(compiled(*args, **options)), tensors_of(call(*args, **options)))


class Tagger(nn.Module):
    """A layer between others, called with every option."""

    def __init__(self, kind):
        super().__init__()
        self.enter = nn.Linear(4, 3)
        self.rnn = getattr(fused_rnn, kind)(3, 5, **DEEP)
        self.leave = nn.Linear(10, 2)

    def forward(self, x, lengths, reset_mask):
        output, state = self.rnn(self.enter(x), lengths=lengths, reset_mask=reset_mask)
        return self.leave(output), state


@pytest.mark.parametrize(
    ("kind", "dynamic", "graphs"),
    [("LSTM", True, 1), ("LSTM", None, 2), ("GRU", None, 2), ("RNN", None, 2)],
)
def test_one_graph_for_any_sizes(kind, dynamic, graphs):
    """Without ``dynamic``, torch.compile learns from the second call that sizes change."""
    model = Tagger(kind)
    compiled = Compiled(model, dynamic=dynamic)
    sizes = [(7, 3), (5, 4), (9, 2), (4, 6)]
    calls = []
    for steps, batch in sizes:
        masks = {"lengths": torch.randint(1, steps + 1, (batch,)), "reset_mask": torch.rand(steps, batch) < 0.2}
        calls.append((torch.randn(steps, batch, 4), masks))
    for input, masks in calls:
        assert_same(compiled, model, list(model.parameters()), input, **masks)
    assert compiled.graphs == graphs
    for input, masks in calls[1:]:
        assert_same_without_gradients(compiled, model, input, **masks)
    assert compiled.graphs == graphs + 1


@pytest.mark.parametrize(
    ("enforce_sorted", "states", "resets"),
    [(True, False, False), (True, True, False), (True, False, True), (False, False, False), (False, True, True)],
)
def test_packed_input_in_and_out(enforce_sorted, states, resets):
    layer, _ = make_pair("lstm", bidirectional=True)
    compiled = Compiled(layer)
    for lengths in ([5, 3, 2], [4, 4, 4, 1], [7, 1]):
        packed = make_packed(lengths, enforce_sorted=enforce_sorted)
        hx = make_states(layer, len(lengths)) if states else None
        masks = {"reset_mask": torch.rand(max(lengths), len(lengths)) < 0.2} if resets else {}
        assert_same(compiled, layer, list(layer.parameters()), packed, hx, **masks)
    assert compiled.graphs == 2, "one graph for the first sizes, one for any"
    found = compiled(packed, hx, **masks)[0]
    assert isinstance(found, nn.utils.rnn.PackedSequence)
    assert all(a is b for a, b in zip(found[1:], packed[1:], strict=True))


def test_states_that_do_not_fit_a_packed_sequence_are_refused():
    """The graph takes the number of rows from the states; the operator checks it."""
    layer, _ = make_pair("gru", **DEEP)
    compiled = Compiled(layer)
    packed = make_packed([5, 3, 2], enforce_sorted=True)
    with pytest.raises(RuntimeError, match=r"h0 must be \[2, 3, 4\], got \[2, 4, 4\]"):
        compiled(packed, make_states(layer, 4))
    with pytest.raises(RuntimeError, match=r"reset_mask must be \[5, 3\], got \[5, 4\]"):
        compiled(packed, reset_mask=torch.zeros(5, 4, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["lstm_projected", "gru"])
def test_no_step_is_unrolled(kind):
    layer, _ = make_pair(kind, **DEEP)
    sizes = []

    def count(graph, inputs):
        sizes[-1].append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    for steps in (3, 300):
        sizes.append([])
        call = torch.compile(layer, backend=aot_autograd(fw_compiler=count, bw_compiler=count), dynamic=False)
        tensors_of(call(make_input(layer, steps)))[0].sum().backward()
    assert len(sizes[0]) == 2, "forward and backward"
    assert sizes[0] == sizes[1]


def under_autocast(layer, dtype, input):
    with torch.autocast("cpu", dtype):
        return layer(input)


def with_weights(layer, weights, input):
    return torch.func.functional_call(layer, weights, (input,))


def edited(layer, input):
    output, state = layer(input)
    return output.mul_(2), state


def other_calls():
    layer, _ = make_pair("lstm", num_layers=2, dtype=torch.float32)
    weights, input = list(layer.parameters()), make_input(layer, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        yield f"autocast {dtype}", partial(under_autocast, layer, dtype), weights, (input,)
    yield "functional_call", partial(with_weights, layer, dict(layer.named_parameters())), weights, (input,)
    yield "edited in place", partial(edited, layer), weights, (input,)
    yield "functional", partial(functional.lstm, weights=weights, num_layers=2), weights, (input, make_states(layer))
    batch_first, _ = make_pair("lstm_projected", batch_first=True)
    weights = list(batch_first.parameters())
    yield "batch first", batch_first, weights, (make_input(batch_first), make_states(batch_first))
    yield "unbatched", batch_first, weights, (make_input(batch_first, batch=None), make_states(batch_first, None))
    for kind in CELLS:
        cell, _ = make_pair(kind)
        for batch in (None, 3):
            yield f"{kind} {batch}", cell, list(cell.parameters()), (make_input(cell, batch=batch),)
    yield f"{kind} with state", cell, list(cell.parameters()), (make_input(cell), make_states(cell))


@pytest.mark.parametrize(("call", "weights", "args"), [pytest.param(*rest, id=name) for name, *rest in other_calls()])
def test_other_calls(call, weights, args):
    args = tuple(torch.utils._pytree.tree_map(lambda t: t.to(weights[0].dtype), args))
    compiled = Compiled(call)
    assert_same(compiled, call, weights, *args)
    assert_same_without_gradients(compiled, call, *args)


def test_dropout_draws_the_same_numbers():
    layer = fused_rnn.LSTM(3, 5, 2, dropout=0.5)
    results, input = [], torch.randn(4, 2, 3)
    for call in (Compiled(layer), layer):
        torch.manual_seed(1)
        results.append(call(input)[0])
    assert torch.equal(*results)
    assert torch.equal(Compiled(layer.eval())(input)[0], layer(input)[0])


@torch.no_grad()
def test_frozen_layers_of_any_size():
    layer, _ = make_pair("lstm", **DEEP)
    compiled = Compiled(fused_rnn.freeze(layer))
    for batch in (3, 4, 2):
        padded = make_input(layer, batch + 2, batch), make_states(layer, batch)
        for args in (padded, (make_packed(range(2, batch + 2)),)):
            torch.testing.assert_close(tensors_of(compiled(*args)), tensors_of(layer(*args)))
    assert compiled.graphs == 4


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_inductor(mode):
    layer = fused_rnn.GRU(3, 4)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    args = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    found, expected = (outputs_and_gradients(c, list(layer.parameters()), *args) for c in (compiled, layer))
    torch.testing.assert_close(found, expected)


def test_inductor_with_packed_input():
    layer = fused_rnn.GRU(3, 4, bidirectional=True)
    packed = make_packed([3, 5, 2], dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    found, expected = (outputs_and_gradients(c, list(layer.parameters()), packed) for c in (compiled, layer))
    torch.testing.assert_close(found, expected)
