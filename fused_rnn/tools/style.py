"""The look of every figure: of the tools, the recipes and the benchmarks.

Backgrounds are white, so that a figure reads the same on a dark page. An SVG keeps its text as text and is the same
from run to run. Figures are ``WIDTH`` inches wide where they can be: wider ones are scaled down to a page's column, and
their text with them, most of all on a phone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 6.8
# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
GREY, GRID = "#666666", "#e4e4e4"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 120,
    "svg.fonttype": "none",
    "svg.hashsalt": "fused_rnn",
}


def save(figure: Figure, path: str | Path) -> Path:
    """Saves in the format of the path's suffix."""
    import matplotlib

    path = Path(path)
    is_svg = path.suffix == ".svg"
    settings: dict[Any, Any] = {name: STYLE[name] for name in STYLE if name.startswith(("savefig.", "svg."))}
    with matplotlib.rc_context(settings):
        figure.savefig(path, metadata={"Date": None} if is_svg else None)
    if is_svg:  # matplotlib leaves trailing blanks, which linters refuse
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path


def keep_blanks(text: str) -> str:
    """``text`` with blanks that an SVG's reader does not run together, as it does plain ones."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
