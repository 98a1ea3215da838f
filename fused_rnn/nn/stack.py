"""``Stack``: stacked layers of different sizes, with skip connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .layers import GRU, LSTM, RNN
from .signatures import CallOfStack

__all__ = ["Stack"]

_CLASSES = {kind.__name__.lower(): kind for kind in (LSTM, GRU, RNN)}
_SKIPS = (None, "residual", "dense")


class Stack(nn.Module):
    """A deep recurrent network: a layer for each of ``hidden_sizes``, with skip connections.

    Args:
        cell: "lstm", "gru", "rnn", or a class: ``fused_rnn.LSTM``, ``GRU``, ``RNN`` or one derived from these.
        input_size: I.
        hidden_sizes: H of each layer.
        skip: "residual" adds each layer's input to its output. Their widths must agree (D*H the same in all layers);
            only the first layer goes without if ``input_size`` differs. "dense" concatenates, in this order, the input
            and the outputs of all previous layers as each layer's input. None: a plain stack.
        bidirectional: D = 2.
        dropout: probability that an element of a layer's output, except the last layer's, is zeroed in training. It
            acts on the layer's own output, before the residual is added.
        batch_first: whether input and output are ``[B, T, ...]``.
        bias: whether the layers have biases.
        device: where the parameters are.
        dtype: of the parameters.
        options: other arguments of the class: ``nonlinearity`` of "rnn", ``proj_size`` of "lstm".

    Inputs and outputs are those of a layer, see :meth:`forward`, except that there is a state for each layer. The
    layers are in ``stack.layers``, an ``nn.ModuleList`` of one-layer modules.

    Example:
        >>> stack = fused_rnn.Stack("lstm", 10, [32, 32, 16], skip="dense")
        >>> output, states = stack(torch.randn(5, 3, 10))
        >>> output.shape, [tuple(h.shape) for h, c in states]
        (torch.Size([5, 3, 16]), [(1, 3, 32), (1, 3, 32), (1, 3, 16)])

        A residual needs layers of one width; the class's own arguments are passed on:

        >>> stack = fused_rnn.Stack("rnn", 10, [20] * 4, skip="residual", dropout=0.1, nonlinearity="relu")
        >>> output, states = stack(torch.randn(5, 3, 10), lengths=[5, 4, 2])
    """

    if TYPE_CHECKING:
        __call__: CallOfStack  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        cell: str | type[nn.Module],
        input_size: int,
        hidden_sizes: Sequence[int],
        *,
        skip: str | None = None,
        bidirectional: bool = False,
        dropout: float = 0.0,
        batch_first: bool = False,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if skip not in _SKIPS:
            raise ValueError(f"Stack: skip must be 'residual', 'dense' or None, got {skip!r}")
        if not isinstance(hidden_sizes, Sequence) or not hidden_sizes:
            raise ValueError(f"Stack: hidden_sizes must be a sequence, one size for each layer, got {hidden_sizes!r}")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"Stack: dropout must be a probability, from 0 to 1, got {dropout!r}")
        if "num_layers" in options:
            raise TypeError("Stack: hidden_sizes says how many layers there are, so num_layers cannot be given")
        layer_class = _class_of(cell)
        self.skip = skip
        self.dropout: float = float(dropout)
        self.batch_first = batch_first
        self.layers: nn.ModuleList = nn.ModuleList()
        width = input_size
        for hidden_size in hidden_sizes:
            layer = layer_class(
                width,
                hidden_size,
                bias=bias,
                batch_first=batch_first,
                bidirectional=bidirectional,
                device=device,
                dtype=dtype,
                **options,
            )
            self.layers.append(layer)
            width = width + _width(layer) if skip == "dense" else _width(layer)
        if skip == "residual":
            for k, layer in enumerate(self.layers[1:], 1):
                if not _widths_agree(layer):
                    raise ValueError(
                        f"Stack: with skip='residual' the output of layer {k} must be as wide as its input, but its "
                        f"output is {_width(layer)} wide, its input {layer.input_size}"
                    )

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            "torch.jit.script cannot compile fused_rnn.Stack, which torch.nn has no counterpart of; use "
            "torch.jit.trace or torch.export"
        )

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Sequence[Any] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Sequence[Any] | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[PackedSequence, tuple[Any, ...]]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Sequence[Any] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Any, ...]]:
        """``output [T, B, D*H]`` of the last layer and the states of all layers.

        Args:
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a ``PackedSequence``.
            hx: a state for each layer as that layer takes it, ``h_0 [D, B, H]`` or ``(h_0, c_0)``; or None, for zeros.
            lengths: as of :meth:`fused_rnn.LSTM.forward`.
            reset_mask: likewise.
            grad_clip: likewise. Each layer clips the gradients of its own states; those of skip connections are not
                clipped.

        Returns:
            The last layer's output (with its residual), laid out as the input, and a tuple as ``hx``: each layer's
            final state.
        """
        if hx is None:
            hx = (None,) * len(self.layers)
        elif not isinstance(hx, (tuple, list)) or len(hx) != len(self.layers):
            got = f"{type(hx).__name__} of {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
            raise TypeError(f"Stack: hx must be a tuple of {len(self.layers)} states, one for each layer, got {got}")
        data = input.data if isinstance(input, PackedSequence) else input
        added = self.skip == "dense" or (self.skip == "residual" and _widths_agree(self.layers[0]))
        if added and isinstance(data, Tensor) and not data.is_floating_point():
            raise TypeError(
                f"Stack: skip={self.skip!r} adds the input to layers' outputs, and ids are no numbers to add"
            )
        # Only given options are passed: torch.nn's layers, which fused_rnn.restore puts here, take none.
        options = {"lengths": lengths, "reset_mask": reset_mask, "grad_clip": grad_clip}
        options = {name: option for name, option in options.items() if option is not None}
        states = []
        for k, (layer, state) in enumerate(zip(self.layers, hx, strict=True)):
            output, state = layer(input, state, **options)
            states.append(state)
            is_last = k + 1 == len(self.layers)
            if self.training and self.dropout and not is_last:
                output = _map_data(lambda data: torch.dropout(data, self.dropout, True), output)
            if self.skip == "residual" and _widths_agree(layer):
                output = _map_data(torch.add, output, self._without_padding(input, lengths) if k == 0 else input)
            elif self.skip == "dense" and not is_last:
                output = _map_data(lambda *parts: torch.cat(parts, -1), input, output)
            input = output
        return output, tuple(states)

    def _without_padding(self, input: Any, lengths: Any) -> Any:
        """Zero beyond the rows' ends, like layers' outputs: padding may hold anything."""
        if lengths is None:
            return input
        lengths = torch.as_tensor(lengths, device=input.device)
        time = 1 if self.batch_first and input.dim() == 3 else 0
        steps = torch.arange(input.shape[time], device=input.device)
        inside = steps < lengths.reshape(-1, 1)  # [B, T]
        if input.dim() == 2:
            inside = inside.squeeze(0)
        elif time == 0:
            inside = inside.transpose(0, 1)
        return input.where(inside.unsqueeze(-1), 0)

    def extra_repr(self) -> str:
        """What ``print`` shows beside the layers."""
        without = ", none around layer 0" if self.skip == "residual" and not _widths_agree(self.layers[0]) else ""
        return f"skip={self.skip!r}{without}, dropout={self.dropout}, batch_first={self.batch_first}"


def _class_of(cell: Any) -> type[nn.Module]:
    layer_class: Any = _CLASSES.get(cell) if isinstance(cell, str) else cell
    if not isinstance(layer_class, type) or not issubclass(layer_class, tuple(_CLASSES.values())):
        raise ValueError(f"Stack: cell must be 'lstm', 'gru', 'rnn' or one of fused_rnn's layer classes, got {cell!r}")
    return cast(type[nn.Module], layer_class)


def _width(layer: Any) -> int:
    """The output's width, D*P."""
    return int((1 + layer.bidirectional) * (layer.proj_size or layer.hidden_size))


def _widths_agree(layer: Any) -> bool:
    return bool(layer.input_size == _width(layer))


def _map_data(function: Callable[..., Tensor], *sequences: Any) -> Any:
    """Applies the function to the data of sequences that are all tensors or all packed."""
    if isinstance(sequences[0], PackedSequence):
        return PackedSequence(function(*(packed.data for packed in sequences)), *sequences[0][1:])
    return function(*sequences)
