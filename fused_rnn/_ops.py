"""The two operators as PyTorch sees them: shapes without data, gradients, vmap.

``torch.ops.fused_rnn.layer_forward`` and ``layer_backward`` run one layer, both directions, over a whole sequence.
Shape letters: M members, D directions, T steps, B batch, I input, H hidden, P width of h (H or proj_size), G gates,
R saved values a row. ``rows`` stands for ``T, B``, or, when packed, for the number of packed rows. Arguments:

=============  ====================  =======================================================================
cell           int                   index in ``_cells.BY_ID``
bias           bool                  are there biases in ``weights``
bidirectional  bool
input          [rows, I]
h0, c0         [D, B, P], [D, B, H]  None: zeros. c0 only for cells with a second state
weights        list                  torch's order, per direction: weight_ih [GH, I], weight_hh [GH, P],
                                     bias_ih [GH], bias_hh [GH], weight_hr [P, H]
lengths        [B] int64             None: every row has T steps
batch_sizes    [T] int64, CPU        of packed input, as in ``PackedSequence``
reset_mask     [T, B] bool           True at (t, b) cuts row b between steps t-1 and t
save           bool                  keep what the backward needs
cells          bool                  also return the second state after every step, [rows, D*H]
=============  ====================  =======================================================================

With ``weights`` of one more leading dimension M, M members run side by side; outputs and states then carry M in front,
and input, lengths and reset_mask may or may not (then the members share them). An output that was not asked for is
an empty tensor.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._cells import BY_ID

Grads = tuple[Tensor | None, ...]


class Wanted(enum.IntFlag):
    """Gradients that ``layer_backward`` is asked for; the bits of ``Wanted`` in csrc/ops.cpp."""

    INPUT = 1
    WEIGHT_IH = 2
    WEIGHT_HH = 4
    BIAS_IH = 8
    BIAS_HH = 16
    WEIGHT_HR = 32
    PARAMETERS = 64


class Layer(NamedTuple):
    """The arguments that forward and backward share, in the operators' order but for the weights, which come last."""

    cell: int
    bias: bool
    bidirectional: bool
    input: Tensor
    h0: Tensor | None
    c0: Tensor | None
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset_mask: Tensor | None
    weights: tuple[Tensor, ...]

    @property
    def sizes(self):
        """(cell, D, H, P, members, rows); members is (M,) or (), rows (T, B) or, packed, (number of rows,)."""
        cell, hidden = BY_ID[self.cell], self.weights[0].shape[-2] // BY_ID[self.cell].gates
        projected = self.weight_kinds[-1] is Wanted.WEIGHT_HR
        width = self.weights[-1].shape[-2] if projected else hidden
        first = -2 if self.batch_sizes is not None else -3
        members, rows = tuple(self.weights[0].shape[:-2]), tuple(self.input.shape[first:-1])
        return cell, 1 + self.bidirectional, hidden, width, members, rows

    @property
    def weight_kinds(self) -> list[Wanted]:
        """What each of ``weights`` is."""
        cell, directions = BY_ID[self.cell], 1 + self.bidirectional
        kinds = [Wanted.WEIGHT_IH]
        if cell.recurrent:
            kinds.append(Wanted.WEIGHT_HH)
        if self.bias:
            kinds.append(Wanted.BIAS_IH)
        if self.bias and cell.recurrent:
            kinds.append(Wanted.BIAS_HH)
        if cell.params:
            kinds.append(Wanted.PARAMETERS)
        if len(self.weights) > len(kinds) * directions:
            kinds.append(Wanted.WEIGHT_HR)
        return kinds * directions

    def forward(self, save: bool, cells: bool) -> tuple[Tensor, ...]:
        return torch.ops.fused_rnn.layer_forward(*self[:3], *self._tensors, save, cells)

    def backward(self, grads: Grads, saved: Tensor, wanted: int, groups: int, norms: bool) -> tuple[Tensor, ...]:
        *states, grad_weights = torch.ops.fused_rnn.layer_backward(
            *self[:3], *grads, *self._tensors, saved, wanted, groups, norms
        )
        return (*states, *grad_weights)

    @property
    def _tensors(self):
        """In the operators' order: the weights stand between the states and the masks."""
        masks = (self.lengths, self.batch_sizes, self.reset_mask)
        return self.input, self.h0, self.c0, list(self.weights), *masks


# ---- shapes without data -------------------------------------------------------------------------------------------


@torch.library.register_fake("fused_rnn::layer_forward")
def _forward_shapes(cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask, save, cells):
    layer = _raw_layer(cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask)
    kind, directions, hidden, width, members, rows = layer.sizes
    batch = _batch_of(input, h0, batch_sizes)
    saved_width = (kind.saved + kind.states - 1) * hidden + width

    def new(asked: bool, *shape: int) -> Tensor:
        return input.new_empty((*members, *shape) if asked else (0,))

    return (
        new(True, *rows, directions * width),
        new(True, directions, batch, width),
        new(kind.states > 1, directions, batch, hidden),
        new(cells, *rows, directions * hidden),
        new(save, directions, *rows, saved_width),
    )


