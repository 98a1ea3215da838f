"""``LSTM``, ``GRU`` and ``RNN``: torch.nn's layers on this library's operators.

Constructors, parameters, state dicts and errors are those of ``torch.nn``. ``forward`` takes more, keyword-only:
``lengths``, ``reset_mask`` and ``grad_clip``, and an LSTM's ``return_cells``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .recurrent import Recurrent

__all__ = ["GRU", "LSTM", "RNN"]


class LSTM(Recurrent, nn.LSTM):
    """Long short-term memory, in place of ``torch.nn.LSTM``.

    Args: those of ``torch.nn.LSTM``, in its order: input_size (I), hidden_size (H), num_layers (L), bias, batch_first,
    dropout, bidirectional (D = 2), proj_size (P; H when 0), device, dtype.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: bool = False,
    ) -> tuple:
        """``output [T, B, D*P], (h_n [L*D, B, P], c_n [L*D, B, H])``; see :func:`fused_rnn.functional.lstm`.

        With ``return_cells`` a third result: the last layer's c after every step, ``[T, B, D*H]``.
        """
        return self._run(input, hx, lengths, reset_mask, grad_clip, return_cells)


class GRU(Recurrent, nn.GRU):
    """Gated recurrent unit, in place of ``torch.nn.GRU``.

    Args: those of ``torch.nn.GRU``, in its order: input_size (I), hidden_size (H), num_layers (L), bias, batch_first,
    dropout, bidirectional (D = 2), device, dtype.
    """

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """``output [T, B, D*H], h_n [L*D, B, H]``; see :func:`fused_rnn.functional.lstm` for the options."""
        return self._run(input, hx, lengths, reset_mask, grad_clip)


class RNN(Recurrent, nn.RNN):
    """Elman network, in place of ``torch.nn.RNN``.

    Args: those of ``torch.nn.RNN``, in its order: input_size (I), hidden_size (H), num_layers (L), nonlinearity ("tanh"
    or "relu"), bias, batch_first, dropout, bidirectional (D = 2), device, dtype.
    """

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """``output [T, B, D*H], h_n [L*D, B, H]``; see :func:`fused_rnn.functional.lstm` for the options."""
        return self._run(input, hx, lengths, reset_mask, grad_clip)
