"""Writes the README's speed section and the plots from the result files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .results import Line, Results, geomean, groups, load_all, plural, ratios
from .suites import PLAIN, SHAPES
from .table import notes

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin, written by python -m benchmarks report -->", "<!-- benchmarks: end -->"
OPPONENTS = ("torch.nn", "ONNX Runtime", "JAX")


def report(folder: Path, readme: Path = README) -> None:
    """Draws the plots into ``folder`` and writes the part of ``readme`` between the markers."""
    from . import plots

    found = load_all(folder)
    cpu = [results for results in found if results.suite == "cpu"]
    if not cpu:
        raise SystemExit(f"no results of the cpu suite in {folder}: measure first, python -m benchmarks")
    drawn = plots.draw(cpu, folder)
    text = markdown(cpu, *([r for r in found if r.suite == suite] for suite in ("cells", "features")))
    pictures = "\n".join(f"![{title}]({_beside(path, readme)})" for path, title in drawn.items())
    readme.write_text(replace_between_markers(readme.read_text(), f"{text}\n{pictures}\n"))
    print(f"written: the speed section of {readme.name}, {', '.join(path.name for path in drawn)}")


def replace_between_markers(text: str, inside: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the README lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{inside}{END}{after}"


def markdown(cpu: list[Results], cells: list[Results], features: list[Results]) -> str:
    parts = [_header(cpu), _plain_table(cpu), _other_table(cpu), _slower(cpu), _memory(cpu[-1]), *_cells(cells)]
    return "\n\n".join(part for part in [*parts, _features(features)] if part) + "\n"


def _machine(last: Results) -> str:
    return f"{last.machine['processor']}, {plural(last.threads, 'core')}, {last.machine['CPU instruction set']}"


def _cells(cells: list[Results]) -> list[str]:
    """Where cells were measured by themselves, perhaps on another machine."""
    if not cells:
        return []
    last = cells[-1]
    version = f"torch {last.peers['torch.nn']}; commit {last.commit}, {last.date[:10]}"
    where = f"Cells, measured on {_machine(last)}; {version}. A loop has 50 steps."
    return [where, _other_table(cells), _slower(cells)]


def _header(cpu: list[Results]) -> str:
    last = cpu[-1]
    peers = [f"{name} {version}" for name, version in last.peers.items() if name != "compiled loop"]
    shapes = ", ".join(str(shape).replace(" ", "") for shape in SHAPES)
    rates = ", ".join(f"{name.split()[0]} {rate:.0f}" for name, rate in cpu[0].limits.items() if "GFLOP" in name)
    return (
        f"Measured on {_machine(last)}; {', '.join(peers)}; commit {last.commit}, {last.date[:10]}. "
        f"One core computes (GFLOP/s) {rates}.\n"
        f"How many times faster than each peer: geometric mean over {shapes} (T steps, B rows, H units and inputs), "
        "in brackets the worst shape. ONNX Runtime packs weights when it loads a model, so it meets the frozen layer "
        "where there is one. The last columns: how much of the machine's limit, multiply-adds or reading weights, is "
        "reached."
    )


def _plain_table(cpu: list[Results]) -> str:
    by_threads = {results.threads: groups(results.lines) for results in cpu}
    heads = [f"{name}, {plural(threads, 'thread')}" for name in (*OPPONENTS, "limit") for threads in by_threads]
    rows = []
    for key in dict.fromkeys(key for found in by_threads.values() for key in found if key[0] == PLAIN):
        cells = [_mean_and_worst(found.get(key, []), name) for name in OPPONENTS for found in by_threads.values()]
        cells += [_share(found.get(key, [])) for found in by_threads.values()]
        rows.append([f"{key[1]} {key[2]}", *cells])
    return _table(["", *heads], rows)


def _other_table(cpu: list[Results]) -> str:
    by_threads = {results.threads: groups(results.lines) for results in cpu}
    kinds = dict.fromkeys(key[:2] for found in by_threads.values() for key in found if key[0] not in (PLAIN, "scaling"))
    heads = [f"{mode}, {plural(threads, 'thread')}" for mode in ("inference", "training") for threads in by_threads]
    rows = []
    for group, layer in kinds:
        cells = [
            _mean_and_worst(found.get((group, layer, mode), []), "torch.nn")
            for mode in ("inference", "training")
            for found in by_threads.values()
        ]
        rows.append([f"{layer} {group}", *cells])
    return _table(["against torch.nn", *heads], rows) if rows else ""


def _mean_and_worst(lines: Iterable[Line], opponent: str) -> str:
    found = [ratio for _, ratio in ratios(lines, opponent)]
    if not found:
        return "-"
    return f"{geomean(found):.2f}" + (f" ({min(found):.2f})" if len(found) > 1 else "")


def _share(lines: list[Line]) -> str:
    share = geomean(line.of_limit for line in lines if line.limit)
    return "-" if share is None else f"{share:.0%}"


def _slower(cpu: list[Results]) -> str:
    """The lines where torch.nn is faster, and what was left out."""
    rows = []
    for results in cpu:
        for (group, layer, mode), lines in groups(results.lines).items():
            lost = [f"{line.work.shape} {ratio:.2f}" for line, ratio in ratios(lines, "torch.nn") if ratio < 1]
            if lost:
                rows.append(f"- {plural(results.threads, 'thread')}, {group}, {layer} {mode}: {', '.join(lost)}")
    count = sum(ratio < 1 for results in cpu for _, ratio in ratios(results.lines, "torch.nn"))
    total = sum(len(results.lines) for results in cpu)
    text = f"Slower than torch.nn: {count} of {total} lines" + ("\n\n" + "\n".join(rows) if rows else ".")
    missing = [note for note in notes(cpu[-1]) if "did not run" in note]
    return "\n\n".join([text, *missing])


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
        rows.append([entry["name"], reference, ", ".join(costs), target])
    threads = plural(features[-1].threads, "thread")
    return _table([f"options, {threads}", "time 1 is", "then the time of", "target"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _beside(path: Path, readme: Path) -> str:
    root = readme.resolve().parent
    return str(path.resolve().relative_to(root)) if path.resolve().is_relative_to(root) else str(path)
