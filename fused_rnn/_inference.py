"""The short way of a plain inference call: from the module straight to the operator ``infer``.

Only a short cut: no checks, no messages, no options of its own. Whatever is not surely plain is passed over, and so is
what the operator refuses; the complete way then computes it, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _private
from ._cells import Cell

TIME_MAJOR, BATCH_FIRST, ONE_STEP = range(3)  # as in csrc/infer.cpp

_infer = _private.bare(torch.ops.fused_rnn.infer.default)
_PLAIN = frozenset((Tensor, nn.Parameter))  # subclasses may mean anything


def run(
    cell: Cell,
    input,
    hx,
    weights: list[Tensor | None],
    layout: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    packed: Sequence[Tensor] = (),
    lengths=None,
    reset_mask=None,
) -> Sequence[Tensor] | None:
    """Output, h_n and, of a cell with two states, c_n; None when the complete way has to be gone."""
    if not _nothing_special():
        return None
    if hx is None:
        h0 = c0 = None
    elif cell.states == 1:
        h0, c0 = hx, None
        if type(h0) not in _PLAIN:
            return None
    else:
        if type(hx) is not tuple or len(hx) != 2:
            return None
        h0, c0 = hx
        if type(h0) not in _PLAIN or type(c0) not in _PLAIN:
            return None
    if type(input) not in _PLAIN or not _PLAIN.issuperset(map(type, weights)):
        return None
    try:
        return _infer(
            cell.id, num_layers, bias, bidirectional, layout, input, h0, c0, weights, packed, lengths, None, reset_mask
        )
    except (RuntimeError, TypeError):
        return None


def _nothing_special() -> bool:
    """No gradient is wanted, and nothing looks into the call or changes what its tensors mean."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or _private.in_transform()
        or _private.in_forward_mode()
        or _private.dispatch_modes()
        or _private.any_autocast()
    )
