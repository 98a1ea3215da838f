"""What has been measured on a device, and the choice of an engine that follows from it. No files, no devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import library
from .cells import CELLS

Fits = Callable[[str], bool]  # whether an engine of ours can run a layer of the sizes in question
FORMAT = 1  # of a table's file
REFERENCE = "torch.nn"  # the name of its own time among the engines'


class Sizes(NamedTuple):
    """A call, as far as its time depends on it."""

    cell: str
    dtype: str
    training: bool
    steps: int
    batch: int
    input_size: int
    hidden: int
    layers: int = 1
    directions: int = 1

    def __str__(self) -> str:
        deep = f" L{self.layers}" if self.layers > 1 else ""
        both = " bidirectional" if self.directions > 1 else ""
        what = "training" if self.training else "inference"
        return (
            f"{self.cell} {self.dtype} {what} T{self.steps} B{self.batch} I{self.input_size} H{self.hidden}{deep}{both}"
        )


@dataclass(frozen=True)
class Entry:
    """The microseconds of one call by engine, those of torch.nn's module among them, and which were verified."""

    sizes: Sizes
    times: Mapping[str, float]
    verified: frozenset[str] = frozenset()

    def ours(self) -> tuple[str, float] | None:
        """The fastest verified engine of ours and its time."""
        times = [(time, name) for name, time in self.times.items() if name in self.verified]
        return min(times)[::-1] if times else None

    def best(self, fits: Fits = lambda name: True) -> tuple[str, float] | None:
        """The fastest engine, torch.nn's kernels included, and its time.

        Where the fastest one of ours does not fit, stepwise runs.
        """
        ours = self.ours()
        if ours is not None and not fits(ours[0]):
            ours = ("stepwise", self.times["stepwise"]) if "stepwise" in self.verified else None
        found = [ours, ("torch", self.times["torch"]) if "torch" in self.times else None]
        return min(filter(None, found), key=lambda pair: pair[1], default=None)


@dataclass(frozen=True)
class Table:
    """All entries of one device."""

    device: str
    made_with: Mapping[str, str] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    thresholds: Mapping[str, int] = field(default_factory=dict)
    """Of the CPU's plans, by the names of csrc/cpu/schedule/select.h."""

    def nearest(self, sizes: Sizes) -> Entry | None:
        """The entry of the nearest size class: each size at most twice or half as large, steps and input four times."""
        found = [(distance, k) for k, entry in enumerate(self.entries) if (distance := _distance(entry.sizes, sizes))]
        return self.entries[min(found)[1]] if found else None

    def with_entries(self, entries: Sequence[Entry]) -> Table:
        """The table with these entries, which replace those of the same sizes."""
        kept = {entry.sizes: entry for entry in (*self.entries, *entries)}
        return Table(self.device, self.made_with, tuple(kept.values()), self.thresholds)


def _distance(a: Sizes, b: Sizes) -> tuple[float, ...] | None:
    """How far two sizes are apart, by decreasing importance; None: they tell nothing about each other."""
    if (a.cell, a.dtype, a.training, a.directions) != (b.cell, b.dtype, b.training, b.directions):
        return None
    if (a.steps == 1) != (b.steps == 1) or (a.layers == 1) != (b.layers == 1):
        return None

    def doublings(name: str) -> float:
        return abs(math.log2(getattr(a, name) / getattr(b, name)))

    main, rest = [doublings("batch"), doublings("hidden")], [doublings("steps"), doublings("input_size")]
    if max(main) > 1 or max(rest) > 2:
        return None
    return sum(main), sum(rest), doublings("layers")


class Choice(NamedTuple):
    """``torch`` or ``ours``, and why."""

    engine: str
    reason: str


def select(sizes: Sizes, device: str, table: Table | None, fits: Fits = lambda name: True) -> Choice:
    """Which of the two runs such a call; ``device``: "cpu" or "cuda". A pure function."""
    entry = None if table is None else table.nearest(sizes)
    best = None if entry is None else entry.best(fits)
    if entry is None or best is None:
        reason = "no engine of ours has been measured for such a size"
        return Choice("torch", reason) if device == "cuda" else Choice("ours", "torch.nn's kernels were not measured")
    name, time = best
    others = [f"{other} {entry.times[other]:.0f}" for other in sorted(entry.times) if other != name]
    reason = f"{name} took {time:.0f} us for {entry.sizes}" + (f" ({', '.join(others)})" if others else "")
    return Choice("torch" if name == "torch" else "ours", reason)


_PASSES = {False: 0, True: 1}  # forward, backward
_DTYPES = [str(dtype).removeprefix("torch.") for dtype in library.DTYPES]


def rows_of_cuda(table: Table) -> list[int]:
    """The table as the CUDA engine takes it, eight numbers an entry: csrc/cuda/plan/plan.h's Measured.

    Times of inference choose the kernel of the forward pass, those of training that of the backward pass.
    """
    numbers: list[int] = []
    for entry in table.entries:
        ours, sizes = entry.ours(), entry.sizes
        if ours is None or ours[0] not in library.ENGINES or sizes.steps == 1:
            continue
        task = (CELLS[sizes.cell].id, _DTYPES.index(sizes.dtype), _PASSES[sizes.training])
        numbers += [*task, sizes.directions, sizes.batch, sizes.hidden, 0, library.ENGINES.index(ours[0])]
    return numbers


# ---- as text ---------------------------------------------------------------------------------------------------------


def as_json(table: Table) -> dict[str, Any]:
    entries = [
        {**entry.sizes._asdict(), "microseconds": dict(entry.times), "verified": sorted(entry.verified)}
        for entry in table.entries
    ]
    made = {"made_with": dict(table.made_with), "thresholds": dict(table.thresholds)}
    return {"format": FORMAT, "device": table.device, **made, "entries": entries}


def from_json(found: Any) -> Table:
    """Raises ValueError, saying what is wrong, for anything that :func:`as_json` does not make."""
    if not isinstance(found, dict) or "format" not in found:
        raise ValueError("it is not a table of measurements")
    if found["format"] != FORMAT:
        raise ValueError(f"its format is {found['format']}, not {FORMAT}")
    try:
        entries = tuple(map(_entry_of, found["entries"]))
        made_with = {str(key): str(value) for key, value in found["made_with"].items()}
        thresholds = {str(key): int(value) for key, value in found["thresholds"].items()}
        return Table(str(found["device"]), made_with, entries, thresholds)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error


def _entry_of(found: Any) -> Entry:
    sizes = Sizes(**{name: found[name] for name in Sizes._fields})
    numbers = (sizes.steps, sizes.batch, sizes.input_size, sizes.hidden, sizes.layers, sizes.directions)
    times = {str(name): float(time) for name, time in found["microseconds"].items()}
    if sizes.cell not in CELLS or sizes.dtype not in _DTYPES or not isinstance(sizes.training, bool):
        raise ValueError(f"an entry is of {sizes.cell} {sizes.dtype}")
    if not all(isinstance(n, int) and n > 0 for n in numbers) or not all(0 < t < math.inf for t in times.values()):
        raise ValueError("an entry's numbers make no sense")
    return Entry(sizes, times, frozenset(map(str, found["verified"])))
