"""Plans in words, for ``explain``."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..nn.loop_options import LoopOptions
from ..nn.runners import Frozen
from ..ops import plans
from ..ops.layer import Layer, WeightFormat
from ..own.cell import OwnCell

_SPLIT = "Each float is multiplied as three bfloat16, on tiles, as exactly as float32 is; FUSED_RNN_ISA=avx512 does not"

TOKENS = "Ids are looked up in weight_ih, of which nothing is multiplied"

_STEPWISE = (
    "a matrix product of torch's for all directions together, then one kernel for the rest of the step, for every size "
    "and dtype"
)
_EXCHANGES = {
    "one": "in one block",
    "cluster": "in a cluster of {0.blocks} blocks, through shared memory",
    "polling": "in {0.blocks} blocks, through the second-level cache",
    "flags": "in {0.blocks} blocks, through the second-level cache and a flag for each",
}


_OPTIONS = {
    "recurrent_dropout": "h is multiplied by a mask before W_hh inside the kernel, drawn for every call in training",
    "zoneout": "applied inside the kernel: by masks that are drawn for every call in training, else by expectation",
    "heads": "the layer runs as so many smaller ones side by side that share its input; their weights, states and "
    "output are copied from and to the layer's own in every call",
    "layer_norm": "W_ih x, W_hh h and an LSTM's c are normalised in the kernel; second derivatives, forward mode and "
    "torch.func's transforms are computed by a loop of plain PyTorch",
    "weight_dropout": "a copy of W_hh with a mask of its own is made for every call in training",
}


def options_of(module: nn.Module) -> str:
    """A sentence for each option of the loop that acts."""
    acting = module._acting() if isinstance(module, LoopOptions) else ()
    return "".join(f". {option}: {_OPTIONS[option.split('=')[0]]}" for option in acting)


def cpu_plan_of(layer: Layer, frozen: Frozen | None, layer_norm: bool = False) -> plans.CpuPlan:
    return plans.cpu_plan(
        layer.cell,
        layer.weights[0].dtype,
        **_sizes_of(layer),
        packed=frozen is not None,
        format=WeightFormat.OWN if frozen is None else frozen.format,
        layer_norm=layer_norm,
        threads=torch.get_num_threads(),
    )


def _sizes_of(layer: Layer) -> dict[str, int]:
    _, directions, hidden, width, _, rows = layer.sizes
    return {
        "directions": directions,
        "rows": math.prod(rows),
        "batch": _batch_of(layer),
        "input_size": 0 if layer.reads_tokens else layer.input.shape[-1],
        "hidden": hidden,
        "output_size": width,
    }


def checkpoints(layer: Layer, checkpoint: int) -> str:
    steps = layer.sizes[-1][0] if layer.batch_sizes is None else len(layer.batch_sizes)
    segment = plans.cpu_segment(layer.cell, layer.weights[0].dtype, checkpoint, steps=steps, **_sizes_of(layer))
    if segment == 0:
        return f"checkpoint={checkpoint}: all is saved for the backward pass, as there are no more steps than that"
    return (
        f"checkpoint={checkpoint}: of the states those that enter every {segment} steps are saved for the backward "
        "pass, which computes the rest again; second derivatives, transforms and compiled calls save everything"
    )


def source_of(cell: OwnCell, dtype: torch.dtype, device: str) -> str:
    """Where an own cell's kernels come from. Raises RuntimeError if they cannot be compiled."""
    path = cell.plug_in_on_cuda(dtype) if device == "cuda" else cell.plug_in(dtype)
    if path is None:
        return f"The kernels of {cell.name} will be compiled from its formula, by nvcc, at the first call there"
    return f"The kernels of {cell.name} are compiled from its formula: {path}, and beside it their source, cell.h"


def where(plan: plans.CpuPlan, directions: int) -> str:
    threads, spread = _count(plan.threads, "thread"), f"{_count(directions, 'direction')} x {_spread(plan)}"
    return f"CPU tensors run the whole time loop in one call, on {threads}: {spread}"


def products(plan: plans.CpuPlan, dtype: torch.dtype) -> list[str]:
    best = "The instruction set is the best of this processor for such a layer, or FUSED_RNN_ISA"
    return [best, _SPLIT] if plan.instruction_set == "amx" and dtype == torch.float32 else [best]


def of_cuda(layer: Layer, gpu: plans.Gpu, wanted: str | None, device: int, layer_norm: bool = False) -> tuple[str, str]:
    """The engine's name, and the plan of a layer's forward pass on this GPU, and of its backward pass.

    Raises if it is not possible. ``device``: whose measurements count.
    """
    cell, directions, hidden, width, members, _ = layer.sizes
    sizes = {
        "problems": directions * math.prod(members),
        "batch": _batch_of(layer),
        "hidden": hidden,
        "tf32": _tf32_allowed(),
        "projected": width != hidden,
        "recurrent_dropout": layer.h_factor is not None,
        "zoneout": layer.zones_out,
        "layer_norm": layer_norm,
        "wanted": wanted,
        "device": device,
    }
    dtype = layer.weights[0].dtype
    forward, backward = (plans.cuda_plan(cell.id, dtype, gpu, backward=back, **sizes) for back in (False, True))
    tokens = f"{TOKENS}. " if layer.reads_tokens else ""
    engine = "persistent" if forward.blocks_kind else "stepwise"
    return engine, f"{tokens}forward {_describe(forward)}; backward {_describe(backward)}"


def _batch_of(layer: Layer) -> int:
    return int(layer.batch_sizes[0]) if layer.batch_sizes is not None else layer.sizes[-1][-1]


def _tf32_allowed() -> bool:
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the precision was set by torch's newer API; the engine then uses no TF32 either
        return False


def _describe(plan: plans.CudaPlan) -> str:
    if plan.blocks_kind is None:
        return f"step by step, as {plan.reason}: {_STEPWISE}"
    place = _EXCHANGES[plan.blocks_kind].format(plan)
    return (
        f"in one launch, as {plan.reason}: the weights {place}, {_count(plan.units, 'unit')} each, "
        f"{_count(plan.groups, 'group')} of {_count(plan.columns, 'batch row')} for each direction, "
        f"{plan.threads} threads and {plan.shared_bytes >> 10} KB of shared memory a block, "
        f"{plan.weight_registers} registers a thread for weights"
        + (", products in TF32, which torch.backends.cuda.matmul allows" if plan.tf32 else "")
    )


def _spread(plan: plans.CpuPlan) -> str:
    if plan.unit_chunks > 1:
        return f"{plan.unit_chunks} shares of the hidden units, which wait for each other after every step"
    return f"{_count(plan.row_chunks, 'run')} of batch rows, which never wait for each other"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
