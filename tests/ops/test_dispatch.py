"""Operators dispatched, memory saved, uninitialised memory; results of the raw operators that modules do not use."""

import pytest
import torch
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence

from fused_rnn import reference
from fused_rnn.autograd import functions
from fused_rnn.ops.cells import BY_ID, CELLS
from fused_rnn.ops.layer import Layer, Wanted
from fused_rnn.tools import verify
from support.modules import F64, LAYERS, make_pair
from support.operators import Recorder, count_operators

# ---- operators dispatched --------------------------------------------------------------------------------------------


def sequence(form, steps):
    """Input and options for a layer of input_size 3."""
    input = torch.randn(steps, 3, 3, dtype=F64, requires_grad=True)
    lengths = torch.tensor([steps, 2, steps - 3])
    if form == "packed":
        return pack_padded_sequence(input.detach(), lengths, enforce_sorted=False), {}
    masks = {"lengths": lengths, "reset_mask": torch.rand(steps, 3) < 0.2}
    return input, {name: mask for name, mask in masks.items() if name in form}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("form", ["padded", "packed", "lengths", "reset_mask", "lengths and reset_mask"])
@pytest.mark.parametrize("kind", LAYERS)
def test_number_of_operators_is_independent_of_steps(kind, form, backward):
    layer, _ = make_pair(kind, num_layers=2, bidirectional=True)
    counts = []
    for steps in (10, 1000):
        input, masks = sequence(form, steps)

        def forward(input=input, masks=masks):
            output, _ = layer(input, **masks)
            return (output.data if form == "packed" else output).sum()

        if backward:
            loss = forward()
            counts.append(count_operators(lambda loss=loss: loss.backward(retain_graph=True)))
        else:
            counts.append(count_operators(forward))
    assert counts[0] == counts[1]
    profiled, dispatched = counts[0]
    operator = "layer_backward" if backward else "layer_forward"
    assert dispatched[f"fused_rnn.{operator}.default"] == 2
    assert profiled[f"fused_rnn::{operator}"] >= 2


def test_the_count_detects_a_loop_over_time():
    layer, _ = make_pair("rnn_tanh")

    def count(steps):
        input = torch.randn(steps, 2, 3, dtype=F64)
        return count_operators(lambda: reference.rnn(input, None, list(layer.parameters())))

    for short, long in zip(count(10), count(20), strict=True):
        assert long.total() > short.total() + 10


# ---- memory saved ----------------------------------------------------------------------------------------------------


def saved_sizes(run):
    """How many numbers each call of layer_forward saves for backward."""
    with Recorder() as recorder:
        run()
    forward = torch.ops.fused_rnn.layer_forward.default
    return [results[4].numel() for operator, results in recorder.calls if operator is forward]


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_is_saved_without_need(kind):
    layer, _ = make_pair(kind, num_layers=2)
    input = torch.randn(5, 2, 3, dtype=F64)
    trained = saved_sizes(lambda: layer(input))
    assert len(trained) == 2 and min(trained) > 0
    assert saved_sizes(lambda: layer.eval()(input)) == trained
    with torch.no_grad():
        assert saved_sizes(lambda: layer(input)) == [0, 0]
    with torch.inference_mode():
        assert saved_sizes(lambda: layer(input)) == [0, 0]
    for weight in layer.parameters():
        weight.requires_grad_(False)
    assert saved_sizes(lambda: layer(input)) == [0, 0]
    layer.weight_ih_l1.requires_grad_()
    assert saved_sizes(lambda: layer(input)) == [0, trained[1]], "the first layer is frozen, the second is not"
    layer.weight_ih_l1.requires_grad_(False)
    assert saved_sizes(lambda: layer(input.requires_grad_())) == trained


@pytest.mark.parametrize("kind", ["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"])
def test_cells_save_nothing_without_need(kind):
    cell, _ = make_pair(kind)
    input = torch.randn(2, 3, dtype=F64)
    assert min(saved_sizes(lambda: cell(input))) > 0
    with torch.no_grad():
        assert saved_sizes(lambda: cell(input)) == [0]
    assert saved_sizes(lambda: cell.requires_grad_(False)(input)) == [0]


