"""Plain calls, outside of transforms, as autograd functions: a layer's and a cell's single step.

A small layer spends more time in :class:`fused_rnn.autograd.functions.LayerForward` than in its operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..ops import torch_private
from ..ops.calls import FORWARD_TENSORS, MASKS
from ..ops.cells import BY_ID
from ..ops.layer import Grads, Layer, stack_of
from ..ops.nodes import own_node
from ..ops.plain import is_eager
from . import functions
from .functions import LayerForward, wanted_by

_layer_forward = torch_private.bare(torch.ops.fused_rnn.layer_forward.default)
_layer_backward = torch_private.bare(torch.ops.fused_rnn.layer_backward.default)
_step_forward = torch_private.bare(torch.ops.fused_rnn.step_forward.default)
_step_backward = torch_private.bare(torch.ops.fused_rnn.step_backward.default)

_WEIGHTS = 4  # the place of the first weight, or mask, in the arguments of both functions' ``apply``
_MASKS = MASKS.stop - MASKS.start
_NO_MASKS = (None,) * _MASKS


class PlainLayer(torch.autograd.Function):
    """``apply((masks, cells, grad_clip, *STATIC of the layer), input, h0, c0, *given, *weights)``

    As ``LayerForward``, with fewer arguments and results: ``given`` are the masks, of which there are 0 or all; an
    output that was not requested is left out, and so are the saved values.
    """

    @staticmethod
    def forward(ctx, static, input, h0, c0, *rest):
        masks, cells, _, cell, bias, bidirectional, *options = static
        given, weights = (rest[:masks], rest[masks:]) if masks else (_NO_MASKS, rest)
        with torch_private.below_autograd():
            options = (True, cells, None, *given[3:], *options)
            output, h_n, c_n, all_cells, saved = _layer_forward(
                cell, bias, bidirectional, input, h0, c0, list(weights), *given[:3], *options
            )
        ctx.static = static
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(saved, input, h0, c0, *rest)
        if cells:
            return output, h_n, c_n, all_cells
        return (output, h_n, c_n) if BY_ID[cell].states > 1 else (output, h_n)

    @staticmethod
    def backward(ctx, grad_output, grad_h, grad_c=None, grad_cells=None):
        needs, static, grads = ctx.needs_input_grad, ctx.static, (grad_output, grad_h, grad_c, grad_cells)
        given_grads = [grad for grad in grads if grad is not None]
        if not given_grads:
            return (None,) * len(needs)
        if need_layer(given_grads):
            return _gradients_by_layer(static, ctx.saved_tensors, needs, grads)
        saved, input, h0, c0, *rest = ctx.saved_tensors
        masks, _, grad_clip, cell, bias, bidirectional, *options = static
        given, weights = (rest[:masks], rest[masks:]) if masks else (_NO_MASKS, rest)
        wanted = _wanted_of_layer(needs, masks, cell, bidirectional)
        with torch_private.below_autograd():
            options = (saved, wanted, 1, False, grad_clip, *given[3:], *options)
            grad_input, grad_h0, grad_c0, _, grad_weights = _layer_backward(
                cell, bias, bidirectional, *grads, input, h0, c0, weights, *given[:3], *options
            )
        if masks:
            grad_weights = (*_NO_MASKS, *grad_weights)
        return _those_needed(needs, (grad_input, grad_h0, grad_c0, *grad_weights))


def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None) -> Sequence[Tensor | None]:
    """:func:`functions.run_layer` for a plain call that needs gradients; None for a result that there is not."""
    cell, bias, bidirectional, zoneout_h, zoneout_c, checkpoint, input, h0, c0, *given, weights = layer
    if given[0] is given[1] is given[2] is given[3] is given[4] is None:
        given = ()
    static = (len(given), cells, grad_clip, cell, bias, bidirectional, zoneout_h, zoneout_c, checkpoint)
    results = torch_private.apply_function(PlainLayer, (static, input, h0, c0, *given, *weights))
    return (*results, None) if len(results) == 3 else (*results, *[None] * (4 - len(results)))


def run_any_layer(layer: Layer, cells: bool = False, grad_clip: float | None = None) -> Sequence[Tensor | None]:
    """:func:`run_layer` if it can run this call, else :func:`functions.run_layer`."""
    tensors = [tensor for tensor in (layer.input, layer.h0, layer.c0, *layer.weights) if tensor is not None]
    if is_eager() and torch.is_grad_enabled() and torch_private.need_gradient(tensors):
        if has_torch_function(
            tensors
        ):  # the results are of the subclass too, and not views made in an autograd function
            return handle_torch_function(run_any_layer, tensors, layer, cells, grad_clip)
        return run_layer(layer, cells, grad_clip)
    return functions.run_layer(layer._replace(checkpoint=None), cells, grad_clip)


class Step(torch.autograd.Function):
    """``apply(code, input, h0, c0, *weights)``: the new states."""

    @staticmethod
    def forward(ctx, code, input, h0, c0, *weights):
        *states, saved = _step_forward(code, input, h0, c0, list(weights))
        ctx.code = code
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(saved, input, h0, c0, *weights)
        return tuple(states)

    @staticmethod
    def backward(ctx, grad_h, grad_c=None):
        needs, code = ctx.needs_input_grad, ctx.code
        given = [grad for grad in (grad_h, grad_c) if grad is not None]
        if not given:
            return (None,) * len(needs)
        if need_layer(given):
            return _gradients_by_sequence(code, ctx.saved_tensors, needs, grad_h, grad_c)
        saved, input, h0, c0, *weights = ctx.saved_tensors
        wanted = _wanted_of_step(needs, code)
        found = iter(_step_backward(code, grad_h, grad_c, input, h0, c0, weights, saved, wanted))
        to_input = next(found) if needs[1] else None
        to_h0 = None if h0 is None else next(found)
        to_c0 = None if c0 is None else next(found)
        needs_of_weights = needs[_WEIGHTS:]
        return None, to_input, to_h0, to_c0, *[next(found) if needed else None for needed in needs_of_weights]


def run_step(code: int, input: Tensor, states: Sequence[Tensor | None], weights: list[Tensor]) -> Sequence[Tensor]:
    """The new states of a plain call that needs gradients."""
    found = torch_private.apply_function(Step, (code, input, *states, *weights))
    if len(found) > 1:
        for state in found:
            own_node(state)
    return found


@lru_cache(maxsize=1024)
def _wanted_of_layer(needs: tuple[bool, ...], masks: int, cell: int, bidirectional: bool) -> int:
    return wanted_by(_flat_needs(needs, masks), cell, bidirectional)


@lru_cache(maxsize=1024)
def _wanted_of_step(needs: tuple[bool, ...], code: int) -> int:
    return wanted_by(_flat_needs(needs, 0), stack_of(code)[0], False)


def _flat_needs(needs: Sequence[bool], masks: int) -> tuple[bool | None, ...]:
    """The needs of ``LayerForward``'s arguments; ``needs``: of those of one of the functions here."""
    return (*(False,) * (FORWARD_TENSORS - 1), *_with_masks(needs, masks))


