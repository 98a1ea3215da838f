"""The plots, as SVG: bars for the front page; ratios shape by shape, times against the machine's limits and against
T, B and H for the documentation."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from fused_rnn.tools.style import AMBER, BLUE, GREEN, GREY, GRID, ORANGE, STYLE, WIDTH, save

from . import speedup
from .markdown import measured
from .results import LARGEST_SPREAD, Line, Results, plural
from .roofline import TILE_PRODUCTS
from .speedup import lines_of, times, why_missing
from .suites import LAYERS, MODES, PLAIN, SCALING, SCALING_BASE, SHAPES

COLORS = {"LSTM": BLUE, "GRU": ORANGE, "RNN": GREEN}
SIDE_COLORS = {"ours": BLUE, "torch.nn": ORANGE, "ONNX Runtime": GREEN, "OpenVINO": AMBER, "JAX": GREY}
OUTLIER = 10  # ratios from here on are written beside their dots


def draw(cpu: list[Results], folder: Path) -> dict[Path, str]:
    """Writes the front page's picture and the plots that there is data for; returns the plots' files and titles."""
    drawn = {}
    with matplotlib.rc_context(STYLE):
        save(speedup.figure(cpu), folder / speedup.NAME)
        for name, title, figure in (
            ("ratios", "How many times faster than each peer, shape by shape", ratios(cpu)),
            ("roofline", "Rates reached, below the machine's limits", roofline(cpu[-1])),
            ("scaling", "Time of a training step against T, B and H", scaling(cpu[-1])),
        ):
            if figure is not None:
                drawn[save(figure, folder / f"{name}.svg")] = title
    return drawn


def _mark(axes: Axes, x: float, y: float, line: Line) -> None:
    """A ring around what is not to be relied on."""
    if line.doubts:
        axes.plot(x, y, marker="o", mfc="none", color=GREY, ms=9, mew=0.8, ls="")


def _explain_marks(figure: Figure, lines: list[Line], *notes: str) -> None:
    """What the rings mean, if there are any, below ``notes``."""
    said = ["; ".join(notes)] if notes else []
    if any(line.doubts for line in lines):
        said.append(
            f"ringed: not to be relied on, times spread by more than {LARGEST_SPREAD:.0%} or the machine was busy"
        )
    if said:
        figure.supxlabel("\n".join(said), x=0.99, ha="right", fontsize=8, color=GREY)


def ratios(cpu: list[Results]) -> Figure:
    """A panel for each layer and mode, with a row for each shape and a lane in it for each peer."""
    figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    panels = figure.subplots(len(LAYERS), len(MODES), sharex=True, sharey=True)
    shown = [line for results in cpu for line in results.lines if line.work.group == PLAIN]
    peers = [peer for peer in SIDE_COLORS if peer != "ours" and peer in measured(shown)]
    missing: dict[str, None] = {}  # why peers are in none of a panel's rows, each reason once
    for layer, row in zip(LAYERS, panels, strict=True):
        for axes, mode in zip(row, MODES, strict=True):
            _ratio_panel(axes, [lines_of(results, layer, mode) for results in cpu], peers)
            axes.set_title(f"{layer}, {mode}")
            absent = [peer for peer in peers if not any(peer in w.sides for r in cpu for w in lines_of(r, layer, mode))]
            missing.update(dict.fromkeys(why_missing(cpu[-1], peer, mode) for peer in absent))
    for axes in panels[-1]:
        axes.set_xlabel("times faster")
    axes.set_xlim(right=1.8 * max(axes.dataLim.xmax for axes in panels.flat))  # room for the last number
    dot = {"marker": "o", "ls": "", "ms": 4.5}
    handles = [Line2D([], [], color=SIDE_COLORS[peer], label=f"than {peer}", **dot) for peer in peers]
    if len(cpu) > 1:
        for results, filling in ((cpu[0], "white"), (cpu[-1], "black")):
            handles.append(Line2D([], [], color="black", mfc=filling, label=plural(results.threads, "thread"), **dot))
    _explain_marks(figure, shown, *missing)
    figure.legend(handles=handles, loc="outside upper center", ncols=(len(handles) + 1) // 2)
    return figure


def _ratio_panel(axes: Axes, by_threads: list[list[Line]], peers: list[str]) -> None:
    """Fewest threads hollow, most threads filled."""
    lane = 0.8 / max(1, len(peers))
    for k, peer in enumerate(peers):
        color, offset = SIDE_COLORS[peer], lane * (k - (len(peers) - 1) / 2)
        ends: dict[float, list[float]] = {}
        for lines in by_threads:
            filling = color if lines is by_threads[-1] else "white"
            for line in lines:
                ratio, y = line.ratio(peer), SHAPES.index(line.work.shape) + offset
                if ratio is not None:
                    ends.setdefault(y, []).append(ratio)
                    axes.plot(ratio, y, marker="o", color=color, mfc=filling, ms=4, mew=0.9, ls="", zorder=3)
                    _mark(axes, ratio, y, line)
        for y, found in ends.items():
            axes.plot([min(found), max(found)], [y, y], color=color, lw=1)
            if max(found) >= OUTLIER:
                # Lanes are closer than lines of text: numbers of neighbouring lanes lean away from each other.
                lean = "bottom" if k % 2 == 0 else "top"
                beside = {"textcoords": "offset points", "va": lean, "color": color, "fontsize": 7.5}
                axes.annotate(times(float(f"{max(found):.2g}")), (max(found), y), (5, 0), **beside)
    axes.axvline(1, color="black", lw=1)
    for k in range(1, len(SHAPES)):
        axes.axhline(k - 0.5, color=GRID, lw=0.7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(times))
    axes.xaxis.get_major_locator().set_params(subs=(1, 3))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.grid(axis="x")
    axes.set_yticks(range(len(SHAPES)), [str(shape) for shape in SHAPES])
    axes.set_ylim(len(SHAPES) - 0.5, -0.5)


def roofline(results: Results) -> Figure | None:
    """Rates of the plain float32 layers over operations per byte of weights read, under the measured roofs."""
    lines = [line for line in results.lines if line.work.group == PLAIN and line.limit]
    if not lines:
        return None
    figure = Figure(figsize=(WIDTH, 7), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    apart = dict(zip(LAYERS, (0.87, 1, 1.15), strict=True))  # keeps the layers' dots apart
    for axes, mode in zip(panels, MODES, strict=True):
        own = [line for line in lines if line.work.mode == mode]
        _roofs(axes, results, min(_rate(line, side) for line in lines for side in ("torch.nn", "ours")))
        for line in own:
            color, x = COLORS[line.work.layer], _intensity(line) * apart[line.work.layer]
            axes.plot(x, _rate(line, "torch.nn"), marker="o", mfc="white", color=color, ms=4.5, ls="")
            axes.plot(x, _rate(line, "ours"), marker="o", color=color, ms=4.5, ls="")
            for side in ("torch.nn", "ours"):
                _mark(axes, x, _rate(line, side), line)
        for batch, intensity in {line.work.shape.batch: _intensity(line) for line in own}.items():
            axes.annotate(f"B{batch}", (intensity, 0.02), xycoords=("data", "axes fraction"), ha="center", color=GREY)
        axes.set_title(f"{mode}, {plural(results.threads, 'thread')}, float32")
        axes.grid()
        axes.set_ylabel("GFLOP/s of the layer's products")
    where = "L1, L2, L3: where weights are read from that cache at every step"
    panels[-1].set_xlabel(f"operations for each byte of weights read (B: rows of the batch)\n{where}")
    handles = [Line2D([], [], marker="s", ls="", color=color, label=layer) for layer, color in COLORS.items()]
    handles.append(Line2D([], [], marker="o", ls="", color="black", label="fused_rnn"))
    handles.append(Line2D([], [], marker="o", ls="", color="black", mfc="white", label="torch.nn"))
    _explain_marks(figure, lines)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _roofs(axes: Axes, results: Results, lowest: float) -> None:
    peak = results.limits["float32 GFLOP/s"]
    on_tiles = results.limits.get("bfloat16_amx GFLOP/s", 0) / TILE_PRODUCTS
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.3, 200)
    axes.set_ylim(lowest / 2.5, 1.6 * max(peak, on_tiles))
    axes.axhline(peak, color=GREY, lw=1)
    above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "color": GREY, "fontsize": 8}
    axes.annotate(f"vector units {peak:.0f}", (4, peak), **above)  # where no dots are, as below
    if on_tiles > peak:
        axes.axhline(on_tiles, color=GREY, lw=1, ls="-.")
        text = f"matrix tiles (AMX) {on_tiles:.0f}: {TILE_PRODUCTS} products of bfloat16 for one of float32"
        axes.annotate(text, (7.7, on_tiles), **above)
    for level in ("L1", "L2", "L3"):
        bandwidth = results.limits.get(f"{level} read GB/s")
        if bandwidth:
            axes.plot([0.3, peak / bandwidth], [0.3 * bandwidth, peak], color=GREY, lw=1, ls="--")
            at = 0.42
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
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    base = SCALING_BASE
    captions = {
        "steps": f"T, at B{base.batch} H{base.hidden}",
        "batch": f"B, at T{base.steps} H{base.hidden}",
        "hidden": f"H, at T{base.steps} B{base.batch}",
    }
    panels = figure.subplots(1, len(SCALING), sharey=True)
    for axes, (field, shapes) in zip(panels, SCALING.items(), strict=True):
        for side, color in SIDE_COLORS.items():
            if not any(side in line.sides for line in lines.values()):
                continue
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
        axes.grid()
    panels[0].set_ylabel("µs for each time step")
    panels[0].set_title(f"LSTM training, {plural(results.threads, 'thread')}")
    _explain_marks(figure, list(lines.values()))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure
