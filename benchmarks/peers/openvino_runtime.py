"""OpenVINO running the same ONNX model as ONNX Runtime, in float32, with inputs bound once.

There is no 8-bit side, as its tools (NNCF 3.4 with OpenVINO 2026.4) give none: ``compress_weights`` passes recurrent
layers over; ``quantize`` passes GRU over and turns an LSTM's weights into constants to be converted back, which the CPU
plugin refuses, or, where the graph is folded first, computes in float32 in the same time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from ..problem import Problem, Side
from ..suites import Work
from . import onnx_model

NAME = "OpenVINO"


def missing() -> str | None:
    absent = [name for name in ("openvino", "onnx") if importlib.util.find_spec(name) is None]
    return f"not installed: {' '.join(absent)}" if absent else None


def version() -> str:
    return importlib.metadata.version("openvino")


def left_out(work: Work) -> str | None:
    return onnx_model.left_out(work)


def build(problem: Problem) -> Side:
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # it takes bfloat16 where the processor has it
        "ENABLE_CPU_PINNING": False,  # it would move this thread, too
    }
    model = core.read_model(onnx_model.model(problem).SerializeToString())
    request = core.compile_model(model, "CPU", options).create_infer_request()
    for name, array in onnx_model.feed(problem).items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return Side(
        lambda: request.infer(share_outputs=True),
        lambda outputs: onnx_model.results(problem, (array.copy() for array in outputs.values())),
    )
