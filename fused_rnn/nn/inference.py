"""The short ways of plain calls: from the module straight to the operators.

Only short cuts: no checks, no messages, no options of their own. Whatever is not surely plain is passed over, and so is
what an operator refuses; the complete way then computes it, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from ..autograd import functions
from ..ops import torch_private
from ..ops.cells import Cell
from ..ops.layer import stack_code

_infer = torch_private.bare(torch.ops.fused_rnn.infer.default)
_PLAIN = frozenset((Tensor, nn.Parameter))  # subclasses may mean anything
_REQUIRES_GRAD = attrgetter("requires_grad")


def infer(
    cell: Cell,
    input,
    hx,
    weights: list[Tensor | None],
    layout: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    packed: Sequence[Tensor] | None = None,
    lengths=None,
    reset_mask=None,
) -> Sequence[Tensor] | None:
    """Output, h_n and, of a cell with two states, c_n; None when the complete way has to be gone."""
    if torch.is_grad_enabled():
        return None
    states = _plain_states(cell, input, hx, weights)
    if states is None:
        return None
    try:
        stack = stack_code(cell.id, num_layers, bias, bidirectional, layout)
        if packed is lengths is reset_mask is None:
            return _infer(stack, input, *states, weights)
        return _infer(stack, input, *states, weights, packed, lengths, None, reset_mask)
    except (RuntimeError, TypeError):
        return None


def train(
    cell: Cell,
    input,
    hx,
    weights: list[Tensor | None],
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Output, h_n and c_n of a batch [T, B, I] whose gradients are wanted; None: the complete way has to be gone."""
    states = _plain_states(cell, input, hx, weights)
    if states is None or input.dim() != 3 or not any(map(_REQUIRES_GRAD, (input, *weights))):
        return None
    finals = []
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // num_layers
    try:
        data = (input.transpose(0, 1) if batch_first else input).contiguous()
        if not data.shape[0]:
            return None
        for k in range(num_layers):
            h0, c0 = states
            if h0 is not None and num_layers > 1:
                span = slice(k * directions, (k + 1) * directions)
                h0, c0 = h0[span], None if c0 is None else c0[span]
            data, h_n, c_n, _, _ = torch_private.apply_function(
                functions.LayerForward,
                True,
                False,
                None,
                cell.id,
                bias,
                bidirectional,
                data,
                h0,
                c0,
                None,
                None,
                None,
                *weights[k * per_layer : (k + 1) * per_layer],
            )
            finals.append((h_n, c_n))
    except (RuntimeError, TypeError):
        return None
    h_n, c_n = finals[0] if num_layers == 1 else map(torch.cat, zip(*finals, strict=True))
    return data.transpose(0, 1) if batch_first else data, h_n, c_n


def _plain_states(cell: Cell, input, hx, weights) -> tuple[Tensor | None, Tensor | None] | None:
    """(h0, c0); None unless there are only plain tensors, and nothing looks into the call or changes their meaning."""
    if (
        torch.compiler.is_compiling()
        or torch_private.in_transform()
        or torch_private.in_forward_mode()
        or torch_private.dispatch_modes()
        or torch_private.any_autocast()
        or type(input) not in _PLAIN
        or not _PLAIN.issuperset(map(type, weights))
    ):
        return None
    if hx is None:
        return None, None
    if cell.states == 1:
        return (hx, None) if type(hx) in _PLAIN else None
    if type(hx) is not tuple or len(hx) != 2 or not _PLAIN.issuperset(map(type, hx)):
        return None
    return hx
