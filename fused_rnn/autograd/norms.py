"""Norms of the gradients that go back through time, out of the graph as the gradient of an input that is none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ops import torch_private
from ..ops.layer import Layer
from . import functions
from .functions import LayerForward


def run_layer(
    layer: Layer, cells: bool, norms: Tensor, of_last: bool, grad_clip: float | None = None
) -> tuple[Tensor, ...]:
    """As ``functions.run_layer``, for layers of which a gradient is asked.

    ``norms [D, kStates, C]``, C >= T, requires gradients and is not read. What a backward pass gives as its gradient
    are the norms, over batch and units, of the gradients of h (and c) after each step; -1 in columns behind the last
    step. ``of_last``: not of the gradients of that pass, but of one that begins with ones; see :func:`_of_last`. What
    ``grad_clip`` cuts off is not in the former; the latter are never clipped.
    """
    arguments = (norms, of_last, True, cells, grad_clip, *layer[:-1], *layer.weights)
    return functions.apply(_LayerForwardWithNorms, *arguments)[:4]


def are_refused() -> str | None:
    """What keeps a call from being watched; None: nothing does."""
    if torch.compiler.is_exporting():
        return "torch.export"
    if torch_private.in_transform():
        return "torch.func's transforms"
    return "forward-mode AD" if torch_private.in_forward_mode() else None


class _LayerForwardWithNorms(LayerForward):
    """``apply(norms, of_last, *LayerForward's arguments)``"""

    @staticmethod
    def forward(norms, of_last, *args):
        return LayerForward.forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.columns, ctx.of_last, ctx.states_shape = inputs[0].shape[-1], inputs[1], output[1].shape
        LayerForward.setup_context(ctx, inputs[2:], output)

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(
                "fused_rnn.gradient_flow: norms of gradients have no gradient, so create_graph=True is refused"
            )
        saved_tensors = ctx.saved_tensors  # read once: a hook may refuse to unpack them twice
        needs = ctx.needs_input_grad[2:]
        norms, gradients = LayerForward.gradients(ctx.static, saved_tensors, needs, grads, not ctx.of_last)
        if norms is not None:
            if ctx.of_last:
                norms = _of_last(ctx.static[3:], saved_tensors, ctx.states_shape)
            if ctx.columns != norms.shape[-1]:
                norms = pad(norms, (0, ctx.columns - norms.shape[-1]), value=-1.0)
        return norms, None, *gradients


def _of_last(static, saved_tensors, states_shape) -> Tensor:
    """[D, kStates, T]: norms of what comes back of ones, the gradient of h after the last step that each direction
    takes, in the rows that :func:`_whole_rows` names."""
    saved, input, h0, c0, lengths, batch_sizes, reset_mask, *weights = saved_tensors
    layer = Layer(*static, input, h0, c0, lengths, batch_sizes, reset_mask, tuple(weights))
    ones = layer.weights[0].new_ones(states_shape)
    rows = _whole_rows(layer, states_shape[-2])
    if rows is not None:
        ones = ones * rows.unsqueeze(-1)
    arguments = (0, 1, True, None, None, ones, None, None, saved, *layer[:-1], *layer.weights)
    return functions.layer_backward(*arguments)[3]


def _whole_rows(layer: Layer, batch: int) -> Tensor | None:
    """[B] bool: the longest rows without a reset on the way; if there are none, the longest rows. None: all rows.

    Where other rows begin or end, the norm would change without any gradient doing so.
    """
    lengths, reset = layer.lengths, layer.reset_mask
    if batch == 0 or (lengths is None and layer.batch_sizes is None and reset is None):
        return None
    at = torch.arange
    steps, device = steps_of(layer), layer.input.device
    last = steps
    if lengths is not None:
        last = lengths.max()
        rows = lengths == last
    elif layer.batch_sizes is not None:
        rows = at(batch, device=device) < layer.batch_sizes[-1].to(device)
    else:
        rows = torch.ones(batch, dtype=torch.bool, device=device)
    if reset is None:
        return rows
    step = at(steps, device=device)
    on_the_way = (step > 0) & (step < last)
    whole = rows & ~(reset & on_the_way.unsqueeze(-1)).any(0)
    return torch.where(whole.any(), whole, rows)


def steps_of(layer: Layer) -> int:
    return layer.sizes[-1][0] if layer.batch_sizes is None else layer.batch_sizes.shape[0]
