"""The operators' shapes without data, for ``torch.compile``, export and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from . import torch_private
from .layer import BATCH_FIRST, ONE_STEP, Layer, Wanted, layer_from_arguments, stack_of


@torch.library.register_fake("fused_rnn::layer_forward")
def _forward_shapes(
    cell,
    bias,
    bidirectional,
    input,
    h0,
    c0,
    weights,
    lengths,
    batch_sizes,
    reset_mask,
    save,
    cells,
    grad_clip=None,
):
    _check_devices(input, batch_sizes, h0, c0, *weights, lengths, reset_mask)
    layer = layer_from_arguments(cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask)
    kind, directions, hidden, width, members, rows = layer.sizes
    batch = _batch_of(rows, h0, batch_sizes)
    saved_width = (kind.saved + kind.states - 1) * hidden + width

    def new(asked: bool, *shape: int) -> Tensor:
        return weights[0].new_empty((*members, *shape) if asked else (0,))

    return (
        new(True, *rows, directions * width),
        new(True, directions, batch, width),
        new(kind.states > 1, directions, batch, hidden),
        new(cells, *rows, directions * hidden),
        new(save, directions, *rows, saved_width),
    )


def _check_devices(input: Tensor, batch_sizes: Tensor | None, *others: Tensor | None) -> None:
    """One argument on meta is enough for a call to come here: results without data, were the others on the CPU."""
    if batch_sizes is not None and batch_sizes.device.type != "meta":
        batch_sizes = None  # may be on the CPU
    for tensor in (batch_sizes, *others):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"fused_rnn: all arguments must be on the input's device, {input.device}; one is on {tensor.device}"
            )


def _batch_of(rows: tuple[int, ...], h0: Tensor | None, batch_sizes: Tensor | None):
    if batch_sizes is None:
        return rows[-1]
    if h0 is not None:
        return h0.shape[-2]
    if isinstance(batch_sizes, torch_private.FakeTensor):
        return torch.library.get_ctx().new_dynamic_size()
    return int(batch_sizes[0])


@torch.library.register_fake("fused_rnn::infer")
def _infer_shapes(stack, input, h0, c0, weights, packed=None, lengths=None, batch_sizes=None, reset_mask=None):
    _check_devices(input, batch_sizes, h0, c0, *weights, *(packed or ()), lengths, reset_mask)
    cell, num_layers, bias, bidirectional, layout = stack_of(stack)
    per_layer = tuple(weights[: len(weights) // num_layers])
    layer = Layer(cell, bias, bidirectional, input, h0, c0, lengths, batch_sizes, reset_mask, per_layer)
    kind, directions, hidden, width, _, rows = layer.sizes
    if layout == ONE_STEP:
        states = rows
    elif batch_sizes is None and len(rows) == 1:  # unbatched
        states = (num_layers * directions,)
    else:
        batch = rows[0] if layout == BATCH_FIRST else _batch_of(rows, h0, batch_sizes)
        states = (num_layers * directions, batch)
    widths = (width, hidden)[: kind.states]
    return [weights[0].new_empty((*rows, directions * width)), *(weights[0].new_empty((*states, w)) for w in widths)]


@torch.library.register_fake("fused_rnn::layer_backward")
def _backward_shapes(
    cell,
    bias,
    bidirectional,
    grad_output,
    grad_h_n,
    grad_c_n,
    grad_cells,
    input,
    h0,
    c0,
    weights,
    lengths,
    batch_sizes,
    reset_mask,
    saved,
    wanted,
    weight_groups,
    norms,
    grad_clip=None,
):
    grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
    _check_devices(input, batch_sizes, *grads, h0, c0, *weights, lengths, reset_mask, saved)
    layer = layer_from_arguments(cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask)
    kind, directions, hidden, width, members, rows = layer.sizes
    steps = batch_sizes.shape[0] if batch_sizes is not None else rows[0]
    batch = _batch_of(rows, grad_h_n if grad_h_n is not None else h0, batch_sizes)
    groups = (weight_groups,) if weight_groups > 1 else ()

    def new(asked, *shape, dtype=None):
        return weights[0].new_empty(shape if asked else (0,), dtype=dtype)

    norm_dtype = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    return (
        new(wanted & Wanted.INPUT, *members, *rows, input.shape[-1]),
        new(True, *members, directions, batch, width),
        new(kind.states > 1, *members, directions, batch, hidden),
        new(norms, *members, directions, kind.states, steps, dtype=norm_dtype),
        [
            new(wanted & kind, *members, *groups, *weight.shape[len(members) :])
            for kind, weight in zip(layer.weight_kinds, weights, strict=True)
        ],
    )


@torch.library.register_fake("fused_rnn::layer_tangent")
def _tangent_shapes(*args):
    return _forward_shapes(*args[:10], True, args[-1])


@torch.library.register_fake("fused_rnn::layer_trace")
def _trace_shapes(*args):
    layer = layer_from_arguments(*args[:3], *args[7:14])
    cell, directions, hidden, width, members, rows = layer.sizes

    def new(asked: bool, width: int) -> Tensor:
        return layer.input.new_empty((*members, *rows, directions * width) if asked else (0,))

    return (
        new(True, cell.gates * hidden),
        new(not cell.one_gate_gradient, cell.gates * hidden),
        new(True, cell.states * hidden),
        new(layer.weight_kinds[-1] is Wanted.WEIGHT_HR, width),
    )


@torch.library.register_fake("fused_rnn::layer_backward_tangent")
def _backward_tangent_shapes(*args):
    grad_input, grad_h0, grad_c0, _, weights = _backward_shapes(*args[:15], args[-1], 1, False)
    return grad_input, grad_h0, grad_c0, weights
