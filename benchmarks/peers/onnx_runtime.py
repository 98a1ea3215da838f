"""ONNX Runtime's LSTM, GRU and RNN operators: inference, weights packed once on loading.

Its threads keep spinning after a call, by default; timing waits until they stop.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import numpy
import torch

from ..problem import Problem, Side
from ..suites import Work
from . import onnx_model

NAME = "ONNX Runtime"


def missing() -> str | None:
    absent = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    return f"not installed: {' '.join(absent)}" if absent else None


def version() -> str:
    return importlib.metadata.version("onnxruntime")


def left_out(work: Work) -> str | None:
    return onnx_model.left_out(work)


def build(problem: Problem) -> Side:
    session = session_of(onnx_model.model(problem).SerializeToString())
    feed = onnx_model.feed(problem)
    return Side(lambda: session.run(None, feed), lambda outputs: onnx_model.results(problem, outputs))


def session_of(model: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bound(session, problem: Problem, quantized: bool = False) -> Side:
    """Inputs and outputs bound once: the fastest way to call a session again and again."""
    from onnxruntime import OrtValue

    binding, outputs = session.io_binding(), []
    for name, array in onnx_model.feed(problem).items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        outputs.append(OrtValue.ortvalue_from_shape_and_type(output.shape, numpy.float32))
        binding.bind_ortvalue_output(output.name, outputs[-1])

    def run() -> list:
        session.run_with_iobinding(binding)
        return outputs

    def as_tensors(outputs: list) -> list[torch.Tensor]:
        return onnx_model.results(problem, (output.numpy() for output in outputs))

    return Side(run, as_tensors, quantized)
