"""ONNX Runtime with inputs and outputs bound once, where its call counts: in single steps."""

from __future__ import annotations

from ..problem import Problem, Side
from ..suites import Work
from . import onnx_model, onnx_runtime
from .onnx_runtime import missing, version

__all__ = ["NAME", "build", "left_out", "missing", "version"]

NAME = "ONNX Runtime bound"


def left_out(work: Work) -> str | None:
    return onnx_model.left_out(work) or (None if work.single_step else "binding is measured on single steps")


def build(problem: Problem) -> Side:
    session = onnx_runtime.session_of(onnx_model.model(problem).SerializeToString())
    return onnx_runtime.bound(session, problem)
