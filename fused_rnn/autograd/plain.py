"""A cell's single step as an autograd function, for plain calls outside of transforms.

For a small cell the overhead of :class:`fused_rnn.autograd.functions.LayerForward` would exceed the step itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..ops import torch_private
from ..ops.calls import FORWARD_TENSORS, MASKS, ForwardArguments, unflatten
from ..ops.layer import stack_of, weight_kinds_of
from .functions import LayerForward, wanted_gradients

_forward = torch_private.bare(torch.ops.fused_rnn.step_forward.default)
_backward = torch_private.bare(torch.ops.fused_rnn.step_backward.default)

_clone = torch_private.bare(torch.ops.aten.clone.default)

_INPUT, _WEIGHTS = 1, 4  # positions in the arguments of ``Step.apply``
_NO_MASKS = (None,) * (MASKS.stop - MASKS.start)


class Step(torch.autograd.Function):
    """``apply(code, input, h0, c0, *weights)``: the new states."""

    @staticmethod
    def forward(ctx, code, input, h0, c0, *weights):
        *states, saved = _forward(code, input, h0, c0, list(weights))
        ctx.code = code
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(saved, input, h0, c0, *weights)
        return tuple(states)

    @staticmethod
    def backward(ctx, grad_h, grad_c=None):
        needs = ctx.needs_input_grad
        if grad_h is None and grad_c is None:
            return (None,) * len(needs)
        if torch.is_grad_enabled() or _needs_layer(grad_h) or _needs_layer(grad_c):
            return _gradients_by_layer(ctx.code, ctx.saved_tensors, needs, grad_h, grad_c)
        saved, input, h0, c0, *weights = ctx.saved_tensors
        wanted = _wanted(needs, ctx.code)
        grads = _backward(ctx.code, grad_h, grad_c, input, h0, c0, weights, saved, wanted)
        return None, *[grad if needed else None for grad, needed in zip(grads, needs[_INPUT:], strict=True)]


def run_step(code: int, input: Tensor, states: Sequence[Tensor | None], weights: list[Tensor]) -> Sequence[Tensor]:
    """The new states of a plain call that needs gradients."""
    found = torch_private.apply_function(Step, (code, input, *states, *weights))
    # h and c as graph nodes of their own, as torch.nn's are: a hook on one that no gradient reaches is then not called;
    # on a function's own output it would be called with None.
    return found if len(found) == 1 else tuple([_clone(state) for state in found])


@lru_cache(maxsize=1024)
def _wanted(needs: tuple[bool, ...], code: int) -> int:
    kinds = weight_kinds_of(stack_of(code)[0], False, len(needs) - _WEIGHTS)
    return wanted_gradients(kinds, needs[_INPUT], needs[_WEIGHTS:])


def _needs_layer(grad: Tensor | None) -> bool:
    """Whether a gradient is compiled, transformed or batched: only the layer's functions handle that."""
    return (
        torch.compiler.is_compiling()
        or torch_private.in_transform()
        or torch_private.in_forward_mode()
        or (grad is not None and torch_private.is_legacy_batched(grad))
    )


def _gradients_by_layer(code: int, saved_tensors, needs, grad_h, grad_c) -> tuple[Tensor | None, ...]:
    """The gradients of a sequence of one step, by the layer's functions; differentiable if grad mode is on."""
    cell, _, bias, bidirectional, _ = stack_of(code)
    saved, input, h0, c0, *weights = saved_tensors

    def as_sequence(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.unsqueeze(0)

    static = (True, False, None, cell, bias, bidirectional)
    tensors = (*map(as_sequence, (saved, input, h0, c0)), *_NO_MASKS, *weights)
    flat_needs = (*(False,) * FORWARD_TENSORS, *needs[_INPUT:_WEIGHTS], *(False,) * len(_NO_MASKS), *needs[_WEIGHTS:])
    grads = (None, as_sequence(grad_h), as_sequence(grad_c), None, None)
    found = unflatten(ForwardArguments, LayerForward.gradients(static, tensors, flat_needs, grads)[1]).layer
    of_states = (None if grad is None else grad.squeeze(0) for grad in (found.input, found.h0, found.c0))
    return (None, *of_states, *found.weights)
