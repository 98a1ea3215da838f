"""Results as lines of text, printed while measuring."""

from __future__ import annotations

from .results import OPPONENTS, Line, Results, geomean, groups, plural, ratios

# The sides and their column headings, in order.
SIDES = {
    "ours": "ours",
    "frozen": "frozen",
    "torch.nn": "torch.nn",
    "ONNX Runtime": "ONNX",
    "JAX": "JAX",
    "compiled loop": "loop",
}


def heading() -> str:
    """Times with their spread over rounds, then our speed-ups."""
    times = "".join(f"{short:>13}" for short in SIDES.values())
    factors = "".join(f"{SIDES[name]:>9}" for name in OPPONENTS)
    above = f"{'':32}{'milliseconds ± spread':>{13 * len(SIDES)}}{'times faster than':>{9 * len(OPPONENTS)}}"
    return f"{above}\n{'':32}{times}{factors}  reached of the limit"


def row(line: Line) -> str:
    """Marks a line in which a peer is faster."""
    work = line.work
    times = "".join(f"{_time(line.sides.get(name)):>13}" for name in SIDES)
    found = {name: line.ratio(name) for name in OPPONENTS}
    factors = "".join(f"{'-' if ratio is None else f'{ratio:.2f}x':>9}" for ratio in found.values())
    limit = f"{100 * line.of_limit:5.0f}% of {line.limit['bound_by']:12}" if line.limit else ""
    slower = [name for name, ratio in found.items() if ratio is not None and ratio < 1]
    mark = f" SLOWER than {', '.join(slower)}" if slower else ""
    return f"{work.layer:5}{work.mode:10}{work.shape!s:17}{times}{factors}{limit}{mark}".rstrip()


def _time(side: dict | None) -> str:
    return f"{_number(side['ms'])} ±{100 * side['spread']:2.0f}%" if side else "-"


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
    target = ""
    if entry["target"]:
        worst = max(sides[name]["ms"] for name in others) / sides[reference]["ms"]
        target = f"   target {entry['target']:.2f}x: {'met' if worst <= entry['target'] else 'MISSED'}"
    return f"{entry['name']:46} {reference} {_number(sides[reference]['ms'])} ms; {'; '.join(parts)}{target}"


def _cost(entry: dict, side: str) -> str:
    reference = next(iter(entry["sides"].values()))
    return f"{entry['sides'][side]['ms'] / reference['ms']:.2f}x the time"
