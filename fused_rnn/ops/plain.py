"""Recognising plain calls, which need only the operator: the tests at the head of ``arguments.run``.

Optimized for speed: a whole step of a small layer takes ten microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import Tensor, nn

from .cells import Cell
from .checks import NO_OPTIONS, Form, Options
from .torch_private import any_autocast, dispatch_modes, in_forward_mode, in_transform, is_tracing_eagerly

_is_compiling = torch.compiler.is_compiling
PLAIN = frozenset((Tensor, nn.Parameter))
"""The types of plain tensors: a subclass may override anything."""
_REQUIRES_GRAD = attrgetter("requires_grad")


def are_plain(tensors: Iterable) -> bool:
    """Whether all of them are tensors, none of a subclass, and nothing is being compiled."""
    return not _is_compiling() and PLAIN.issuperset(map(type, tensors))


def is_eager() -> bool:
    """Whether no transform, mode or trace is active, nor a compiler."""
    return not (_is_compiling() or in_transform() or in_forward_mode() or dispatch_modes() or is_tracing_eagerly())


def states_of(cell: Cell, input, hx) -> tuple[Tensor | None, Tensor | None] | None:
    """(h0, c0) if input and states are plain and no transform, mode, trace or autocast is active; otherwise None."""
    if (
        in_transform()
        or in_forward_mode()
        or dispatch_modes()
        or any_autocast()
        or is_tracing_eagerly()
        or type(input) not in PLAIN
        or input.dtype is torch.int32  # ids, which the operators take as int64
    ):
        return None
    if hx is None:
        return None, None
    if cell.states == 1:
        return (hx, None) if type(hx) in PLAIN else None
    if type(hx) is not tuple or len(hx) != 2 or cell.states != 2:
        return None
    h, c = hx
    return hx if type(h) in PLAIN and type(c) in PLAIN else None


def fit_infer(form: Form, input: Tensor, options: Options) -> bool:
    """Whether ``infer`` can run such a call. It checks sizes itself."""
    if form.batch_first:  # must have the memory layout of [T, B]: one row, one step, or unbatched
        rows = input.shape if input.dtype is torch.int64 else input.shape[:-1]
        if len(rows) > 1 and 1 not in rows:
            return False
    if options is NO_OPTIONS:
        return True
    of_loop = options.recurrent_dropout or options.zoneout or options.heads > 1 or options.layer_norm is not None
    if options.dropout or options.cells or of_loop:
        return False
    for mask, dtype in ((options.lengths, torch.int64), (options.reset_mask, torch.bool)):
        if mask is not None and (type(mask) not in PLAIN or mask.dtype is not dtype or mask.device != input.device):
            return False
    return options.lengths is None or options.lengths.dim() == 1


def need_gradients(input: Tensor, weights: list[Tensor]) -> bool:
    """Whether gradients are needed. False also for weights with a leading dimension, which mean an ensemble."""
    return weights[0].dim() == 2 and any(map(_REQUIRES_GRAD, (input, *weights)))
