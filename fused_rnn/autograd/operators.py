"""``OPERATORS``: the runner of all layers that are neither frozen nor watched."""

from __future__ import annotations

from ..ops.arguments import RunLayer, Runner
from . import layer_norm, plain
from .by_torch import run_by_torch


class _Operators(Runner):
    infers = True
    run_for_gradients = staticmethod(plain.run_layer)
    step_for_gradients = staticmethod(plain.run_step)
    run_normed = staticmethod(layer_norm.run_layer)
    run_by_torch = staticmethod(run_by_torch)

    def layers(self) -> RunLayer:
        return plain.run_any_layer


OPERATORS = _Operators(plain.run_any_layer)
