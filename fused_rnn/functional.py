"""The layers as functions of their weights, for parameters that no module holds.

``weights`` is a flat sequence in torch's order: for each layer, for each direction, weight_ih ``[G*H, I]``,
weight_hh ``[G*H, P]``, then, if the layer has them, bias_ih ``[G*H]``, bias_hh ``[G*H]`` and weight_hr ``[P, H]``.
``list(module.parameters())`` of a ``torch.nn`` layer is in this order. Shape letters: T steps, B batch, I input size,
H hidden size, P width of h (proj_size, or H), D directions, L layers, G gates (4 LSTM, 3 GRU, 1 RNN).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .autograd.operators import OPERATORS
from .ops import arguments, plain
from .ops.cells import CELLS

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_relu_cell", "rnn_tanh_cell"]


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
    return_cells: bool = False,
) -> tuple:
    """Long short-term memory over whole sequences.

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
        return_cells: also return the last layer's c after every step, differentiable; zero after a row's end, like
            the output.

    Returns:
        ``output [T, B, D*P]`` in the input's layout, and ``(h_n [L*D, B, P], c_n [L*D, B, H])``. With ``return_cells``
        also ``cells [T, B, D*H]``, in the output's layout.
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
        return_cells=return_cells,
    )


def gru(
    input: Tensor | PackedSequence,
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
) -> tuple[Tensor | PackedSequence, Tensor]:
    """Gated recurrent unit over whole sequences: as :func:`lstm` with ``hx`` a single ``h_0 [L*D, B, H]``.

    Returns:
        ``output [T, B, D*H]`` in the input's layout, and ``h_n [L*D, B, H]``.
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
    )


def rnn(
    input: Tensor | PackedSequence,
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
) -> tuple[Tensor | PackedSequence, Tensor]:
    """Elman network over whole sequences, ``nonlinearity`` "tanh" or "relu": otherwise as :func:`gru`."""
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
    )


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step: ``input [B, I]`` and ``hx = (h [B, H], c [B, H])`` to ``(h, c)``; all of them may be without B."""
    return _step("lstm", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step: ``input [B, I]`` and ``hx [B, H]`` to h ``[B, H]``; all of them may be without B."""
    return _step("gru", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One step of the tanh RNN, shapes as :func:`gru_cell`."""
    return _step("rnn_tanh", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One step of the ReLU RNN, shapes as :func:`gru_cell`."""
    return _step("rnn_relu", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def _step(name: str, input, hx, weight_ih, weight_hh, bias_ih, bias_hh) -> tuple[Tensor, ...]:
    cell = CELLS[name]
    if (bias_ih is None) != (bias_hh is None):
        raise ValueError(f"{cell.step_name}: bias_ih and bias_hh must both be given or both be None")
    weights = [weight_ih, weight_hh] if bias_ih is None else [weight_ih, weight_hh, bias_ih, bias_hh]
    return arguments.single_step(OPERATORS, cell, input, hx, weights, plain.are_plain(weights))
