"""Autograd for direct calls of ``torch.ops.fused_rnn.*``: the same gradients as through the layers.

Not torch.library.register_autograd: an operator with only that silently drops the tangents of forward-mode AD.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ..ops import torch_private
from ..ops.calls import BackwardArguments, BackwardCall, ForwardArguments, ForwardCall, flatten
from .functions import LayerBackward, LayerForward

_operators = torch.ops.fused_rnn


def _forward_arguments(*args):
    """From the operator's order of arguments to that of ``LayerForward.apply``."""
    call = ForwardCall(*args)
    # Its gradient may be followed, for which everything has to be saved.
    return flatten(ForwardArguments(True, call.cells, call.grad_clip, call.layer._replace(checkpoint=None)))


def _backward_arguments(*args):
    call = BackwardCall(*args)
    if call.checkpoint is not None:
        raise NotImplementedError("fused_rnn: layer_backward with checkpoint has no gradient and is not batched")
    options = (call.wanted, call.weight_groups, call.norms, call.grad_clip)
    return flatten(BackwardArguments(*options, *call.grads, call.saved, call.layer))


def _raw_forward(*args):
    """Saves what the gradient needs, also if ``save`` is false, as in traces."""
    return LayerForward.apply(*_forward_arguments(*args))


def _raw_backward(*args):
    input, h0, c0, norms, *weights = LayerBackward.apply(*_backward_arguments(*args))
    return input, h0, c0, norms, weights


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
        """The unwrapped tensor and its batch dimension."""
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
    input, h0, c0, norms, *weights = (
        o if dim is None else torch_private.add_batch_dim(o, dim, level) for o, dim in pairs
    )
    return input, h0, c0, norms, weights


_fragment = torch.library.Library("fused_rnn", "FRAGMENT")
_fragment.impl("layer_forward", _autograd_kernel(_operators.layer_forward.default, _raw_forward), "Autograd")
_fragment.impl("layer_backward", _autograd_kernel(_operators.layer_backward.default, _raw_backward), "Autograd")
_fragment.impl("layer_backward", _batched_gradients, "Batched")


def _no_gradient(*args):
    raise NotImplementedError("fused_rnn: this operator has no gradient; it serves second derivatives of the others")


for _name in ("layer_tangent", "layer_trace", "layer_backward_tangent"):
    _fragment.impl(_name, _autograd_kernel(getattr(_operators, _name).default, _no_gradient), "Autograd")
