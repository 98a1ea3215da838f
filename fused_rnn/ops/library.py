"""Loads and queries the compiled library. Importing this module registers ``torch.ops.fused_rnn``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._version import __version__
from .missing import why_missing
from .unfit import why_not_loaded, why_other_version

PATH = Path(__file__).parents[1] / "_C.so"
OLDEST_TORCH = (2, 11)
# (cell, dtype, error, its size) -> whether it was loaded
Loader = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(ctypes.c_char), ctypes.c_int64)


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
        raise ImportError(why_not_loaded(PATH, error, torch.__version__)) from error
    library = ctypes.CDLL(str(PATH))
    version = _version(library)
    if version != __version__:
        raise ImportError(why_other_version(version, __version__))
    library.fused_rnn_cuda_archs.restype = ctypes.c_char_p
    library.fused_rnn_engines.restype = ctypes.c_char_p
    library.fused_rnn_cuda_engine_count.restype = ctypes.c_int64
    library.fused_rnn_stack_code.argtypes = [ctypes.POINTER(ctypes.c_int64)]
    library.fused_rnn_stack_code.restype = None
    library.fused_rnn_cell_count.restype = ctypes.c_int64
    library.fused_rnn_cell_traits.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
    library.fused_rnn_cell_traits.restype = None
    library.fused_rnn_add_cell.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
    library.fused_rnn_add_cell.restype = ctypes.c_int64
    library.fused_rnn_declare_cell.argtypes = [
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_char_p,
        ctypes.c_int64,
    ]
    library.fused_rnn_declare_cell.restype = ctypes.c_int64
    library.fused_rnn_set_loader.argtypes = [Loader]
    library.fused_rnn_set_loader.restype = None
    library.fused_rnn_isas.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64]
    library.fused_rnn_isas.restype = ctypes.c_char_p
    library.fused_rnn_fill_memory.argtypes = [ctypes.c_int64]
    library.fused_rnn_fill_memory.restype = None
    library.fused_rnn_cpu_thresholds.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
    library.fused_rnn_cpu_thresholds.restype = ctypes.c_int64
    library.fused_rnn_set_cpu_thresholds.argtypes = [ctypes.POINTER(ctypes.c_int64)]
    library.fused_rnn_set_cpu_thresholds.restype = None
    library.fused_rnn_cpu_plan.restype = ctypes.c_char_p
    library.fused_rnn_cpu_plan.argtypes = [
        *[ctypes.c_int64] * 12,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_char_p,
        ctypes.c_int64,
    ]
    library.fused_rnn_cpu_segment.restype = ctypes.c_int64
    library.fused_rnn_cpu_segment.argtypes = [*[ctypes.c_int64] * 10, ctypes.c_char_p, ctypes.c_int64]
    if library.fused_rnn_cuda_archs():
        declare_cuda(library)
    return library


def _version(library: ctypes.CDLL) -> str | None:
    """None: the library is older than the function."""
    if not hasattr(library, "fused_rnn_version"):
        return None
    library.fused_rnn_version.restype = ctypes.c_char_p
    return library.fused_rnn_version().decode()


def declare_cuda(library: ctypes.CDLL) -> None:
    library.fused_rnn_set_engine.argtypes = [ctypes.c_int64]
    library.fused_rnn_set_engine.restype = ctypes.c_int64
    library.fused_rnn_add_cuda_cell.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
    library.fused_rnn_add_cuda_cell.restype = ctypes.c_int64
    library.fused_rnn_set_cuda_loader.argtypes = [Loader]
    library.fused_rnn_set_cuda_loader.restype = None
    found = [ctypes.POINTER(ctypes.c_int64), ctypes.c_char_p, ctypes.c_int64]
    library.fused_rnn_gpu.restype = library.fused_rnn_cuda_plan.restype = ctypes.c_int64
    library.fused_rnn_gpu.argtypes = [ctypes.c_int64, *found]
    library.fused_rnn_cuda_plan.argtypes = [*[ctypes.c_int64] * 15, ctypes.c_char_p, ctypes.c_int64, *found]
    library.fused_rnn_set_measured.restype = ctypes.c_int64
    library.fused_rnn_set_measured.argtypes = [
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int64,
        ctypes.c_char_p,
        ctypes.c_int64,
    ]


of_cpu = compiled = _load()

ENGINES = tuple(compiled.fused_rnn_engines().decode().split())
"""By name, built or not; an engine's number is its index."""
CUDA_ENGINES = ENGINES[: compiled.fused_rnn_cuda_engine_count()]
"""Those of ours on CUDA, none of which hands a call to another."""


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
    """The number of the library's own cells."""
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
    output_gate: bool = False
    """Whether they are the same for all gates."""


