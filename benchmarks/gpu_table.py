"""Results of the gpu suite as lines of text: microseconds a step, and the speed-up over torch.nn."""

from __future__ import annotations

from .results import Line, Results, geomean, groups, ratios

SIDES = ("ours", "torch.nn")
MOST_SHOWN = 25  # of the slowest lines


def heading() -> str:
    return f"\n{'':49}{'us a step, ours':>20}{'torch.nn':>17}{'ratio':>10}"


def row(line: Line) -> str:
    what = f"{line.work.group:17}{line.work.layer:5}{line.work.mode:10}{line.work.shape!s:17}"
    times = "".join(f"{_us_per_step(line, side):12.3f} ±{100 * line.sides[side]['spread']:3.0f}%" for side in SIDES)
    ratio = line.ratio("torch.nn")
    slower = " SLOWER" if ratio < 1 else ""
    return f"{what}{times}{ratio:9.2f}x  {line.sides['ours']['engine']}{slower}"


def _us_per_step(line: Line, side: str) -> float:
    return 1e3 * line.sides[side]["ms"] / line.work.shape.steps


def summary(results: Results) -> str:
    """The slowest lines, then the geometric means with the worst line of each, then failures."""
    against = list(ratios(results.lines, "torch.nn"))
    worst_first = sorted(against, key=lambda pair: pair[1])
    rows = ["", f"worst of {len(against)} lines", *(row(line) for line, _ in worst_first[:MOST_SHOWN])]
    rows += ["", "geometric means: times faster than torch.nn (worst)"]
    for (group, layer, mode), lines in sorted(groups(results.lines).items()):
        found = [ratio for _, ratio in ratios(lines, "torch.nn")]
        rows.append(f"{group:17}{layer:5}{mode:10} {geomean(found):7.2f}x ({min(found):.2f}x) of {len(found)}")
    if against:
        slower = sum(ratio < 1 for _, ratio in against)
        rows.append(f"all: {geomean(ratio for _, ratio in against):.2f}x; slower than torch.nn: {slower} lines")
    rows += [f"FAILED {failure['work']}: {failure['why']}" for failure in results.failures[:MOST_SHOWN]]
    if len(results.failures) > MOST_SHOWN:
        rows.append(f"... and {len(results.failures) - MOST_SHOWN} more failed")
    return "\n".join(rows)
