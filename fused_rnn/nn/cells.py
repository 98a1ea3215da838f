"""``LSTMCell``, ``GRUCell`` and ``RNNCell``: one step at a time, in place of torch.nn's."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from ..ops.cells import CELLS, Cell
from ..ops.layer import ONE_STEP
from . import inference

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


def _short_way(module: nn.RNNCellBase, cell: Cell, input, hx):
    """The new states of a plain inference call; None: go the complete way."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if module.bias else ("weight_ih", "weight_hh")
    weights = [module._parameters.get(name) for name in names]
    results = inference.infer(cell, input, hx, weights, ONE_STEP, bias=module.bias)
    return None if results is None else results[1:]


class LSTMCell(nn.RNNCellBase):
    """One LSTM step, in place of ``torch.nn.LSTMCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``input [B, I]``, ``hx = (h [B, H], c [B, H])`` to ``(h, c)``; B may be absent from all."""
        short = _short_way(self, CELLS["lstm"], input, hx)
        if short is not None:
            return short[0], short[1]
        return functional.lstm_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class GRUCell(nn.RNNCellBase):
    """One GRU step, in place of ``torch.nn.GRUCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]``, ``hx [B, H]`` to h ``[B, H]``; B may be absent from all."""
        short = _short_way(self, CELLS["gru"], input, hx)
        if short is not None:
            return short[0]
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
        short = _short_way(self, CELLS[f"rnn_{self.nonlinearity}"], input, hx)
        if short is not None:
            return short[0]
        step = steps[self.nonlinearity]
        return step(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
