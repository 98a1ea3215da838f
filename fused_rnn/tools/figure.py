"""The tools' figures, drawn without pyplot: no windows, no global state."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path


def figure(width: float, height: float, panels: int = 1):
    """A matplotlib figure and its panels, side by side."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from error
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e4e4e4", lw=0.7)
        one.set_axisbelow(True)
    return made, axes


def styles() -> Iterator[dict]:
    """Styles for successive lines: ten colours, then the same with other dashes."""
    return cycle({"color": f"C{color}", "ls": dash} for dash, color in product(("-", "--", ":"), range(10)))


def save(made, path: str | Path) -> Path:
    """Saves in the format of the path's suffix; SVGs are reproducible, and their text stays text."""
    import matplotlib

    path = Path(path)
    is_svg = path.suffix == ".svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fused_rnn"}):
        made.savefig(path, dpi=120, metadata={"Date": None} if is_svg else None)
    if is_svg:  # matplotlib leaves trailing blanks, which linters refuse
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path
