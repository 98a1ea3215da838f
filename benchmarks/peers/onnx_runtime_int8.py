"""ONNX Runtime's dynamically quantized LSTM: 8-bit weights, activations quantized as they come. Inputs are bound."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..problem import Problem, Side
from ..suites import Work
from . import onnx_model, onnx_runtime
from .onnx_runtime import missing, version

__all__ = ["NAME", "build", "left_out", "missing", "version"]

NAME = "ONNX Runtime int8"


def left_out(work: Work) -> str | None:
    if not work.quantized:
        return "8-bit layers are measured in lines of their own"
    return onnx_model.left_out(work) or (None if work.layer == "LSTM" else "quantizes no recurrent layer but the LSTM")


def build(problem: Problem) -> Side:
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = (str(Path(folder) / name) for name in ("prepared.onnx", "quantized.onnx"))
        quant_pre_process(onnx_model.model(problem), prepared, skip_symbolic_shape=True)
        quantize_dynamic(prepared, quantized)
        session = onnx_runtime.session_of(Path(quantized).read_bytes())
    return onnx_runtime.bound(session, problem, quantized=True)
