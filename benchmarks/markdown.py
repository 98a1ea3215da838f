"""Result files as Markdown: tables and what is in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .results import LARGEST_SPREAD, OPPONENTS, SIDES, Line, Results, geomean, groups, plural, ratios

DOUBT = "†"
FOOTNOTE = (
    f"{DOUBT} not to be relied on: a side's times spread by more than {LARGEST_SPREAD:.0%}, or the machine's load "
    "exceeded its cores."
)


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def footnote(*texts: str) -> list[str]:
    """What DOUBT means, if one of the texts has it."""
    return [FOOTNOTE] if any(DOUBT in text for text in texts) else []


def machine(last: Results) -> str:
    return f"{last.machine['processor']}, {plural(last.threads, 'core')}, {last.machine['CPU instruction set']}"


def versions(last: Results) -> str:
    """Of everything that was compared; of one package once."""
    found = {version: name for name, version in reversed(last.peers.items()) if not version.startswith("not installed")}
    return ", ".join(f"{name} {version}" for version, name in reversed(found.items()))


def measured(lines: Iterable[Line]) -> list[str]:
    """The peers that there are figures for."""
    return [name for name in OPPONENTS if any(name in line.sides for line in lines)]


def mean_and_worst(lines: Iterable[Line], opponent: str) -> str:
    found = list(ratios(lines, opponent))
    if not found:
        return "-"
    numbers = [ratio for _, ratio in found]
    worst = f" ({min(numbers):.2f})" if len(found) > 1 else ""
    return f"{geomean(numbers):.2f}{worst}{mark(line for line, _ in found)}"


def mark(lines: Iterable[Line]) -> str:
    return f" {DOUBT}" if any(line.doubts for line in lines) else ""


def lost(results: Iterable[Results], opponent: str) -> Iterator[tuple[Results, Line, float]]:
    """The lines in which a peer is faster."""
    for one in results:
        for line, ratio in ratios(one.lines, opponent):
            if ratio < 1:
                yield one, line, ratio


def count_of_lost(results: list[Results]) -> str:
    """In how many lines each peer is faster, and in which groups."""
    rows = []
    for opponent in measured([line for one in results for line in one.lines]):
        counts = []
        for one in results:
            number = sum(ratio < 1 for _, ratio in ratios(one.lines, opponent))
            counts.append(f"{number} of {len(list(ratios(one.lines, opponent)))}")
        found = list(lost(results, opponent))
        where = ", ".join(dict.fromkeys(f"{line.work.group} {line.work.layer}" for _, line, _ in found))
        worst = min((f"{ratio:.2f}" for _, _, ratio in found), default="")
        rows.append([opponent, *counts, worst, where])
    heads = [plural(one.threads, "thread") for one in results]
    return table(["lines in which a peer is faster", *heads, "at worst", "where"], rows)


def by_group(results: list[Results], mode: str, skip: Iterable[str] = ()) -> str:
    """Geometric mean and worst line for each layer and group; "" if there is none but those to skip."""
    by_threads = [(one.threads, groups(one.lines)) for one in results]
    keys = dict.fromkeys(k for _, found in by_threads for k in found if k[2] == mode and k[0] not in skip)
    if not keys:
        return ""
    peers = measured([line for _, found in by_threads for k in keys for line in found.get(k, [])])
    heads = [f"{peer}, {plural(threads, 'thread')}" for peer in peers for threads, _ in by_threads]
    rows = [
        [f"{k[1]} {k[0]}", *(mean_and_worst(found.get(k, []), peer) for peer in peers for _, found in by_threads)]
        for k in keys
    ]
    return table([mode, *heads], rows)


def line_by_line(results: Results, group: str) -> str:
    """Microseconds a step of every side, and the error of 8-bit ones."""
    lines = [line for line in results.lines if line.work.group == group]
    sides = [name for name in SIDES if any(name in line.sides for line in lines)]
    rows = []
    for line in lines:
        steps = line.work.shape.steps
        cells = [_time(line.sides[name], steps) if name in line.sides else "-" for name in sides]
        rows.append([f"{line.work.layer} {line.work.shape}{mark([line])}", *cells])
    return table([f"{group}, {plural(results.threads, 'thread')}, µs a step", *sides], rows)


def _time(side: dict, steps: int) -> str:
    error = f" (error {side['error']:.4f})" if "error" in side else ""
    return f"{1e3 * side['ms'] / steps:.3g}{error}"
