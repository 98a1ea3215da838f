"""``LSTM``, ``GRU`` and ``RNN``: torch.nn's layers on this library's operators.

Constructors, parameters, state dicts and errors are those of ``torch.nn``. ``forward`` takes more, keyword-only:
``lengths``, ``reset_mask`` and ``grad_clip``, and an LSTM's ``return_cells``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..ops.arguments import rnn_cell
from .recurrent import Recurrent

__all__ = ["GRU", "LSTM", "RNN"]


class LSTM(Recurrent):
    """Long short-term memory, in place of ``torch.nn.LSTM``.

    Args: those of ``torch.nn.LSTM``, in its order: input_size (I), hidden_size (H), num_layers (L), bias, batch_first,
    dropout, bidirectional (D = 2), proj_size (P; H when 0), device, dtype.
    """

    # Public helpers that nn.LSTM has beyond nn.RNNBase, for code that calls them.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

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
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
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
        results = self._run(input, hx, lengths, reset_mask, grad_clip, return_cells)
        if return_cells:
            output, h_n, c_n, cells = results
            return output, (h_n, c_n), cells
        output, h_n, c_n = results
        return output, (h_n, c_n)


class GRU(Recurrent):
    """Gated recurrent unit, in place of ``torch.nn.GRU``.

    Args: those of ``torch.nn.GRU``, in its order: input_size (I), hidden_size (H), num_layers (L), bias, batch_first,
    dropout, bidirectional (D = 2), device, dtype.
    """

    def __init__(self, *args, **kwargs) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)

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
        output, h_n = self._run(input, hx, lengths, reset_mask, grad_clip)
        return output, h_n


class RNN(Recurrent):
    """Elman network, in place of ``torch.nn.RNN``.

    Args: those of ``torch.nn.RNN``, in its order: input_size (I), hidden_size (H), num_layers (L), nonlinearity ("tanh"
    or "relu"), bias, batch_first, dropout, bidirectional (D = 2), device, dtype.
    """

    def __init__(self, *args, **kwargs) -> None:
        _refuse_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity, args = args[3], (*args[:3], *args[4:])
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        super().__init__(rnn_cell(self.nonlinearity).mode, *args, **kwargs)

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
        output, h_n = self._run(input, hx, lengths, reset_mask, grad_clip)
        return output, h_n


def _refuse_projection(kwargs: dict) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
