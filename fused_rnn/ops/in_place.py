"""Measuring a call where it is made, the first time its sizes are met: ``FUSED_RNN_TUNE=1``, or cudnn.benchmark."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import engines, handover, tables
from .checks import NO_OPTIONS
from .measured import Entry, Table
from .plain import is_eager

ROUNDS = 3

_busy = False  # measuring: its own calls are not measured


def is_wanted(call: handover.Call | None) -> bool:
    """Whether to measure this call before it is made."""
    if call is None or _busy or call.options is not NO_OPTIONS:  # options may draw random numbers
        return False
    if engines.engine_for(call.device) != "auto":
        return False
    on_cuda = call.device == "cuda"
    if os.environ.get("FUSED_RNN_TUNE") != "1" and not (on_cuda and torch.backends.cudnn.benchmark):
        return False
    if not is_eager() or handover.obstacle(call) is not None:
        return False
    if on_cuda and torch.cuda.is_current_stream_capturing():
        return False
    table = tables.table_for(call.device, call.index)
    sizes = call.sizes(call.needs_gradients())
    return table is None or all(entry.sizes != sizes for entry in table.entries)


def _candidates(call: handover.Call, table: Table) -> list[str]:
    """torch.nn's kernels, and those of ours that may be taken: on CUDA, what was verified on such a GPU."""
    if call.device == "cpu":
        return ["torch", "ours"]
    dtype = call.sizes(False).dtype
    verified = {
        name
        for entry in table.entries
        if (entry.sizes.cell, entry.sizes.dtype) == (call.cell.name, dtype)
        for name in entry.verified
    }
    return ["torch", *sorted(verified)]


def measure(call: handover.Call, run: Callable[[list[Tensor]], Sequence[Tensor]]) -> None:
    """Times ``run``, the call as a function of its weights, on each candidate, and keeps the times in this process."""
    global _busy
    table = tables.table_for(call.device, call.index)
    if table is None:
        table = Table(tables.device_name(call.device, call.index), tables.made_with(call.device))
    training, names = call.needs_gradients(), _candidates(call, table)
    weights = [weight.detach().requires_grad_(weight.requires_grad and training) for weight in call.weights]
    wait = torch.cuda.synchronize if call.device == "cuda" else lambda: None
    times: dict[str, float] = {}

    def once() -> float:
        wait()
        start = time.perf_counter()
        results = run(weights)
        if training:
            wanted = [weight for weight in weights if weight.requires_grad]
            torch.autograd.grad([r for r in results if r.requires_grad], wanted, _ones(results), allow_unused=True)
        wait()
        return 1e6 * (time.perf_counter() - start)

    _busy = True
    try:
        for round in range(ROUNDS + 1):
            for name in names if len(names) > 1 else ():
                with engines.set_within(name):
                    found = once()
                if round:  # the first one warms up
                    times[name] = min(found, times.get(name, found))
    finally:
        _busy = False
    entry = Entry(call.sizes(training), times, frozenset(names[1:]))
    tables.use(call.device, call.index, table.with_entries([entry]))


def _ones(results: Sequence[Tensor]) -> list[Tensor]:
    return [torch.ones_like(result) for result in results if result.requires_grad]
