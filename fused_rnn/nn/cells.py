"""``LSTMCell``, ``GRUCell`` and ``RNNCell``: one step at a time, in place of torch.nn's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def _step(module: RecurrentCell, cell: Cell, input: Any, hx: Any) -> Any:
    """The new states; a tensor where there is one."""
    if isinstance(input, Proxy) or isinstance(hx, Proxy):
        return module._call_module_node(input, hx=hx)
    names, parameters = _NAMES if module.bias else _NAMES[:2], module._parameters  # torch takes any truthy bias
    weights: list[Any] = [parameters.get(name) for name in names]  # not by getattr, which is slow on modules
    are_plain = plain.are_plain(weights)
    if not are_plain:  # possibly parametrized
        weights = [getattr(module, name) for name in names]
    runner: Any = module._runner
    if runner is not OPERATORS:
        runner.check(weights)
    states = arguments.single_step(runner, cell, input, hx, weights, are_plain)
    return tuple(states) if cell.states > 1 else states[0]


class RecurrentCell(Freezable, nn.RNNCellBase):
    """A base before torch.nn.LSTMCell and the like."""

    def _weight_names(self) -> tuple[str, ...]:
        return _NAMES if self.bias else _NAMES[:2]

    def _pack(self, format: WeightFormat = WeightFormat.OWN) -> Frozen:
        weights: list[Any] = [self._parameters[name] for name in self._weight_names()]
        return Frozen(self._cell(), bool(self.bias), False, 1, weights, format)

    def _cell(self) -> Cell:
        raise NotImplementedError


class LSTMCell(RecurrentCell, nn.LSTMCell):
    r"""One step of an LSTM, in place of :class:`torch.nn.LSTMCell`.

    .. math::

        \begin{aligned}
            i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi}) \\
            f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
            g &= \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
            o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho}) \\
            c' &= f \odot c + i \odot g \\
            h' &= o \odot \tanh(c')
        \end{aligned}

    Args:
        input_size: I, the number of features of the input.
        hidden_size: H, the number of units.
        bias: whether there are biases ``bias_ih`` and ``bias_hh``.
        device: where the parameters are.
        dtype: of the parameters: float32, float64, bfloat16 or float16.

    Inputs: input, (h, c)
        * **input**: ``[B, I]``, or ``[I]`` unbatched.
        * **h**, **c**: ``[B, H]``, or ``[H]`` unbatched: the states before the step; zero if not given.

    Outputs: (h', c')
        * **h'**, **c'**: ``[B, H]``, or ``[H]`` unbatched: the states after the step.

    Weights: start uniform between -1/sqrt(H) and 1/sqrt(H)
        * **weight_ih**: ``[4*H, I]``, the rows of i, f, g and o in turn.
        * **weight_hh**: ``[4*H, H]``.
        * **bias_ih**, **bias_hh**: ``[4*H]`` each, unless ``bias=False``.

    Note:
        A layer runs a whole sequence in one call and is much faster than a loop over a cell. For serving, where steps
        arrive one at a time, :class:`fused_rnn.Stream` is faster than a cell.

    Example:
        >>> cell = fused_rnn.LSTMCell(10, 20)
        >>> h, c = torch.zeros(3, 20), torch.zeros(3, 20)
        >>> for x in torch.randn(6, 3, 10):
        ...     h, c = cell(x, (h, c))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``input [B, I]`` and ``hx = (h [B, H], c [B, H])`` to the new ``(h, c)``; all of them may be without B."""
        return _step(self, self._cell(), input, hx)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]: ...

    def _cell(self) -> Cell:
        return CELLS["lstm"]


class GRUCell(RecurrentCell, nn.GRUCell):
    r"""One step of a GRU, in place of :class:`torch.nn.GRUCell`.

    .. math::

        \begin{aligned}
            r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
            z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
            n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
            h' &= (1 - z) \odot n + z \odot h
        \end{aligned}

    Args:
        input_size: I, the number of features of the input.
        hidden_size: H, the number of units.
        bias: whether there are biases ``bias_ih`` and ``bias_hh``.
        device: where the parameters are.
        dtype: of the parameters: float32, float64, bfloat16 or float16.

    Inputs: input, h
        * **input**: ``[B, I]``, or ``[I]`` unbatched.
        * **h**: ``[B, H]``, or ``[H]`` unbatched: the state before the step; zero if not given.

    Outputs: h'
        * **h'**: ``[B, H]``, or ``[H]`` unbatched: the state after the step.

    Weights: start uniform between -1/sqrt(H) and 1/sqrt(H)
        * **weight_ih**: ``[3*H, I]``, the rows of r, z and n in turn.
        * **weight_hh**: ``[3*H, H]``.
        * **bias_ih**, **bias_hh**: ``[3*H]`` each, unless ``bias=False``.

    Example:
        >>> cell = fused_rnn.GRUCell(10, 20)
        >>> h = torch.zeros(3, 20)
        >>> for x in torch.randn(6, 3, 10):
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([3, 20])
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]`` and ``hx [B, H]`` to the new h ``[B, H]``; all of them may be without B."""
        return _step(self, self._cell(), input, hx)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...

    def _cell(self) -> Cell:
        return CELLS["gru"]


class RNNCell(RecurrentCell, nn.RNNCell):
    r"""One step of an Elman network, in place of :class:`torch.nn.RNNCell`.

    .. math::

        h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    or, with ``nonlinearity="relu"``, the ReLU of the same sum.

    Args:
        input_size: I, the number of features of the input.
        hidden_size: H, the number of units.
        bias: whether there are biases ``bias_ih`` and ``bias_hh``.
        nonlinearity: "tanh" or "relu".
        device: where the parameters are.
        dtype: of the parameters: float32, float64, bfloat16 or float16.

    Inputs: input, h
        * **input**: ``[B, I]``, or ``[I]`` unbatched.
        * **h**: ``[B, H]``, or ``[H]`` unbatched: the state before the step; zero if not given.

    Outputs: h'
        * **h'**: ``[B, H]``, or ``[H]`` unbatched: the state after the step.

    Weights: start uniform between -1/sqrt(H) and 1/sqrt(H)
        * **weight_ih**: ``[H, I]``.
        * **weight_hh**: ``[H, H]``.
        * **bias_ih**, **bias_hh**: ``[H]`` each, unless ``bias=False``.

    Example:
        >>> cell = fused_rnn.RNNCell(10, 20, nonlinearity="relu")
        >>> cell(torch.randn(10)).shape  # unbatched, from a state of zeros
        torch.Size([20])
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``input [B, I]`` and ``hx [B, H]`` to the new h ``[B, H]``; all of them may be without B."""
        return _step(self, self._cell(), input, hx)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...

    def _cell(self) -> Cell:
        cell = CELLS.get(f"rnn_{self.nonlinearity}")
        if cell is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return cell
