"""Fake implementations of the operators, shapes only, for ``torch.compile``, export and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from . import torch_private
from .calls import (
    BackwardCall,
    BackwardTangentCall,
    ForwardCall,
    NormedBackwardCall,
    NormedCall,
    TangentCall,
    TraceCall,
)
from .layer import BATCH_FIRST, ONE_STEP, Layer, Wanted, stack_of


@torch.library.register_fake("fused_rnn::layer_forward")
def _forward_shapes(*args):
    call = ForwardCall(*args)
    if call.checkpoint is not None:
        raise NotImplementedError(
            "fused_rnn: checkpoint, whose shape depends on the processor, is not for fake tensors"
        )
    return _shapes_of_forward(call.layer, call.save, call.cells)


@torch.library.register_fake("fused_rnn::layer_tangent")
def _tangent_shapes(*args):
    call = TangentCall(*args)
    return _shapes_of_forward(call.layer, True, call.cells)


def _shapes_of_forward(layer: Layer, save: bool, cells: bool):
    weights, h0, batch_sizes = layer.weights, layer.h0, layer.batch_sizes
    _check_devices(layer)
    kind, directions, hidden, width, members, rows = layer.sizes
    batch = _batch_of(rows, h0, batch_sizes)
    further = (kind.states - 1) * hidden
    saved_width = kind.saved * hidden + further + width

    def new(asked: bool, *shape: int) -> Tensor:
        return weights[0].new_empty((*members, *shape) if asked else (0,))

    return (
        new(True, *rows, directions * width),
        new(True, directions, batch, width),
        new(kind.states > 1, directions, batch, further),
        new(cells, *rows, directions * further),
        new(save, directions, *rows, saved_width),
    )


@torch.library.register_fake("fused_rnn::normed_forward")
def _normed_shapes(*args):
    call = NormedCall(*args)
    *results, saved = _shapes_of_forward(call.layer, call.save, call.cells)
    _check_devices(call.layer, *call.norms)
    if call.save:  # csrc/core/saved_row.h
        kind, _, hidden, *_ = call.layer.sizes
        normalised = (1 + kind.recurrent) * kind.gates * hidden + kind.output_gate * hidden
        saved = saved.new_empty(*saved.shape[:-1], saved.shape[-1] + normalised + 3)
    return (*results, saved)


@torch.library.register_fake("fused_rnn::normed_backward")
def _normed_backward_shapes(*args):
    call = NormedBackwardCall(*args)
    layer, like = call.layer, call.weights[0]
    _check_devices(layer, *call.norms)
    cell, directions, hidden, width, _, rows = layer.sizes
    batch, further = _batch_of(rows, layer.h0, layer.batch_sizes), (cell.states - 1) * hidden
    of_weights = [
        like.new_empty(weight.shape if call.wanted & kind and kind not in (Wanted.BIAS_IH, Wanted.BIAS_HH) else (0,))
        for weight, kind in zip(call.weights, layer.weight_kinds, strict=True)
    ]
    sums = (2 + cell.recurrent * (2 - cell.one_gate_gradient)) * cell.gates + 2 * cell.output_gate
    return (
        like.new_empty((*rows, layer.input.shape[-1]) if call.wanted & Wanted.INPUT else (0,)),
        like.new_empty(directions, batch, width),
        like.new_empty((directions, batch, further) if further else (0,)),
        of_weights,
        [like.new_empty(sums, hidden) for _ in range(directions)],
    )


def _check_devices(layer: Layer, *others: Tensor | None) -> None:
    """Refuses mixed devices: a single meta argument dispatches here, and the results would have no data."""
    input, batch_sizes = layer.input, layer.batch_sizes
    if batch_sizes is not None and batch_sizes.device.type != "meta":
        batch_sizes = None  # may be on the CPU
    for tensor in (batch_sizes, layer.h0, layer.c0, *layer.weights, layer.lengths, *layer.masks, *others):
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
def _infer_shapes(
    stack,
    input,
    h0,
    c0,
    weights,
    packed=None,
    lengths=None,
    batch_sizes=None,
    reset_mask=None,
    cells=False,
    own_cell=None,
):
    cell, num_layers, bias, bidirectional, layout = stack_of(stack, own_cell)
    per_layer = tuple(weights[: len(weights) // num_layers])
    layer = Layer.plain(cell, bias, bidirectional, input, h0, c0, per_layer, lengths, batch_sizes, reset_mask)
    _check_devices(layer, *weights, *(packed or ()))
    kind, directions, hidden, width, _, rows = layer.sizes
    further = (kind.states - 1) * hidden
    if layout == ONE_STEP:
        states = rows
    elif batch_sizes is None and len(rows) == 1:  # unbatched
        states = (num_layers * directions,)
    else:
        batch = rows[0] if layout == BATCH_FIRST else _batch_of(rows, h0, batch_sizes)
        states = (num_layers * directions, batch)
    output = () if layout == ONE_STEP else ((*rows, directions * width),)
    shapes = [*output, *((*states, w) for w in (width, further)[: kind.states])]
    if cells:
        shapes.append((*rows, directions * further))
    return [weights[0].new_empty(shape) for shape in shapes]


@torch.library.register_fake("fused_rnn::infer_layer")
def _infer_layer_shapes(stack, input, h0, c0, *weights):
    if weights[0].dtype == torch.uint8:
        raise NotImplementedError("fused_rnn: packed weights do not tell their layer's sizes to fake tensors")
    return _infer_shapes(stack, input, h0, c0, [weight for weight in weights if weight is not None])


def _step_of(stack: int, input: Tensor, h0, c0, weights) -> Layer:
    cell, _, bias, bidirectional, _ = stack_of(stack)
    return Layer.plain(cell, bias, bidirectional, input, h0, c0, tuple(weights))


@torch.library.register_fake("fused_rnn::step_forward")
def _step_shapes(stack, input, h0, c0, weights):
    layer = _step_of(stack, input, h0, c0, weights)
    _check_devices(layer)
    kind, _, hidden, width, _, (batch,) = layer.sizes
    further = (kind.states - 1) * hidden
    widths = (width, further)[: kind.states]
    saved = (1, batch, kind.saved * hidden + further + width)
    return [*(input.new_empty(batch, w) for w in widths), input.new_empty(saved)]


@torch.library.register_fake("fused_rnn::step_backward")
def _step_backward_shapes(stack, grad_h, grad_c, input, h0, c0, weights, saved, wanted):
    layer = _step_of(stack, input, h0, c0, weights)
    _check_devices(layer, grad_h, grad_c, saved)
    like = [input] * bool(wanted & Wanted.INPUT) + [state for state in (h0, c0) if state is not None]
    like += [weight for kind, weight in zip(layer.weight_kinds, weights, strict=True) if wanted & kind]
    return [tensor.new_empty(tensor.shape) for tensor in like]


@torch.library.register_fake("fused_rnn::layer_backward")
def _backward_shapes(*args):
    call = BackwardCall(*args)
    return _shapes_of_backward(call.layer, call.grads, call.saved, call.wanted, call.weight_groups, call.norms)


@torch.library.register_fake("fused_rnn::layer_backward_tangent")
def _backward_tangent_shapes(*args):
    call = BackwardTangentCall(*args)
    layer = call.layer
    input, h0, c0, _, weights = _shapes_of_backward(layer, call.grads, call.saved, call.wanted, 1, False)
    projected = layer.weight_kinds[-1] is Wanted.WEIGHT_HR
    _, directions, hidden, _, members, rows = layer.sizes
    wide = (*members, *rows, directions * hidden) if projected and call.wanted & Wanted.WEIGHT_HR else (0,)
    return input, h0, c0, layer.input.new_empty(wide), weights


def _shapes_of_backward(layer: Layer, grads, saved: Tensor, wanted: int, weight_groups: int, norms: bool):
    _check_devices(layer, *grads, saved)
    kind, directions, hidden, width, members, rows = layer.sizes
    steps = layer.batch_sizes.shape[0] if layer.batch_sizes is not None else rows[0]
    _, grad_h_n, _, _ = grads
    batch = _batch_of(rows, grad_h_n if grad_h_n is not None else layer.h0, layer.batch_sizes)
    groups = (weight_groups,) if weight_groups > 1 else ()
    like = layer.weights[0]

    def new(asked, *shape, dtype=None):
        return like.new_empty(shape if asked else (0,), dtype=dtype)

    norm_dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return (
        new(wanted & Wanted.INPUT, *members, *rows, layer.input.shape[-1]),
        new(True, *members, directions, batch, width),
        new(kind.states > 1, *members, directions, batch, (kind.states - 1) * hidden),
        new(norms, *members, directions, kind.states, steps, dtype=norm_dtype),
        [
            new(wanted & kind, *members, *groups, *weight.shape[len(members) :])
            for kind, weight in zip(layer.weight_kinds, layer.weights, strict=True)
        ],
    )


@torch.library.register_fake("fused_rnn::layer_trace")
def _trace_shapes(*args):
    layer = TraceCall(*args).layer
    cell, directions, hidden, width, members, rows = layer.sizes

    projected = layer.weight_kinds[-1] is Wanted.WEIGHT_HR

    def new(asked: bool, width: int) -> Tensor:
        return layer.input.new_empty((*members, *rows, directions * width) if asked else (0,))

    return (
        new(True, cell.gates * hidden),
        new(not cell.one_gate_gradient, cell.gates * hidden),
        new(True, cell.states * hidden),
        new(projected, width),
        new(projected, hidden),
    )
