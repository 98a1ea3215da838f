"""Shared by the examples of this folder: arguments, learning curves of two libraries, times taken in turns, figures."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import fused_rnn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of recipe.py
from recipe import BLUE, ORANGE, WIDTH, arguments, check, picture, progress

__all__ = ["BOTH", "Curve", "arguments", "by_turns", "check", "compare_curves", "draw", "progress"]

BOTH = (fused_rnn, torch.nn)
COLORS = (BLUE, ORANGE)


@dataclass
class Curve:
    """What an agent has learned after each iteration of rollout and update, and what these took."""

    steps: list[int] = field(default_factory=list)  # of the environments, so far
    values: list[float] = field(default_factory=list)
    collecting: list[float] = field(default_factory=list)  # seconds
    learning: list[float] = field(default_factory=list)
    first_weights: Tensor | None = None  # after the first update

    def add(self, agent: nn.Module, steps: int, value: float, collecting: float, learning: float) -> None:
        if self.first_weights is None:
            self.first_weights = nn.utils.parameters_to_vector(agent.parameters()).detach()
        self.steps.append(steps + (self.steps[-1] if self.steps else 0))
        self.values.append(float(value))
        self.collecting.append(collecting)
        self.learning.append(learning)

    @property
    def seconds(self) -> list[float]:
        """So far, after each iteration."""
        return torch.tensor([self.collecting, self.learning]).sum(0).cumsum(0).tolist()

    def last(self, share: float = 0.1) -> float:
        """The mean of the last values."""
        return statistics.mean(self.values[-max(1, int(share * len(self.values))) :])


def compare_curves(curves: Mapping[str, Curve], what: str, at_least: float) -> None:
    """Prints what was reached and the times of both; fails if they differ at first, or either has not learned."""
    first = torch.stack([curve.first_weights for curve in curves.values()])
    apart = (first[0] - first[1]).abs().max().item()
    check("largest difference of a weight after the first update", apart, at_most=1e-4)
    for name, curve in curves.items():
        check(f"{what}, {name}", curve.last(), at_least=at_least)
    for phase in ("collecting", "learning"):
        ours, theirs = (1000 * statistics.median(getattr(curve, phase)) for curve in curves.values())
        print_ratio(f"{phase}, each iteration", dict(zip(curves, (ours, theirs), strict=True)))
    print(f"altogether: {', '.join(f'{name} {curve.seconds[-1]:.1f} s' for name, curve in curves.items())}")


def by_turns(what: str, runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each run, ours first, taken in turns, printed with their ratio."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round in progress(rounds + 1, what):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round > 1:  # the first one warms up
                times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(own) for name, own in times.items()}
    print_ratio(f"{what}, medians of {rounds}", medians)
    return medians


def print_ratio(what: str, milliseconds: Mapping[str, float]) -> None:
    """Ours first, then another's."""
    (ours, a), (theirs, b) = milliseconds.items()
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    print(f"{what}: {ours} {a:.1f} ms, {theirs} {b:.1f} ms: {b / a:.2f}x ({threads})", flush=True)


def draw(args, name: str, curves: Mapping[str, Curve], what: str) -> None:
    """The curves by steps, where they should be one, and by seconds."""
    with picture(args, name, WIDTH, 2.5) as figure:
        by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
        for (library, curve), color, style in zip(curves.items(), COLORS, ("-", "--"), strict=True):
            by_steps.plot([steps / 1e6 for steps in curve.steps], curve.values, style, color=color, label=library)
            by_seconds.plot(curve.seconds, curve.values, style, color=color)
        by_steps.set_xlabel("million steps of the environments")
        by_seconds.set_xlabel("seconds")
        by_steps.set_ylabel(what)
        by_steps.legend(loc="lower right")
        for axes in (by_steps, by_seconds):
            axes.grid()
            axes.set_xlim(left=0)
