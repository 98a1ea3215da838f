"""The layers as functions of their weights, for parameters that no module holds.

``weights`` is a flat sequence in torch's order: for each layer, for each direction, weight_ih ``[G*H, I]``,
weight_hh ``[G*H, P]``, then, if the layer has them, bias_ih ``[G*H]``, bias_hh ``[G*H]`` and weight_hr ``[P, H]``.
``list(module.parameters())`` of a ``torch.nn`` layer is in this order. Shape letters: T steps, B batch, I input size,
H hidden size, P width of h (proj_size, or H), D directions, L layers, G gates (4 LSTM, 3 GRU, 1 RNN).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, overload

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .autograd.operators import OPERATORS
from .ops import arguments, plain
from .ops.cells import CELLS

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_relu_cell", "rnn_tanh_cell"]

# Padded or packed, and so is the output.
Sequences = TypeVar("Sequences", bound=Tensor | PackedSequence)


@overload
def lstm(
    input: Sequences,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    heads: int = 1,
    checkpoint: int | None = None,
    layer_norm: Sequence[Tensor] | None = None,
    return_cells: Literal[False] = False,
) -> tuple[Sequences, tuple[Tensor, Tensor]]: ...


@overload
def lstm(
    input: Sequences,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    heads: int = 1,
    checkpoint: int | None = None,
    layer_norm: Sequence[Tensor] | None = None,
    return_cells: Literal[True],
) -> tuple[Sequences, tuple[Tensor, Tensor], Sequences]: ...


@overload
def lstm(
    input: Sequences,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    heads: int = 1,
    checkpoint: int | None = None,
    layer_norm: Sequence[Tensor] | None = None,
    return_cells: bool,
) -> tuple[Any, ...]: ...


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    heads: int = 1,
    checkpoint: int | None = None,
    layer_norm: Sequence[Tensor] | None = None,
    return_cells: bool = False,
) -> tuple[Any, ...]:
    """Long short-term memory over whole sequences; :class:`fused_rnn.LSTM` has the equations.

    Args:
        input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a ``PackedSequence``. Or ids,
            int64 or int32, of the same shape without I: equivalent to one-hot rows of a vocabulary of I, but looked up.
        hx: ``(h_0 [L*D, B, P], c_0 [L*D, B, H])``, without B when unbatched; None for zeros.
        weights: flat, in torch's order (see the module's docstring); with or without biases and projection.
        num_layers: L.
        bidirectional: D = 2: a second set of weights reads each sequence from its end.
        batch_first: batch dimension first in ``input``, ``reset_mask`` and the output, not in the states.
        dropout: probability that an element of a layer's output, except the last layer's, is zeroed in training.
        training: whether dropout is active.
        lengths: ``[B]`` integers in 0..T. Row b ends after ``lengths[b]`` steps: later input is ignored, the output is
            zero there, the reverse direction starts at the row's own end and h_n is the state at that end.
        reset_mask: bool ``[T, B]`` (``[B, T]`` with ``batch_first``, ``[T]`` unbatched; rows of a ``PackedSequence``
            in the user's order). True at (t, b) cuts row b between steps t-1 and t: nothing, neither state nor
            gradient, passes in either direction, in any layer.
        grad_clip: above 0. In the backward pass the gradient of h ``[B, P]`` is clamped to [-grad_clip, grad_clip] at
            every step, in every layer and direction, after the gradients of that step's output and, at the last step,
            of h_n have been added. The gradient of h_0 is not clamped. First derivatives in reverse mode only.
        recurrent_dropout: probability that a unit of h is zeroed for W_hh in training, in all gates and steps of a row.
            The masks are drawn layer by layer, each as ``torch.dropout(torch.ones(D, B, P), recurrent_dropout, True)``.
        zoneout: ``(p_h, p_c)`` or one number: as of :class:`fused_rnn.LSTM`, by masks with ``training``, else by
            expectation.
        heads: how many blocks on its diagonal every weight_hh has; ``[G*H, H / heads]`` then. Not with weight_hr.
        checkpoint: as of :class:`fused_rnn.LSTM`.
        layer_norm: the norms' parameters, if the layers have them, for each layer and direction: gain_ih and gain_hh
            ``[G*H]``, and of an LSTM gain_c ``[H]`` and, with biases, bias_c ``[H]``; see :class:`fused_rnn.LSTM`.
        return_cells: also return the last layer's c after every step, differentiable; zero after a row's end, like
            the output.

    Returns:
        ``output [T, B, D*P]`` in the input's layout, and ``(h_n [L*D, B, P], c_n [L*D, B, H])``. With ``return_cells``
        also ``cells [T, B, D*H]``, in the output's layout.

    Example:
        >>> weights = [torch.randn(80, 10), torch.randn(80, 20)]  # weight_ih, weight_hh; no biases
        >>> output, (h_n, c_n) = fused_rnn.functional.lstm(torch.randn(5, 3, 10), None, weights, lengths=[5, 4, 2])
        >>> output.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """
    return arguments.lstm(
        OPERATORS,
        input,
        hx,
        weights,
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        lengths=lengths,
        reset_mask=reset_mask,
        grad_clip=grad_clip,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        heads=heads,
        checkpoint=checkpoint,
        layer_norm=layer_norm,
        return_cells=return_cells,
    )


def gru(
    input: Sequences,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    heads: int = 1,
    checkpoint: int | None = None,
    layer_norm: Sequence[Tensor] | None = None,
) -> tuple[Sequences, Tensor]:
    """Gated recurrent unit over whole sequences; :class:`fused_rnn.GRU` has the equations.

    Args:
        hx: ``h_0 [L*D, B, H]``, without B when unbatched; None for zeros.
        weights: flat, in torch's order (see the module's docstring); with or without biases.

    All other arguments are those of :func:`lstm`.

    Returns:
        ``output [T, B, D*H]`` in the input's layout, and ``h_n [L*D, B, H]``.

    Example:
        >>> gru = torch.nn.GRU(10, 20)
        >>> x = torch.randn(5, 3, 10)
        >>> output, h_n = fused_rnn.functional.gru(x, None, list(gru.parameters()))
        >>> torch.testing.assert_close(output, gru(x)[0])
    """
    return arguments.gru(
        OPERATORS,
        input,
        hx,
        weights,
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        lengths=lengths,
        reset_mask=reset_mask,
        grad_clip=grad_clip,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        heads=heads,
        checkpoint=checkpoint,
        layer_norm=layer_norm,
    )


def rnn(
    input: Sequences,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    heads: int = 1,
    checkpoint: int | None = None,
    layer_norm: Sequence[Tensor] | None = None,
) -> tuple[Sequences, Tensor]:
    """Elman network over whole sequences; :class:`fused_rnn.RNN` has the equation.

    Args:
        nonlinearity: "tanh" or "relu".

    All other arguments, and the results, are those of :func:`gru`.

    Example:
        >>> weights = [torch.randn(20, 10), torch.eye(20), torch.zeros(20), torch.zeros(20)]
        >>> output, h_n = fused_rnn.functional.rnn(torch.randn(5, 3, 10), None, weights, nonlinearity="relu")
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """
    return arguments.rnn(
        OPERATORS,
        input,
        hx,
        weights,
        nonlinearity=nonlinearity,
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        lengths=lengths,
        reset_mask=reset_mask,
        grad_clip=grad_clip,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        heads=heads,
        checkpoint=checkpoint,
        layer_norm=layer_norm,
    )


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step, of :class:`fused_rnn.LSTMCell`.

    Args:
        input: ``[B, I]``, or ``[I]`` unbatched.
        hx: ``(h [B, H], c [B, H])``, without B when unbatched; None for zeros.
        weight_ih: ``[4*H, I]``.
        weight_hh: ``[4*H, H]``.
        bias_ih: ``[4*H]``, or None.
        bias_hh: ``[4*H]``; given if ``bias_ih`` is.

    Returns:
        The new ``(h, c)``, shaped as ``hx``.

    Example:
        >>> h, c = fused_rnn.functional.lstm_cell(torch.randn(3, 10), None, torch.randn(80, 10), torch.randn(80, 20))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """
    return _step("lstm", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step, of :class:`fused_rnn.GRUCell`.

    Args:
        input: ``[B, I]``, or ``[I]`` unbatched.
        hx: ``[B, H]``, or ``[H]`` unbatched; None for zeros.
        weight_ih: ``[3*H, I]``.
        weight_hh: ``[3*H, H]``.
        bias_ih: ``[3*H]``, or None.
        bias_hh: ``[3*H]``; given if ``bias_ih`` is.

    Returns:
        The new h, shaped as ``hx``.

    Example:
        >>> fused_rnn.functional.gru_cell(torch.randn(10), None, torch.randn(60, 10), torch.randn(60, 20)).shape
        torch.Size([20])
    """
    return _step("gru", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One step of an RNN with tanh, of :class:`fused_rnn.RNNCell`: arguments as of :func:`gru_cell`, H for 3*H.

    Example:
        >>> fused_rnn.functional.rnn_tanh_cell(torch.randn(10), None, torch.randn(20, 10), torch.randn(20, 20)).shape
        torch.Size([20])
    """
    return _step("rnn_tanh", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One step of an RNN with ReLU, of :class:`fused_rnn.RNNCell`: arguments as of :func:`gru_cell`, H for 3*H.

    Example:
        >>> fused_rnn.functional.rnn_relu_cell(torch.randn(10), None, torch.randn(20, 10), torch.randn(20, 20)).shape
        torch.Size([20])
    """
    return _step("rnn_relu", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def _step(
    name: str,
    input: Tensor,
    hx: tuple[Tensor, Tensor] | Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> Any:
    cell = CELLS[name]
    if (bias_ih is None) != (bias_hh is None):
        raise ValueError(f"{cell.step_name}: bias_ih and bias_hh must both be given or both be None")
    weights = [weight_ih, weight_hh] if bias_ih is None or bias_hh is None else [weight_ih, weight_hh, bias_ih, bias_hh]
    return arguments.single_step(OPERATORS, cell, input, hx, weights, plain.are_plain(weights))
