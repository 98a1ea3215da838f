"""``LoopOptions``: what a layer can be made with beyond torch.nn's arguments, and who refuses it.

A layer that was made without has the defaults of the class, as swapped and unpickled layers do, and its calls are those
of a plain layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..ops import torch_private
from .runners import Frozen

NAMES = ("weight_dropout",)


def checked_probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a probability, at least 0 and less than 1, got {value!r}")
    return float(value)


class LoopOptions:
    """A base of the layers that have them."""

    weight_dropout: float = 0.0
    """Probability with which an element of W_hh is zero throughout a call, in training."""

    if TYPE_CHECKING:  # torch.nn.Module's
        training: bool
        _runner: Any

    def _set_loop_options(self, **given: Any) -> None:
        """Keeps those that are not at their defaults; after torch.nn.Module's constructor."""
        for name, value in given.items():
            if value:
                setattr(self, name, value)

    def _given(self) -> list[str]:
        """Those that are not at their defaults, as they are printed."""
        return [f"{name}={value}" for name in NAMES if (value := getattr(self, name))]

    def _acting(self) -> list[str]:
        """Those of them that change what a call computes now."""
        return self._given() if self.training else []

    def _refuse_acting(self, what: str) -> None:
        """Raises if there are any."""
        if acting := self._acting():
            raise NotImplementedError(f"{what} has no {' and no '.join(acting)}, which acts in training: call eval()")

    def _drop_weights(self, weights: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """The layer's weights with a mask on every W_hh, drawn by torch's generator, in order."""
        if isinstance(self._runner, Frozen):
            self._refuse_acting("fused_rnn: a frozen layer")
        if torch.compiler.is_exporting() and torch_private.in_onnx_export():  # which would make a constant of the mask
            self._refuse_acting("torch.onnx.export")
        p = self.weight_dropout
        return [
            torch.dropout(weight, p, True) if name.startswith("weight_hh") and isinstance(weight, Tensor) else weight
            for name, weight in zip(names, weights, strict=True)
        ]

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
