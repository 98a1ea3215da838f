"""Writes the README's speed section, the page of all peers and the plots from the result files."""

from __future__ import annotations

from pathlib import Path

from . import page
from .markdown import DOUBT, by_group, count_of_lost, footnote, machine, mean_and_worst, measured, table
from .results import Line, Results, doubts, geomean, groups, load_all, plural
from .suites import PLAIN, SHAPES
from .table import notes

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin, written by python -m benchmarks report -->", "<!-- benchmarks: end -->"


def report(folder: Path, readme: Path = README) -> None:
    """Writes plots and page into ``folder``, and the part of ``readme`` between the markers."""
    from . import plots

    found = load_all(folder)
    cpu = [results for results in found if results.suite == "cpu"]
    if not cpu:
        raise SystemExit(f"no results of the cpu suite in {folder}: measure first, python -m benchmarks")
    drawn = plots.draw(cpu, folder)
    path = folder / page.NAME
    path.write_text(page.text([results for results in found if results.lines and results.suite != "gpu"]))
    text = markdown(cpu, *([r for r in found if r.suite == suite] for suite in ("cells", "features")))
    link = f"[Every peer in every group]({_beside(path, readme)}), and single steps line by line."
    pictures = "\n".join(f"![{title}]({_beside(path, readme)})" for path, title in drawn.items())
    readme.write_text(replace_between_markers(readme.read_text(), f"{text}\n{link}\n\n{pictures}\n"))
    print(f"written: the speed section of {readme.name}, {', '.join(path.name for path in (path, *drawn))}")


def replace_between_markers(text: str, inside: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the README lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{inside}{END}{after}"


def markdown(cpu: list[Results], cells: list[Results], features: list[Results]) -> str:
    parts = [_header(cpu), _plain_table(cpu), count_of_lost(cpu), *_missing(cpu[-1]), _memory(cpu[-1])]
    parts += [*_cells(cells), _features(features)]
    return "\n\n".join(part for part in [*parts, *footnote(*parts)] if part) + "\n"


def _cells(cells: list[Results]) -> list[str]:
    """Where cells were measured by themselves, perhaps on another machine."""
    if not cells:
        return []
    last = cells[-1]
    version = f"torch {last.peers['torch.nn']}; commit {last.commit}, {last.date[:10]}"
    where = f"Cells, measured on {machine(last)}; {version}. A loop has 50 steps."
    return [where, by_group(cells, "inference"), by_group(cells, "training"), count_of_lost(cells)]


def _header(cpu: list[Results]) -> str:
    last = cpu[-1]
    compared = measured([line for results in cpu for line in results.lines if line.work.group == PLAIN])
    peers = [f"{name} {last.peers[name]}" for name in compared]
    shapes = ", ".join(str(shape).replace(" ", "") for shape in SHAPES)
    rates = ", ".join(f"{name.split()[0]} {rate:.0f}" for name, rate in cpu[0].limits.items() if "GFLOP" in name)
    return (
        f"Measured on {machine(last)}; {', '.join(peers)}; commit {last.commit}, {last.date[:10]}. "
        f"One core computes (GFLOP/s) {rates}.\n"
        f"How many times faster than each peer: geometric mean over {shapes} (T steps, B rows, H units and inputs), "
        f"in brackets the worst shape. {page.WHOM} The last columns: how much of the machine's limit, multiply-adds or "
        "reading weights, is reached."
    )


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


def _features(features: list[Results]) -> str:
    if not features:
        return ""
    rows = []
    for entry in features[-1].features:
        reference, *others = entry["sides"]
        costs = [f"{name} {entry['sides'][name]['ms'] / entry['sides'][reference]['ms']:.2f}" for name in others]
        target = "" if entry["target"] is None else f"{entry['target']:.2f}"
        doubt = f" {DOUBT}" if doubts(entry["sides"], entry.get("load", {})) else ""
        rows.append([entry["name"], reference, ", ".join(costs) + doubt, target])
    threads = plural(features[-1].threads, "thread")
    return table([f"options, {threads}", "time 1 is", "then the time of", "target"], rows)


def _beside(path: Path, readme: Path) -> str:
    root = readme.resolve().parent
    return str(path.resolve().relative_to(root)) if path.resolve().is_relative_to(root) else str(path)
