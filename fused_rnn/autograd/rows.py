"""Per-sample weight gradients beside their sum, from the backward kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops.calls import ForwardArguments, flatten, layer_of
from ..ops.layer import Layer
from . import functions
from .functions import LayerForward

# Called with a layer's weight gradients [B, *weight.shape], None for those not needed, in each backward pass.
Deliver = Callable[[Sequence[Tensor | None]], None]


def run_layer(
    layer: Layer, cells: bool, grad_clip: float | None, are_wanted: Callable[[], bool], deliver: Deliver
) -> tuple[Tensor, ...]:
    """As ``functions.run_layer``, for padded layers that need gradients.

    Each backward pass during which ``are_wanted()`` is true calls ``deliver``; the weights'
    gradients are still the sums.
    """
    arguments = flatten(ForwardArguments(True, cells, grad_clip, layer))
    output, h_n, c_n, all_cells, _ = functions.apply(_LayerForwardByRow, are_wanted, deliver, *arguments)
    return output, h_n, c_n, all_cells


class _LayerForwardByRow(LayerForward):
    """``apply(are_wanted, deliver, *LayerForward's arguments)``"""

    @staticmethod
    def forward(are_wanted, deliver, *args):
        return LayerForward.forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.are_wanted, ctx.deliver, *arguments = inputs
        LayerForward.setup_context(ctx, tuple(arguments), output)

    @staticmethod
    def backward(ctx, *grads):
        saved_tensors = ctx.saved_tensors  # read once: hooks may refuse to unpack a tensor twice
        _, _, *needs = ctx.needs_input_grad
        if not ctx.are_wanted():
            return None, None, *LayerForward.gradients(ctx.static, saved_tensors, tuple(needs), grads)[1]
        if torch.is_grad_enabled():
            raise NotImplementedError("fused_rnn: gradients of each row have no gradient; create_graph=True is refused")
        _, _, _, *static = ctx.static
        layer = layer_of((*static, *saved_tensors[1:]))
        batch = layer.sizes[-1][-1]
        gradients = LayerForward.gradients(ctx.static, saved_tensors, tuple(needs), grads, groups=max(batch, 1))[1]
        first = len(gradients) - len(layer.weights)
        by_row = [
            # Without rows there is one group, of zeros.
            None if grad is None else grad.reshape(-1, *weight.shape)[:batch]
            for grad, weight in zip(gradients[first:], layer.weights, strict=True)
        ]
        ctx.deliver(by_row)
        return None, None, *gradients[:first], *(None if rows is None else rows.sum(0) for rows in by_row)
