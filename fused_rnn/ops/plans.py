"""The engines' plans for a layer, computed by the engines' own code."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

from . import library
from .layer import WeightFormat

READINGS = ("rows", "blocks", "packed")
"""Row by row; in panels that are packed block by block while they are multiplied, for a few steps of enough rows; in
panels packed beforehand. In csrc/cpu/schedule/plan.h's order."""


class CpuPlan(NamedTuple):
    """The CPU engine's plan for a layer; the engine calls the same code."""

    instruction_set: str
    threads: int
    row_chunks: int
    """Into how many runs of batch rows each direction is split; runs never wait for each other."""
    unit_chunks: int
    """Into how many shares of hidden units each run is split; shares wait for each other after every step."""
    weights: str
    """How the forward pass reads them: one of READINGS."""


def cpu_plan(
    cell_id: int,
    dtype: torch.dtype,
    *,
    directions: int = 1,
    rows: int = 1,
    batch: int = 1,
    input_size: int = 1,
    hidden: int = 1,
    output_size: int = 1,
    packed: bool = False,
    format: WeightFormat = WeightFormat.OWN,
    layer_norm: bool = False,
    threads: int = 1,
) -> CpuPlan:
    """The plan for a layer of these sizes; ``packed``: ``freeze`` has packed its weights, in this ``format``."""
    sizes = (cell_id, library.DTYPES.index(dtype), directions, rows, batch, input_size, hidden, output_size)
    plan, error = (ctypes.c_int64 * 4)(), ctypes.create_string_buffer(256)
    isa = library.compiled.fused_rnn_cpu_plan(*sizes, packed, format, layer_norm, threads, plan, error, len(error))
    if isa is None:
        raise RuntimeError(error.value.decode())
    return CpuPlan(isa.decode(), *plan[:3], READINGS[plan[3]])


def cpu_segment(
    cell_id: int,
    dtype: torch.dtype,
    checkpoint: int,
    *,
    steps: int,
    directions: int,
    rows: int,
    batch: int,
    input_size: int,
    hidden: int,
    output_size: int,
) -> int:
    """After how many steps a layer with this ``checkpoint`` keeps its states; 0: it saves everything."""
    sizes = (cell_id, library.DTYPES.index(dtype), directions, rows, batch, input_size, hidden, output_size)
    error = ctypes.create_string_buffer(256)
    segment = library.compiled.fused_rnn_cpu_segment(*sizes, steps, checkpoint, error, len(error))
    if segment < 0:
        raise RuntimeError(error.value.decode())
    return segment


class Gpu(NamedTuple):
    """The properties that a plan depends on, as in csrc/cuda/plan/plan.h."""

    capability: int
    """90: sm_90."""
    multiprocessors: int
    shared_bytes: int
    most_cluster_blocks: int


GPUS = {
    "H200": Gpu(90, 132, 227 << 10, 16),
    "H100": Gpu(90, 132, 227 << 10, 16),
    "A100": Gpu(80, 108, 163 << 10, 0),
    "L40S": Gpu(89, 142, 99 << 10, 0),
    "T4": Gpu(75, 40, 64 << 10, 0),
}
"""Known by name, for machines without them."""
NOT_HERE = -1
"""The index of a GPU that this machine does not have."""


def gpu(device: torch.device) -> Gpu:
    """This GPU's properties, as read by the engine."""
    return Gpu(*_numbers_and_reason(len(Gpu._fields), library.compiled.fused_rnn_gpu, device.index or 0)[0])


def _numbers_and_reason(count: int, function, *args) -> tuple[list[int], str]:
    numbers, reason = (ctypes.c_int64 * count)(), ctypes.create_string_buffer(256)
    if function(*args, numbers, reason, len(reason)):
        raise RuntimeError(reason.value.decode())
    return list(numbers), reason.value.decode()


class CudaPlan(NamedTuple):
    """The CUDA engine's plan for one pass of a layer; the engine calls the same code."""

    blocks_kind: str | None
    """How the blocks that hold one copy of the weights exchange h: one, cluster, polling, flags; None: stepwise."""
    units: int
    """Hidden units per block."""
    blocks: int
    """Blocks per group; a group holds one copy of the weights."""
    columns: int
    """Batch rows per group."""
    groups: int
    """Groups per problem (a direction, or a member of an ensemble), which split its batch."""
    groups_at_once: int
    shape: int
    """The kernel's index in csrc/cuda/plan/plan.h."""
    tf32: bool
    """Whether float32 is rounded to TF32 for tensor cores."""
    threads: int
    """Threads per block."""
    weight_registers: int
    """Registers per thread that hold weights; the rest of the weights is in shared memory."""
    shared_bytes: int
    """Shared memory per block."""
    reason: str


def cuda_plan(
    cell_id: int,
    dtype: torch.dtype,
    gpu: Gpu,
    *,
    backward: bool = False,
    problems: int = 1,
    batch: int = 1,
    hidden: int = 1,
    tf32: bool = False,
    projected: bool = False,
    recurrent_dropout: bool = False,
    zoneout: bool = False,
    layer_norm: bool = False,
    wanted: str | None = None,
    device: int = 0,
) -> CudaPlan:
    """``wanted``: one of library.ENGINES, or None for the default; raises if it cannot run such a layer.

    ``device``: the index that the table of measurements was given for.

    ``tf32``: whether float32 may be rounded to TF32.
    """
    sizes = (cell_id, library.DTYPES.index(dtype), backward, problems, batch, hidden, tf32)
    options = (projected, recurrent_dropout, zoneout, layer_norm)
    given = (*sizes, *options, *gpu, None if wanted is None else wanted.encode(), device)
    numbers, reason = _numbers_and_reason(11, library.compiled.fused_rnn_cuda_plan, *given)
    kind = None if numbers[0] < 0 else library.CUDA_ENGINES[numbers[0]]
    return CudaPlan(kind, *numbers[1:7], bool(numbers[7]), *numbers[8:], reason)
