"""The operators as autograd functions, for autograd, torch.func and torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .. import reference
from ..ops import torch_private
from ..ops.calls import (
    FORWARD_TENSORS,
    MASKS,
    STATES,
    STATIC,
    BackwardArguments,
    ForwardArguments,
    backward_gradients,
    flatten,
    forward_gradients,
    layer_of,
    unflatten,
)
from ..ops.layer import Layer, Wanted, weight_kinds_of
from . import second_order
from .tangents import Direction
from .vmap import Batching

# A small layer spends its time here, not in the operators, so the common path builds no Layer: arguments stay flat.


class LayerForward(torch.autograd.Function):
    """``layer_forward`` for autograd, torch.func and torch.compile; ``apply(*flatten(ForwardArguments(...)))``."""

    @staticmethod
    def forward(save, cells, grad_clip, *args):
        return layer_forward(save, cells, *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        saved = output[-1]
        ctx.static = inputs[:FORWARD_TENSORS]
        ctx.save_for_backward(saved, *inputs[FORWARD_TENSORS:])
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        return LayerForward.gradients(ctx.static, ctx.saved_tensors, ctx.needs_input_grad, grads)[1]

    @staticmethod
    def gradients(static, saved_tensors, needs, grads, norms=False, groups=1):
        """The norms of the states' gradients (empty unless requested) and the gradients of all arguments.

        ``groups``: 1, or the number of rows for per-sample weight gradients.
        """
        save, _, grad_clip, *of_layer = static
        cell, _, bidirectional, *_ = of_layer
        if not save:
            raise RuntimeError("fused_rnn: nothing was saved for this gradient; run layer_forward with save=True")
        saved, *tensors = saved_tensors
        # A tracer may pass zeros instead of None, also for empty outputs that were not requested.
        # The last output, the saved values, has none.
        grads = [None if grad is None or grad.shape == (0,) else grad for grad in grads[:-1]]
        if grads[0] is None and not any([grad is not None for grad in grads]):
            return None, (None,) * len(needs)
        compiling = torch.compiler.is_compiling()
        wanted = (wanted_by if compiling else _wanted_again)(needs, cell, bidirectional)
        arguments = (wanted, groups, norms, grad_clip, *grads, saved, *of_layer, *tensors)
        # Dynamo cannot enter a Function inside another's backward.
        followed = torch.is_grad_enabled() or torch_private.in_transform() or torch_private.in_forward_mode()
        if compiling or not followed:
            grad_input, grad_h0, grad_c0, norms, weights = layer_backward(*arguments)
        else:
            grad_input, grad_h0, grad_c0, norms, *weights = apply(LayerBackward, *arguments)
        results = forward_gradients(grad_input, grad_h0, grad_c0, weights)
        return norms, tuple([result if needed else None for result, needed in zip(results, needs, strict=True)])

    @staticmethod
    def vmap(info, in_dims, *args):
        arguments, dims = unflatten(ForwardArguments, args), unflatten(ForwardArguments, in_dims)
        batching = Batching(info.batch_size, arguments.layer, dims.layer)
        return batching.split(apply(LayerForward, *flatten(arguments._replace(layer=batching.layer))))


class LayerBackward(torch.autograd.Function):
    """``layer_backward``, with ``BackwardArguments``; its own gradient is the double backward."""

    @staticmethod
    def forward(*args):
        input, h0, c0, norms, weights = layer_backward(*args)
        return input, h0, c0, norms, *weights

    @staticmethod
    def setup_context(ctx, inputs, output):
        arguments = unflatten(BackwardArguments, inputs)
        layer = arguments.layer
        ctx.static = (arguments.weight_groups, arguments.grad_clip, *layer[STATIC])
        ctx.save_for_backward(*arguments.grads, arguments.saved, *layer[STATES], *layer[MASKS], *layer.weights)
        _, _, _, norms, *_ = output
        ctx.mark_non_differentiable(norms)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_input, grad_h0, grad_c0, _, *grad_weights):
        groups, grad_clip, *static = ctx.static
        _refuse_derivatives(grad_clip)
        # Read once: hooks on saved tensors may refuse to unpack a tensor twice.
        grad_output, grad_h_n, grad_c_n, grad_cells, saved, *tensors = ctx.saved_tensors
        grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
        layer, needs = layer_of((*static, *tensors)), unflatten(BackwardArguments, ctx.needs_input_grad).layer
        wanted = wanted_gradients(layer.weight_kinds, needs.input, needs.weights)
        states, weights, of_grads = second_order.differentiate_backward(
            layer, saved, grads, groups, (grad_input, grad_h0, grad_c0, *grad_weights), wanted
        )
        return backward_gradients(of_grads, states, weights)

    @staticmethod
    def vmap(info, in_dims, *args):
        arguments, dims = unflatten(BackwardArguments, args), unflatten(BackwardArguments, in_dims)
        if arguments.norms:
            raise NotImplementedError("fused_rnn: gradient norms under vmap are not implemented")
        batching = Batching(info.batch_size, arguments.layer, dims.layer)
        pairs = zip((*arguments.grads, arguments.saved), (*dims.grads, dims.saved), strict=True)
        *grads, saved = (batching.join(tensor, dim, -2) for tensor, dim in pairs)
        groups = arguments.weight_groups
        joined = BackwardArguments(
            arguments.wanted,
            groups if batching.as_members else groups * info.batch_size,
            False,
            arguments.grad_clip,
            *grads,
            saved,
            batching.layer,
        )
        input, h0, c0, norms, *weights = apply(LayerBackward, *flatten(joined))
        states, state_dims = batching.split((input, h0, c0, norms))
        weights, weight_dims = batching.split_weight_grads(weights, groups)
        return states + weights, state_dims + weight_dims


def wanted_by(needs: tuple[bool, ...], cell: int, bidirectional: bool) -> int:
    """The gradients that LayerForward's backward requests; ``needs``: its context's needs_input_grad."""
    layer = unflatten(ForwardArguments, needs).layer
    return wanted_gradients(weight_kinds_of(cell, bidirectional, len(layer.weights)), layer.input, layer.weights)


_wanted_again = lru_cache(maxsize=1024)(wanted_by)  # Dynamo cannot enter it


def wanted_gradients(kinds: Sequence[Wanted], input: bool, weights: Sequence[bool]) -> int:
    wanted = int(Wanted.INPUT) if input else 0
    for kind, needed in zip(kinds, weights, strict=True):
        if needed:
            wanted |= int(kind)
    return wanted


def _refuse_derivatives(grad_clip: float | None) -> None:
    """A clipped gradient is not a derivative, so neither its derivatives nor forward mode are defined."""
    if grad_clip is not None:
        raise NotImplementedError(
            "fused_rnn: grad_clip goes with first derivatives in reverse mode only, not with double backward or "
            "forward-mode AD (jvp, jacfwd, hessian, linearize)"
        )


_FORWARD, _BACKWARD = torch.ops.fused_rnn.layer_forward.default, torch.ops.fused_rnn.layer_backward.default


# Both argument lists are spelled out, in the orders of ``Layer`` and of the operators: a microsecond matters here.


def layer_forward(
    save,
    cells,
    cell,
    bias,
    bidirectional,
    zoneout_h,
    zoneout_c,
    checkpoint,
    input,
    h0,
    c0,
    lengths,
    batch_sizes,
    reset_mask,
    h_factor,
    zoneout_mask,
    *weights,
):
    """The raw operator, for ``ForwardArguments`` without ``grad_clip``, which only the backward pass uses."""
    return _below_autograd(
        _FORWARD,
        cell,
        bias,
        bidirectional,
        input,
        h0,
        c0,
        list(weights),
        lengths,
        batch_sizes,
        reset_mask,
        save,
        cells,
        None,
        h_factor,
        zoneout_mask,
        zoneout_h,
        zoneout_c,
        checkpoint,
    )


def layer_backward(
    wanted,
    weight_groups,
    norms,
    grad_clip,
    grad_output,
    grad_h_n,
    grad_c_n,
    grad_cells,
    saved,
    cell,
    bias,
    bidirectional,
    zoneout_h,
    zoneout_c,
    checkpoint,
    input,
    h0,
    c0,
    lengths,
    batch_sizes,
    reset_mask,
    h_factor,
    zoneout_mask,
    *weights,
):
    """The raw operator, for ``BackwardArguments``."""
    return _below_autograd(
        _BACKWARD,
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
        list(weights),
        lengths,
        batch_sizes,
        reset_mask,
        saved,
        wanted,
        weight_groups,
        norms,
        grad_clip,
        h_factor,
        zoneout_mask,
        zoneout_h,
        zoneout_c,
        checkpoint,
    )


# ---- forward-mode AD -------------------------------------------------------------------------------------------------
# Dynamo refuses a Function with a jvp, so these are used only while forward-mode AD is active.


class LayerForwardWithTangents(LayerForward):
    @staticmethod
    def setup_context(ctx, inputs, output):
        LayerForward.setup_context(ctx, inputs, output)
        *_, saved = output
        ctx.save_for_forward(saved, *inputs[FORWARD_TENSORS:])

    @staticmethod
    def jvp(ctx, *tangents):
        _, cells, grad_clip, *static = ctx.static
        _refuse_derivatives(grad_clip)
        saved, *tensors = ctx.saved_tensors
        layer, tangent = layer_of((*static, *tensors)), unflatten(ForwardArguments, tangents).layer
        direction = Direction(*tangent[STATES], tangent.weights)
        return (*second_order.forward_along(layer, saved, direction, cells), None)


class LayerBackwardWithTangents(LayerBackward):
    @staticmethod
    def setup_context(ctx, inputs, output):
        LayerBackward.setup_context(ctx, inputs, output)
        arguments = unflatten(BackwardArguments, inputs)
        layer = arguments.layer
        ctx.wanted = arguments.wanted
        ctx.shapes = [grad.shape for grad in output]
        ctx.save_for_forward(*arguments.grads, arguments.saved, *layer[STATES], *layer[MASKS], *layer.weights)

    @staticmethod
    def jvp(ctx, *tangents):
        groups, grad_clip, *static = ctx.static
        _refuse_derivatives(grad_clip)
        grad_output, grad_h_n, grad_c_n, grad_cells, saved, *tensors = ctx.saved_tensors
        grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
        layer, tangents = layer_of((*static, *tensors)), unflatten(BackwardArguments, tangents)
        direction = Direction(*tangents.layer[STATES], tangents.layer.weights)
        (input, h0, c0), weights = second_order.backward_along(
            layer, saved, grads, groups, direction, tangents.grads, ctx.wanted
        )
        input_shape, h0_shape, c0_shape, _, *weight_shapes = ctx.shapes
        shapes = (input_shape, h0_shape, c0_shape, *weight_shapes)
        pairs = zip((input, h0, c0, *weights), shapes, strict=True)
        # torch accepts None only as the tangent of a non-differentiable output.
        input, h0, c0, *weights = (saved.new_zeros(shape) if change is None else change for change, shape in pairs)
        return input, h0, c0, None, *weights


_WITH_JVP = {LayerForward: LayerForwardWithTangents, LayerBackward: LayerBackwardWithTangents}


def apply(function: type[torch.autograd.Function], *args):
    if torch_private.in_forward_mode():
        if function is LayerBackward and torch_private.in_nested_forward_mode():
            return _plain_backward(*args)
        return _WITH_JVP[function].apply(*args)
    if torch.compiler.is_compiling() or torch_private.in_transform():
        return function.apply(*args)
    return torch_private.apply_function(function, args)


def _plain_backward(*args):
    """LayerBackward.apply, computed by the reference."""
    arguments = unflatten(BackwardArguments, args)
    _refuse_derivatives(arguments.grad_clip)
    input, h0, c0, *weights = second_order.plain_backward(arguments.layer, arguments.weight_groups, arguments.grads)
    return input, h0, c0, None, *weights


def _below_autograd(operator: torch._ops.OpOverload, *args):
    """Calls a raw operator below autograd, which is handled here; under Dynamo, calls it as it is."""
    if torch.compiler.is_compiling():
        return operator(*args)
    with torch_private.below_autograd():
        return torch_private.bare(operator)(*args)


def is_captured() -> bool:
    """Whether torch.export or torch.jit.trace is recording calls, for use in other processes."""
    return torch.compiler.is_exporting() or torch_private.is_tracing()


# ---- entry point -----------------------------------------------------------------------------------------------------


def run_layer(
    layer: Layer, cells: bool = False, grad_clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer: output, h_n, c_n and, if requested, the second state after every step."""
    differentiable = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
    transformed = torch_private.in_transform()
    if transformed and torch.compiler.is_exporting():  # torch would fail an assertion
        raise NotImplementedError("fused_rnn: torch.export does not take vmap and torch.func's other transforms")
    if transformed and torch_private.in_forward_mode() and torch_private.in_nested_forward_mode():
        _refuse_derivatives(grad_clip)
        return reference.run_layer(layer, cells)
    # A trace may be run in either grad mode, whatever it is now: the raw operator saves what a gradient needs.
    tracing = torch_private.is_tracing()
    with_gradients = torch.is_grad_enabled() and not tracing and torch_private.need_gradient(differentiable)
    # A tangent needs the saved values as much as a gradient does.
    save = with_gradients or torch_private.in_forward_mode()
    # A graph keeps only a Function's forward; the raw operator has a gradient of its own.
    if tracing or (save and is_captured()):
        output, h_n, c_n, all_cells, _ = layer.forward(save, cells, grad_clip)
    elif save or transformed:
        flat = flatten(ForwardArguments(save, cells, grad_clip, layer))
        output, h_n, c_n, all_cells, _ = apply(LayerForward, *flat)
    else:
        output, h_n, c_n, all_cells, _ = layer_forward(save, cells, *layer[:-1], *layer.weights)
    return output, h_n, c_n, all_cells
