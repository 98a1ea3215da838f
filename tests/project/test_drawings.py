"""The drawings of docs/images: words keep to their boxes and off each other, in the widest of their fonts."""

import re
from itertools import combinations
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="matplotlib, of the test extra, has the font to measure with")

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from support.pages import DOCS

CELL = 40  # boxes up to this wide are cells of a grid, on which a word may lie across several
DRAWINGS = sorted((DOCS / "images").glob("*.svg"))


class Words(NamedTuple):
    said: str
    left: float
    right: float
    y: float
    size: float


def width(said: str, size: float, bold: bool, mono: bool) -> float:
    """In DejaVu Sans, which is wider than the other fonts that the drawings name."""
    font = FontProperties(
        family="DejaVu Sans Mono" if mono else "DejaVu Sans", weight="bold" if bold else "normal", size=size
    )
    return TextPath((0, 0), said, prop=font).get_extents().x1 if said.strip() else 0


def words_of(drawing: ElementTree.Element) -> list[Words]:
    found = []
    for text in drawing.iter("{http://www.w3.org/2000/svg}text"):
        size, x = float(text.get("font-size")), float(text.get("x"))
        mono = "mono" in text.get("font-family", "")
        long = width(text.text or "", size, text.get("font-weight") == "600", mono)
        for part in text:  # a tspan goes on where the words before it end
            long += float(part.get("dx", 0)) + width(part.text, float(part.get("font-size")), False, mono)
        left = x - long / 2 if text.get("text-anchor") == "middle" else x
        found.append(Words("".join(text.itertext()), left, left + long, float(text.get("y")), size))
    return found


def faults(source: str) -> list[str]:
    drawing = ElementTree.fromstring(source)
    boxes = [
        [float(box.get(name)) for name in ("x", "y", "width", "height")]
        for box in drawing.iter("{http://www.w3.org/2000/svg}rect")
    ]
    words, found = words_of(drawing), []
    for one in words:
        around = [box for box in boxes if box[0] <= one.left + 1 and box[1] < one.y < box[1] + box[3]]
        around = [(x, wide) for x, _, wide, _ in around if one.left < x + wide and wide > CELL]
        if not around:
            found.append(f"outside: {one.said}")
        elif one.right > (end := min(x + wide for x, wide in around)):
            found.append(f"{one.right - end:.0f} too wide: {one.said}")
    for one, other in combinations(words, 2):
        if abs(one.y - other.y) < 0.6 * min(one.size, other.size) and one.left < other.right and other.left < one.right:
            found.append(f"on each other: {one.said} / {other.said}")
    return found


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_words_of_drawings_have_room(path: Path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [("stacks, streams; swap, install, freeze, thaw, cells", "too wide"), ("x" * 200, "too wide")],
)
def test_words_without_room_are_seen(change, fault):
    source = (DOCS / "images/layers.svg").read_text()
    assert "gradients, tangents, vmap, norms" in source
    assert fault in "".join(faults(source.replace("gradients, tangents, vmap, norms", change)))


def test_words_on_words_are_seen():
    source = (DOCS / "images/layers.svg").read_text()
    moved = re.sub(r'<text x="\d+"( y="\d+"[^>]*>gradients)', r'<text x="60"\1', source)
    assert "on each other" in "".join(faults(moved))
