"""The operators and their arguments.

``torch.ops.fused_rnn.layer_forward`` and ``layer_backward`` run one layer, both directions, over a whole sequence.
Shape letters: M members, D directions, T steps, B batch, I input, H hidden, P width of h (H or proj_size), G gates,
R saved values a row. ``rows`` stands for ``T, B``, or, when packed, for the number of packed rows. Arguments:

=============  ====================  =======================================================================
cell           int                   a key of ``cells.BY_ID``
bias           bool                  whether ``weights`` has biases
bidirectional  bool
input          [rows, I]             or ids, [rows] int64: row n is one-hot, with its one at input[n]
h0, c0         [D, B, P], [D, B, W]  None: the cell's initial states. c0: all states after h side by side, W = (S-1)*H
                                     for S states; only for cells with a second state
weights        list                  torch's order, per direction: weight_ih [GH, I], weight_hh [GH, P],
                                     bias_ih [GH], bias_hh [GH], weight_hr [P, H]
lengths        [B] int64             None: every row has T steps
batch_sizes    [T] int64, CPU        of packed input, as in ``PackedSequence``
reset_mask     [T, B] bool           True at (t, b) cuts row b between steps t-1 and t
save           bool                  save what the backward pass needs
cells          bool                  also return the states after h after every step, [rows, D*W]
grad_clip      float                 the gradient of h is clamped to it after every backward step; None: never
h_factor       [D, B, P]             h is multiplied by it before W_hh: recurrent dropout's mask
zoneout_mask   [rows, D*S*H] bool    True: a unit keeps its former state; all states of a direction side by side
zoneout_h, _c  float                 in place of the mask: state = p * former + (1 - p) * new, for h and for the others
checkpoint     int                   save the states that enter every so many steps, or some more; the rest is computed
                                     again in the backward pass, where nobody follows it
=============  ====================  =======================================================================

With a leading dimension M in ``weights``, M members run side by side: outputs and states then have it too; input,
lengths and reset_mask may have it, or else are shared by all members. An output that was not requested is an empty
tensor.
"""

from __future__ import annotations

import enum
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from . import library
from .cells import Cell, follow, known

Grads = tuple[Tensor | None, ...]
_operators = torch.ops.fused_rnn


class Wanted(enum.IntFlag):
    """The gradients requested from ``layer_backward``; the bits of ``Wanted`` in csrc/ops/gradients.cpp."""

    INPUT = 1
    WEIGHT_IH = 2
    WEIGHT_HH = 4
    BIAS_IH = 8
    BIAS_HH = 16
    WEIGHT_HR = 32
    PARAMETERS = 64


class WeightFormat(enum.IntEnum):
    """How packed weights are stored: csrc/core/problem.h's WeightFormat."""

    OWN = 0
    INT8 = 1
    INT8_WEIGHTS_ONLY = 2


def weight_kinds(cell: Cell, bias: bool, projected: bool = False) -> list[Wanted]:
    """The kinds of the weights of one layer and direction, in order."""
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


# By cell id and number of weights per direction: (whether there are biases, the kinds of the weights).
LAYOUTS: dict[int, dict[int, tuple[bool, tuple[Wanted, ...]]]] = {}


def _add_layouts(cell: Cell) -> None:
    LAYOUTS[cell.id] = {
        len(kinds): (bias, tuple(kinds))
        for bias, projected in product((True, False), (True, False) if cell.projectable else (False,))
        for kinds in [weight_kinds(cell, bias, projected)]
    }


follow(_add_layouts)


