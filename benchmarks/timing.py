"""How it is timed: in rounds, each side in turn, so that a change of the machine's speed meets them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from .suites import Effort

SLICE_SECONDS = 0.01  # of one side in one round, if that is several runs
WARM_SECONDS = 0.003  # a short run right after another side's is a cold one, up to twice as slow


@dataclass(frozen=True)
class Timing:
    """The median over rounds of each round's median. Spread: the distance of the quartiles relative to the median."""

    ms: float
    spread: float
    rounds: int


def time_interleaved(
    runs: Mapping[str, Callable[[], object]], effort: Effort, beside: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Times all runs in turn until ``effort`` is spent. ``beside()`` is called once a round, after them."""
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + effort.seconds
    for done in range(effort.most_rounds):
        if done >= effort.fewest_rounds and time.perf_counter() >= end:
            break
        for name, run in runs.items():
            _wait_for_idle_threads()
            rounds[name].append(_slice(run))
        _wait_for_idle_threads()
        beside()
    return {name: Timing(1e3 * median(own), _spread(own), len(own)) for name, own in rounds.items()}


def _slice(run: Callable[[], object]) -> float:
    """The median time of a few runs in a row, warmed up where they are short."""
    last = _time(run)
    if last >= SLICE_SECONDS:
        return last
    warmed = last
    while warmed < WARM_SECONDS:
        warmed += _time(run)
    times, spent = [], 0.0
    while spent < SLICE_SECONDS:
        times.append(_time(run))
        spent += times[-1]
    return median(times)


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _wait_for_idle_threads() -> None:
    """Pools go on spinning after their work, ONNX Runtime's for 50 ms: they would take cores from the next side."""
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
