"""Loads and queries the compiled library. Importing this module registers ``torch.ops.fused_rnn``."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch

from .missing import why_missing

PATH = Path(__file__).parents[1] / "_C.so"
OLDEST_TORCH = (2, 11)


def _load() -> ctypes.CDLL:
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < OLDEST_TORCH:
        raise ImportError(
            f"fused_rnn needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, found {torch.__version__}. "
            "Upgrade it with: pip install --upgrade torch"
        )
    if not PATH.exists():
        raise ImportError(why_missing(PATH))
    try:
        torch.ops.load_library(str(PATH))
    except OSError as error:
        raise ImportError(
            f"fused_rnn's compiled library could not be loaded: {error}. It may have been built for another "
            "platform; rebuild it from the source tree with: pip install --no-build-isolation --force-reinstall ."
        ) from error
    library = ctypes.CDLL(str(PATH))
    library.fused_rnn_cuda_archs.restype = ctypes.c_char_p
    library.fused_rnn_cuda_engines.restype = ctypes.c_char_p
    library.fused_rnn_stack_code.argtypes = [ctypes.POINTER(ctypes.c_int64)]
    library.fused_rnn_stack_code.restype = None
    library.fused_rnn_cell_count.restype = ctypes.c_int64
    library.fused_rnn_cell_traits.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
    library.fused_rnn_cell_traits.restype = None
    library.fused_rnn_fill_memory.argtypes = [ctypes.c_int64]
    library.fused_rnn_fill_memory.restype = None
    library.fused_rnn_cpu_plan.restype = ctypes.c_char_p
    library.fused_rnn_cpu_plan.argtypes = [
        *[ctypes.c_int64] * 11,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_char_p,
        ctypes.c_int64,
    ]
    if library.fused_rnn_cuda_archs():
        declare_cuda(library)
    return library


def declare_cuda(library: ctypes.CDLL) -> None:
    library.fused_rnn_set_cuda_engine.argtypes = [ctypes.c_int64]
    library.fused_rnn_set_cuda_engine.restype = ctypes.c_int64
    found = [ctypes.POINTER(ctypes.c_int64), ctypes.c_char_p, ctypes.c_int64]
    library.fused_rnn_gpu.restype = library.fused_rnn_cuda_plan.restype = ctypes.c_int64
    library.fused_rnn_gpu.argtypes = [ctypes.c_int64, *found]
    library.fused_rnn_cuda_plan.argtypes = [*[ctypes.c_int64] * 12, ctypes.c_char_p, *found]


compiled = _load()

CUDA_ENGINES = tuple(compiled.fused_rnn_cuda_engines().decode().split())
"""By name, built or not; an engine's number is its index."""


def fill_memory(fill: bool) -> None:
    """For tests: whether results and scratch memory are filled with NaN when allocated."""
    compiled.fused_rnn_fill_memory(fill)


def cuda_archs() -> list[str]:
    """GPU architectures compiled in, e.g. ``["90a"]``; empty for a CPU-only build."""
    return compiled.fused_rnn_cuda_archs().decode().split()


class StackCode(NamedTuple):
    """The bit offsets of the fields of a stack's code, in the order of csrc/ops/stack_code.h."""

    layout: int
    bias: int
    bidirectional: int
    cell: int
    layers: int


def stack_code() -> StackCode:
    numbers = (ctypes.c_int64 * len(StackCode._fields))()
    compiled.fused_rnn_stack_code(numbers)
    return StackCode(*numbers)


def cell_count() -> int:
    return compiled.fused_rnn_cell_count()


class CellTraits(NamedTuple):
    """A cell's constants from ``csrc/cells/``, in the order of ``CellTraits`` in csrc/core/dispatch.h."""

    gates: int
    states: int
    saved: int
    """Values saved for the backward pass, per step and hidden unit."""
    params: int
    """Per-unit parameters besides matrices and biases."""
    shared_gates: int
    """The leading gates for which the gradients of W_ih x and of W_hh h are the same."""
    recurrent: bool
    """Whether it has a recurrent matrix."""
    reads_h: bool
    """Whether it uses h other than through the recurrent matrix."""
    projectable: bool
    one_gate_gradient: bool
    """Whether they are the same for all gates."""


def cell_traits(cell_id: int) -> CellTraits:
    if not 0 <= cell_id < cell_count():
        raise ValueError(f"there are cells 0 to {cell_count() - 1}, got {cell_id}")
    numbers = (ctypes.c_int64 * len(CellTraits._fields))()
    compiled.fused_rnn_cell_traits(cell_id, numbers)
    return CellTraits(*numbers[:5], *map(bool, numbers[5:]))
