"""A cell from its header: registered at once, compiled when a call first needs its kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from ..ops import cells, library
from ..ops.cells import Cell, Row
from . import build, cuda

# Compiled together: float32 and float64 in about 13 seconds of one core, the others in 7 each.
_GROUPS = ((torch.float32, torch.float64), (torch.bfloat16,), (torch.float16,))
_sources: dict[int, tuple[str, str]] = {}  # by id of a cell: its name and header
_lock = threading.Lock()


def register(
    row: Row, traits: library.CellTraits, header: str, step: Callable[..., tuple[Tensor, ...]], compiled: bool = True
) -> Cell:
    """The cell of a header: a struct ``Own`` under the contract of csrc/cells/cells.h, whose constants are ``traits``.

    ``step`` is the same in PyTorch, see :func:`fused_rnn.reference.register`. Without ``compiled``, that alone can run.
    """
    cell = cells.register(row, build.cell_id(header), traits)
    reference.register(cell, step)
    if compiled:
        library.declare_cell(cell.id, traits)
        _sources.setdefault(cell.id, (row.name, header))
    return cell


def load(cell_id: int, dtype: torch.dtype) -> None:
    """Loads the kernels of a registered cell, as a first call in this dtype does."""
    name, header = source_of(cell_id)
    with _lock:  # compiles once for all threads
        library.add_cell(build.load(header, group_of(dtype), name))


def load_on_cuda(cell_id: int, dtype: torch.dtype) -> None:
    """The same for CUDA."""
    if not library.cuda_archs():
        raise NotImplementedError(cuda.WITHOUT_CUDA)
    name, header = source_of(cell_id)
    with _lock:
        library.add_cuda_cell(cuda.load(header, dtype, name))


def source_of(cell_id: int) -> tuple[str, str]:
    """The name and the header of a registered cell."""
    return _sources[cell_id]


def registered() -> list[int]:
    """The ids of all cells that can be loaded."""
    return list(_sources)


def group_of(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes that are compiled together with this one."""
    for group in _GROUPS:
        if dtype in group:
            return group
    raise RuntimeError(f"fused_rnn: cells are compiled for float32, float64, bfloat16 and float16, not for {dtype}")


library.set_loader(load)
if library.cuda_archs():
    library.set_cuda_loader(load_on_cuda)
