"""fused_rnn.Stack against torch.nn layers stacked by hand."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fused_rnn
from support.modules import F64, as_leaves, assert_close, results_of, tensors_of

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
SKIPS = [None, "residual", "dense"]
SIZES = {None: [4, 6, 5], "residual": [4, 4, 4], "dense": [4, 6, 5]}

every_cell = pytest.mark.parametrize("cell", CELLS)
every_skip = pytest.mark.parametrize("skip", SKIPS)
both_directions = pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
pytestmark = pytest.mark.usefixtures("no_reference")


class ByHand(nn.Module):
    """Padded or unbatched input through torch.nn layers with the weights of ``stack``."""

    def __init__(self, cell, input_size, sizes, skip, bidirectional=False, **options):
        super().__init__()
        self.skip, self.directions = skip, 1 + bidirectional
        self.layers = nn.ModuleList()
        for k, size in enumerate(sizes):
            before = sizes[k - 1] * self.directions if k else input_size
            if skip == "dense":
                before = input_size + sum(sizes[:k]) * self.directions
            self.layers.append(CELLS[cell](before, size, bidirectional=bidirectional, dtype=F64, **options))

    def forward(self, x, hx=None):
        seen, states = [x], []
        for k, layer in enumerate(self.layers):
            y, state = layer(torch.cat(seen, -1) if self.skip == "dense" else seen[-1], hx and hx[k])
            if self.skip == "residual" and y.shape == seen[-1].shape:
                y = y + seen[-1]
            seen.append(y)
            states.append(state)
        return seen[-1], tuple(states)


def make_pair(cell, skip, *, input_size=3, sizes=None, bidirectional=False, **options):
    sizes = sizes or SIZES[skip]
    ours = fused_rnn.Stack(cell, input_size, sizes, skip=skip, bidirectional=bidirectional, dtype=F64, **options)
    theirs = ByHand(cell, input_size, sizes, skip, bidirectional, **options)
    theirs.load_state_dict(ours.state_dict())  # the same names, no others
    return ours, theirs


def make_states(stack, batch):
    outer = () if batch is None else (batch,)
    states = []
    for layer in stack.layers:
        h, c = torch.randn(2, 1 + layer.bidirectional, *outer, layer.hidden_size, dtype=F64)
        states.append((h, c) if isinstance(layer, fused_rnn.LSTM) else h)
    return tuple(states)


def equal(ours, theirs, *args):
    assert_close(results_of(ours, *args), results_of(theirs, *args))


# ---- same results ----------------------------------------------------------------------------------------------------


@every_cell
@every_skip
@both_directions
@pytest.mark.parametrize("input_size", [3, "that of the outputs"])
def test_equals_layers_of_torch(cell, skip, bidirectional, input_size):
    input_size = 3 if input_size == 3 else 4 * (1 + bidirectional)
    for batch_first in (False, True):
        ours, theirs = make_pair(
            cell, skip, input_size=input_size, bidirectional=bidirectional, batch_first=batch_first
        )
        for shape, batch in (((5, 2), 5 if batch_first else 2), ((7,), None)):
            x = torch.randn(*shape, input_size, dtype=F64)
            equal(ours, theirs, x)
            equal(ours, theirs, x, make_states(ours, batch))


@given(
    cell=st.sampled_from(sorted(CELLS)),
    skip=st.sampled_from(SKIPS),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    input_size=st.integers(1, 9),
    steps=st.integers(1, 6),
    batch=st.integers(0, 4),
    bidirectional=st.booleans(),
    bias=st.booleans(),
)
def test_any_sizes(cell, skip, sizes, input_size, steps, batch, bidirectional, bias):
    if skip == "residual":
        sizes = [sizes[0]] * len(sizes)
    ours, theirs = make_pair(cell, skip, input_size=input_size, sizes=sizes, bidirectional=bidirectional, bias=bias)
    x = torch.randn(batch, steps, input_size, dtype=F64).transpose(0, 1)  # not contiguous
    if batch:
        equal(ours, theirs, x, make_states(ours, batch))
    else:  # torch.nn does not take them
        output, _ = ours(x, make_states(ours, 0))
        assert output.shape == (steps, 0, sizes[-1] * (1 + bidirectional))


def test_options_of_the_cell():
    relu = fused_rnn.Stack("rnn", 3, [4, 4], nonlinearity="relu", dtype=F64)
    theirs = ByHand("rnn", 3, [4, 4], None, nonlinearity="relu")
    theirs.load_state_dict(relu.state_dict())
    equal(relu, theirs, torch.randn(5, 2, 3, dtype=F64))
    projected = fused_rnn.Stack("lstm", 2, [5, 7], skip="residual", proj_size=2, dtype=F64)
    x = torch.randn(5, 3, 2, dtype=F64)
    middle = projected.layers[0](x)[0] + x
    torch.testing.assert_close(projected(x)[0], projected.layers[1](middle)[0] + middle)


def test_a_class_as_cell():
    class Own(fused_rnn.GRU):
        pass

    for cell in (fused_rnn.GRU, Own):
        assert all(type(layer) is cell for layer in fused_rnn.Stack(cell, 3, [4, 5]).layers)


# ---- ragged rows and resets ------------------------------------------------------------------------------------------


@every_cell
@every_skip
@both_directions
def test_lengths_packing_and_single_rows_agree(cell, skip, bidirectional):
    """Input as wide as the outputs, so that the first layer has a residual; padding is NaN."""
    width = 4 * (1 + bidirectional)
    lengths = torch.tensor([3, 6, 1, 5])
    for batch_first in (False, True):
        stack, _ = make_pair(cell, skip, input_size=width, bidirectional=bidirectional, batch_first=batch_first)
        x, mask = torch.randn(6, 4, width, dtype=F64), torch.rand(6, 4) < 0.3
        inside = torch.arange(6).unsqueeze(1) < lengths
        if batch_first:
            x, mask, inside = x.transpose(0, 1), mask.transpose(0, 1), inside.T
        padded = x.where(inside.unsqueeze(-1), torch.nan)
        states = make_states(stack, 4)
        found = results_of(stack, padded, states, lengths=lengths.tolist(), reset_mask=mask)
        output, state = stack(padded, states, lengths=lengths, reset_mask=mask)
        assert (output[~inside] == 0).all()
        assert all(tensor.isfinite().all() for tensor in found.values())

        packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        packed_output, packed_state = stack(packed, states, reset_mask=mask)
        assert isinstance(packed_output, PackedSequence)
        torch.testing.assert_close(pad_packed_sequence(packed_output, batch_first)[0], output)
        torch.testing.assert_close(packed_state, state)

        rows = (x, mask, output) if batch_first else (t.transpose(0, 1) for t in (x, mask, output))
        for b, (row, own_mask, expected) in enumerate(zip(*rows, strict=True)):
            n = int(lengths[b])
            own_states = torch.utils._pytree.tree_map(lambda s, b=b: s[:, b], states)
            alone, _ = stack(row[:n], own_states, reset_mask=own_mask[:n])
            torch.testing.assert_close(alone, expected[:n])
            unbatched, _ = stack(
                row.index_fill(0, torch.arange(n, 6), torch.nan), own_states, lengths=n, reset_mask=own_mask
            )
            torch.testing.assert_close(unbatched, expected)


@every_cell
@every_skip
def test_a_reset_cuts_the_sequence_in_every_layer(cell, skip):
    ours, theirs = make_pair(cell, skip)
    x, states = torch.randn(7, 2, 3, dtype=F64), make_states(ours, 2)
    mask = torch.zeros(7, 2, dtype=torch.bool)
    mask[4] = True
    output, state = ours(x, states, reset_mask=mask)
    first, _ = theirs(x[:4], states)
    second, expected_state = theirs(x[4:])
    torch.testing.assert_close(output, torch.cat([first, second]))
    torch.testing.assert_close(state, expected_state)


@every_cell
@every_skip
def test_a_sequence_carried_over_is_the_same_sequence(cell, skip):
    stack, _ = make_pair(cell, skip)
    x = torch.randn(9, 2, 3, dtype=F64)
    whole, final = stack(x)
    first, state = stack(x[:4])
    second, found = stack(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(found, final)


# ---- gradients, modes, tools -----------------------------------------------------------------------------------------


@every_cell
@every_skip
@both_directions
def test_gradcheck(cell, skip, bidirectional):
    stack, _ = make_pair(cell, skip, sizes=[2, 2], input_size=2, bidirectional=bidirectional)
    names, weights = zip(*stack.named_parameters(), strict=True)
    mask = torch.tensor([[False, False], [False, True], [False, False]])

    def run(x, *weights):
        call = {"lengths": [3, 2], "reset_mask": mask}
        return tuple(tensors_of(torch.func.functional_call(stack, dict(zip(names, weights, strict=True)), (x,), call)))

    x = torch.randn(3, 2, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)


@every_cell
@every_skip
def test_gradients_are_clipped_in_each_layer(cell, skip):
    """As if the layers were called one after the other."""
    stack, _ = make_pair(cell, skip, sizes=[4, 4], input_size=4)
    x = torch.randn(5, 3, 4, dtype=F64, requires_grad=True)
    around = {"residual": torch.add, "dense": lambda x, y: torch.cat([x, y], -1), None: lambda x, y: y}[skip]
    first = around(x, stack.layers[0](x, grad_clip=0.3)[0])
    second = stack.layers[1](first, grad_clip=0.3)[0]
    expected, plain = first + second if skip == "residual" else second, stack(x)[0]
    found = stack(x, grad_clip=0.3)[0]
    wanted, way_back = [x, *stack.parameters()], torch.randn_like(found)
    clipped, apart, unclipped = (torch.autograd.grad(y, wanted, way_back) for y in (found, expected, plain))
    torch.testing.assert_close(clipped, apart)
    assert not torch.allclose(clipped[0], unclipped[0])


@every_cell
def test_dropout_without_skips_is_that_of_torch(cell):
    """The same random numbers in the same places as one multi-layer torch.nn module."""
    ours = fused_rnn.Stack(cell, 3, [4, 4, 4], dropout=0.5)
    theirs = CELLS[cell](3, 4, 3, dropout=0.5)
    theirs.load_state_dict(
        {
            name.replace("_l0", f"_l{k}"): weight
            for k, layer in enumerate(ours.layers)
            for name, weight in layer.state_dict().items()
        }
    )
    x, results = torch.randn(5, 2, 3), []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(module(x)[0])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x)[0])
    assert not torch.allclose(results[0], ours(x)[0])


def test_dropout_leaves_the_skip_path_alone():
    stack = fused_rnn.Stack("gru", 4, [4, 4], skip="residual", dropout=1.0)
    x = torch.randn(5, 2, 4)
    torch.testing.assert_close(stack(x)[0], stack.layers[1](x)[0] + x)
    stack = fused_rnn.Stack("gru", 4, [4, 4], skip="dense", dropout=1.0)
    torch.testing.assert_close(stack(x)[0], stack.layers[1](torch.cat([x, torch.zeros_like(x)], -1))[0])


@pytest.mark.parametrize(("cell", "skip"), [("lstm", "residual"), ("gru", "dense"), ("rnn", None)])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_to_one_graph(cell, skip):
    torch._dynamo.reset()
    stack, _ = make_pair(cell, skip, input_size=8, sizes=[4, 4], bidirectional=True)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    x, lengths, mask = torch.randn(5, 3, 8, dtype=F64), torch.tensor([5, 2, 3]), torch.rand(5, 3) < 0.3
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    for input, hx, masks in (
        (x, None, {}),
        (x, make_states(stack, 3), {"lengths": lengths, "reset_mask": mask}),
        (x[:, 0], make_states(stack, None), {}),
        (packed, make_states(stack, 3), {}),
    ):
        found, expected = (gradients(call, list(stack.parameters()), input, hx, masks) for call in (compiled, stack))
        torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def gradients(call, weights, input, hx, masks):
    input, hx = as_leaves(input), as_leaves(hx)
    outputs = tensors_of(call(input, hx, **masks))
    loss = sum(output.square().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, [*tensors_of(input), *tensors_of(hx), *weights])]


@every_cell
@every_skip
def test_frozen_restored_copied(cell, skip):
    stack, _ = make_pair(cell, skip)
    x, states = torch.randn(5, 2, 3, dtype=F64), make_states(stack, 2)
    expected = stack(x, states)
    with torch.no_grad():
        torch.testing.assert_close(fused_rnn.freeze(copy.deepcopy(stack))(x, states), expected)
        torch.testing.assert_close(stack(x, states), expected)
    theirs = fused_rnn.restore(copy.deepcopy(stack))
    assert all(type(layer) is CELLS[cell] for layer in theirs.layers)
    torch.testing.assert_close(theirs(x, states), expected)
    another, _ = make_pair(cell, skip)
    another.load_state_dict(stack.state_dict())
    torch.testing.assert_close(another(x, states), expected)
    assert all(name.startswith("layers.") for name in stack.state_dict())


def test_many_stacks_at_once():
    stacks = [make_pair("lstm", "residual")[0] for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(stacks)
    x = torch.randn(5, 2, 3, dtype=F64)
    call = torch.vmap(lambda p, b: torch.func.functional_call(stacks[0], (p, b), (x,))[0])
    torch.testing.assert_close(call(parameters, buffers), torch.stack([stack(x)[0] for stack in stacks]))


def test_autocast_and_precision():
    stack = fused_rnn.Stack("gru", 3, [4, 4], skip="residual")
    with torch.autocast("cpu", torch.bfloat16):
        assert stack(torch.randn(5, 2, 3))[0].dtype == torch.bfloat16
    assert stack.half()(torch.randn(5, 2, 3, dtype=torch.float16))[0].dtype == torch.float16


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_residual_needs_equal_widths():
    message = r"the output of layer 2 must be as wide as its input, but its output is 10 wide, its input 8"
    with pytest.raises(ValueError, match=message):
        fused_rnn.Stack("lstm", 3, [4, 4, 5], skip="residual", bidirectional=True)
    for input_size, text in ((8, "skip='residual', dropout"), (3, "skip='residual', none around layer 0, dropout")):
        stack = fused_rnn.Stack("lstm", input_size, [4, 4], skip="residual", bidirectional=True)
        assert text in repr(stack)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cell": "peephole"}, ValueError, "cell must be 'lstm', 'gru', 'rnn' or one of .* got 'peephole'"),
        ({"cell": nn.LSTM}, ValueError, r"or one of fused_rnn's layer classes, got .*torch.nn.modules.rnn.LSTM"),
        ({"cell": fused_rnn.LSTMCell}, ValueError, "or one of fused_rnn's layer classes"),
        ({"cell": None}, ValueError, "got None"),
        ({"hidden_sizes": 4}, ValueError, "hidden_sizes must be a sequence, one size for each layer, got 4"),
        ({"hidden_sizes": []}, ValueError, r"hidden_sizes must be a sequence, one size for each layer, got \[\]"),
        ({"hidden_sizes": [4.0]}, TypeError, "hidden_size should be of type int, got: float"),
        ({"skip": "highway"}, ValueError, "skip must be 'residual', 'dense' or None, got 'highway'"),
        ({"dropout": 1.5}, ValueError, "dropout must be a probability, from 0 to 1, got 1.5"),
        ({"dropout": True}, ValueError, "dropout must be a probability, from 0 to 1, got True"),
        ({"num_layers": 2}, TypeError, "hidden_sizes says how many layers there are"),
        ({"proj_size": 2, "cell": "gru"}, ValueError, "proj_size argument is only supported for LSTM"),
    ],
)
def test_wrong_constructions(options, error, message):
    with pytest.raises(error, match=message):
        fused_rnn.Stack(**{"cell": "lstm", "input_size": 3, "hidden_sizes": [4, 4], **options})


@every_cell
def test_wrong_states(cell):
    stack = fused_rnn.Stack(cell, 3, [4, 5])
    x = torch.randn(5, 2, 3)
    message = "Stack: hx must be a tuple of 2 states, one for each layer, got"
    for hx, got in ((torch.zeros(1, 2, 4), "Tensor"), ((torch.zeros(1, 2, 4),), "tuple of 1"), ({}, "dict")):
        with pytest.raises(TypeError, match=f"{message} {got}"):
            stack(x, hx)
    with pytest.raises(RuntimeError, match=r"Expected hidden(\[0\])? size \(1, 2, 5\), got \[1, 2, 4\]"):
        stack(x, (None, (torch.zeros(1, 2, 4),) * 2 if cell == "lstm" else torch.zeros(1, 2, 4)))


def test_states_for_some_layers_only():
    stack, _ = make_pair("gru", None)
    x, states = torch.randn(5, 2, 3, dtype=F64), make_states(stack, 2)
    for given_ in itertools.product([True, False], repeat=3):
        some = tuple(s if g else None for s, g in zip(states, given_, strict=True))
        zeroed = tuple(s if g else torch.zeros_like(s) for s, g in zip(states, given_, strict=True))
        torch.testing.assert_close(stack(x, some), stack(x, zeroed))
