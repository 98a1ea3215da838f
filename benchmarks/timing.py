"""Timing in rounds, each side in turn, so that changes of the machine's speed affect all of them.

Runs on a CPU are timed by the clock, those on a GPU by CUDA events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from .suites import Effort

SLICE_SECONDS = 0.02  # of one side in one round, if a run is shorter
LEAST_SECONDS = 5e-5  # between two looks at the clock, which take some 0.3 us
GPU_SLICE_SECONDS = 0.01  # GPU runs vary less
MOST_QUEUED = 500  # runs in a slice on a GPU
# After another side, and after the wait for idle threads, a side runs cold: its first run takes up to twice as long,
# the next ones some percent more, until allocator and caches are warm. A loop over batches pays that once; for a long
# run it is little.
WARM_SECONDS = 0.03
LONG_SECONDS = 0.1


@dataclass(frozen=True)
class Timing:
    """The median over rounds of each round's median. Spread: interquartile range relative to the median."""

    ms: float
    spread: float
    rounds: int


def time_interleaved(
    runs: Mapping[str, Callable[[], object]],
    effort: Effort,
    beside: Callable[[], None] = lambda: None,
    time_slice: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, Timing]:
    """Times all runs in turn until ``effort`` is spent. ``beside()`` is called at the end of each round.

    ``time_slice(run)`` returns the seconds of a run.
    """
    time_slice = time_slice or cpu_slice
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + effort.seconds
    for done in range(effort.most_rounds):
        if done >= effort.fewest_rounds and time.perf_counter() >= end:
            break
        for name, run in runs.items():
            rounds[name].append(time_slice(run))
        beside()
    return {name: Timing(1e3 * median(own), _spread(own), len(own)) for name, own in rounds.items()}


def cpu_slice(run: Callable[[], object]) -> float:
    """The median time of some runs in a row, or of a single long one, after warming up."""
    wait_for_idle_threads()
    warmed = last = _time(run)
    if warmed >= LONG_SECONDS:
        return warmed
    while warmed < WARM_SECONDS:
        last = _time(run)
        warmed += last
    count = max(1, round(LEAST_SECONDS / last))
    times, spent = [], 0.0
    while spent < SLICE_SECONDS:
        times.append(_time(run, count))
        spent += times[-1] * count
    return median(times)


def gpu_slice(run: Callable[[], object]) -> float:
    """The mean time of the runs that fill a slice, queued back to back, after one to warm up."""
    once = _gpu_time(run, 1)
    count = min(MOST_QUEUED, int(GPU_SLICE_SECONDS / once))
    return _gpu_time(run, count) if count > 1 else once


def _gpu_time(run: Callable[[], object], count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end) / count


def _time(run: Callable[[], object], count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def wait_for_idle_threads() -> None:
    """Thread pools keep spinning after their work, ONNX Runtime's for 50 ms, and would slow down the next side."""
    for _ in range(100):
        busy = time.process_time()
        time.sleep(0.001)
        if time.process_time() - busy < 0.0003:
            return


def _spread(times: list[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, _, high = quantiles(times, n=4, method="inclusive")
    return (high - low) / median(times)
