"""Alternatives for torch users. Each peer is a module with

NAME                   as it appears in tables
missing()              why it cannot run on this machine, or None
version()
left_out(work)         why it is not compared on this line, or None
build(problem) -> Side
"""

from . import (
    compiled_loop,
    jax_scan,
    onnx_runtime,
    onnx_runtime_bound,
    onnx_runtime_int8,
    openvino_runtime,
    torch_ao,
)

PEERS = (onnx_runtime, onnx_runtime_bound, openvino_runtime, jax_scan, compiled_loop, onnx_runtime_int8, torch_ao)
