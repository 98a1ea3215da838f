"""``LSTM``: torch.nn's on this library's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..ops.checks import checked_heads, checked_zoneout
from .recurrent import Recurrent
from .signatures import CallOfLSTM

__all__ = ["LSTM"]


class LSTM(Recurrent, nn.LSTM):
    r"""Long short-term memory over whole sequences, in place of :class:`torch.nn.LSTM`.

    Arguments, parameters, state dicts, results and errors are those of ``torch.nn.LSTM``. The time loop is one call of
    a compiled kernel, forward and backward, and calls take four more options. At every step each layer computes

    .. math::

        \begin{aligned}
            i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
            f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
            g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
            o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
            c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
            h_t &= o_t \odot \tanh(c_t)
        \end{aligned}

    where :math:`i_t, f_t, g_t, o_t` are the input, forget, cell and output gates, :math:`c_t` the cell state and
    :math:`h_t` the output. With ``proj_size`` the last line is :math:`h_t = W_{hr} (o_t \odot \tanh(c_t))`. A layer
    above the first one has the output of the layer below as :math:`x_t`.

    Args:
        input_size: I, the number of features of the input, or of different ids where the input consists of ids.
        hidden_size: H, the number of units.
        num_layers: L, how many layers are stacked.
        bias: whether the layers have biases ``b_ih`` and ``b_hh``.
        batch_first: whether input and output are ``[B, T, ...]`` rather than ``[T, B, ...]``; the states do not change.
        dropout: the probability with which an element of a layer's output is set to zero in training, the last
            layer's excepted.
        bidirectional: whether a second set of weights reads each sequence from its end; D is then 2, else 1.
        proj_size: P, the width of the output if it is projected, less than H; 0 for no projection, so that P is H.
        device: where the parameters are.
        dtype: of the parameters: float32, float64, bfloat16 or float16.
        recurrent_dropout: the probability with which a unit of h is set to zero for W_hh, in all gates and steps of a
            sequence, in training; the others are divided by one less it. The mask is drawn for each layer, direction
            and row; the state itself and the output are not masked (Gal and Ghahramani, as Keras has it).
        zoneout: ``(p_h, p_c)``, or one number for both: the probability with which a unit keeps its former h, and its
            former c, after a step in training. In evaluation each is p times the former one plus 1 - p times the new
            one. h is computed from c before c's zoneout, as Krueger et al. have it. Not with ``proj_size``.
        weight_dropout: the probability with which an element of every ``weight_hh`` is set to zero throughout a call in
            training, the others being divided by one less it (DropConnect, as AWD-LSTM has it).
        heads: how many blocks on its diagonal every W_hh has, which is zero elsewhere: ``weight_hh`` then is
            ``[4*H, H / heads]``, each row the weights of its own block (as sLSTM and Dreamer's block GRU have it). Not
            with ``proj_size``.
        checkpoint: for long sequences: of a call with gradients only the states that enter every so many steps are kept
            (rounded up to whole rounds of the backward pass, which ``fused_rnn.explain`` names), and the backward pass
            computes the rest again: the same bits in a fraction of the memory. None keeps everything. On the CPU.
        layer_norm: whether W_ih x and W_hh h are normalised, each over its 4*H sums, before their biases are added, and
            c before its tanh, in h alone (Ba et al., as haste has it): weights **gain_ih_l[k]** and **gain_hh_l[k]**,
            ``[4*H]``, **gain_c_l[k]** and **bias_c_l[k]**, ``[H]``, which begin at 1 and 0. Not with ``proj_size``,
            ``heads`` or ``checkpoint``.

    Inputs: input, (h_0, c_0)
        * **input**: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a
          :class:`~torch.nn.utils.rnn.PackedSequence`; or integers of the same shape without I, see :meth:`forward`.
        * **h_0**: ``[D*L, B, P]``, ``[D*L, P]`` unbatched: the initial output of each layer and direction.
        * **c_0**: ``[D*L, B, H]``, ``[D*L, H]`` unbatched: the initial cell state. Both are zero if not given.

    Outputs: output, (h_n, c_n)
        * **output**: ``[T, B, D*P]``, laid out as the input: the last layer's h of every step, that of the reverse
          direction behind that of the forward direction.
        * **h_n**: ``[D*L, B, P]``, the final h of each layer and direction.
        * **c_n**: ``[D*L, B, H]``, the final c of each layer and direction.

    Weights: of layer k
        * **weight_ih_l[k]**: ``[4*H, I]`` (above the first layer ``[4*H, D*P]``), the rows of i, f, g and o in turn.
        * **weight_hh_l[k]**: ``[4*H, P]``.
        * **bias_ih_l[k]**, **bias_hh_l[k]**: ``[4*H]`` each, unless ``bias=False``.
        * **weight_hr_l[k]**: ``[P, H]``, only with ``proj_size``.

    The reverse direction's names end in ``_reverse``. All start uniform between -1/sqrt(H) and 1/sqrt(H), drawn
    as torch.nn draws them; see :mod:`fused_rnn.init` for other choices.

    Note:
        Results do not depend on the number of threads. Calls without gradients pack the weights each time, unless
        :func:`fused_rnn.freeze` has done so once. ``fused_rnn.explain(lstm, x)`` says what a call runs on.

    Example:
        >>> lstm = fused_rnn.LSTM(10, 20, num_layers=2)
        >>> x = torch.randn(5, 3, 10)  # [T, B, I]
        >>> output, (h_n, c_n) = lstm(x)
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))

        Rows of different lengths, one of which starts a new sequence at its fourth step:

        >>> resets = torch.zeros(5, 3, dtype=torch.bool)
        >>> resets[3, 0] = True
        >>> output, (h_n, c_n) = lstm(x, lengths=[5, 4, 2], reset_mask=resets)
        >>> output[2:, 2].count_nonzero().item()  # nothing behind the end of a row
        0
    """

    if TYPE_CHECKING:
        __call__: CallOfLSTM  # pyright: ignore[reportIncompatibleMethodOverride]

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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        heads: int = 1,
        checkpoint: int | None = None,
        layer_norm: bool = False,
    ) -> None:
        if proj_size and any(checked_zoneout(zoneout, 2)):
            raise ValueError(f"zoneout={zoneout} and proj_size={proj_size} exclude each other")
        if proj_size and layer_norm:
            raise ValueError(f"layer_norm=True and proj_size={proj_size} exclude each other")
        if proj_size and checked_heads(heads, hidden_size) > 1:
            raise ValueError(f"heads={heads} and proj_size={proj_size} exclude each other")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__(
            *sizes,
            device,
            dtype,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            heads=heads,
            checkpoint=checkpoint,
            layer_norm=layer_norm,
        )

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[True],
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: bool,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: bool = False,
    ) -> tuple[Any, ...]:
        """Runs all steps of all layers.

        Args:
            input: numbers ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a
                ``PackedSequence``. Or ids from 0 to I - 1, int64 or int32, of the same shape without I: the result is
                that of one-hot rows, but columns of ``weight_ih`` are looked up instead of multiplied.
            hx: ``(h_0 [D*L, B, P], c_0 [D*L, B, H])``, without B if the input is unbatched; None for zeros.
            lengths: ``[B]``, integers from 0 to T. Row b ends after ``lengths[b]`` steps: what lies behind is never
                read, the output is zero there, the reverse direction starts at the row's own end, and the final states
                are those at that end. Not with a ``PackedSequence``, which has its lengths.
            reset_mask: bool ``[T, B]`` (``[B, T]`` with ``batch_first``, ``[T]`` unbatched; of a ``PackedSequence`` as
                the sequence would be padded, rows in your order). True at (t, b) starts a new sequence in row b at step
                t: neither state nor gradient passes between steps t - 1 and t, in any layer and direction.
            grad_clip: a number above 0. On its way back through time the gradient of h is clamped, element by element,
                to ``[-grad_clip, grad_clip]`` at every step, once the gradient of that step's output has been added.
                First derivatives in reverse mode only.
            return_cells: whether to return the last layer's c of every step, too.

        Returns:
            ``output [T, B, D*P]`` in the input's layout and ``(h_n [D*L, B, P], c_n [D*L, B, H])``. With
            ``return_cells`` a third result, ``cells [T, B, D*H]``, laid out as the output, differentiable, and zero
            behind a row's end.
        """
        return self._run(input, hx, lengths, reset_mask, grad_clip, return_cells)