def _batch_of(input: Tensor, h0: Tensor | None, batch_sizes: Tensor | None):
    if batch_sizes is None:
        return input.shape[-2]
    if h0 is not None:
        return h0.shape[-2]
    if isinstance(batch_sizes, torch._subclasses.FakeTensor):
        return torch.library.get_ctx().new_dynamic_size()
    return int(batch_sizes[0])


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
):
    layer = _raw_layer(cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask)
    kind, directions, hidden, width, members, rows = layer.sizes
    steps = batch_sizes.shape[0] if batch_sizes is not None else rows[0]
    batch = _batch_of(input, grad_h_n if grad_h_n is not None else h0, batch_sizes)
    groups = (weight_groups,) if weight_groups > 1 else ()

    def new(asked, *shape, dtype=None):
        return input.new_empty(shape if asked else (0,), dtype=dtype)

    norm_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
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


# ---- gradients -----------------------------------------------------------------------------------------------------


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
        function = _for_tangents(LayerBackward)
        outputs = function.apply(int(wanted), 1, False, *grads, saved, *layer[:-1], *layer.weights)
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
        return tuple(_layer_of(args).forward(save, cells))

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
        batching = _Batching(info.batch_size, _layer_of(args), _layer_of(in_dims[2:]))
        outputs = LayerForward.apply(save, cells, *batching.layer[:-1], *batching.layer.weights)
        return batching.split(outputs)


class LayerBackward(torch.autograd.Function):
    """``layer_backward`` likewise; its own gradient is the double backward.

    ``apply(wanted, weight_groups, norms, *four gradients, saved, *Layer's fields but weights, *weights)``
    """

    @staticmethod
    def forward(wanted, weight_groups, norms, grad_output, grad_h_n, grad_c_n, grad_cells, saved, *args):
        grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
        return tuple(_layer_of(args).backward(grads, saved, wanted, weight_groups, norms))

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
        grads, tensors = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
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
        batching = _Batching(info.batch_size, _layer_of(args[5:]), _layer_of(in_dims[8:]))
        grads_and_saved = [batching.join(t, dim, -2) for t, dim in zip(args[:5], in_dims[3:8], strict=True)]
        groups = weight_groups if batching.as_members else weight_groups * info.batch_size
        outputs = LayerBackward.apply(
            wanted, groups, norms, *grads_and_saved, *batching.layer[:-1], *batching.layer.weights
        )
        states, state_dims = batching.split(outputs[:4])
        weights, weight_dims = batching.split_weight_grads(outputs[4:], weight_groups)
        return states + weights, state_dims + weight_dims


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


