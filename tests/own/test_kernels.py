"""Cells that are registered at run time, against the reference."""

import itertools

import pytest
import torch

from fused_rnn import reference
from fused_rnn.autograd import functions
from fused_rnn.autograd.operators import OPERATORS
from fused_rnn.ops import library
from fused_rnn.ops.arguments import run_cell
from support.own_cells import (
    BATCH,
    CELLS,
    INPUT,
    LENGTHS,
    RESET,
    ROWS,
    STEPS,
    differentiable,
    outputs_and_gradients,
    own_cell,
    random_layer,
    weights_of,
)

F64 = torch.float64
cells = pytest.mark.parametrize("name", CELLS)


@pytest.fixture(autouse=True)
def filled_memory():
    library.fill_memory(True)
    yield
    library.fill_memory(False)


def assert_as_reference(layer, tolerance=1e-11):
    found = outputs_and_gradients(functions.run_layer, layer)
    expected = outputs_and_gradients(reference.run_layer, layer)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@cells
@pytest.mark.parametrize(("rows", "given", "bias"), list(itertools.product(ROWS, (True, False), (True, False))))
def test_values_and_gradients(name, rows, given, bias):
    assert_as_reference(random_layer(own_cell(name), rows, given=given, bias=bias))


@cells
@pytest.mark.parametrize(
    ("hidden", "batch", "steps"), [(1, 1, 1), (17, 1, 9), (47, 3, 1), (130, 5, 2), (64, 16, 20), (5, 0, 3), (33, 40, 3)]
)
def test_sizes(name, hidden, batch, steps):
    assert_as_reference(random_layer(own_cell(name), hidden=hidden, batch=batch, steps=steps, given=False))


@cells
def test_gradients_are_derivatives(name):
    cell = own_cell(name)
    layer = random_layer(cell, "lengths and reset", hidden=3, directions=1)

    def run(*tensors):
        tensors = list(tensors)
        own = {"input": tensors.pop(0), "h0": tensors.pop(0)}
        if layer.c0 is not None:
            own["c0"] = tensors.pop(0)
        outputs = functions.run_layer(layer._replace(**own, weights=tuple(tensors)), cell.states > 1)
        return tuple(t for t in outputs if t.numel())

    assert torch.autograd.gradcheck(run, differentiable(layer), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, differentiable(layer), fast_mode=True)


@cells
def test_tangents(name):
    """Forward mode and the gradient of a gradient, by the kernels of second derivatives where they serve the cell."""
    cell = own_cell(name)
    layer = random_layer(cell, "lengths and reset", given=False)
    tensors = [t.detach() for t in differentiable(layer)]
    changes = [torch.randn_like(t) for t in tensors]

    def run(run_layer):
        def outputs(input, *weights):
            own = layer._replace(input=input, weights=weights)
            return [t for t in run_layer(own, cell.states > 1) if t.numel()]

        return torch.func.jvp(outputs, tuple(tensors), tuple(changes))[1]

    torch.testing.assert_close(run(functions.run_layer), run(reference.run_layer), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-2), (torch.float16, 8e-3)])
@cells
def test_dtypes(name, dtype, tolerance):
    wide = random_layer(own_cell(name), "lengths and reset", hidden=40, given=False)
    narrow = [t.detach().to(dtype).requires_grad_() for t in differentiable(wide)]
    layer = wide._replace(input=narrow[0], weights=tuple(narrow[1:]))
    found = outputs_and_gradients(functions.run_layer, layer)
    for one, expected in zip(found, outputs_and_gradients(reference.run_layer, wide), strict=True):
        assert one.dtype == dtype
        inside = expected.isfinite()
        assert torch.equal(one.isfinite(), inside)
        assert (one.double() - expected)[inside].norm() <= tolerance * expected[inside].norm()


# ---- the functional entry --------------------------------------------------------------------------------------------


def call(runner, cell, input, hx, weights, **options):
    return list(run_cell(runner, cell, input, hx, weights, **options))


