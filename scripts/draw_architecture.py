"""Draws the two pictures of docs/architecture.md: python scripts/draw_architecture.py

As SVG with text as text, on a ground of their own, so that they can be read on a dark page too.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
INK, SOFT, GROUND, EDGE = "#1c2733", "#5b6875", "#fbfcfe", "#c9d3de"
BLUE, GREEN, ORANGE, VIOLET, GREY = "#dcebf7", "#dff1e6", "#fbe8d3", "#e9e2f5", "#eceff3"
TIMES = "\N{MULTIPLICATION SIGN}"
MARK = {"fill": "none", "stroke": SOFT, "stroke-width": 1.6, "marker-end": "url(#tip)"}
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>'
)


class Drawing:
    """SVG, element by element."""

    def __init__(self, width: int, height: int, title: str):
        self.size, self.title = (width, height), title
        self.parts: list[str] = []
        self.box(0.5, 0.5, width - 1, height - 1, fill=GROUND, edge=EDGE, radius=10)

    def add(self, kind: str, content: str = "", **attributes) -> None:
        pairs = " ".join(f'{key}="{value}"' for key, value in attributes.items())
        self.parts.append(f"<{kind} {pairs}>{content}</{kind}>" if content else f"<{kind} {pairs}/>")

    def box(self, x, y, width, height, fill=BLUE, edge="#8aa0b5", radius=6) -> None:
        frame = {"fill": fill, "stroke": edge, "stroke-width": 1}
        self.add("rect", x=x, y=y, width=width, height=height, rx=radius, **frame)

    def text(self, x, y, words: str, size=14, fill=INK, anchor="start", bold=False, mono=False) -> None:
        look = {"font-size": size, "fill": fill, "text-anchor": anchor}
        if bold:
            look["font-weight"] = 600
        if mono:
            look["font-family"] = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
        self.add("text", escape(words), x=x, y=y, **look)

    def arrow(self, *points: tuple[float, float]) -> None:
        self.add("path", d="M" + "L".join(f"{x} {y}" for x, y in points), **MARK)

    def save(self, name: str) -> None:
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif">'
        )
        lines = [head, f"<title>{escape(self.title)}</title>", TIP, *self.parts, "</svg>"]
        (FOLDER / name).write_text("\n".join(lines) + "\n")


def layers() -> None:
    """Who calls whom, from a user's call down to the formula of a cell."""
    drawing = Drawing(760, 640, "The layers of the house")
    left, width, height, gap = 40, 470, 46, 20
    rows = [
        (BLUE, "fused_rnn/nn", "layers, cells; swap, freeze, streams", "Python"),
        (BLUE, "fused_rnn/ops", "checks of users' arguments, refusals", ""),
        (BLUE, "fused_rnn/autograd", "gradients, tangents, vmap, norms", ""),
        (VIOLET, "torch.ops.fused_rnn", "the operators", "torch"),
        (GREEN, "csrc/ops", "checks of arguments, allocation", "C++"),
        (GREEN, "csrc/core", "a call as sizes and pointers", ""),
    ]
    y = 30
    for fill, name, what, side in rows:
        drawing.box(left, y, width, height, fill)
        drawing.text(left + 14, y + 29, name, mono=True, bold=True, size=14)
        drawing.text(left + 206, y + 29, what, size=13, fill=SOFT)
        if side:
            drawing.text(left + width + 30, y + 29, side, size=14, fill=SOFT)
        if name != "csrc/core":
            drawing.arrow((left + width / 2, y + height), (left + width / 2, y + height + gap))
        y += height + gap
    cpu = (left, 226)
    gpu = (left + 244, 226)
    for (x, wide), name, parts in (
        (cpu, "csrc/cpu", ("schedule: who runs what", "passes: forward, backward", "gemm: matrix products")),
        (gpu, "csrc/cuda", ("plan: which kernel, what shape", "host: the loop over time", "stepwise, persistent")),
    ):
        drawing.arrow((x + wide / 2, y - gap), (x + wide / 2, y))
        drawing.box(x, y, wide, 110, ORANGE)
        drawing.text(x + 14, y + 26, name, mono=True, bold=True)
        for k, part in enumerate(parts):
            drawing.text(x + 14, y + 50 + 21 * k, part, size=13, fill=SOFT)
        drawing.arrow((x + wide / 2, y + 110), (x + wide / 2, y + 110 + gap))
    drawing.text(left + width + 30, y + 60, "one engine per device", fill=SOFT)
    y += 110 + gap
    drawing.box(left, y, width, height, GREEN)
    drawing.text(left + 14, y + 29, "csrc/cells", mono=True, bold=True)
    drawing.text(left + 130, y + 29, "the formulas, written once, for both devices", size=13, fill=SOFT)
    for above, name, what in (
        (96, "fused_rnn/tools", "explain, verify, ..."),
        (166, "fused_rnn/reference", "plain PyTorch, slow"),
    ):
        drawing.box(540, above, 195, 58, GREY)
        drawing.text(554, above + 24, name, mono=True, bold=True, size=13)
        drawing.text(554, above + 45, what, size=13, fill=SOFT)
    drawing.save("layers.svg")


