"""``OwnLayer``: the module that runs a cell of a user's own over whole sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from .. import reference
from ..nn.freezable import Freezable
from ..nn.loop_options import LoopOptions
from ..nn.runners import Frozen
from ..ops import arguments, library, plain
from ..ops.checks import form_of, known_form, options_of
from ..ops.layer import WeightFormat
from .cuda import WITHOUT_CUDA

Init: TypeAlias = float | Callable[..., Any]
"""How a parameter is drawn: filled with a number, or by a function."""

MATRICES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""What a layer has besides the cell's own parameters."""


class OwnLayer(LoopOptions, Freezable, nn.Module):
    """A layer of a cell of your own, made by ``cell.layer(...)``; options and calls are those of :class:`LSTM`.

    Weights of layer k, whose names end in ``_reverse`` for the reverse direction:
        * **weight_ih_l[k]**: ``[gates*H, I]``, above the first layer ``[gates*H, D*H]``.
        * **weight_hh_l[k]**: ``[gates*H, H]``, or H / heads, unless the cell has no recurrent matrix.
        * **bias_ih_l[k]**, **bias_hh_l[k]**: ``[gates*H]``, unless ``bias=False``; b_hh goes with W_hh.
        * **[param]_l[k]**: ``[H]`` for each of the cell's parameters.
    """

    def __init__(
        self,
        cell: Any,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        compiled: bool = True,
        init: Mapping[str, Init] | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        heads: int = 1,
        checkpoint: int | None = None,
        layer_norm: bool = False,
    ) -> None:
        given: dict[str, Any] = {"recurrent_dropout": recurrent_dropout, "zoneout": zoneout}
        given |= {"weight_dropout": weight_dropout, "heads": heads, "checkpoint": checkpoint, "layer_norm": layer_norm}
        of_loop = self._checked_options(len(cell.states), hidden_size, given)
        elsewhere = ("zoneout", "checkpoint", "layer_norm")
        on_hh = [option for option in of_loop.items() if option[0] not in elsewhere]
        if on_hh and not cell.recurrent:
            name, value = on_hh[0]
            raise ValueError(f"{cell.name} has no W_hh, which {name}={value} acts on")
        super().__init__()
        # Wrong arguments get torch's errors, and so does dropout of a single layer its warning.
        nn.GRU(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device="meta")
        if compiled and device is not None and torch.device(device).type == "cuda" and not library.cuda_archs():
            raise NotImplementedError(WITHOUT_CUDA)
        check_init(cell.name, {} if init is None else init, cell.params, cell.recurrent)
        self.cell: Any = cell  # an OwnCell
        self.input_size: int = input_size
        self.hidden_size: int = hidden_size
        self.num_layers: int = num_layers
        self.bias: bool = bias
        self.batch_first: bool = batch_first
        self.bidirectional: bool = bidirectional
        self.dropout: float = float(dropout)
        self.compiled: bool = compiled
        self.init: dict[str, Init] = cell.init | dict(init or {})
        self.row: Any = cell.row
        self.__dict__.update(of_loop)
        directions = 2 if bidirectional else 1
        for k in range(num_layers):
            width = input_size if k == 0 else hidden_size * directions
            for suffix in self._suffixes(k):
                for kind, shape in self._shapes(width).items():
                    empty = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(kind + suffix, nn.Parameter(empty))
        if layer_norm:
            self._add_norms(self.row, next(self.parameters()))
        self.reset_parameters()
        first = next(self.parameters())
        if compiled and (first.is_cpu or (first.is_cuda and torch.cuda.is_available())):  # not of fake tensors
            cell.load(first.dtype, first.device.type)

    def _suffixes(self, k: int) -> list[str]:
        return [f"_l{k}", f"_l{k}_reverse"][: 2 if self.bidirectional else 1]

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        rows, hidden = self.cell.gates * self.hidden_size, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width)}
        if self.cell.recurrent:
            shapes["weight_hh"] = (rows, hidden // self.heads)
        if self.bias:
            shapes["bias_ih"] = (rows,)
        if self.bias and self.cell.recurrent:
            shapes["bias_hh"] = (rows,)
        return shapes | {name: (hidden,) for name in self.cell.params}

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                init = self.init.get(name.rsplit("_l", 1)[0])
                if init is None:
                    nn.init.uniform_(parameter, -bound, bound)
                elif callable(init):
                    init(parameter)
                else:
                    parameter.fill_(init)
        self._reset_norms(self.row)

    def flatten_parameters(self) -> None:
        """Does nothing; cuDNN's layers need it."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Any, Any]:
        """Runs all steps of all layers.

        Args:
            input: numbers ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a
                ``PackedSequence``; or ids of the same shape without I.
            hx: the initial state ``[D*L, B, H]`` or, of a cell with several, a tuple of them; None for what the cell
                declares, 0 mostly.
            lengths: ``[B]``, integers from 0 to T: how long each row is.
            reset_mask: bool ``[T, B]``: True where a row starts a new sequence.
            grad_clip: bounds each element of the gradient of the first state at every step of the backward pass.

        The last three are explained at :meth:`fused_rnn.LSTM.forward`.

        Returns:
            ``output [T, B, D*H]`` in the input's layout, and the final states as ``hx`` has them.
        """
        return self._run(input, hx, lengths, reset_mask, grad_clip)

    def _run(
        self,
        input: Any,
        hx: Any = None,
        lengths: Any = None,
        reset_mask: Any = None,
        grad_clip: Any = None,
        by: Any = None,
    ) -> Any:
        """One call. ``by``: a runner instead of the layer's own."""
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            masks = {"lengths": lengths, "reset_mask": reset_mask, "grad_clip": grad_clip}
            return self._call_module_node(input, hx=hx, **masks)
        runner: Any = self._runner
        if isinstance(runner, _FrozenParts):
            runner.check(self._parts())
            weights = runner.stacked
        else:
            weights = self._weights()
            if not self.compiled:
                runner = reference.RUNNER
        if self.training and self.weight_dropout:
            weights = self._drop_weights(weights, self._names_of_stacked())
        are_plain = plain.are_plain(weights)
        form = (known_form if are_plain else form_of)(
            self.row, self.num_layers, self.bidirectional, self.batch_first, len(weights)
        )
        options = options_of(self.training and self.dropout, lengths, reset_mask, grad_clip)
        if self._given():
            options = self._with_loop_options(options, form.cell)
        output, *states = arguments.run(by or runner, form, input, hx, weights, options, are_plain)
        return output, states[0] if len(self.cell.states) == 1 else tuple(states)

    def _weights(self) -> list[Tensor]:
        """As the operators take them: the parameters of a layer and direction in one tensor."""
        weights: list[Tensor] = []
        for k in range(self.num_layers):
            for suffix in self._suffixes(k):
                weights += [getattr(self, name + suffix) for name in self._matrices()]
                if self.cell.params:
                    weights.append(torch.stack([getattr(self, name + suffix) for name in self.cell.params]))
        return weights

    def _names_of_stacked(self) -> list[str]:
        """A name for each of ``_weights()``."""
        each = self._matrices() + ["params"] * bool(self.cell.params)
        return each * (self.num_layers * (1 + self.bidirectional))

    def _matrices(self) -> list[str]:
        names = list(MATRICES[: 4 if self.bias else 2])
        return names if self.cell.recurrent else names[::2]

    def _weight_names(self) -> list[str]:
        suffixes = [suffix for k in range(self.num_layers) for suffix in self._suffixes(k)]
        return [name + suffix for suffix in suffixes for name in self._shapes(0)]

    def _parts(self) -> list[Any]:
        return [self._parameters.get(name) for name in self._weight_names()]

    def _pack(self, format: WeightFormat = WeightFormat.OWN) -> Frozen:
        if not self.compiled:
            raise RuntimeError(f"fused_rnn: {self.cell.name} was made with compiled=False, and has nothing to pack")
        if format != WeightFormat.OWN:
            raise NotImplementedError(
                f"fused_rnn: weights of 8 bits are for LSTM, GRU and RNN, not for {self.cell.name}"
            )
        self._refuse_packing()
        return _FrozenParts(self)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        options = (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
        )
        parts += [f"{name}={value}" for name, usual in options if (value := getattr(self, name)) != usual]
        parts += (
            self._given() + ["compiled=False"] * (not self.compiled) + ["frozen"] * isinstance(self._runner, Frozen)
        )
        return ", ".join(parts)

    def _get_name(self) -> str:
        return self.cell.name

    def _has_own_forward(self) -> bool:
        return type(self).forward is not OwnLayer.forward

    def _stock_class(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.onnx.export(dynamo=False) cannot export {self.cell.name}, which torch.nn has no counterpart of"
        )

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.jit.script cannot compile {self.cell.name}, which torch.nn has no counterpart of; use "
            "torch.jit.trace or torch.export"
        )

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        state.pop("row", None)  # of this process
        return state

    def __setstate__(self, state: Any) -> None:
        self.row = state["cell"].row
        super().__setstate__(state)