def cell_traits(cell_id: int) -> CellTraits:
    if not 0 <= cell_id < cell_count() and cell_id not in _added:
        raise ValueError(f"there are cells 0 to {cell_count() - 1}, and those that were added, got {cell_id}")
    numbers = (ctypes.c_int64 * len(CellTraits._fields))()
    compiled.fused_rnn_cell_traits(cell_id, numbers)
    return CellTraits(*numbers[:5], *map(bool, numbers[5:]))


# ---- cells that are registered at run time ---------------------------------------------------------------------------

MOST_GATES, MOST_STATES = 8, 8
"""``kMostGates`` and ``kMostStates`` in csrc/cells/cells.h."""
LEAST_OWN_ID = 1 << 32
"""``kLeastOwnId`` in csrc/core/registry.h: ids of these cells are at least that."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""In the order of ``Dtype`` in csrc/core/problem.h."""
_added: dict[int, list[ctypes.CDLL]] = {}  # by cell id: its plug-ins
_loaders: list[Any] = []  # kept alive


def declare_cell(cell_id: int, traits: CellTraits) -> None:
    """Makes the cell known, whose kernels are loaded later."""
    error, numbers = ctypes.create_string_buffer(256), (ctypes.c_int64 * len(traits))(*map(int, traits))
    if not compiled.fused_rnn_declare_cell(cell_id, numbers, error, len(error)):
        raise ValueError(error.value.decode())
    _added.setdefault(cell_id, [])


def set_loader(load: Callable[[int, torch.dtype], None]) -> None:
    """``load(cell_id, dtype)`` is called when kernels of a declared cell are missing."""
    _loaders.append(in_c(load))
    compiled.fused_rnn_set_loader(_loaders[-1])


def set_cuda_loader(load: Callable[[int, torch.dtype], None]) -> None:
    """The same for kernels on CUDA."""
    _loaders.append(in_c(load))
    compiled.fused_rnn_set_cuda_loader(_loaders[-1])


def in_c(load: Callable[[int, torch.dtype], None]) -> Any:
    """A loader as a function of C, which has to be kept."""

    def called(cell_id: int, dtype: int, error, size: int) -> int:
        try:
            load(cell_id, DTYPES[dtype])
        except BaseException as problem:  # none may pass through C
            message = (str(problem) or type(problem).__name__).encode()[: size - 1] + b"\0"
            ctypes.memmove(error, message, len(message))
            return 0
        return 1

    return Loader(called)


def add_cell(path: str | Path) -> int:
    """Loads a plug-in (csrc/cpu/plug_in.cpp) with kernels of one cell and registers them; returns the cell's id.

    It is code, which this runs: the caller has to know where it comes from.
    """
    return add_to(compiled.fused_rnn_add_cell, path, "fused_rnn_plug_in")


def add_cuda_cell(path: str | Path) -> int:
    """The same of a plug-in with kernels for CUDA (csrc/cuda/stepwise/plug_in.cu)."""
    return add_to(compiled.fused_rnn_add_cuda_cell, path, "fused_rnn_cuda_plug_in")


def add_to(add: Callable[..., int], path: str | Path, function: str) -> int:
    """Loads a plug-in and hands what its ``function`` returns to the library's function ``add``."""
    try:
        plug_in = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"fused_rnn: the compiled cell {path} could not be loaded: {error}") from error
    if not hasattr(plug_in, function):
        raise RuntimeError(f"fused_rnn: {path} is no plug-in with a cell")
    getattr(plug_in, function).restype = ctypes.c_void_p
    error = ctypes.create_string_buffer(512)
    cell_id = add(getattr(plug_in, function)(), error, len(error))
    if not cell_id:
        raise RuntimeError(error.value.decode())
    _added.setdefault(cell_id, []).append(plug_in)
    return cell_id


def instruction_sets(dtype: torch.dtype, gates: int) -> list[str]:
    """Those that layers of this dtype run on here, of a cell with so many gates."""
    error = ctypes.create_string_buffer(256)
    names = compiled.fused_rnn_isas(DTYPES.index(dtype), gates, error, len(error))
    if names is None:
        raise RuntimeError(error.value.decode())
    return names.decode().split()
