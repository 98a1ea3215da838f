"""Layers with layer norm: first derivatives by the operators, all others by the formula in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..ops import torch_private
from ..ops.cells import BY_ID, Cell
from ..ops.layer import Layer, Wanted

_operators = torch.ops.fused_rnn
_FIRST = 5  # among the arguments of NormedLayer: the input
_MASKS = 5  # tensors of a layer that have no gradient


def run_layer(layer: Layer, norms: Sequence[Tensor], cells: bool, grad_clip: float | None = None) -> Sequence[Tensor]:
    """:func:`functions.run_layer` with layer norm."""
    if torch_private.in_transform() or torch_private.in_forward_mode():
        return reference.run_normed(layer, norms, cells, grad_clip)
    if torch_private.is_tracing():
        raise NotImplementedError("fused_rnn: torch.jit.trace does not know layer_norm; torch.export does")
    given = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights, *norms) if t is not None]
    if not (torch.is_grad_enabled() and torch_private.need_gradient(given)):
        return _forward(layer, norms, cells, save=False)[:4]
    *static, _, input, h0, c0, lengths, batch_sizes, reset_mask, h_factor, zoneout_mask, weights = layer
    tensors = (lengths, batch_sizes, reset_mask, h_factor, zoneout_mask, *weights, *norms)
    return NormedLayer.apply(tuple(static), cells, grad_clip, len(weights), input, h0, c0, *tensors)[:4]


def _forward(layer: Layer, norms: Sequence[Tensor], cells: bool, save: bool) -> tuple[Tensor, ...]:
    return _operators.normed_forward(
        layer.cell,
        layer.bias,
        layer.bidirectional,
        layer.input,
        layer.h0,
        layer.c0,
        list(layer.weights),
        list(norms),
        layer.lengths,
        layer.batch_sizes,
        layer.reset_mask,
        save,
        cells,
        layer.h_factor,
        layer.zoneout_mask,
        layer.zoneout_h,
        layer.zoneout_c,
    )


def _layer_of(static, weights: int, tensors: Sequence[Tensor | None]) -> tuple[Layer, Sequence[Tensor]]:
    """The layer and its norms. ``tensors``: input, h0, c0, the masks, the weights and the norms."""
    before = 3 + _MASKS
    own = tuple(tensors[before : before + weights])
    return Layer(*static, None, *tensors[:before], own), tensors[before + weights :]


class NormedLayer(torch.autograd.Function):
    """``apply(static, cells, grad_clip, weights, input, h0, c0, *masks, *weights, *norms)``.

    ``static``: the layer's first arguments; ``weights``: their number. Returns output, h_n, c_n, cells, and what was
    saved.
    """

    @staticmethod
    def forward(static, cells, grad_clip, weights, *tensors):
        layer, norms = _layer_of(static, weights, tensors)
        return _forward(layer, norms, cells, save=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.static = inputs[:4]
        ctx.save_for_backward(output[4], *inputs[4:])
        ctx.mark_non_differentiable(output[4])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        static, cells, grad_clip, weights = ctx.static
        saved, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        grads = [None if grad is None or grad.shape == (0,) else grad for grad in grads[:4]]
        if not any([grad is not None for grad in grads]):
            return (None,) * (4 + len(tensors))
        layer, norms = _layer_of(static, weights, tensors)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = _by_formula(layer, norms, cells, grad_clip, grads, needs, tensors)
        else:
            found = _gradients(layer, norms, grad_clip, grads, saved, needs)
        return (None,) * 4 + tuple([grad if needed else None for grad, needed in zip(found, needs, strict=True)])


def _gradients(layer: Layer, norms, grad_clip, grads, saved: Tensor, needs) -> list[Tensor | None]:
    """Those of all tensors of ``NormedLayer``."""
    kinds = layer.weight_kinds
    wanted = int(Wanted.INPUT) if needs[0] and not layer.reads_tokens else 0
    for kind, needed in zip(kinds, needs[3 + _MASKS :], strict=False):
        wanted |= int(kind) if needed else 0
    grad_input, grad_h0, grad_c0, grad_weights, sums = _operators.normed_backward(
        layer.cell,
        layer.bias,
        layer.bidirectional,
        *grads,
        layer.input,
        layer.h0,
        layer.c0,
        list(layer.weights),
        list(norms),
        layer.lengths,
        layer.batch_sizes,
        layer.reset_mask,
        saved,
        wanted,
        grad_clip,
        layer.h_factor,
        layer.zoneout_mask,
        layer.zoneout_h,
        layer.zoneout_c,
    )
    cell, per_direction = BY_ID[layer.cell], len(kinds) // len(sums)
    of_weights: list[Tensor] = []
    of_norms: list[Tensor] = []
    for d, rows in enumerate(sums):
        biases, own = _apart(cell, layer.bias, rows)
        found = grad_weights[d * per_direction : (d + 1) * per_direction]
        of_weights += [biases.get(kind, grad) for kind, grad in zip(kinds, found, strict=False)]
        of_norms += own
    states = (None if layer.h0 is None else grad_h0, None if layer.c0 is None else grad_c0)
    return [grad_input, *states, *[None] * _MASKS, *of_weights, *of_norms]


def _apart(cell: Cell, bias: bool, rows: Tensor) -> tuple[dict[Wanted, Tensor], list[Tensor]]:
    """The gradients of one direction's biases and norms; ``rows``: NormSums of csrc/core/saved_row.h."""
    count = 2 + cell.recurrent * (1 if cell.one_gate_gradient else 2)
    blocks = [of_gates.flatten() for of_gates in rows[: count * cell.gates].split(cell.gates)]
    biases, of_norms = {Wanted.BIAS_IH: blocks[1]}, [blocks[0]]
    if cell.recurrent:
        biases[Wanted.BIAS_HH] = blocks[1].clone() if cell.one_gate_gradient else blocks[3]
        of_norms.append(blocks[2])
    if cell.output_gate:
        of_norms += rows[count * cell.gates :].unbind()[: 1 + bias]
    return biases, of_norms


def _by_formula(layer: Layer, norms, cells: bool, grad_clip, grads, needs, tensors) -> list[Tensor | None]:
    """The same gradients, differentiable."""
    results = reference.run_normed(layer, norms, cells, grad_clip)
    pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if grad is not None]
    wanted = [tensor for tensor, needed in zip(tensors, needs, strict=True) if needed]
    outputs, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, given, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs]