class _FrozenParts(Frozen):
    """Packed weights of an own layer, whose parameters are stacked for the operators."""

    def __init__(self, layer: OwnLayer):
        self.stacked = layer._weights()
        for k, weight in enumerate(self.stacked):
            if not weight.is_leaf or weight not in set(layer.parameters()):
                needs_grad = any(part.requires_grad for part in layer.parameters())
                self.stacked[k] = weight.detach().requires_grad_(needs_grad)  # so that calls with gradients are refused
        super().__init__(layer.row, layer.bias, layer.bidirectional, layer.num_layers, self.stacked)
        self._remember(layer._parts())


def check_init(cell: str, init: Mapping[str, Init], params: Sequence[str], recurrent: bool) -> None:
    known = ["weight_ih", "bias_ih", *["weight_hh", "bias_hh"] * recurrent, *params]
    if not isinstance(init, Mapping):
        raise TypeError(f"{cell}: init must be a dict by name of a parameter, got {type(init).__name__}")
    for name, value in init.items():
        if name not in known:
            raise ValueError(f"{cell}: init names {name!r}, but the parameters are {', '.join(known)}")
        if isinstance(value, bool) or not (callable(value) or isinstance(value, (int, float))):
            raise TypeError(f"{cell}: init[{name!r}] must be a number or a function, got {type(value).__name__}")
