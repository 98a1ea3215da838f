"""``OPERATORS``: the runner of all layers that are neither frozen nor watched."""

from __future__ import annotations

from ..ops.arguments import RunLayer, Runner
from . import plain


class _Operators(Runner):
    infers = True
    run_for_gradients = staticmethod(plain.run_layer)
    step_for_gradients = staticmethod(plain.run_step)

    def layers(self) -> RunLayer:
        return plain.run_any_layer


OPERATORS = _Operators(plain.run_any_layer)