@cells
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_stacks_of_layers(name, grad, given):
    """Each state is a tensor of its own, given and returned."""
    cell, hidden = own_cell(name), 6
    weights = [
        w.requires_grad_(grad) for k in range(2) for w in weights_of(cell, hidden, 2 * hidden if k else INPUT, True, 2)
    ]
    x = torch.randn(BATCH, STEPS, INPUT, dtype=F64)
    states = [torch.rand(4, BATCH, hidden, dtype=F64) + 0.5 for _ in range(cell.states)]
    hx = None if not given else tuple(states) if cell.states > 1 else states[0]
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    with torch.set_grad_enabled(grad):
        for more in ({}, {"lengths": LENGTHS}, {"reset_mask": RESET.T}, {"cells": cell.states > 1}):
            found = call(OPERATORS, cell, x, hx, weights, **options, **more)
            expected = call(reference.RUNNER, cell, x, hx, weights, **options, **more)
            assert len(found) == 1 + cell.states + (cell.states - 1 if more.get("cells") else 0)
            assert [t.shape for t in found[1 : 1 + cell.states]] == [(4, BATCH, hidden)] * cell.states
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@cells
def test_states_carry_over(name):
    cell = own_cell(name)
    weights, x = weights_of(cell, 7), torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    with torch.no_grad():
        output, *last = call(OPERATORS, cell, x, None, weights)
        first, *states = call(OPERATORS, cell, x[:2], None, weights)
        second, *again = call(OPERATORS, cell, x[2:], tuple(states) if cell.states > 1 else states[0], weights)
    torch.testing.assert_close([torch.cat([first, second]), *again], [output, *last], rtol=1e-12, atol=1e-12)


@cells
def test_unbatched_packed_and_ids(name):
    cell = own_cell(name)
    weights = weights_of(cell, 5, inputs=9)
    x = torch.randn(STEPS, 3, 9, dtype=F64)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [2, 5, 1], enforce_sorted=False)
    ids = torch.randint(9, (STEPS, 3))
    for input in (x[:, 0], packed, ids):
        for grad in (True, False):
            own = [w.clone().requires_grad_(grad) for w in weights]
            with torch.set_grad_enabled(grad):
                found = call(OPERATORS, cell, input, None, own)
                expected = call(reference.RUNNER, cell, input, None, own)
            if input is packed:
                found[0], expected[0] = found[0].data, expected[0].data
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@cells
def test_wrong_states_are_refused(name):
    cell = own_cell(name)
    weights, x = weights_of(cell, 5), torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    state = torch.zeros(1, BATCH, 5, dtype=F64)
    with pytest.raises(TypeError, match="Tensor"):
        call(OPERATORS, cell, x, (state,) * (cell.states + 1), weights)
    if cell.states > 1:
        names = ", ".join(f"{s}_0" for s in cell.state_names)
        with pytest.raises(TypeError, match=rf"a tuple \({names}\) of Tensors, got tuple of 1"):
            call(OPERATORS, cell, x, (state,), weights)
        wrong = (state,) * (cell.states - 1) + (state[..., 1:],)
        with pytest.raises(RuntimeError, match=rf"Expected hidden\[{cell.states - 1}\] size \(1, 4, 5\), got"):
            call(OPERATORS, cell, x, wrong, weights)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
@cells
def test_compiled(name):
    cell = own_cell(name)
    weights = [w.requires_grad_() for w in weights_of(cell, 5)]
    x = torch.randn(STEPS, BATCH, INPUT, dtype=F64)

    def loss(x, weights):
        return sum(t.square().sum() for t in run_cell(OPERATORS, cell, x, None, weights)[: cell.states])

    found = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, weights)
    torch.testing.assert_close(found, loss(x, weights))
    torch.testing.assert_close(torch.autograd.grad(found, weights), torch.autograd.grad(loss(x, weights), weights))


@cells
@pytest.mark.parametrize("mapped", ["samples", "weights"])
def test_vmapped_gradients_are_those_of_a_loop(name, mapped):
    cell = own_cell(name)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    members = (3,) if mapped == "weights" else ()
    weights = tuple(weights_of(cell, 5, members=members))

    def loss(weights, x):
        x = x if x.dim() == 3 else x.unsqueeze(1)
        return sum(t.square().sum() for t in results(weights, x))

    def results(weights, x):
        return run_cell(OPERATORS, cell, x, None, list(weights))[: cell.states]

    if mapped == "samples":
        found = torch.vmap(torch.func.grad(loss), (None, 1))(weights, x)
        expected = [torch.func.grad(loss)(weights, x[:, b]) for b in range(BATCH)]
    else:
        found = torch.vmap(torch.func.grad(loss), (0, None))(weights, x)
        expected = [torch.func.grad(loss)(tuple(w[m] for w in weights), x) for m in range(3)]
    for one, parts in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(parts), rtol=1e-11, atol=1e-11)


def test_a_layer_of_own_cells_is_exported(tmp_path):
    cell = own_cell("peephole_lstm")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(weights_of(cell, 5))

        def forward(self, x):
            return run_cell(OPERATORS, cell, x, None, list(self.weights))[0]

    model, x = Model(), torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))
    assert str(cell.id) in str(program.graph)
