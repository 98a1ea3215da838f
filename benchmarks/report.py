"""Writes the README's summary, the documentation's pages of figures and the plots from the result files."""

from __future__ import annotations

import os
from pathlib import Path

from . import page, summary
from .markdown import DOUBT, by_group, count_of_lost, footnote, machine, mean_and_worst, measured, table, versions
from .results import Line, Results, doubts, geomean, groups, load_all, plural
from .suites import PLAIN, SHAPES
from .table import notes

ROOT = Path(__file__).resolve().parent.parent
README, PERFORMANCE, PEERS = "README.md", "docs/performance.md", "docs/peers.md"
BEGIN, END = "<!-- benchmarks: begin, written by python -m benchmarks report -->", "<!-- benchmarks: end -->"


def report(folder: Path, root: Path = ROOT) -> None:
    """Writes plots into ``folder``, and in ``root`` the page of peers and what is between two pages' markers."""
    from . import plots

    found = load_all(folder)
    cpu = [results for results in found if results.suite == "cpu"]
    if not cpu:
        raise SystemExit(f"no results of the cpu suite in {folder}: measure first, python -m benchmarks")
    drawn = plots.draw(cpu, folder)
    text = markdown(cpu, *([r for r in found if r.suite == suite] for suite in ("cells", "features", "rl", "own")))
    own = root / PERFORMANCE
    pictures = "\n\n".join(f"![{title}]({os.path.relpath(path, own.parent)})" for path, title in drawn.items())
    _write_between_markers(own, f"{text}\n### Plots\n\n{pictures}\n")
    _write_between_markers(root / README, summary.text(cpu))
    (root / PEERS).write_text(page.text([results for results in found if results.lines and results.suite != "gpu"]))
    print(f"written: {', '.join((README, PERFORMANCE, PEERS, *(path.name for path in drawn)))}")


def _write_between_markers(path: Path, inside: str) -> None:
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path.name} lacks the markers {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{inside}{END}{after}")


def markdown(
    cpu: list[Results],
    cells: list[Results],
    features: list[Results],
    rl: list[Results] = (),
    own: list[Results] = (),
) -> str:
    parts = [_header(cpu), _plain_table(cpu), count_of_lost(cpu), *_missing(cpu[-1]), _memory(cpu[-1])]
    parts += [*_cells(cells), *_features(features), *_rl(rl), *_own(own)]
    return "\n\n".join(part for part in [*parts, *footnote(*parts)] if part) + "\n"


def _cells(cells: list[Results]) -> list[str]:
    """Where cells were measured by themselves, perhaps on another machine."""
    if not cells:
        return []
    last = cells[-1]
    version = f"torch {last.peers['torch.nn']}; commit {last.commit}, {last.date[:10]}"
    where = f"Measured on {machine(last)}; {version}. A loop has 50 steps."
    return ["### Cells", where, by_group(cells, "inference"), by_group(cells, "training"), count_of_lost(cells)]


def _header(cpu: list[Results]) -> str:
    last = cpu[-1]
    compared = measured([line for results in cpu for line in results.lines if line.work.group == PLAIN])
    peers = [f"{name} {last.peers[name]}" for name in compared]
    shapes = ", ".join(str(shape).replace(" ", "") for shape in SHAPES)
    rates = ", ".join(f"{name.split()[0]} {rate:.0f}" for name, rate in cpu[0].limits.items() if "GFLOP" in name)
    parts = (
        "### Layers",
        f"Measured on {machine(last)}; {', '.join(peers)}; commit {last.commit}, {last.date[:10]}. "
        f"One core computes (GFLOP/s) {rates}.",
        f"The table says how many times faster than each peer: geometric mean over {shapes} (T steps, B rows, H units "
        "and inputs), in brackets the worst shape. The last columns say how much of the machine's limit, multiply-adds "
        "or reading weights, is reached.",
        page.WHOM,
    )
    return "\n\n".join(parts)


def _plain_table(cpu: list[Results]) -> str:
    by_threads = {results.threads: groups(results.lines) for results in cpu}
    compared = measured([line for results in cpu for line in results.lines if line.work.group == PLAIN])
    heads = [f"{name}, {plural(threads, 'thread')}" for name in (*compared, "limit") for threads in by_threads]
    rows = []
    for key in dict.fromkeys(key for found in by_threads.values() for key in found if key[0] == PLAIN):
        cells = [mean_and_worst(found.get(key, []), name) for name in compared for found in by_threads.values()]
        cells += [_share(found.get(key, [])) for found in by_threads.values()]
        rows.append([f"{key[1]} {key[2]}", *cells])
    return table(["", *heads], rows)


def _share(lines: list[Line]) -> str:
    share = geomean(line.of_limit for line in lines if line.limit)
    return "-" if share is None else f"{share:.0%}"


def _missing(results: Results) -> list[str]:
    return [note for note in notes(results) if "did not run" in note]


def _memory(results: Results) -> str:
    if not results.memory:
        return ""
    shares = [entry["megabytes"]["ours"] / entry["megabytes"]["torch.nn"] for entry in results.memory]
    return (
        f"Peak memory of a training step, relative to torch.nn's: {geomean(shares):.2f} (geometric mean; "
        f"{min(shares):.2f} to {max(shares):.2f})."
    )


def _features(features: list[Results]) -> list[str]:
    return ["### Options", _feature_table(features[-1], "options")] if features else []


def _rl(rl: list[Results]) -> list[str]:
    """On one thread, as rollouts of small networks usually run, and on all."""
    if not rl:
        return []
    tables = (_feature_table(one, "reinforcement learning") for one in rl)
    return ["### Reinforcement learning", f"Episodes end inside of rollouts. {_measured(rl[-1])}", *tables]


def _own(own: list[Results]) -> list[str]:
    if not own:
        return []
    what = (
        "The same step, written in Python, as a compiled layer and in a loop; an LSTM and a GRU written so, beside the "
        "built-in ones. What a cell with a recurrent matrix gains is bounded by its products, which the loop has too."
    )
    return ["### Cells of your own", f"{what} {_measured(own[-1])}", *(_feature_table(one, "own cells") for one in own)]


def _measured(last: Results) -> str:
    return f"Measured on {machine(last)}; {versions(last)}; commit {last.commit}, {last.date[:10]}."


def _feature_table(results: Results, title: str) -> str:
    rows = []
    for entry in results.features:
        reference, *others = entry["sides"]
        costs = [f"{name} {entry['sides'][name]['ms'] / entry['sides'][reference]['ms']:.2f}" for name in others]
        target = "" if entry["target"] is None else f"{entry['target']:.2f}"
        doubt = f" {DOUBT}" if doubts(entry["sides"], entry.get("load", {})) else ""
        rows.append([entry["name"], reference, ", ".join(costs) + doubt, target])
    threads = plural(results.threads, "thread")
    return table([f"{title}, {threads}", "time 1 is", "then the time of", "target"], rows)
