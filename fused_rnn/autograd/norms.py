"""Norms of the gradients that flow back through time; they come out as the gradient of a dummy input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ops import torch_private
from ..ops.calls import BackwardArguments, ForwardArguments, flatten, layer_of
from ..ops.layer import Layer
from . import functions
from .functions import LayerForward


def run_layer(
    layer: Layer, cells: bool, norms: Tensor, of_last: bool, grad_clip: float | None = None
) -> tuple[Tensor, ...]:
    """As ``functions.run_layer``, for layers that need gradients.

    ``norms [D, kStates, C]``, C >= T, is the dummy input: it requires gradients and is not read. A backward pass
    returns as its gradient the norms, over batch and units, of the gradients of h (and c) after each step, and -1 in
    columns beyond the last step. ``of_last``: norms not of that pass's gradients, but of a pass that starts from ones;
    see :func:`_of_last`. The former are norms of clipped gradients under ``grad_clip``; the latter are never clipped.
    """
    arguments = flatten(ForwardArguments(True, cells, grad_clip, layer))
    output, h_n, c_n, all_cells, _ = functions.apply(_LayerForwardWithNorms, norms, of_last, *arguments)
    return output, h_n, c_n, all_cells


def are_refused() -> str | None:
    """The reason why a call cannot be watched; None if it can."""
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
        norms, of_last, *arguments = inputs
        _, h_n, *_ = output
        ctx.columns, ctx.of_last, ctx.states_shape = norms.shape[-1], of_last, h_n.shape
        LayerForward.setup_context(ctx, tuple(arguments), output)

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(
                "fused_rnn.gradient_flow: norms of gradients have no gradient, so create_graph=True is refused"
            )
        saved_tensors = ctx.saved_tensors  # read once: hooks may refuse to unpack a tensor twice
        _, _, *needs = ctx.needs_input_grad
        norms, gradients = LayerForward.gradients(ctx.static, saved_tensors, tuple(needs), grads, not ctx.of_last)
        if norms is not None:
            if ctx.of_last:
                _, _, _, *static = ctx.static
                norms = _of_last(static, saved_tensors, ctx.states_shape)
            if ctx.columns != norms.shape[-1]:
                norms = pad(norms, (0, ctx.columns - norms.shape[-1]), value=-1.0)
        return norms, None, *gradients


def _of_last(static, saved_tensors, states_shape) -> Tensor:
    """[D, kStates, T]: norms of the gradients when the gradient of h after each direction's last step is ones, in the
    rows given by :func:`_whole_rows`."""
    saved, *tensors = saved_tensors
    layer = layer_of((*static, *tensors))
    ones = layer.weights[0].new_ones(states_shape)
    rows = _whole_rows(layer, states_shape[-2])
    if rows is not None:
        ones = ones * rows.unsqueeze(-1)
    arguments = BackwardArguments(
        wanted=0,
        weight_groups=1,
        norms=True,
        grad_clip=None,
        grad_output=None,
        grad_h_n=ones,
        grad_c_n=None,
        grad_cells=None,
        saved=saved,
        layer=layer,
    )
    *_, norms, _ = functions.layer_backward(*flatten(arguments))
    return norms


def _whole_rows(layer: Layer, batch: int) -> Tensor | None:
    """[B] bool: the longest rows without a reset in between, or else the longest rows. None: all rows.

    Rows that begin or end elsewhere would change the norm although no gradient changes.
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
