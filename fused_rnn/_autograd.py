"""The two operators for autograd, torch.func and torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _private
from ._ops import Grads, Layer, Wanted, layer_from_arguments
from ._vmap import Batching


def _first_order(layer: Layer, grads: Grads, saved: Tensor, needs: Sequence[bool], needs_weights: Sequence[bool]):
    """Gradients of (input, h0, c0) and of the weights, None where not needed."""
    # A tracer may give zeros in place of None, also for outputs that were not asked for and are empty.
    grads = tuple(None if grad is None or grad.shape == (0,) else grad for grad in grads)
    if all(grad is None for grad in grads):
        return (None, None, None), (None,) * len(layer.weights)
    wanted = Wanted.INPUT if needs[0] else Wanted(0)
    for kind, needed in zip(layer.weight_kinds, needs_weights, strict=True):
        if needed:
            wanted |= kind
    if torch.compiler.is_compiling():  # Dynamo cannot enter a Function inside another's backward
        outputs = layer.backward(grads, saved, int(wanted), 1, False)
    else:
        outputs = _apply(LayerBackward, int(wanted), 1, False, *grads, saved, *layer[:-1], *layer.weights)
    grad_input, grad_h0, grad_c0, _, *grad_weights = outputs
    states = (grad_input, grad_h0, grad_c0)
    return (
        tuple(g if needed else None for g, needed in zip(states, needs, strict=True)),
        tuple(g if needed else None for g, needed in zip(grad_weights, needs_weights, strict=True)),
    )


class LayerForward(torch.autograd.Function):
    """``layer_forward`` for autograd, torch.func and torch.compile.

    ``apply(save, cells, *Layer's fields but weights, *weights)``
    """

    @staticmethod
    def forward(save, cells, *args):
        return tuple(_below_autograd(_layer_of(args).forward, save, cells))

    @staticmethod
    def setup_context(ctx, inputs, output):
        layer = _layer_of(inputs[2:])
        ctx.static = (inputs[0], layer.cell, layer.bias, layer.bidirectional)
        ctx.save_for_backward(output[4], *layer[3:-1], *layer.weights)
        ctx.mark_non_differentiable(output[4])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        save, *static = ctx.static
        if not save:
            raise RuntimeError("fused_rnn: nothing was saved for this gradient; run layer_forward with save=True")
        saved, *tensors = ctx.saved_tensors
        layer = Layer(*static, *tensors[:6], tuple(tensors[6:]))
        needs = ctx.needs_input_grad
        states, weights = _first_order(layer, grads[:4], saved, needs[5:8], needs[11:])
        return (None,) * 5 + states + (None,) * 3 + weights

    @staticmethod
    def vmap(info, in_dims, save, cells, *args):
        batching = Batching(info.batch_size, _layer_of(args), _layer_of(in_dims[2:]))
        outputs = _apply(LayerForward, save, cells, *batching.layer[:-1], *batching.layer.weights)
        return batching.split(outputs)


class LayerBackward(torch.autograd.Function):
    """``layer_backward`` likewise; its own gradient is the double backward.

    ``apply(wanted, weight_groups, norms, *four gradients, saved, *Layer's fields but weights, *weights)``
    """

    @staticmethod
    def forward(wanted, weight_groups, norms, grad_output, grad_h_n, grad_c_n, grad_cells, saved, *args):
        grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
        return tuple(_below_autograd(_layer_of(args).backward, grads, saved, wanted, weight_groups, norms))

    @staticmethod
    def setup_context(ctx, inputs, output):
        layer = _layer_of(inputs[8:])
        ctx.static = (inputs[1], layer.cell, layer.bias, layer.bidirectional)
        ctx.save_for_backward(*inputs[3:7], *layer[3:-1], *layer.weights)
        ctx.mark_non_differentiable(output[3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_input, grad_h0, grad_c0, _, *grad_weights):
        from ._double_backward import differentiate_backward

        groups, *static = ctx.static
        # Read once: a hook on saved tensors may refuse to unpack one twice.
        grad_output, grad_h_n, grad_c_n, grad_cells, *tensors = ctx.saved_tensors
        grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
        layer = Layer(*static, *tensors[:6], tuple(tensors[6:]))
        # Recomputed from the inputs: what the forward pass saved is no input here.
        states, weights, of_grads = differentiate_backward(
            layer, grads, groups, (grad_input, grad_h0, grad_c0, *grad_weights)
        )
        return (None,) * 3 + of_grads + (None,) * 4 + states + (None,) * 3 + weights

    @staticmethod
    def vmap(info, in_dims, wanted, weight_groups, norms, *args):
        if norms:
            raise NotImplementedError("fused_rnn: gradient norms under vmap are not implemented")
        batching = Batching(info.batch_size, _layer_of(args[5:]), _layer_of(in_dims[8:]))
        grads_and_saved = [batching.join(t, dim, -2) for t, dim in zip(args[:5], in_dims[3:8], strict=True)]
        groups = weight_groups if batching.as_members else weight_groups * info.batch_size
        layer = batching.layer
        outputs = _apply(LayerBackward, wanted, groups, norms, *grads_and_saved, *layer[:-1], *layer.weights)
        states, state_dims = batching.split(outputs[:4])
        weights, weight_dims = batching.split_weight_grads(outputs[4:], weight_groups)
        return states + weights, state_dims + weight_dims


def _layer_of(args: Sequence[Any]) -> Layer:
    return Layer(*args[:9], tuple(args[9:]))


# ---- forward-mode AD: refused --------------------------------------------------------------------------------------

_NO_FORWARD_AD = (
    "fused_rnn has no forward-mode AD (jvp, jacfwd, hessian by jacfwd) yet. Use reverse mode (vjp, jacrev, "
    "jacrev of jacrev), or fused_rnn.reference, whose functions take the same arguments"
)


def _refuse_forward_mode(ctx, *tangents):
    raise NotImplementedError(_NO_FORWARD_AD)


# Dynamo refuses a Function that has a jvp, so only forward-mode AD gets to see one.
_WITH_JVP = {
    function: type(function.__name__, (function,), {"jvp": staticmethod(_refuse_forward_mode)})
    for function in (LayerForward, LayerBackward)
}


def _apply(function: type[torch.autograd.Function], *args):
    if _private.in_forward_mode():
        return _WITH_JVP[function].apply(*args)
    if torch.compiler.is_compiling() or _private.in_transform():
        return function.apply(*args)
    return _private.apply_function(function, *args)


def _below_autograd(call, *args):
    """A raw operator where gradients are seen to: past its own autograd kernel, except where that has an error to raise
    or Dynamo looks on."""
    if torch.compiler.is_compiling() or _private.in_forward_mode():
        return call(*args)
    with _private.below_autograd():
        return call(*args)


# ---- the raw operators ---------------------------------------------------------------------------------------------
# Called by themselves they have the same gradients. Not torch.library.register_autograd: an operator that has only that
# drops the tangents of forward-mode AD without a word.


def _forward_arguments(*args):
    """From the operator's own order to that of ``LayerForward.apply``."""
    layer, (save, cells) = layer_from_arguments(*args[:10]), args[10:]
    return (save, cells, *layer[:-1], *layer.weights)


def _backward_arguments(*args):
    layer, (saved, wanted, groups, norms) = layer_from_arguments(*args[:3], *args[7:14]), args[14:]
    return (wanted, groups, norms, *args[3:7], saved, *layer[:-1], *layer.weights)


def _raw_forward(*args):
    return LayerForward.apply(*_forward_arguments(*args))


def _raw_backward(*args):
    outputs = LayerBackward.apply(*_backward_arguments(*args))
    return (*outputs[:4], list(outputs[4:]))


def _autograd_kernel(op, with_gradients):
    def kernel(*args):
        tensors = [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]
        if _private.in_forward_mode() and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
            raise NotImplementedError(_NO_FORWARD_AD)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return with_gradients(*args)
        with _private.below_autograd():
            return op(*args)

    return kernel


def _batched_gradients(*args):
    """``layer_backward`` under ``torch.autograd.grad(is_grads_batched=True)``, which has a vmap of its own."""
    level = _private.legacy_vmap_level()
    size = 0

    def split(arg):
        """The tensor without its batch dimension, and where that is now."""
        nonlocal size
        if isinstance(arg, list):
            tensors, dims = zip(*map(split, arg), strict=True)
            return list(tensors), list(dims)
        if not isinstance(arg, Tensor) or not _private.is_legacy_batched(arg):
            return arg, None
        tensor = _private.remove_batch_dim(arg, level, 1, 0)
        size = tensor.shape[0]
        return tensor, 0

    args, dims = zip(*map(split, args), strict=True)
    info = SimpleNamespace(batch_size=size)
    outputs, dims = LayerBackward.vmap(info, _backward_arguments(*dims), *_backward_arguments(*args))
    pairs = zip(outputs, dims, strict=True)
    outputs = [o if dim is None else _private.add_batch_dim(o, dim, level) for o, dim in pairs]
    return (*outputs[:4], outputs[4:])


_fragment = torch.library.Library("fused_rnn", "FRAGMENT")
for _name, _with_gradients in (("layer_forward", _raw_forward), ("layer_backward", _raw_backward)):
    _op = getattr(torch.ops.fused_rnn, _name).default
    _fragment.impl(_name, _autograd_kernel(_op, _with_gradients), "Autograd")
_fragment.impl("layer_backward", _batched_gradients, "Batched")


# ---- the way in ----------------------------------------------------------------------------------------------------


def run_layer(layer: Layer, cells: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer: output, h_n, c_n and, if asked for, the second state after every step."""
    differentiable = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
    transformed = _private.in_transform()
    save = torch.is_grad_enabled() and _private.need_gradient(differentiable)
    if save or transformed or _private.in_forward_mode():
        return _apply(LayerForward, save, cells, *layer[:-1], *layer.weights)[:4]
    return _below_autograd(layer.forward, False, cells)[:4]