# ---- memory read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_no_memory_is_read_before_it_is_written(cell, threads, poisoned):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report = verify.verify(cells=[cell], quick=True, show_progress=False)
    finally:
        torch.set_num_threads(before)
    assert report.passed, report


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_padding_may_hold_anything(kind, reset, poisoned):
    """NaN and resets past a row's end, in the input and the output's gradient, change nothing."""
    layer, _ = make_pair(kind, num_layers=2, bidirectional=True)
    lengths = torch.tensor([4, 0, 6, 1])
    padding = torch.arange(6).unsqueeze(1) >= lengths
    clean = torch.randn(6, 4, 3, dtype=F64).masked_fill(padding.unsqueeze(-1), 0)
    mask = torch.rand(6, 4) < 0.4
    results = []
    for filling in (0.0, torch.nan):
        input = clean.masked_fill(padding.unsqueeze(-1), filling).requires_grad_()
        reset_mask = mask & ~padding if filling == 0 else mask | padding
        output, states = layer(input, lengths=lengths, reset_mask=reset_mask if reset else None)
        outputs = [output, *(states if isinstance(states, tuple) else (states,))]
        grads = [torch.ones_like(t) for t in outputs]
        grads[0].masked_fill_(padding.unsqueeze(-1), filling)
        results.append([*outputs, *torch.autograd.grad(outputs, [input, *layer.parameters()], grads)])
    output, gradient_of_input = results[1][0], results[1][len(outputs)]
    assert (output[padding] == 0).all() and (gradient_of_input[padding] == 0).all()
    for found, expected in zip(*reversed(results), strict=True):
        assert found.isfinite().all() and torch.equal(found, expected)


# ---- the raw operators -----------------------------------------------------------------------------------------------

STEPS, BATCH, INPUT, HIDDEN, WIDTH = 6, 4, 3, 5, 2
CELLS_AND_PROJECTION = [("lstm", False), ("lstm", True), ("gru", False), ("rnn_tanh", False), ("rnn_relu", False)]
EVERYTHING = sum(Wanted)
raw = pytest.mark.parametrize(("cell", "projected"), CELLS_AND_PROJECTION)


def random_layer(name, projected=False, members=(), shared=(), packed=False):
    """A bidirectional layer with every option. ``shared`` names the arguments without a member dimension."""
    cell, width = CELLS[name], WIDTH if projected else HIDDEN
    sizes = [4, 4, 2, 1, 1, 1]

    def random(*shape):
        return torch.randn(*members, *shape, dtype=F64) * 0.7

    def own(name, tensor):
        return tensor[0] if name in shared else tensor

    gate_rows = cell.gates * HIDDEN
    shapes = [(gate_rows, INPUT), (gate_rows, width), (gate_rows,), (gate_rows,)] + [(width, HIDDEN)] * projected
    return Layer.plain(
        cell=cell.id,
        bias=True,
        bidirectional=True,
        input=own("input", random(sum(sizes), INPUT) if packed else random(STEPS, BATCH, INPUT)),
        h0=random(2, BATCH, width),
        c0=random(2, BATCH, HIDDEN) if cell.states > 1 else None,
        lengths=None if packed else own("lengths", torch.randint(0, STEPS + 1, (*members, BATCH))),
        batch_sizes=torch.tensor(sizes) if packed else None,
        reset_mask=own("reset_mask", torch.rand(*members, STEPS, BATCH) < 0.3),
        weights=tuple(random(*shape) for _ in range(2) for shape in shapes),
    )


def random_grads(outputs):
    return tuple(torch.randn_like(t) if t.numel() else None for t in outputs[:4])


def run_raw(layer, grads=None, wanted=EVERYTHING, groups=1):
    """All results of both operators, gradient norms included, and the output gradients they were given."""
    outputs = layer.forward(save=True, cells=layer.c0 is not None)
    grads = grads or random_grads(outputs)
    return outputs, layer.backward(grads, outputs[4], wanted, groups, norms=True), grads


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_second_state_after_every_step(projected, packed, poisoned):
    layer = random_layer("lstm", projected, packed=packed)
    tensors = [layer.input, layer.h0, layer.c0, *layer.weights]
    results = []
    for run_layer in (functions.run_layer, reference.run_layer):
        for tensor in tensors:
            tensor.requires_grad_()
        cells = run_layer(layer, cells=True)[3]
        weight = torch.linspace(-1, 1, cells.numel(), dtype=F64).view_as(cells)
        results.append([cells, *torch.autograd.grad((cells * weight).sum(), tensors, materialize_grads=True)])
    assert_close(*results)
    assert layer.forward(save=False, cells=False)[3].numel() == 0


