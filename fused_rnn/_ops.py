"""The operators: their arguments, and their shapes without data.

``torch.ops.fused_rnn.layer_forward`` and ``layer_backward`` run one layer, both directions, over a whole sequence.
Shape letters: M members, D directions, T steps, B batch, I input, H hidden, P width of h (H or proj_size), G gates,
R saved values a row. ``rows`` stands for ``T, B``, or, when packed, for the number of packed rows. Arguments:

=============  ====================  =======================================================================
cell           int                   index in ``_cells.BY_ID``
bias           bool                  are there biases in ``weights``
bidirectional  bool
input          [rows, I]             or ids, [rows] int64: row n is one-hot, with its one at input[n]
h0, c0         [D, B, P], [D, B, H]  None: zeros. c0 only for cells with a second state
weights        list                  torch's order, per direction: weight_ih [GH, I], weight_hh [GH, P],
                                     bias_ih [GH], bias_hh [GH], weight_hr [P, H]
lengths        [B] int64             None: every row has T steps
batch_sizes    [T] int64, CPU        of packed input, as in ``PackedSequence``
reset_mask     [T, B] bool           True at (t, b) cuts row b between steps t-1 and t
save           bool                  keep what the backward needs
cells          bool                  also return the second state after every step, [rows, D*H]
grad_clip      float                 the gradient of h is cut off there after every step, on its way back; None: never
=============  ====================  =======================================================================

With ``weights`` of one more leading dimension M, M members run side by side; outputs and states then carry M in front,
and input, lengths and reset_mask may or may not (then the members share them). An output that was not asked for is
an empty tensor.
"""

from __future__ import annotations

import enum
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from . import _private
from ._cells import BY_ID, Cell

Grads = tuple[Tensor | None, ...]
_operators = torch.ops.fused_rnn


class Wanted(enum.IntFlag):
    """Gradients that ``layer_backward`` is asked for; the bits of ``Wanted`` in csrc/gradients.cpp."""

    INPUT = 1
    WEIGHT_IH = 2
    WEIGHT_HH = 4
    BIAS_IH = 8
    BIAS_HH = 16
    WEIGHT_HR = 32
    PARAMETERS = 64


def weight_kinds(cell: Cell, bias: bool, projected: bool = False) -> list[Wanted]:
    """The weights of one layer and direction, in order."""
    kinds = [Wanted.WEIGHT_IH]
    if cell.recurrent:
        kinds.append(Wanted.WEIGHT_HH)
    if bias:
        kinds.append(Wanted.BIAS_IH)
    if bias and cell.recurrent:
        kinds.append(Wanted.BIAS_HH)
    if cell.params:
        kinds.append(Wanted.PARAMETERS)
    if projected:
        kinds.append(Wanted.WEIGHT_HR)
    return kinds


# For each cell's id and number of weights per direction: are there biases, and what the weights are.
LAYOUTS = tuple(
    {
        len(kinds): (bias, tuple(kinds))
        for bias, projected in product((True, False), (True, False) if cell.projectable else (False,))
        for kinds in [weight_kinds(cell, bias, projected)]
    }
    for cell in BY_ID
)


def weight_kinds_of(cell: int, bidirectional: bool, count: int) -> tuple[Wanted, ...]:
    """What each of a layer's ``count`` weights is."""
    directions = 2 if bidirectional else 1
    return LAYOUTS[cell][count // directions][1] * directions


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
        shape = self.input.shape if self.reads_tokens else self.input.shape[:-1]
        members, rows = tuple(self.weights[0].shape[:-2]), tuple(shape[-1 if self.batch_sizes is not None else -2 :])
        return cell, 1 + self.bidirectional, hidden, width, members, rows

    @property
    def reads_tokens(self) -> bool:
        return self.input.dtype == torch.int64

    def with_numbers(self) -> Layer:
        """With one-hot rows in the place of ids."""
        if not self.reads_tokens:
            return self
        weight = self.weights[0]
        ids = torch.arange(weight.shape[-1], device=self.input.device)
        return self._replace(input=(self.input.unsqueeze(-1) == ids).to(weight.dtype))

    @property
    def weight_kinds(self) -> tuple[Wanted, ...]:
        return weight_kinds_of(self.cell, self.bidirectional, len(self.weights))

    def forward(self, save: bool, cells: bool, grad_clip: float | None = None) -> tuple[Tensor, ...]:
        return _operators.layer_forward(*self[:3], *self._tensors, save, cells, grad_clip)

    def backward(
        self, grads: Grads, saved: Tensor, wanted: int, groups: int, norms: bool, grad_clip: float | None = None
    ) -> tuple[Tensor, ...]:
        *states, grad_weights = _operators.layer_backward(
            *self[:3], *grads, *self._tensors, saved, wanted, groups, norms, grad_clip
        )
        return (*states, *grad_weights)

    # What these three are is said where csrc/ops.cpp and csrc/problem.h define them.

    def tangent(self, saved: Tensor, x, r, h, cells: bool) -> tuple[Tensor, ...]:
        return _operators.layer_tangent(*self[:3], *self._tensors, saved, x, r, h, cells)

    def trace(self, grads: Grads, saved: Tensor) -> tuple[Tensor, ...]:
        return _operators.layer_trace(*self[:3], *grads, *self._tensors, saved)

    def backward_tangent(self, grads: Grads, saved: Tensor, saved_tangent, states, h, wide, wanted: int):
        *to_states, to_weights = _operators.layer_backward_tangent(
            *self[:3], *grads, *self._tensors, saved, saved_tangent, states, h, wide, wanted
        )
        return (*to_states, *to_weights)

    @property
    def _tensors(self):
        """In the operators' order: the weights stand between the states and the masks."""
        masks = (self.lengths, self.batch_sizes, self.reset_mask)
        return self.input, self.h0, self.c0, list(self.weights), *masks


def layer_from_arguments(cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask) -> Layer:
    """From the operators' own order of arguments."""
    return Layer(cell, bias, bidirectional, input, h0, c0, lengths, batch_sizes, reset_mask, tuple(weights))


# ---- shapes without data -------------------------------------------------------------------------------------------


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
    if isinstance(batch_sizes, _private.FakeTensor):
        return torch.library.get_ctx().new_dynamic_size()
    return int(batch_sizes[0])


# How `infer` finds what it is given; csrc/infer.cpp says more.
TIME_MAJOR, BATCH_FIRST, ONE_STEP = range(3)


def stack_code(cell: int, num_layers: int, bias: bool, bidirectional: bool, layout: int) -> int:
    """What a stack of layers is, in one number, for ``infer``."""
    return layout | bias << 2 | bidirectional << 3 | cell << 4 | num_layers << 12


def stack_of(code: int) -> tuple[int, int, bool, bool, int]:
    """The arguments of :func:`stack_code`."""
    return code >> 4 & 0xFF, code >> 12, bool(code >> 2 & 1), bool(code >> 3 & 1), code & 3


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
