"""The plots, as SVG: ratios shape by shape, times against the machine's limits, times against T, B and H."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from .markdown import measured
from .results import LARGEST_SPREAD, Line, Results, plural
from .suites import LAYERS, MODES, PLAIN, SCALING, SCALING_BASE, SHAPES

COLORS = {"LSTM": "#0072b2", "GRU": "#d55e00", "RNN": "#009e73"}
MARKERS = {"torch.nn": "o", "ONNX Runtime": "D", "OpenVINO": "s", "JAX": "x"}
SIDE_COLORS = {"ours": "#0072b2", "torch.nn": "#d55e00", "JAX": "#777777"}
GREY = "#777777"
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # keep text as text: small, searchable files
    "svg.hashsalt": "benchmarks",  # reproducible files
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(cpu: list[Results], folder: Path) -> dict[Path, str]:
    """Writes the plots that there is data for; returns the files with their titles."""
    drawn = {}
    with matplotlib.rc_context(STYLE):
        for name, title, figure in (
            ("ratios", "How many times faster than each peer, shape by shape", ratios(cpu)),
            ("roofline", "Rates reached, below the machine's limits", roofline(cpu[-1])),
            ("scaling", "Time of a training step against T, B and H", scaling(cpu[-1])),
        ):
            if figure is not None:
                path = folder / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
                # matplotlib leaves trailing blanks, which linters reject.
                path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
                drawn[path] = title
    return drawn


def _mark(axes: Axes, x: float, y: float, line: Line) -> None:
    """A ring around what is not to be relied on."""
    if line.doubts:
        axes.plot(x, y, marker="o", mfc="none", color=GREY, ms=9, mew=0.8, ls="")


def _explain_marks(figure: Figure, lines: list[Line]) -> None:
    if any(line.doubts for line in lines):
        text = f"ringed: not to be relied on, a spread of more than {LARGEST_SPREAD:.0%} or a busy machine"
        figure.supxlabel(text, x=0.99, ha="right", fontsize=8, color=GREY)


def ratios(cpu: list[Results]) -> Figure:
    """A panel for each mode and number of threads, with a row for each shape and a lane in it for each layer."""
    figure = Figure(figsize=(10, 4.2 * len(cpu)), layout="constrained")
    panels = figure.subplots(len(cpu), 2, sharex=True, sharey=True, squeeze=False)
    for row, results in zip(panels, cpu, strict=True):
        for axes, mode in zip(row, MODES, strict=True):
            _ratio_panel(axes, [w for w in results.lines if (w.work.group, w.work.mode) == (PLAIN, mode)])
            axes.set_title(f"{mode}, {plural(results.threads, 'thread')}", loc="left", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("times faster than the peer")
    handles = [Line2D([], [], marker="s", ls="", color=color, label=layer) for layer, color in COLORS.items()]
    shown = [line for results in cpu for line in results.lines if line.work.group == PLAIN]
    for name in (name for name in MARKERS if name in measured(shown)):
        handles.append(Line2D([], [], marker=MARKERS[name], ls="", color="black", mfc="none", label=f"vs {name}"))
    _explain_marks(figure, shown)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _ratio_panel(axes: Axes, lines: list[Line]) -> None:
    lanes = {layer: 0.26 * (k - 1) for k, layer in enumerate(LAYERS)}
    for line in lines:
        y = SHAPES.index(line.work.shape) + lanes[line.work.layer]
        for opponent, marker in MARKERS.items():
            ratio = line.ratio(opponent)
            if ratio is not None:
                color = COLORS[line.work.layer]
                axes.plot(ratio, y, marker=marker, color=color, mfc=color if marker == "o" else "none", ms=4.5, ls="")
                _mark(axes, ratio, y, line)
    axes.axvline(1, color="black", lw=1)
    for k in range(1, len(SHAPES)):
        axes.axhline(k - 0.5, color="#e4e4e4", lw=0.7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(SHAPES)), [str(shape) for shape in SHAPES])
    axes.set_ylim(len(SHAPES) - 0.5, -0.5)


def roofline(results: Results) -> Figure | None:
    """Rates of the plain float32 layers over operations per byte of weights read, under the measured roofs."""
    lines = [line for line in results.lines if line.work.group == PLAIN and line.limit]
    if not lines:
        return None
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    apart = dict(zip(LAYERS, (0.87, 1, 1.15), strict=True))  # keeps the layers' dots apart
    for axes, mode in zip(panels, MODES, strict=True):
        own = [line for line in lines if line.work.mode == mode]
        _roofs(axes, results)
        for line in own:
            color, x = COLORS[line.work.layer], _intensity(line) * apart[line.work.layer]
            axes.plot(x, _rate(line, "torch.nn"), marker="o", mfc="white", color=color, ms=4.5, ls="")
            axes.plot(x, _rate(line, "ours"), marker="o", color=color, ms=4.5, ls="")
            for side in ("torch.nn", "ours"):
                _mark(axes, x, _rate(line, side), line)
        for batch, intensity in {line.work.shape.batch: _intensity(line) for line in own}.items():
            axes.annotate(f"B{batch}", (intensity, 0.02), xycoords=("data", "axes fraction"), ha="center", color=GREY)
        axes.set_title(f"{mode}, {plural(results.threads, 'thread')}, float32", loc="left", fontsize=10)
        axes.set_xlabel("operations for each byte of weights read")
        axes.grid(color="#eeeeee", lw=0.7)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("GFLOP/s of the layer's products")
    handles = [Line2D([], [], marker="s", ls="", color=color, label=layer) for layer, color in COLORS.items()]
    handles.append(Line2D([], [], marker="o", ls="", color="black", label="fused_rnn"))
    handles.append(Line2D([], [], marker="o", ls="", color="black", mfc="white", label="torch.nn"))
    _explain_marks(figure, lines)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _roofs(axes: Axes, results: Results) -> None:
    peak = results.limits["float32 GFLOP/s"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.3, 200)
    axes.set_ylim(peak / 300, 1.6 * peak)
    axes.axhline(peak, color=GREY, lw=1)
    above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "color": GREY}
    axes.annotate(f"multiply-adds {peak:.0f}", (4, peak), **above)  # where no dots are, as below
    for level in ("L1", "L2", "L3"):
        bandwidth = results.limits.get(f"{level} read GB/s")
        if bandwidth:
            axes.plot([0.3, peak / bandwidth], [0.3 * bandwidth, peak], color=GREY, lw=1, ls="--")
            at = 0.3 * (peak / bandwidth / 0.3) ** 0.25
            on_line = {"ha": "center", "va": "center", "color": GREY, "backgroundcolor": "white", "fontsize": 8}
            axes.text(at, at * bandwidth, level, **on_line)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _intensity(line: Line) -> float:
    return line.limit["operations"] / line.limit["weight_bytes"]


def _rate(line: Line, side: str) -> float:
    return line.limit["operations"] / line.ms(side) / 1e6


def scaling(results: Results) -> Figure | None:
    lines = {line.work.shape: line for line in results.lines if line.work.group == "scaling"}
    if not lines:
        return None
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    base = SCALING_BASE
    captions = {
        "steps": f"T, at B{base.batch} H{base.hidden}",
        "batch": f"B, at T{base.steps} H{base.hidden}",
        "hidden": f"H, at T{base.steps} B{base.batch}",
    }
    panels = figure.subplots(1, len(SCALING), sharey=True)
    for axes, (field, shapes) in zip(panels, SCALING.items(), strict=True):
        for side, color in SIDE_COLORS.items():
            own = [lines[s] for s in shapes if s in lines and side in lines[s].sides]
            points = [(getattr(line.work.shape, field), 1e3 * line.ms(side) / line.work.shape.steps) for line in own]
            label = {"ours": "fused_rnn"}.get(side, side)
            axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=1.5, color=color, label=label)
            for (x, y), line in zip(points, own, strict=True):
                _mark(axes, x, y, line)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([getattr(s, field) for s in shapes])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(captions[field])
        axes.grid(color="#eeeeee", lw=0.7)
    panels[0].set_ylabel("µs for each time step")
    panels[0].set_title(f"LSTM training, {plural(results.threads, 'thread')}", loc="left", fontsize=10)
    _explain_marks(figure, list(lines.values()))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure
