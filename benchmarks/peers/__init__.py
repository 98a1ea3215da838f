"""Alternatives for torch users. Each peer is a module with

NAME                   as it appears in tables
missing()              why it cannot run on this machine, or None
left_out(work)         why it is not compared on this line, or None
build(problem) -> Side
"""

from . import compiled_loop, jax_scan, onnx_runtime

PEERS = (onnx_runtime, jax_scan, compiled_loop)
