"""What ``tune`` found, in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...ops.measured import REFERENCE, Entry, Sizes, Table


@dataclass
class Tuned:
    """What ``tune`` found; ``str()`` is its summary."""

    table: Table
    measured: list[Entry] = field(default_factory=list)
    """The entries of this run."""
    failures: list[tuple[Sizes, str, str]] = field(default_factory=list)
    """(sizes, engine, why it is not in the table)."""
    left: int = 0
    """Sizes for which there was no time."""
    was_busy: bool = False
    """Whether other work kept the machine busy: then thresholds of the CPU are left as they were."""

    def __str__(self) -> str:
        return summary(self)


def _ratio(entry: Entry) -> float | None:
    """How many times faster than torch.nn's module the engine is that ``auto`` takes."""
    best, reference = entry.best(), entry.times.get(REFERENCE)
    return None if best is None or reference is None else reference / best[1]


def _mean(numbers: Iterable[float]) -> float:
    logarithms = [math.log(number) for number in numbers]
    return math.exp(sum(logarithms) / len(logarithms))


def _class_of(entry: Entry) -> str:
    sizes = entry.sizes
    what = "training" if sizes.training else "one step" if sizes.steps == 1 else "inference"
    return f"{sizes.cell} {sizes.dtype} {what}"


def lines_of(table: Table) -> list[str]:
    """Every entry, with the engine that ``auto`` takes."""
    lines = [f"{table.device}, {', '.join(f'{what} {version}' for what, version in table.made_with.items())}"]
    for entry in table.entries:
        times = ", ".join(f"{name} {time:g}" for name, time in sorted(entry.times.items(), key=lambda pair: pair[1]))
        best = entry.best()
        lines.append(f"{entry.sizes!s}: {best[0] if best else 'nothing'} ({times} us)")
    lines += [f"{name}: {value}" for name, value in table.thresholds.items()]
    return lines


def summary(tuned: Tuned) -> str:
    """By class of sizes: how many times faster than torch.nn; then what is slower, and what failed."""
    ratios = [(entry, ratio) for entry in tuned.measured if (ratio := _ratio(entry)) is not None]
    classes: dict[str, list[float]] = defaultdict(list)
    for entry, ratio in ratios:
        classes[_class_of(entry)].append(ratio)
    lines = [f"{tuned.table.device}: {len(tuned.measured)} sizes measured, times torch.nn's speed"]
    lines += [
        f"  {name:32} {_mean(found):6.2f}  worst {min(found):.2f}  ({len(found)} sizes)"
        for name, found in classes.items()
    ]
    if ratios:
        lines.append(f"  {'geometric mean of all':32} {_mean(ratio for _, ratio in ratios):6.2f}")
    lines += [f"  below 1: {entry.sizes!s} {ratio:.2f}" for entry, ratio in ratios if ratio < 1]
    lines += [f"  not taken: {name} for {sizes!s}: {reason}" for sizes, name, reason in tuned.failures]
    lines += [f"  threshold {name}: {value}" for name, value in tuned.table.thresholds.items()]
    if tuned.left:
        lines.append(f"  {tuned.left} sizes were left out, as the time was up")
    if tuned.was_busy:
        lines.append("  other work kept the machine busy, so that times are not to be relied on: measure again without")
    return "\n".join(lines)
