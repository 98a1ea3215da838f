"""The tools' figures, drawn without pyplot: no windows, no global state."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from . import style


def figure(width: float, height: float, panels: int = 1) -> tuple[Figure, Any]:
    """A matplotlib figure and its panels, side by side."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from error
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color=style.GRID, lw=0.7)
        one.set_axisbelow(True)
    return made, axes


def styles() -> Iterator[dict[str, str]]:
    """Styles for successive lines: ten colours, then the same with other dashes."""
    return cycle({"color": f"C{color}", "ls": dash} for dash, color in product(("-", "--", ":"), range(10)))


def save(made: Figure, path: str | Path) -> Path:
    """Saves in the format of the path's suffix; SVGs are reproducible, and their text stays text."""
    return style.save(made, path)