def _with_masks(values: Sequence, masks: int) -> tuple:
    """A value for each mask too, where there are none."""
    return tuple(values) if masks else (*values[:_WEIGHTS], *_NO_MASKS, *values[_WEIGHTS:])


def _those_needed(needs: tuple[bool, ...], grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument; ``grads``: those of all but the first."""
    return None, *[grad if needed else None for grad, needed in zip(grads, needs[1:], strict=True)]


def need_layer(grads: Sequence[Tensor]) -> bool:
    """Whether the gradients are differentiated, compiled, transformed or batched: LayerForward alone handles that."""
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch_private.in_transform()
        or torch_private.in_forward_mode()
        or any(map(torch_private.is_legacy_batched, grads))
    )


def _gradients_by_layer(static, saved_tensors, needs, grads: Grads) -> tuple[Tensor | None, ...]:
    """The gradients of ``PlainLayer``'s arguments by the layer's functions; differentiable if grad mode is on."""
    masks, *others = static
    if others[-1] is not None:  # checkpoints
        saved_tensors = _with_all_saved(static, saved_tensors)
        others[-1] = None
    saved_tensors, flat_needs = _with_masks(saved_tensors, masks), _flat_needs(needs, masks)
    _, found = LayerForward.gradients((True, *others), saved_tensors, flat_needs, (*grads, None))
    found = found[FORWARD_TENSORS - 1 :]
    return found if masks else (*found[:_WEIGHTS], *found[_WEIGHTS + _MASKS :])


def _with_all_saved(static, saved_tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors that ``PlainLayer`` saved, with all saved values in place of checkpoints."""
    masks, cells, _, *of_layer, _ = static
    _, *tensors = _with_masks(saved_tensors, masks)
    with torch_private.below_autograd():
        *_, saved = functions.layer_forward(True, cells, *of_layer, None, *tensors)
    return (saved, *saved_tensors[1:])


def _gradients_by_sequence(code: int, saved_tensors, needs, grad_h, grad_c) -> tuple[Tensor | None, ...]:
    """The gradients of a step's arguments, as those of a sequence of one step."""
    cell, _, bias, bidirectional, _ = stack_of(code)

    def as_sequence(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.unsqueeze(0)

    tensors = (*map(as_sequence, saved_tensors[:_WEIGHTS]), *saved_tensors[_WEIGHTS:])
    grads = (None, as_sequence(grad_h), as_sequence(grad_c), None)
    found = _gradients_by_layer((0, False, None, cell, bias, bidirectional, None, None, None), tensors, needs, grads)
    return *(None if grad is None else grad.squeeze(0) for grad in found[:_WEIGHTS]), *found[_WEIGHTS:]
