"""Cells that were added to the library, against the reference.

Pytest runs this file in the copy of the tree that test_mutation.py has added them to, not in this one.
"""

from itertools import product
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn import reference
from fused_rnn.autograd import functions
from fused_rnn.ops import arguments
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.layer import Layer

STEPS, BATCH, INPUT, HIDDEN, WIDTH = 5, 4, 3, 6, 2
ADDED = PEEPHOLE, MIN_GRU, LINEAR_LSTM = [CELLS[name] for name in ("peephole_lstm", "min_gru", "linear_lstm")]
LENGTHS = torch.tensor([5, 4, 2, 1])
RESET = torch.rand(STEPS, BATCH, generator=torch.Generator().manual_seed(0)) < 0.4
ROWS = {
    "padded": {},
    "lengths": {"lengths": LENGTHS},
    "packed": {"batch_sizes": torch.tensor([4, 3, 2, 2, 1])},
    "reset": {"reset_mask": RESET},
    "lengths and reset": {"lengths": LENGTHS, "reset_mask": RESET},
}


def random_layer(cell, rows="lengths and reset", bias=True, bidirectional=True, projected=False):
    seed = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=seed, dtype=torch.float64).mul_(0.7).requires_grad_()

    directions, gate_rows, width = 1 + bidirectional, cell.gates * HIDDEN, WIDTH if projected else HIDDEN
    weights = []
    for _ in range(directions):
        weights.append(random(gate_rows, INPUT))
        weights += [random(gate_rows, width)] * cell.recurrent
        weights += [random(gate_rows) for _ in range(bias * (1 + cell.recurrent))]
        weights += [random(cell.params, HIDDEN)] * (cell.params > 0)
        weights += [random(width, HIDDEN)] * projected
    given = {"lengths": None, "batch_sizes": None, "reset_mask": None} | ROWS[rows]
    return Layer.plain(
        cell=cell.id,
        bias=bias,
        bidirectional=bidirectional,
        input=random(12, INPUT) if rows == "packed" else random(STEPS, BATCH, INPUT),
        h0=random(directions, BATCH, width),
        c0=random(directions, BATCH, HIDDEN) if cell.states > 1 else None,
        weights=tuple(weights),
        **given,
    )


def differentiable(layer):
    return [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]


def outputs_and_gradients(run_layer, layer):
    outputs = [t for t in run_layer(layer, cells=layer.c0 is not None) if t.numel()]
    seed = torch.Generator().manual_seed(2)
    grads = [torch.randn(t.shape, generator=seed, dtype=torch.float64).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, differentiable(layer), grads)]


def test_the_copy_is_tested():
    assert Path(fused_rnn.__file__).parent == Path(__file__).parent / "fused_rnn"


def test_traits():
    assert (PEEPHOLE.params, PEEPHOLE.recurrent, PEEPHOLE.projectable) == (3, True, True)
    assert (MIN_GRU.params, MIN_GRU.recurrent, MIN_GRU.projectable) == (0, False, False)


LAYERS = [
    (cell, rows, bias, bidirectional, projected)
    for cell, rows, bias, bidirectional, projected in product(ADDED, ROWS, (True, False), (True, False), (True, False))
    if cell.projectable or not projected
]


@pytest.mark.parametrize(("cell", "rows", "bias", "bidirectional", "projected"), LAYERS)
def test_agrees_with_reference(cell, rows, bias, bidirectional, projected):
    layer = random_layer(cell, rows, bias, bidirectional, projected)
    found = outputs_and_gradients(functions.run_layer, layer)
    expected = outputs_and_gradients(reference.run_layer, layer)
    assert len(found) == 2 + 2 * (cell.states > 1) + len(differentiable(layer))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-2)])
@pytest.mark.parametrize("cell", ADDED)
def test_narrow_dtypes(cell, dtype, tolerance):
    wide = random_layer(cell)

    def narrow(t):
        return None if t is None else t.detach().to(dtype).requires_grad_()

    layer = wide._replace(
        input=narrow(wide.input),
        h0=narrow(wide.h0),
        c0=narrow(wide.c0),
        weights=tuple(map(narrow, wide.weights)),
    )
    found = outputs_and_gradients(functions.run_layer, layer)
    for one, expected in zip(found, outputs_and_gradients(reference.run_layer, wide), strict=True):
        assert (one.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("cell", ADDED)
def test_gradients_are_derivatives(cell):
    layer = random_layer(cell, projected=cell.projectable)

    def run(*tensors):
        tensors = list(tensors)
        own = {"input": tensors.pop(0), "h0": tensors.pop(0)}
        if layer.c0 is not None:
            own["c0"] = tensors.pop(0)
        outputs = functions.run_layer(layer._replace(**own, weights=tuple(tensors)))[:3]
        return tuple(t for t in outputs if t.numel())

    assert torch.autograd.gradcheck(run, differentiable(layer))
    assert torch.autograd.gradgradcheck(run, differentiable(layer), fast_mode=True)


def test_the_module_of_contributing_md():
    """The module of CONTRIBUTING.md equals the reference with the same weights, and learns."""
    from fused_rnn.nn.peephole_lstm import PeepholeLSTM

    torch.manual_seed(0)
    module, options = (
        PeepholeLSTM(INPUT, HIDDEN).double(),
        {"lengths": LENGTHS, "reset_mask": RESET.T, "batch_first": True},
    )
    input = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    expected = arguments.run_cell(reference.RUNNER, PEEPHOLE, input, None, list(module.parameters()), **options)
    output, state = module(input, **options)
    torch.testing.assert_close((output, *state), tuple(expected), rtol=1e-12, atol=1e-12)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    for _ in range(30):
        losses.append((module(input)[0] - 0.3).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4
    with pytest.raises(RuntimeError, match=r"input_size|input\.size"):
        module(input[..., 1:])


@pytest.mark.parametrize("mapped", ["samples", "weights"])
@pytest.mark.parametrize("cell", ADDED)
def test_vmapped_gradients_are_those_of_a_loop(cell, mapped):
    """Per-sample gradients, which the kernels compute as weight groups, and ensembles, which they run as members."""
    layer = random_layer(cell, projected=cell.projectable)
    batch_dim = {"input": 1, "h0": 1, "c0": 1, "lengths": 0, "reset_mask": 1}
    given = {name: getattr(layer, name) for name in batch_dim if getattr(layer, name) is not None}

    def loss(weights, given):
        return sum(t.square().sum() for t in functions.run_layer(layer._replace(weights=weights, **given))[:2])

    def sample_loss(weights, sample):
        return loss(weights, {name: t.unsqueeze(batch_dim[name]) for name, t in sample.items()})

    if mapped == "samples":
        in_dims = (None, {name: batch_dim[name] for name in given})
        found = torch.vmap(torch.func.grad(sample_loss), in_dims)(layer.weights, given)
        each = [{name: t.select(batch_dim[name], b) for name, t in given.items()} for b in range(BATCH)]
        expected = [torch.func.grad(sample_loss)(layer.weights, sample) for sample in each]
    else:
        ensemble = tuple(torch.stack([w, 0.5 * w, -w]) for w in layer.weights)
        found = torch.vmap(torch.func.grad(loss), (0, None))(ensemble, given)
        expected = [torch.func.grad(loss)(tuple(w[m] for w in ensemble), given) for m in range(3)]
    for one, parts in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(parts), rtol=1e-12, atol=1e-12)
