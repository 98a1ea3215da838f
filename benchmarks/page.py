"""The page of all peers: every group with everything that ran in it, and what they win."""

from __future__ import annotations

from .markdown import by_group, count_of_lost, footnote, line_by_line, lost, machine, mark, versions
from .results import OPPONENTS, Results, plural
from .suites import MODES, SUITES
from .table import notes

WHOM = (
    "Each peer meets our fastest call of its kind: those that pack weights when they load a model (ONNX Runtime, "
    "OpenVINO) meet frozen layers too, those whose inputs are bound once (OpenVINO, ONNX Runtime bound) streams too, "
    "and 8-bit ones our layers of any precision."
)
INTRODUCTION = f"""# Every peer, in every group

Written by `python -m benchmarks report` from the files in `benchmarks/results/`. How many times faster we are than each
peer: geometric mean of a group's lines, in brackets the worst line. A dash: not measured; the reasons stand below.
{WHOM}
"""
# Their lines are few, and a mean tells little of them.
LINE_BY_LINE = ("one step", "decoder step", "quantized", "quantized cell")


def text(found: list[Results]) -> str:
    parts = [INTRODUCTION.strip()]
    for suite in SUITES:
        own = [results for results in found if results.suite == suite]
        parts += _suite(suite, own) if own else []
    return "\n\n".join(part for part in [*parts, *footnote(*parts)] if part) + "\n"


def _suite(suite: str, results: list[Results]) -> list[str]:
    last = results[-1]
    parts = [
        f"## The suite {suite}",
        f"Measured on {machine(last)}; {versions(last)}; commit {last.commit}, {last.date[:10]}.",
        *(by_group(results, mode, skip=["scaling"]) for mode in MODES),
    ]
    for group in LINE_BY_LINE:
        parts += [line_by_line(one, group) for one in results if any(line.work.group == group for line in one.lines)]
    parts += [count_of_lost(results), *_lost_lines(results)]
    doubtful = [(one, line) for one in results for line in one.lines if line.doubts]
    if doubtful:
        rows = [f"- {plural(o.threads, 'thread')}, {line.work}: {', '.join(line.doubts)}" for o, line in doubtful]
        parts += ["Not to be relied on:", "\n".join(rows)]
    missing = [f"- {note}" for note in notes(last)]
    return [*parts, "Left out:", "\n".join(missing)] if missing else parts


def _lost_lines(results: list[Results]) -> list[str]:
    rows = []
    for opponent in OPPONENTS:
        places: dict[str, list[str]] = {}
        for one, line, ratio in lost(results, opponent):
            place = f"{plural(one.threads, 'thread')}, {line.work.group}, {line.work.layer} {line.work.mode}"
            places.setdefault(place, []).append(f"{line.work.shape} {ratio:.2f}{mark([line])}")
        rows += [f"- {opponent}, {place}: {', '.join(lines)}" for place, lines in places.items()]
    return ["Where a peer is faster:", "\n".join(rows)] if rows else []