def norms_by_autograd(layer, grads):
    """[D, S, T], from the reference's steps one by one, with every h and c retaining its gradient."""
    active = (torch.arange(STEPS).unsqueeze(1) < layer.lengths).unsqueeze(-1)
    cuts = layer.reset_mask.unsqueeze(-1) & active
    per_direction = len(layer.weights) // 2
    norms = torch.zeros(2, BY_ID[layer.cell].states, STEPS, dtype=F64)
    for d in range(2):
        states = [s[d].clone().requires_grad_() for s in (layer.h0, layer.c0) if s is not None]
        w_ih, w_hh, b_ih, b_hh, *w_hr = layer.weights[d * per_direction :][:per_direction]
        after, loss = {}, 0.0
        for t in reversed(range(STEPS)) if d else range(STEPS):
            if t + d < STEPS:
                states = [s.masked_fill(cuts[t + d], 0) for s in states]
            x, r = linear(layer.input[t], w_ih, b_ih), linear(states[0], w_hh, b_hh)
            new = reference.STEPS[layer.cell](x, r, *states)
            after[t] = [linear(new[0], *w_hr) if w_hr else new[0], *new[1:]]
            for state, grad in zip(after[t], (grads[0], grads[3]), strict=False):
                state.retain_grad()
                loss = loss + (state * active[t] * grad[t].chunk(2, -1)[d]).sum()
            states = [torch.where(active[t], one, s) for one, s in zip(after[t], states, strict=True)]
        loss = loss + sum((s * grad[d]).sum() for s, grad in zip(states, grads[1:3], strict=False))
        loss.backward()
        for t, states in after.items():
            norms[d, :, t] = torch.stack([state.grad.norm() for state in states])
    return norms


@raw
def test_gradient_norms(cell, projected, poisoned):
    layer = random_layer(cell, projected)
    _, gradients, grads = run_raw(layer)
    assert_close(gradients[3], norms_by_autograd(layer, grads))
    assert (gradients[3] > 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_norms_are_float32_or_wider(dtype):
    layer = random_layer("lstm")
    narrow = layer._replace(
        input=layer.input.to(dtype),
        h0=layer.h0.to(dtype),
        c0=layer.c0.to(dtype),
        weights=tuple(w.to(dtype) for w in layer.weights),
    )
    _, expected, grads = run_raw(layer)
    found = run_raw(narrow, tuple(grad.to(dtype) for grad in grads))[1][3]
    assert expected[3].dtype == F64 and found.dtype == torch.float32
    assert verify.relative_error(found, expected[3]) < verify.TOLERANCE[dtype]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shared", [(), ("input",), ("lengths", "reset_mask"), ("input", "lengths", "reset_mask")])
@raw
def test_members_equal_separate_layers(cell, projected, shared, packed, poisoned):
    layer = random_layer(cell, projected, (3,), shared, packed)
    outputs, gradients, grads = run_raw(layer)
    for m in range(3):

        def member(name, tensor, m=m):
            return tensor if tensor is None or name in shared else tensor[m]

        fields = {name: member(name, getattr(layer, name)) for name in ("input", "h0", "c0", "lengths", "reset_mask")}
        alone = layer._replace(**fields, weights=tuple(w[m] for w in layer.weights))
        expected = run_raw(alone, tuple(g if g is None else g[m] for g in grads))
        for found, one in zip((*outputs, *gradients), (*expected[0], *expected[1]), strict=True):
            assert_close(found[m] if one.numel() else found, one)


@pytest.mark.parametrize("members", [(), (3,)])
@raw
def test_weight_groups_equal_parts_of_the_batch(cell, projected, members, poisoned):
    layer = random_layer(cell, projected, members)
    _, whole, grads = run_raw(layer)
    for groups in (2, 4):
        gradients = run_raw(layer, grads, groups=groups)[1]
        assert_close(gradients[:4], whole[:4])
        for k, rows in enumerate(torch.arange(BATCH).chunk(groups)):

            def part(tensor, dim, rows=rows):
                return None if tensor is None else tensor.index_select(dim, rows)

            alone = layer._replace(
                input=part(layer.input, -2),
                h0=part(layer.h0, -2),
                c0=part(layer.c0, -2),
                lengths=part(layer.lengths, -1),
                reset_mask=part(layer.reset_mask, -1),
            )
            expected = run_raw(alone, tuple(part(grad, -2) for grad in grads))[1]
            for found, one in zip(gradients[4:], expected[4:], strict=True):
                assert_close(found.select(len(members), k), one)


@raw
def test_only_wanted_gradients_are_computed(cell, projected, poisoned):
    layer = random_layer(cell, projected)
    _, whole, grads = run_raw(layer)
    # None: the states' gradients and the norms are always computed.
    kinds = [Wanted.INPUT, None, None, None, *layer.weight_kinds]
    for wanted in (*Wanted, Wanted(0)):
        gradients = run_raw(layer, grads, wanted)[1]
        for kind, found, full in zip(kinds, gradients, whole, strict=True):
            assert_close(found, full if kind is None or kind & wanted else full.new_empty(0))
