"""``LSTMCell``, ``GRUCell`` and ``RNNCell``: one step at a time, in place of torch.nn's."""

from __future__ import annotations

from torch import Tensor, nn

from . import functional

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class LSTMCell(nn.RNNCellBase):
    """One LSTM step, in place of ``torch.nn.LSTMCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``input [B, I]``, ``hx = (h [B, H], c [B, H])`` to ``(h, c)``; B may be absent from all."""
        return functional.lstm_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class GRUCell(nn.RNNCellBase):
    """One GRU step, in place of ``torch.nn.GRUCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]``, ``hx [B, H]`` to h ``[B, H]``; B may be absent from all."""
        return functional.gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class RNNCell(nn.RNNCellBase):
    """One step of an Elman network, in place of ``torch.nn.RNNCell``.

    Args: input_size (I), hidden_size (H), bias, nonlinearity ("tanh" or "relu"), device, dtype.
    """

    __constants__ = (*nn.RNNCellBase.__constants__, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]``, ``hx [B, H]`` to h ``[B, H]``; B may be absent from all."""
        steps = {"tanh": functional.rnn_tanh_cell, "relu": functional.rnn_relu_cell}
        if self.nonlinearity not in steps:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        step = steps[self.nonlinearity]
        return step(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
