"""``RNN``: torch.nn's on this library's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .recurrent import Recurrent, torch_constructor
from .signatures import CallOfGRU

__all__ = ["RNN"]


class RNN(Recurrent, nn.RNN):
    r"""Elman network over whole sequences, in place of :class:`torch.nn.RNN`.

    Arguments, parameters, state dicts, results and errors are those of ``torch.nn.RNN``. The time loop is one call of a
    compiled kernel, forward and backward, and calls take three more options. At every step each layer computes

    .. math::

        h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    or, with ``nonlinearity="relu"``, the ReLU of the same sum. A layer above the first one has the output of the layer
    below as :math:`x_t`.

    Args:
        input_size: I, the number of features of the input, or of different ids where the input consists of ids.
        hidden_size: H, the number of units.
        num_layers: L, how many layers are stacked.
        nonlinearity: "tanh" or "relu".
        bias: whether the layers have biases ``b_ih`` and ``b_hh``.
        batch_first: whether input and output are ``[B, T, ...]`` rather than ``[T, B, ...]``; the states do not change.
        dropout: the probability with which an element of a layer's output is set to zero in training, the last
            layer's excepted.
        bidirectional: whether a second set of weights reads each sequence from its end; D is then 2, else 1.
        device: where the parameters are.
        dtype: of the parameters: float32, float64, bfloat16 or float16.
        recurrent_dropout: as of :class:`fused_rnn.LSTM`.
        zoneout: likewise, one number.
        weight_dropout: likewise.
        heads: likewise, with ``weight_hh`` ``[H, H / heads]``.
        checkpoint: likewise.
        layer_norm: whether W_ih x and W_hh h are normalised, each over all its units and gates, before their biases are
            added (Ba et al.), with gains **gain_ih_l[k]** and **gain_hh_l[k]**. Not with ``heads`` or
            ``checkpoint``.

    Inputs: input, h_0
        * **input**: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a
          :class:`~torch.nn.utils.rnn.PackedSequence`; or integers of the same shape without I, see :meth:`forward`.
        * **h_0**: ``[D*L, B, H]``, ``[D*L, H]`` unbatched: the initial state of each layer and direction; zero if it is
          not given.

    Outputs: output, h_n
        * **output**: ``[T, B, D*H]``, laid out as the input: the last layer's h of every step, that of the reverse
          direction behind that of the forward direction.
        * **h_n**: ``[D*L, B, H]``, the final h of each layer and direction.

    Weights: of layer k
        * **weight_ih_l[k]**: ``[H, I]`` (above the first layer ``[H, D*H]``).
        * **weight_hh_l[k]**: ``[H, H]``.
        * **bias_ih_l[k]**, **bias_hh_l[k]**: ``[H]`` each, unless ``bias=False``.

    The reverse direction's names end in ``_reverse``. All start uniform between -1/sqrt(H) and 1/sqrt(H), drawn as
    torch.nn draws them; see :mod:`fused_rnn.init` for other choices.

    Note:
        ``nonlinearity`` is the fourth argument by position, as in torch.nn. Gradients of a plain RNN vanish or explode
        by the singular values of W_hh alone: see :func:`fused_rnn.spectrum` and :func:`fused_rnn.init.orthogonal_`.

    Example:
        >>> rnn = fused_rnn.RNN(10, 20, nonlinearity="relu")
        >>> x = torch.randn(5, 3, 10)  # [T, B, I]
        >>> output, h_n = rnn(x)
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
        >>> torch.equal(output[-1], h_n[0])
        True
    """

    if TYPE_CHECKING:
        __call__: CallOfGRU  # pyright: ignore[reportIncompatibleMethodOverride]

    @torch_constructor
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        heads: int = 1,
        checkpoint: int | None = None,
        layer_norm: bool = False,
    ) -> None: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all steps of all layers.

        Args:
            input: numbers ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a
                ``PackedSequence``; or ids of the same shape without I.
            hx: ``h_0 [D*L, B, H]``, without B if the input is unbatched; None for zeros.
            lengths: ``[B]``, integers from 0 to T: how long each row is.
            reset_mask: bool ``[T, B]``: True where a row starts a new sequence.
            grad_clip: bounds each element of the gradient of h at every step of the backward pass.

        The last three are explained at :meth:`fused_rnn.LSTM.forward`.

        Returns:
            ``output [T, B, D*H]`` in the input's layout and ``h_n [D*L, B, H]``.
        """
        return self._run(input, hx, lengths, reset_mask, grad_clip)
