"""``LoopOptions``: what a layer can be made with beyond torch.nn's arguments, and who refuses it.

A layer that was made without has the defaults of the class, as swapped and unpickled layers do, and its calls are those
of a plain layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..ops import layer_norm as layer_norms
from ..ops import torch_private
from ..ops.cells import Cell
from ..ops.checks import (
    Options,
    checked_checkpoint,
    checked_heads,
    checked_probability,
    checked_zoneout,
    with_loop_options,
)
from .runners import Frozen

# Their defaults.
NAMES = {
    "recurrent_dropout": 0.0,
    "zoneout": 0.0,
    "weight_dropout": 0.0,
    "heads": 1,
    "checkpoint": None,
    "layer_norm": False,
}
_ALWAYS = ("zoneout", "heads", "layer_norm")  # not only in training


class LoopOptions:
    """A base of the layers that have them."""

    recurrent_dropout: float = 0.0
    """Probability with which a unit of h is zero for W_hh throughout a sequence, in training."""
    zoneout: float | tuple[float, float] = 0.0
    """Probability with which a unit keeps its former state after a step; of an LSTM for h and for c."""
    weight_dropout: float = 0.0
    """Probability with which an element of W_hh is zero throughout a call, in training."""
    heads: int = 1
    """How many blocks on its diagonal W_hh has; it is 0 elsewhere, and ``[G*H, H / heads]`` holds the blocks."""
    checkpoint: int | None = None
    """The backward pass keeps the states that enter every so many steps, or some more, and computes the rest again."""
    layer_norm: bool = False
    """W_ih x and W_hh h are normalised, and an LSTM's c before its tanh."""

    if TYPE_CHECKING:  # torch.nn.Module's
        training: bool
        bidirectional: bool
        bias: bool
        num_layers: int
        hidden_size: int
        _runner: Any

    @staticmethod
    def _checked_options(states: int, hidden: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Those that are not at their defaults; raises for wrong ones, before any work. ``states``: the cell's."""
        given = NAMES | given
        zoneout, heads, layer_norm = given["zoneout"], given["heads"], given["layer_norm"]
        probabilities = ("recurrent_dropout", "weight_dropout")
        checked: dict[str, Any] = {name: checked_probability(name, given[name]) for name in probabilities}
        pair = checked_zoneout(zoneout, states)
        checked["zoneout"] = pair if isinstance(zoneout, (tuple, list)) and any(pair) else pair[0]
        checked["heads"] = checked_heads(heads, hidden)
        checked["checkpoint"] = checked_checkpoint(given["checkpoint"])
        if not isinstance(layer_norm, bool):
            raise TypeError(f"layer_norm must be of type bool, got {type(layer_norm).__name__}")
        checked["layer_norm"] = layer_norm
        for other in ("heads", "checkpoint") if layer_norm else ():
            if checked[other] != NAMES[other]:
                raise ValueError(f"layer_norm=True and {other}={checked[other]} exclude each other")
        return {name: value for name, value in checked.items() if value != NAMES[name]}

    def _given(self) -> list[str]:
        """Those that are not at their defaults, as they are printed."""
        return [f"{name}={value}" for name, usual in NAMES.items() if (value := getattr(self, name)) != usual]

    def _acting(self) -> list[str]:
        """Those of them that change what a call computes now."""
        given = [option for option in self._given() if not option.startswith("checkpoint")]
        return [option for option in given if self.training or option.startswith(_ALWAYS)]

    def _refuse_acting(self, what: str) -> None:
        """Raises if there are any."""
        if acting := self._acting():
            always = any(option.startswith(_ALWAYS) for option in acting)
            advice = "" if always else ", which acts in training: call eval()"
            raise NotImplementedError(f"{what} has no {' and no '.join(acting)}{advice}")

    def _refuse_call(self) -> None:
        """Raises where a call cannot have those that act."""
        if isinstance(self._runner, Frozen):
            self._refuse_acting("fused_rnn: a frozen layer")
        if self.heads > 1 and self._runner.watches is not None:
            raise NotImplementedError(f"fused_rnn: {self._runner.watches} does not know heads={self.heads}")
        if torch.compiler.is_exporting() and torch_private.in_onnx_export():  # which would make a constant of a mask
            self._refuse_acting("torch.onnx.export")

    def _refuse_packing(self) -> None:
        """Raises for what acts in evaluation, too."""
        if always := [option for option in self._given() if option.startswith(_ALWAYS)]:
            raise NotImplementedError(f"fused_rnn: packed weights have no {' and no '.join(always)}")

    def _drop_weights(self, weights: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """The layer's weights with a mask on every W_hh, drawn by torch's generator, in order."""
        self._refuse_call()
        p = self.weight_dropout
        return [
            torch.dropout(weight, p, True) if name.startswith("weight_hh") and isinstance(weight, Tensor) else weight
            for name, weight in zip(names, weights, strict=True)
        ]

    def _with_loop_options(self, options: Options, cell: Cell) -> Options:
        """A call's options and the layer's own."""
        found = with_loop_options(options, cell, self.recurrent_dropout, self.zoneout, self.training)
        if self.heads > 1:
            found = found._replace(heads=self.heads)
        if found is not options:
            self._refuse_call()
        if self.layer_norm:
            found = found._replace(layer_norm=[getattr(self, name) for name in self._norm_names(cell)])
            self._refuse_call()
        return found if self.checkpoint is None else found._replace(checkpoint=self.checkpoint)

    def _norm_names(self, cell: Cell) -> list[str]:
        """The norms' parameters, as :mod:`fused_rnn.ops.layer_norm` takes them, each layer's after the other's."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [
            f"{name}_l{layer}{suffix}"
            for layer in range(self.num_layers)
            for suffix in suffixes
            for name in layer_norms.names(cell, bool(self.bias))
        ]

    def _add_norms(self, cell: Cell, like: Tensor) -> None:
        for name in self._norm_names(cell):
            size = layer_norms.size(name.partition("_l")[0], cell, self.hidden_size)
            setattr(self, name, nn.Parameter(like.new_empty(size)))
        self._reset_norms(cell)

    def _reset_norms(self, cell: Cell) -> None:
        """Gains to 1, biases to 0."""
        with torch.no_grad():
            for name in self._norm_names(cell) if self.layer_norm else ():
                getattr(self, name).fill_(name.startswith("gain_"))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return ", ".join([super().extra_repr(), *self._given()])  # type: ignore[misc]

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch_private.in_onnx_trace():  # which takes torch.nn's forward
            self._refuse_acting("torch.onnx.export(dynamo=False)")
        return super()._slow_forward(*args, **kwargs)  # type: ignore[misc]

    def __prepare_scriptable__(self) -> nn.Module:
        self._refuse_acting("torch.jit.script")
        return super().__prepare_scriptable__()  # type: ignore[misc]
