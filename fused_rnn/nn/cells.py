"""``LSTMCell``, ``GRUCell`` and ``RNNCell``: one step at a time, in place of torch.nn's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Proxy

from ..autograd.operators import OPERATORS
from ..ops import arguments, plain
from ..ops.cells import CELLS, Cell
from ..ops.layer import WeightFormat
from .freezable import Freezable
from .runners import Frozen

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _step(module: nn.RNNCellBase, cell: Cell, input, hx) -> tuple[Tensor, Tensor] | Tensor | Proxy:
    """The new states; a tensor where there is one."""
    if isinstance(input, Proxy) or isinstance(hx, Proxy):
        return module._call_module_node(input, hx=hx)
    names, parameters = _NAMES if module.bias else _NAMES[:2], module._parameters  # torch takes any truthy bias
    weights = [parameters.get(name) for name in names]  # not by getattr, which is slow on modules
    are_plain = plain.are_plain(weights)
    if not are_plain:  # possibly parametrized
        weights = [getattr(module, name) for name in names]
    runner = module._runner
    if runner is not OPERATORS:
        runner.check(weights)
    states = arguments.single_step(runner, cell, input, hx, weights, are_plain)
    return tuple(states) if cell.states > 1 else states[0]


class RecurrentCell(Freezable, nn.RNNCellBase):
    """A base before torch.nn.LSTMCell and the like."""

    def _weight_names(self) -> tuple[str, ...]:
        return _NAMES if self.bias else _NAMES[:2]

    def _pack(self, format: WeightFormat = WeightFormat.OWN) -> Frozen:
        weights = [self._parameters[name] for name in self._weight_names()]
        return Frozen(self._cell(), bool(self.bias), False, 1, weights, format)

    def _cell(self) -> Cell:
        raise NotImplementedError


class LSTMCell(RecurrentCell, nn.LSTMCell):
    """One LSTM step, in place of ``torch.nn.LSTMCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``input [B, I]``, ``hx = (h [B, H], c [B, H])`` to ``(h, c)``; all of them may be without B."""
        return _step(self, self._cell(), input, hx)

    def _cell(self) -> Cell:
        return CELLS["lstm"]


class GRUCell(RecurrentCell, nn.GRUCell):
    """One GRU step, in place of ``torch.nn.GRUCell``: input_size (I), hidden_size (H), bias, device, dtype."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]``, ``hx [B, H]`` to h ``[B, H]``; all of them may be without B."""
        return _step(self, self._cell(), input, hx)

    def _cell(self) -> Cell:
        return CELLS["gru"]


class RNNCell(RecurrentCell, nn.RNNCell):
    """One step of an Elman network, in place of ``torch.nn.RNNCell``.

    Args: input_size (I), hidden_size (H), bias, nonlinearity ("tanh" or "relu"), device, dtype.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]``, ``hx [B, H]`` to h ``[B, H]``; all of them may be without B."""
        return _step(self, self._cell(), input, hx)

    def _cell(self) -> Cell:
        cell = CELLS.get(f"rnn_{self.nonlinearity}")
        if cell is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return cell
