"""``LSTMCell``, ``GRUCell`` and ``RNNCell``: one step at a time, in place of torch.nn's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..autograd.functions import OPERATORS
from ..ops import arguments, plain
from ..ops.cells import CELLS, Cell

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _step(module: nn.RNNCellBase, cell: Cell, input, hx) -> Sequence[Tensor]:
    """The new states."""
    names, parameters = _NAMES if module.bias else _NAMES[:2], module._parameters  # torch takes any truthy bias
    weights = [parameters.get(name) for name in names]  # not by getattr, which is slow on modules
    are_plain = plain.are_plain(weights)
    if not are_plain:  # parametrized, perhaps
        weights = [getattr(module, name) for name in names]
    return arguments.single_step(OPERATORS, cell, input, hx, weights, are_plain)


class LSTMCell(nn.RNNCellBase):
    """One LSTM step, in place of ``torch.nn.LSTMCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``input [B, I]``, ``hx = (h [B, H], c [B, H])`` to ``(h, c)``; all of them may be without B."""
        h, c = _step(self, CELLS["lstm"], input, hx)
        return h, c


class GRUCell(nn.RNNCellBase):
    """One GRU step, in place of ``torch.nn.GRUCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]``, ``hx [B, H]`` to h ``[B, H]``; all of them may be without B."""
        (h,) = _step(self, CELLS["gru"], input, hx)
        return h


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
        """``input [B, I]``, ``hx [B, H]`` to h ``[B, H]``; all of them may be without B."""
        cell = CELLS.get(f"rnn_{self.nonlinearity}")
        if cell is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        (h,) = _step(self, cell, input, hx)
        return h