def step() -> None:
    """One step of a run on the CPU, and what it reads and writes."""
    drawing = Drawing(860, 560, "One step of a run")
    text, box, arrow = drawing.text, drawing.box, drawing.arrow

    text(30, 36, "before, for the next few steps at once", size=13, fill=SOFT)
    box(30, 48, 150, 58, BLUE)
    text(105, 74, "input", anchor="middle", bold=True)
    text(105, 94, f"rows {TIMES} I", anchor="middle", size=12, fill=SOFT)
    text(196, 83, TIMES, size=20, fill=SOFT)
    box(220, 48, 150, 58, BLUE)
    text(295, 74, "W_ih, packed", anchor="middle", bold=True)
    text(295, 94, f"I {TIMES} all gates", anchor="middle", size=12, fill=SOFT)
    arrow((370, 77), (430, 77))
    box(432, 48, 200, 58, GREY)
    text(532, 74, "sums of W_ih x", anchor="middle", bold=True)
    text(532, 94, "or rows looked up, for ids", anchor="middle", size=12, fill=SOFT)

    text(30, 156, "at every step", size=13, fill=SOFT)
    box(30, 170, 150, 130, BLUE)
    text(105, 200, "h", anchor="middle", bold=True)
    text(105, 220, f"active rows {TIMES} P", anchor="middle", size=12, fill=SOFT)
    text(105, 250, "ended rows are last,", anchor="middle", size=12, fill=SOFT)
    text(105, 266, "reset rows are zero", anchor="middle", size=12, fill=SOFT)
    text(196, 240, TIMES, size=20, fill=SOFT)

    text(220, 164, "W_hh, packed into panels", size=13, bold=True)
    for k in range(3):
        x = 220 + 66 * k
        box(x, 174, 58, 126, GREEN, radius=3)
        for g, gate in enumerate("ifgo"):
            drawing.add("rect", x=x + 2 + 14 * g, y=176, width=12, height=122, fill="#b9dfc8" if g % 2 else "#cdead8")
            text(x + 8 + 14 * g, 243, gate, size=12, anchor="middle")
    text(428, 240, "...", size=18, fill=SOFT)
    text(220, 320, "a panel: all gates of the same units", size=12, fill=SOFT)

    arrow((450, 235), (500, 235))
    box(502, 185, 130, 100, ORANGE)
    text(567, 214, "tile", anchor="middle", bold=True)
    text(567, 236, f"rows {TIMES} a panel,", anchor="middle", size=12, fill=SOFT)
    text(567, 252, "in registers", anchor="middle", size=12, fill=SOFT)
    arrow((532, 106), (532, 183))

    arrow((632, 235), (682, 235))
    box(684, 185, 146, 100, VIOLET)
    text(757, 214, "cell", anchor="middle", bold=True)
    text(757, 236, "the epilogue of the", anchor="middle", size=12, fill=SOFT)
    text(757, 252, "tile, vector by vector", anchor="middle", size=12, fill=SOFT)
    box(684, 90, 146, 50, BLUE)
    text(757, 120, "c, as it enters", anchor="middle", size=13)
    arrow((757, 140), (757, 183))

    arrow((757, 285), (757, 372), (690, 372))
    arrow((757, 372), (757, 448), (690, 448))
    arrow((757, 448), (757, 516), (690, 516))
    box(120, 346, 568, 52, BLUE)
    text(136, 377, "next h, next c", bold=True)
    text(270, 377, "h is also the output [T, B, D*P], its direction's part", size=13, fill=SOFT)
    arrow((120, 372), (70, 372), (70, 302))
    box(120, 414, 568, 68, GREY)
    text(136, 440, "saved row", bold=True)
    text(270, 440, "only in training:", size=13, fill=SOFT)
    text(270, 466, "what the cell saves | h [P] and c [H] as they entered", size=13, fill=SOFT)
    box(120, 498, 568, 38, GREY)
    text(136, 522, "cells", bold=True)
    text(270, 522, "c after the step, if return_cells asks for it", size=13, fill=SOFT)
    drawing.save("step.svg")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    layers()
    step()
