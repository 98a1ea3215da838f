"""Results as lines of text, printed while measuring."""

from __future__ import annotations

import re
import textwrap

from .results import OPPONENTS, SIDES, Line, Results, doubts, geomean, groups, plural, ratios

EXPLANATION = (
    "milliseconds ± spread over rounds, how many times faster we are, error against float64 of 8-bit layers; "
    "then how much of the machine's limit is reached"
)
_NAME_WIDTH = 31  # of a line's layer, mode and shape


def fitted(text: str, width: int | None) -> str:
    """The text with lines no longer than ``width``, as far as they consist of parts; None: as they are."""
    return text if width is None else "\n".join(_fitted(line, width) for line in text.split("\n"))


def _fitted(line: str, width: int) -> str:
    indent = min(_NAME_WIDTH, width // 4)
    rows: list[str] = []
    for part in re.split(r"(?<= \|) |(?<=[;,]) ", line):  # a separator stays where it is, at the end of a line
        pieces = [part] if len(part) <= width - indent else textwrap.wrap(part, width - indent)
        for piece in pieces:
            if rows and len(rows[-1]) + 1 + len(piece) <= width:
                rows[-1] += f" {piece}"
            else:
                rows.append(" " * indent + piece if rows else piece)
    return "\n".join(rows)


def row(line: Line) -> str:
    """Marks a line in which a peer is faster, and one that is not to be relied on."""
    work = line.work
    parts = [_side(line, name) for name in SIDES if name in line.sides]
    if line.limit:
        parts.append(f"{100 * line.of_limit:.0f}% of {line.limit['bound_by']}")
    slower = [name for name in OPPONENTS if (line.ratio(name) or 1) < 1]
    if slower:
        parts.append(f"SLOWER than {', '.join(slower)}")
    if line.doubts:
        parts.append(_doubtful(line.doubts))
    return f"{f'{work.layer:5}{work.mode:10}{work.shape}':{_NAME_WIDTH - 1}} {' | '.join(parts)}"


def _doubtful(why: list[str]) -> str:
    return f"UNRELIABLE: {', '.join(why)}"


def _side(line: Line, name: str) -> str:
    side = line.sides[name]
    text = f"{SIDES[name]} {_number(side['ms']):>6} ±{100 * side['spread']:2.0f}%"
    if "error" in side:
        text += f" error {side['error']:.4f}"
    return f"{text} {line.ratio(name):.2f}x" if name in OPPONENTS else text


def _number(ms: float) -> str:
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def summary(results: Results) -> str:
    """Geometric means and the worst line of each, then which peers were missing or left out, and why."""
    rows = ["", f"geometric means on {plural(results.threads, 'thread')}: how many times faster than each peer, worst"]
    for (group, layer, mode), lines in groups(results.lines).items():
        parts = []
        for opponent in OPPONENTS:
            found = list(ratios(lines, opponent))
            if found:
                worst, ratio = min(found, key=lambda pair: pair[1])
                mean = geomean(r for _, r in found)
                parts.append(f"{SIDES[opponent]} {mean:5.2f}x ({ratio:.2f}x {worst.work.shape})")
        rows.append(f"{group:24}{layer:5}{mode:10} {'; '.join(parts)}")
    rows += ["", *(f"{line.work} is {_doubtful(line.doubts)}" for line in results.lines if line.doubts)]
    rows += ["", *notes(results)]
    if results.memory:
        rows += ["", "peak memory of a training step, MB"]
        rows += [memory_row(entry) for entry in results.memory]
    return "\n".join(rows)


def notes(results: Results) -> list[str]:
    """Which peers did not run, where and why."""
    found = [f"{name} did not run: {why}" for name, why in results.peers.items() if why.startswith("not installed")]
    return found + [f"{why} (left out of {', '.join(places)})" for why, places in results.left_out.items()]


def memory_row(entry: dict) -> str:
    work, megabytes = entry["work"], entry["megabytes"]
    shape = "T{steps} B{batch} H{hidden}".format(**work["shape"])
    ours, theirs = megabytes["ours"], megabytes["torch.nn"]
    return f"{work['layer']:5}{shape:17} ours {ours:7.1f}   torch.nn {theirs:7.1f}   {ours / theirs:5.2f} of it"


def feature_row(entry: dict) -> str:
    sides = entry["sides"]
    reference, *others = sides
    parts = [f"{name} {_number(sides[name]['ms'])} ms ({_cost(entry, name)})" for name in others]
    why = doubts(sides, entry["load"])
    end = f"   {_doubtful(why)}" if why else ""
    if entry["target"]:
        worst = max(sides[name]["ms"] for name in others) / sides[reference]["ms"]
        end = f"   target {entry['target']:.2f}x: {'met' if worst <= entry['target'] else 'MISSED'}{end}"
    return f"{entry['name']:46} {reference} {_number(sides[reference]['ms'])} ms; {'; '.join(parts)}{end}"


def _cost(entry: dict, side: str) -> str:
    reference = next(iter(entry["sides"].values()))
    return f"{entry['sides'][side]['ms'] / reference['ms']:.2f}x the time"