def weight_kinds_of(cell: int, bidirectional: bool, count: int) -> tuple[Wanted, ...]:
    """The kinds of a layer's ``count`` weights."""
    directions = 2 if bidirectional else 1
    return LAYOUTS[known(cell).id][count // directions][1] * directions


class Layer(NamedTuple):
    """The arguments that forward and backward share, in the operators' order except that the weights come last."""

    cell: int
    bias: bool
    bidirectional: bool
    zoneout_h: float | None
    zoneout_c: float | None
    checkpoint: int | None
    input: Tensor
    h0: Tensor | None
    c0: Tensor | None
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset_mask: Tensor | None
    h_factor: Tensor | None
    zoneout_mask: Tensor | None
    weights: tuple[Tensor, ...]

    @classmethod
    def plain(
        cls,
        cell: int,
        bias: bool,
        bidirectional: bool,
        input: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: tuple[Tensor, ...],
        lengths: Tensor | None = None,
        batch_sizes: Tensor | None = None,
        reset_mask: Tensor | None = None,
    ) -> Layer:
        """One without the loop's own options."""
        states, masks = (input, h0, c0), (lengths, batch_sizes, reset_mask)
        return cls(cell, bias, bidirectional, None, None, None, *states, *masks, None, None, weights)

    @property
    def masks(self) -> tuple[Tensor | None, ...]:
        """Those that are on the input's device."""
        return self.reset_mask, self.h_factor, self.zoneout_mask

    @property
    def zones_out(self) -> bool:
        return not (self.zoneout_mask is self.zoneout_h is self.zoneout_c is None)

    @property
    def sizes(self):
        """(cell, D, H, P, members, rows); members is (M,) or (), rows (T, B) or, packed, (number of rows,)."""
        cell = known(self.cell)
        hidden = self.weights[0].shape[-2] // cell.gates
        projected = self.weight_kinds[-1] is Wanted.WEIGHT_HR
        width = self.weights[-1].shape[-2] if projected else hidden
        shape = self.input.shape if self.reads_tokens else self.input.shape[:-1]
        members, rows = tuple(self.weights[0].shape[:-2]), tuple(shape[-1 if self.batch_sizes is not None else -2 :])
        return cell, 1 + self.bidirectional, hidden, width, members, rows

    @property
    def reads_tokens(self) -> bool:
        return self.input.dtype == torch.int64

    def with_numbers(self) -> Layer:
        """The same layer with one-hot rows in place of ids."""
        if not self.reads_tokens:
            return self
        weight = self.weights[0]
        ids = torch.arange(weight.shape[-1], device=self.input.device)
        return self._replace(input=(self.input.unsqueeze(-1) == ids).to(weight.dtype))

    @property
    def weight_kinds(self) -> tuple[Wanted, ...]:
        return weight_kinds_of(self.cell, self.bidirectional, len(self.weights))

    def forward(self, save: bool, cells: bool, grad_clip: float | None = None) -> tuple[Tensor, ...]:
        options = (*self._options, self.checkpoint)
        return _operators.layer_forward(*self._static, *self._tensors, save, cells, grad_clip, *options)

    def backward(
        self, grads: Grads, saved: Tensor, wanted: int, groups: int, norms: bool, grad_clip: float | None = None
    ) -> tuple[Tensor, ...]:
        options = (*self._options, self.checkpoint)
        *states, grad_weights = _operators.layer_backward(
            *self._static, *grads, *self._tensors, saved, wanted, groups, norms, grad_clip, *options
        )
        return (*states, *grad_weights)

    # Documented where csrc defines them.

    def tangent(self, saved: Tensor, x, r, h, cells: bool) -> tuple[Tensor, ...]:
        return _operators.layer_tangent(*self._static, *self._tensors, saved, x, r, h, cells, *self._options)

    def trace(self, grads: Grads, saved: Tensor) -> tuple[Tensor, ...]:
        return _operators.layer_trace(*self._static, *grads, *self._tensors, saved, *self._options)

    def backward_tangent(self, grads: Grads, saved: Tensor, saved_tangent, states, h, wide, wanted: int):
        *to_states, to_weights = _operators.layer_backward_tangent(
            *self._static, *grads, *self._tensors, saved, saved_tangent, states, h, wide, wanted, *self._options
        )
        return (*to_states, *to_weights)

    @property
    def _static(self):
        return self.cell, self.bias, self.bidirectional

    @property
    def _options(self):
        """The operators' last arguments."""
        return self.h_factor, self.zoneout_mask, self.zoneout_h, self.zoneout_c

    @property
    def _tensors(self):
        """The tensors in the operators' order, with the weights between states and masks."""
        masks = (self.lengths, self.batch_sizes, self.reset_mask)
        return self.input, self.h0, self.c0, list(self.weights), *masks


# How the tensors of an `infer` call are laid out; csrc/ops/stack_code.h has the same.
TIME_MAJOR, BATCH_FIRST, ONE_STEP = range(3)
MOST_WEIGHTS_OF_INFER_LAYER = 4


_FIRST = library.stack_code()  # bits of a stack's code
_OWN_CELL = (1 << _FIRST.layers - _FIRST.cell) - 1  # in place of the id of a cell that was registered at run time


def stack_code(cell: int, num_layers: int, bias: bool, bidirectional: bool, layout: int) -> int:
    """A stack's structure, encoded in one number for ``infer``, but for what :func:`own_cell` returns."""
    own = own_cell(cell)
    return (
        layout << _FIRST.layout
        | bias << _FIRST.bias
        | bidirectional << _FIRST.bidirectional
        | (cell if own is None else _OWN_CELL) << _FIRST.cell
        | num_layers << _FIRST.layers
    )


def own_cell(cell: int) -> int | None:
    """The argument ``own_cell`` of ``infer``: the id of a cell that was registered at run time; None for others."""
    return cell if cell >= _OWN_CELL else None


def stack_of(code: int, own: int | None = None) -> tuple[int, int, bool, bool, int]:
    """The inverse of :func:`stack_code`: its arguments. ``own``: what :func:`own_cell` returned."""

    def part(first: int, end: int) -> int:
        return code >> first & (1 << end - first) - 1

    return (
        part(_FIRST.cell, _FIRST.layers) if own is None else own,
        code >> _FIRST.layers,
        bool(part(_FIRST.bias, _FIRST.bidirectional)),
        bool(part(_FIRST.bidirectional, _FIRST.cell)),
        part(_FIRST.layout, _FIRST.bias),
    )
