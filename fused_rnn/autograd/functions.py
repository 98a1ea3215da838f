"""The operators for autograd, torch.func and torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..ops import torch_private
from ..ops.layer import Layer, Wanted, layer_from_arguments, weight_kinds_of
from . import second_order
from .tangents import Direction
from .vmap import Batching

# A small layer's time passes here, not in the operators, so the common way makes no Layer: arguments stay flat.


class LayerForward(torch.autograd.Function):
    """``layer_forward`` for autograd, torch.func and torch.compile.

    ``apply(save, cells, grad_clip, *Layer's fields but weights, *weights)``
    """

    @staticmethod
    def forward(save, cells, grad_clip, *args):
        return layer_forward(save, cells, *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.static = inputs[:6]
        ctx.save_for_backward(output[4], *inputs[6:])
        ctx.mark_non_differentiable(output[4])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        return LayerForward.gradients(ctx.static, ctx.saved_tensors, ctx.needs_input_grad, grads)[1]

    @staticmethod
    def gradients(static, saved_tensors, needs, grads, norms=False):
        """The norms of the states' gradients, empty if not asked for, and the gradients of all arguments."""
        save, _, grad_clip, *static = static
        if not save:
            raise RuntimeError("fused_rnn: nothing was saved for this gradient; run layer_forward with save=True")
        saved, *tensors = saved_tensors
        # A tracer may give zeros in place of None, also for outputs that were not asked for and are empty.
        grads = [None if grad is None or grad.shape == (0,) else grad for grad in grads[:4]]
        if grads[0] is None and not any([grad is not None for grad in grads]):
            return None, (None,) * len(needs)
        compiling = torch.compiler.is_compiling()
        wanted = (_wanted_by if compiling else _wanted_again)(needs, static[0], static[2])
        arguments = (wanted, 1, norms, grad_clip, *grads, saved, *static, *tensors)
        # Dynamo cannot enter a Function inside another's backward.
        followed = torch.is_grad_enabled() or torch_private.in_transform() or torch_private.in_forward_mode()
        if compiling or not followed:
            grad_input, grad_h0, grad_c0, norms, weights = layer_backward(*arguments)
        else:
            grad_input, grad_h0, grad_c0, norms, *weights = apply(LayerBackward, *arguments)
        results = (None, None, None, None, None, None, grad_input, grad_h0, grad_c0, None, None, None, *weights)
        return norms, tuple([result if needed else None for result, needed in zip(results, needs, strict=True)])

    @staticmethod
    def vmap(info, in_dims, save, cells, grad_clip, *args):
        batching = Batching(info.batch_size, _layer_of(args), _layer_of(in_dims[3:]))
        outputs = apply(LayerForward, save, cells, grad_clip, *batching.layer[:-1], *batching.layer.weights)
        return batching.split(outputs)


class LayerBackward(torch.autograd.Function):
    """``layer_backward`` likewise; its own gradient is the double backward.

    ``apply(wanted, weight_groups, norms, grad_clip, *four gradients, saved, *Layer's fields but weights, *weights)``
    """

    @staticmethod
    def forward(*args):
        *states, norms, weights = layer_backward(*args)
        return (*states, norms, *weights)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.static = (inputs[1], inputs[3], *inputs[9:12])
        ctx.save_for_backward(*inputs[4:9], *inputs[12:])
        ctx.mark_non_differentiable(output[3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_input, grad_h0, grad_c0, _, *grad_weights):
        groups, grad_clip, *static = ctx.static
        _refuse_derivatives(grad_clip)
        # Read once: a hook on saved tensors may refuse to unpack one twice.
        grad_output, grad_h_n, grad_c_n, grad_cells, saved, *tensors = ctx.saved_tensors
        grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
        layer = Layer(*static, *tensors[:6], tuple(tensors[6:]))
        wanted = _wanted(layer.weight_kinds, ctx.needs_input_grad[12], ctx.needs_input_grad[18:])
        states, weights, of_grads = second_order.differentiate_backward(
            layer, saved, grads, groups, (grad_input, grad_h0, grad_c0, *grad_weights), wanted
        )
        return (None,) * 4 + of_grads + (None,) * 4 + states + (None,) * 3 + weights

    @staticmethod
    def vmap(info, in_dims, wanted, weight_groups, norms, grad_clip, *args):
        if norms:
            raise NotImplementedError("fused_rnn: gradient norms under vmap are not implemented")
        batching = Batching(info.batch_size, _layer_of(args[5:]), _layer_of(in_dims[9:]))
        grads_and_saved = [batching.join(t, dim, -2) for t, dim in zip(args[:5], in_dims[4:9], strict=True)]
        groups = weight_groups if batching.as_members else weight_groups * info.batch_size
        layer = batching.layer
        outputs = apply(LayerBackward, wanted, groups, norms, grad_clip, *grads_and_saved, *layer[:-1], *layer.weights)
        states, state_dims = batching.split(outputs[:4])
        weights, weight_dims = batching.split_weight_grads(outputs[4:], weight_groups)
        return states + weights, state_dims + weight_dims


def _wanted_by(needs: tuple[bool, ...], cell: int, bidirectional: bool) -> int:
    """What LayerForward's backward asks for; ``needs``: its context's needs_input_grad."""
    return _wanted(weight_kinds_of(cell, bidirectional, len(needs) - 12), needs[6], needs[12:])


_wanted_again = lru_cache(maxsize=1024)(_wanted_by)  # Dynamo cannot enter it


def _wanted(kinds: Sequence[Wanted], input: bool, weights: Sequence[bool]) -> int:
    wanted = int(Wanted.INPUT) if input else 0
    for kind, needed in zip(kinds, weights, strict=True):
        if needed:
            wanted |= int(kind)
    return wanted


def _refuse_derivatives(grad_clip: float | None) -> None:
    """A clipped gradient is no derivative, so nothing that takes derivatives of it, or along it, has a meaning."""
    if grad_clip is not None:
        raise NotImplementedError(
            "fused_rnn: grad_clip goes with first derivatives in reverse mode only, not with double backward or "
            "forward-mode AD (jvp, jacfwd, hessian, linearize)"
        )


def _layer_of(args: Sequence[Any]) -> Layer:
    return Layer(*args[:9], tuple(args[9:]))


_FORWARD, _BACKWARD = torch.ops.fused_rnn.layer_forward.default, torch.ops.fused_rnn.layer_backward.default


def layer_forward(save, cells, *args):
    """The raw operator, for the arguments of ``LayerForward.apply``."""
    return _below_autograd(_FORWARD, *args[:6], list(args[9:]), *args[6:9], save, cells)


def layer_backward(wanted, weight_groups, norms, grad_clip, grad_output, grad_h_n, grad_c_n, grad_cells, saved, *args):
    """Likewise for those of ``LayerBackward.apply``."""
    grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
    layer = (*args[3:6], list(args[9:]), *args[6:9])
    return _below_autograd(_BACKWARD, *args[:3], *grads, *layer, saved, wanted, weight_groups, norms, grad_clip)


# ---- forward-mode AD -----------------------------------------------------------------------------------------------
# Dynamo refuses a Function that has a jvp, so only forward-mode AD gets to see one.


class LayerForwardWithTangents(LayerForward):
    @staticmethod
    def setup_context(ctx, inputs, output):
        LayerForward.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output[4], *inputs[6:])

    @staticmethod
    def jvp(ctx, *tangents):
        _, cells, grad_clip, *static = ctx.static
        _refuse_derivatives(grad_clip)
        saved, *tensors = ctx.saved_tensors
        layer = Layer(*static, *tensors[:6], tuple(tensors[6:]))
        direction = Direction(*tangents[6:9], tangents[12:])
        return (*second_order.forward_along(layer, saved, direction, cells), None)


class LayerBackwardWithTangents(LayerBackward):
    @staticmethod
    def setup_context(ctx, inputs, output):
        LayerBackward.setup_context(ctx, inputs, output)
        ctx.wanted = inputs[0]
        ctx.shapes = [grad.shape for grad in output]
        ctx.save_for_forward(*inputs[4:9], *inputs[12:])

    @staticmethod
    def jvp(ctx, *tangents):
        groups, grad_clip, *static = ctx.static
        _refuse_derivatives(grad_clip)
        *grads, saved, input, h0, c0, lengths, batch_sizes, reset_mask = ctx.saved_tensors[:11]
        layer = Layer(*static, input, h0, c0, lengths, batch_sizes, reset_mask, tuple(ctx.saved_tensors[11:]))
        direction = Direction(*tangents[12:15], tangents[18:])
        states, weights = second_order.backward_along(
            layer, saved, tuple(grads), groups, direction, tangents[4:8], ctx.wanted
        )
        # torch takes None for the tangent of an output that is not differentiable, and only for that.
        changes = zip((*states, None, *weights), ctx.shapes, strict=True)
        changes = [saved.new_zeros(shape) if change is None else change for change, shape in changes]
        changes[3] = None
        return tuple(changes)


_WITH_JVP = {LayerForward: LayerForwardWithTangents, LayerBackward: LayerBackwardWithTangents}


def apply(function: type[torch.autograd.Function], *args):
    if torch_private.in_forward_mode():
        if function is LayerBackward and torch_private.in_nested_forward_mode():
            return _plain_backward(*args)
        return _WITH_JVP[function].apply(*args)
    if torch.compiler.is_compiling() or torch_private.in_transform():
        return function.apply(*args)
    return torch_private.apply_function(function, *args)


def _plain_backward(wanted, weight_groups, norms, grad_clip, *args):
    """LayerBackward.apply, by the formula in plain PyTorch."""
    _refuse_derivatives(grad_clip)
    layer = _layer_of(args[5:])
    results = second_order.plain_backward(layer, weight_groups, args[:4])
    return (*results[:3], None, *results[3:])


def _below_autograd(operator: torch._ops.OpOverload, *args):
    """A raw operator where gradients are seen to: past its own autograd kernel, except where Dynamo looks on."""
    if torch.compiler.is_compiling():
        return operator(*args)
    with torch_private.below_autograd():
        return torch_private.bare(operator)(*args)


# ---- the raw operators ---------------------------------------------------------------------------------------------
# Called by themselves they have the same gradients. Not torch.library.register_autograd: an operator that has only that
# drops the tangents of forward-mode AD without a word. torch leaves out a last argument that has its default value.


def _forward_arguments(*args):
    """From the operator's own order to that of ``LayerForward.apply``."""
    layer, (save, cells, grad_clip) = layer_from_arguments(*args[:10]), (*args[10:], None)[:3]
    return (save, cells, grad_clip, *layer[:-1], *layer.weights)


def _backward_arguments(*args):
    layer = layer_from_arguments(*args[:3], *args[7:14])
    saved, wanted, groups, norms, grad_clip = (*args[14:], None)[:5]
    return (wanted, groups, norms, grad_clip, *args[3:7], saved, *layer[:-1], *layer.weights)


def _raw_forward(*args):
    return LayerForward.apply(*_forward_arguments(*args))


def _raw_backward(*args):
    outputs = LayerBackward.apply(*_backward_arguments(*args))
    return (*outputs[:4], list(outputs[4:]))


def _autograd_kernel(op, with_gradients):
    def kernel(*args):
        tensors = [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]
        if torch_private.in_forward_mode() and any(map(torch_private.has_tangent, tensors)):
            raise NotImplementedError(
                "torch.ops.fused_rnn has no forward-mode AD; fused_rnn.functional and the modules have"
            )
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return with_gradients(*args)
        with torch_private.below_autograd():
            return op(*args)

    return kernel


def _batched_gradients(*args):
    """``layer_backward`` under ``torch.autograd.grad(is_grads_batched=True)``, which has a vmap of its own."""
    level = torch_private.legacy_vmap_level()
    size = 0

    def split(arg):
        """The tensor without its batch dimension, and where that is now."""
        nonlocal size
        if isinstance(arg, list):
            tensors, dims = zip(*map(split, arg), strict=True)
            return list(tensors), list(dims)
        if not isinstance(arg, Tensor) or not torch_private.is_legacy_batched(arg):
            return arg, None
        tensor = torch_private.remove_batch_dim(arg, level, 1, 0)
        size = tensor.shape[0]
        return tensor, 0

    args, dims = zip(*map(split, args), strict=True)
    info = SimpleNamespace(batch_size=size)
    outputs, dims = LayerBackward.vmap(info, _backward_arguments(*dims), *_backward_arguments(*args))
    pairs = zip(outputs, dims, strict=True)
    outputs = [o if dim is None else torch_private.add_batch_dim(o, dim, level) for o, dim in pairs]
    return (*outputs[:4], outputs[4:])


_fragment = torch.library.Library("fused_rnn", "FRAGMENT")
_fragment.impl("layer_forward", _autograd_kernel(_FORWARD, _raw_forward), "Autograd")
_fragment.impl("layer_backward", _autograd_kernel(_BACKWARD, _raw_backward), "Autograd")
_fragment.impl("layer_backward", _batched_gradients, "Batched")


def _no_gradient(*args):
    raise NotImplementedError("fused_rnn: this operator has no gradient; it serves second derivatives of the others")


for _name in ("layer_tangent", "layer_trace", "layer_backward_tangent"):
    _fragment.impl(_name, _autograd_kernel(getattr(torch.ops.fused_rnn, _name).default, _no_gradient), "Autograd")


# ---- the way in ----------------------------------------------------------------------------------------------------


def run_layer(
    layer: Layer, cells: bool = False, grad_clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer: output, h_n, c_n and, if asked for, the second state after every step."""
    differentiable = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
    transformed = torch_private.in_transform()
    if transformed and torch.compiler.is_exporting():  # which would fail with an assertion of torch's own
        raise NotImplementedError("fused_rnn: torch.export does not take vmap and torch.func's other transforms")
    if transformed and torch_private.in_forward_mode() and torch_private.in_nested_forward_mode():
        _refuse_derivatives(grad_clip)
        return reference.run_layer(layer, cells)
    # A tangent needs what a gradient does.
    save = torch_private.in_forward_mode() or (torch.is_grad_enabled() and torch_private.need_gradient(differentiable))
    # Of a Function an export keeps what its forward does and drops its gradient. The operator has one of its own.
    if save and torch.compiler.is_exporting():
        return layer.forward(save, cells, grad_clip)[:4]
    if save or transformed:
        return apply(LayerForward, save, cells, grad_clip, *layer[:-1], *layer.weights)[:4]
    return layer_forward(save, cells, *layer[:-1], *layer.weights)[:4]
