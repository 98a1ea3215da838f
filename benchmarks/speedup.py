"""The front page's picture: one bar for each layer, mode, peer and number of threads."""

from __future__ import annotations

from itertools import product
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from fused_rnn.tools.style import GREEN, GREY, ORANGE, WIDTH

from .markdown import DOUBT, machine, mark
from .results import LARGEST_SPREAD, Line, Results, geomean, groups, plural, ratios
from .suites import LAYERS, MODES, PLAIN

NAME = "speedup.svg"
PEERS = {"torch.nn": ORANGE, "ONNX Runtime": GREEN}
THICKNESS, GAP = 0.84, 0.9  # of a bar, and between two layers' bars, in rows
BESIDE = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
DIAMOND = {"marker": "D", "color": "white", "mec": "black", "ms": 3.6, "mew": 0.8, "ls": ""}


def figure(cpu: list[Results]) -> Figure:
    places = {}  # of the bars, one for each number of threads
    for k, (layer, peer) in enumerate(product(LAYERS, PEERS)):
        start = k * len(cpu) + GAP * LAYERS.index(layer)
        places[layer, peer] = [start + thread for thread in range(len(cpu))]
    last = places[LAYERS[-1], peer][-1]
    made = Figure(figsize=(WIDTH, 1.47 + 0.17 * last), layout="constrained")
    panels = made.subplots(1, len(MODES), sharex=True, sharey=True)
    for axes, mode in zip(panels, MODES, strict=True):
        for (layer, peer), own in places.items():
            _bars(axes, own, cpu, layer, mode, peer)
        axes.set_title(f"times faster, {mode}")
        axes.axvline(1, color="black", lw=1)
        axes.annotate("1x = as fast", (1, -0.95), **BESIDE)
        axes.xaxis.set_major_formatter(FuncFormatter(times))
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    middles = [mean([place for peer in PEERS for place in places[layer, peer]]) for layer in LAYERS]
    panels[0].set_yticks(middles, LAYERS, fontweight="bold")
    panels[0].set_ylim(last + 0.6, -1.4)
    panels[0].set_xlim(0, 1.14 * max(axes.dataLim.xmax for axes in panels))
    _explain(made, cpu)
    return made


def lines_of(results: Results, layer: str, mode: str) -> list[Line]:
    """The plain lines, one for each shape."""
    return groups(results.lines).get((PLAIN, layer, mode), [])


def why_missing(results: Results, peer: str, mode: str) -> str:
    """Why there are no plain lines of a peer."""
    for text, where in results.left_out.items():
        name, _, reason = text.partition(": ")
        if name == peer and f"{PLAIN} {mode}" in where:
            return f"{peer}: {reason}"
    version = results.peers.get(peer, "not measured")
    return f"{peer}: {version if version.startswith('not ') else 'not measured'}"


def times(value: float, _=None) -> str:
    return f"{value:g}x"


def _color(peer: str, results: Results, cpu: list[Results]) -> tuple[float, ...]:
    """A peer's; the fewer threads, the paler."""
    pale = 0.55 * (len(cpu) - 1 - cpu.index(results)) / max(1, len(cpu) - 1)
    return tuple(pale + (1 - pale) * part for part in to_rgb(PEERS[peer]))


def _bars(axes: Axes, places: list[float], cpu: list[Results], layer: str, mode: str, peer: str) -> None:
    """Of one layer against one peer; in their place, why there are none."""
    by_threads = [list(ratios(lines_of(results, layer, mode), peer)) for results in cpu]
    if not any(by_threads):
        axes.annotate(why_missing(cpu[-1], peer, mode), (1, mean(places)), color=GREY, **BESIDE)
    for place, results, found in zip(places, cpu, by_threads, strict=True):
        if found:
            numbers = [ratio for _, ratio in found]
            length, doubt = geomean(numbers), mark(line for line, _ in found)
            axes.barh(place, length, THICKNESS, color=_color(peer, results, cpu))
            axes.annotate(f"{length:.2f}x{doubt}", (length, place), **BESIDE)
            if len(numbers) > 1:
                axes.plot(min(numbers), place, **DIAMOND)


def _explain(made: Figure, cpu: list[Results]) -> None:
    handles = [
        Patch(color=_color(peer, results, cpu), label=f"than {peer}, {plural(results.threads, 'thread')}")
        for peer in PEERS
        for results in cpu
    ]
    shapes = len({line.work.shape for results in cpu for line in results.lines if line.work.group == PLAIN})
    if shapes > 1:
        handles.append(Line2D([], [], label=f"worst of {shapes} shapes", **DIAMOND))
    made.legend(handles=handles, loc="outside upper left", ncols=(len(handles) + 1) // 2, fontsize=8.5)
    what = f"geometric means over {shapes} shapes" if shapes > 1 else "one shape"
    lines = [f"float32, {what}; {machine(cpu[-1])}"]
    if any(mark(lines_of(results, layer, mode)) for results in cpu for layer in LAYERS for mode in MODES):
        lines.append(f"{DOUBT} not to be relied on: a spread of more than {LARGEST_SPREAD:.0%}, or a busy machine")
    made.supxlabel("\n".join(lines), fontsize=8, color=GREY)
