"""``OPERATORS``: the runner of all layers that are neither frozen nor watched."""

from __future__ import annotations

from ..ops.arguments import RunLayer, Runner
from . import functions, steps


class _Operators(Runner):
    infers = True
    run_for_gradients = staticmethod(functions.run_for_gradients)
    step_for_gradients = staticmethod(steps.run_step)

    def layers(self) -> RunLayer:
        return functions.run_layer


OPERATORS = _Operators(functions.run_layer)
