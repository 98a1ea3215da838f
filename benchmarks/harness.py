"""How it is measured: outputs compared first, then interleaved runs of both sides, medians."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median, quantiles

import torch

import fused_rnn
from fused_rnn.verification import relative_error

from .suites import Work

SECONDS = 0.6  # spent on one line of the table, both sides together, when its runs are short
FEWEST_RUNS, MOST_RUNS = 5, 60
# Outputs and gradients of both sides in float32; sums over thousands of products in another order.
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Measurement:
    """Medians in milliseconds; spread is the distance between the quartiles relative to the median."""

    layer: str
    mode: str
    shape: dict
    ours_ms: float
    torch_ms: float
    ours_spread: float
    torch_spread: float
    runs: int

    @property
    def ratio(self) -> float:
        """How many times faster than torch.nn."""
        return self.torch_ms / self.ours_ms


def measure(work: Work) -> Measurement:
    ours, theirs = _sides(work)
    _compare(work, ours(), theirs())
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    while len(times[0]) < FEWEST_RUNS or (time.perf_counter() < end and len(times[0]) < MOST_RUNS):
        for run, own in zip((ours, theirs), times, strict=True):
            own.append(_time(run))
    return Measurement(
        work.layer,
        work.mode,
        asdict(work.shape),
        *(1e3 * median(own) for own in times),
        *(_spread(own) for own in times),
        len(times[0]),
    )


def _sides(work: Work) -> tuple[Callable[[], list[torch.Tensor]], ...]:
    torch.manual_seed(0)
    shape = work.shape
    theirs = getattr(torch.nn, work.layer)(shape.hidden, shape.hidden)
    ours = getattr(fused_rnn, work.layer)(shape.hidden, shape.hidden)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape.steps, shape.batch, shape.hidden, requires_grad=work.mode == "training")
    grad = torch.randn(shape.steps, shape.batch, shape.hidden)

    def infer(module) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [module(x)[0]]

    def train(module) -> list[torch.Tensor]:
        output = module(x)[0]
        return [output, *torch.autograd.grad(output, [x, *module.parameters()], grad)]

    run = infer if work.mode == "inference" else train
    return (lambda: run(ours)), (lambda: run(theirs))


def _compare(work: Work, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    worst = max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True))
    if not worst <= LARGEST_DIFFERENCE:
        raise AssertionError(f"{work}: results differ from torch.nn by {worst:.1e}; nothing was measured")


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if first > 0.02:
        return first
    # A short run right after the other side's is a cold one: take the second.
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _spread(times: list[float]) -> float:
    low, _, high = quantiles(times, n=4)
    return (high - low) / median(times)