def _for_tangents(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    return _WITH_JVP[function] if forward_ad._current_level >= 0 else function


def _layer_of(args: Sequence[Any]) -> Layer:
    return Layer(*args[:9], tuple(args[9:]))


# ---- vmap ----------------------------------------------------------------------------------------------------------


class _Batching:
    """How one vmapped dimension of size ``size`` enters a single operator call.

    When every sample has the same weights it joins the batch: B becomes size * B, sample by sample. When weights differ
    it becomes members (ensembles); so it does for packed input, whose rows cannot be repeated along the batch.
    """

    def __init__(self, size: int, layer: Layer, dims: Layer):
        if dims.batch_sizes is not None:
            raise NotImplementedError("fused_rnn: vmap over batch_sizes; pad the input and pass lengths")
        self.size = size
        shape = layer.weights[0].shape
        self.had_members = len(shape) - (dims.weights[0] is not None) == 3
        self.as_members = layer.batch_sizes is not None or any(dim is not None for dim in dims.weights)
        row_dims = 1 if layer.batch_sizes is not None else 2
        self.layer = layer._replace(
            input=self._join_shared(layer.input, dims.input, -2, row_dims + 1, shape),
            h0=self.join(layer.h0, dims.h0, -2),
            c0=self.join(layer.c0, dims.c0, -2),
            lengths=self._join_shared(layer.lengths, dims.lengths, -1, 1, shape),
            reset_mask=self._join_shared(layer.reset_mask, dims.reset_mask, -1, 2, shape),
        )
        if self.as_members:
            weights = [self.join(w, d, 0) for w, d in zip(layer.weights, dims.weights, strict=True)]
            self.layer = self.layer._replace(weights=tuple(weights))

    def join(self, tensor: Tensor | None, dim: int | None, batch_dim: int) -> Tensor | None:
        """Merges the vmapped dimension of ``tensor`` (absent if ``dim`` is None) into members or batch."""
        if tensor is None or tensor.shape == (0,):
            return tensor
        tensor = tensor.expand(self.size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        if self.as_members:
            return tensor.flatten(0, 1) if self.had_members else tensor
        return tensor.movedim(0, batch_dim - 1).flatten(batch_dim - 1, batch_dim)

    def _join_shared(self, tensor: Tensor | None, dim: int | None, batch_dim: int, own_dims: int, weight_shape):
        """Likewise for what members may share: it stays shared when nothing tells them apart."""
        if tensor is None or not self.as_members:
            return self.join(tensor, dim, batch_dim)
        per_member = tensor.dim() - (dim is not None) == own_dims + 1
        if dim is None and not per_member:
            return tensor
        if self.had_members and not per_member:  # repeat each sample's for its members
            tensor = tensor.movedim(dim, 0)
            members = weight_shape.numel() // weight_shape[-1] // weight_shape[-2]
            return tensor.repeat_interleave(members, 0)
        return self.join(tensor, dim, batch_dim)

    def split(self, outputs: Sequence[Tensor]):
        """Undoes ``join`` on outputs whose batch dimension is the last but one; also where the vmapped one now is."""
        split = [self._split(output) for output in outputs]
        return tuple(output for output, _ in split), tuple(dim for _, dim in split)

    def _split(self, output: Tensor) -> tuple[Tensor, int | None]:
        if output.shape == (0,):  # not asked for
            return output, None
        if self.as_members:
            return self._split_members(output), 0
        at = output.dim() - 2
        return output.unflatten(at, (self.size, output.shape[at] // self.size)), at

    def _split_members(self, output: Tensor) -> Tensor:
        return output.unflatten(0, (self.size, output.shape[0] // self.size)) if self.had_members else output

    def split_weight_grads(self, grads: Sequence[Tensor], groups: int):
        """Weight gradients come per member, or in size * groups groups with the vmapped dimension outermost."""
        at = 0 if self.as_members else int(self.had_members)
        split = []
        for grad, weight in zip(grads, self.layer.weights, strict=True):
            if grad.shape == (0,):
                split.append((grad, None))
            elif self.as_members:
                split.append((self._split_members(grad), at))
            else:
                sizes = (self.size, groups) if groups > 1 else (self.size,)
                split.append((grad.reshape(*grad.shape[:at], *sizes, *weight.shape[at:]), at))
        return tuple(grad for grad, _ in split), tuple(dim for _, dim in split)


# ---- the raw operators ---------------------------------------------------------------------------------------------
# Called by themselves they have the same gradients. Not torch.library.register_autograd: an operator that has only that
# drops the tangents of forward-mode AD without a word.


def _raw_layer(cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask) -> Layer:
    return Layer(cell, bias, bidirectional, input, h0, c0, lengths, batch_sizes, reset_mask, tuple(weights))


def _raw_forward(*args):
    layer, (save, cells) = _raw_layer(*args[:10]), args[10:]
    return LayerForward.apply(save, cells, *layer[:-1], *layer.weights)


def _raw_backward(*args):
    layer, (saved, wanted, groups, norms) = _raw_layer(*args[:3], *args[7:14]), args[14:]
    outputs = LayerBackward.apply(wanted, groups, norms, *args[3:7], saved, *layer[:-1], *layer.weights)
    return (*outputs[:4], list(outputs[4:]))


def _autograd_kernel(op, with_gradients):
    def kernel(*args):
        tensors = [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]
        _refuse_tangents(tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return with_gradients(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


def _refuse_tangents(tensors: Sequence[Tensor]) -> None:
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(_NO_FORWARD_AD)


_fragment = torch.library.Library("fused_rnn", "FRAGMENT")
for _name, _with_gradients in (("layer_forward", _raw_forward), ("layer_backward", _raw_backward)):
    _op = getattr(torch.ops.fused_rnn, _name).default
    _fragment.impl(_name, _autograd_kernel(_op, _with_gradients), "Autograd")


# ---- the way in ----------------------------------------------------------------------------------------------------


def run_layer(layer: Layer, cells: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer: output, h_n, c_n and, if asked for, the second state after every step."""
    if not _needs_autograd(layer):
        return layer.forward(save=False, cells=cells)[:4]
    function = _for_tangents(LayerForward)
    return function.apply(torch.is_grad_enabled(), cells, *layer[:-1], *layer.weights)[:4]


def _needs_autograd(layer: Layer) -> bool:
    # Inside a transform a wrapped tensor does not say whether an outer level differentiates it.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if not torch.is_grad_enabled():
        return False
    differentiable = (layer.input, layer.h0, layer.c0, *layer.weights)
    return any(tensor is not None and tensor.requires_grad for tensor in differentiable)
