"""What single units of the character model keep track of:  python examples/hidden_units.py

Shows: a page, ``hidden_units.html``, that colours the text of these recipes by one unit's activation, red below zero
and blue above; and the search that found the units: those whose states correlate most with being inside quotes, inside
a comment, the column, the indentation, being in the body of an ``if``. The model was not trained on any of these. It is
the one that ``char_lm.py`` saved; if there is none it is trained first.

Checks that on held-out text, other than that which the units were chosen on, each of the five correlations beats those
of the same search for shuffled targets: targets shifted along the text, so that their runs stay intact.
"""

from __future__ import annotations

import argparse
import ast
import html
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import recipe
import torch
from char_lm import CHECKPOINT, VOCABULARY, CharLM, Training, library_files, read, trained
from torch import Tensor

LEVELS = 8  # of colour, on each side of white


def tracked(source: str) -> dict[str, Tensor]:
    """What units may keep track of in a Python file: a number after each character, ``[N]`` each."""
    lines = list(io.StringIO(source))
    begins = torch.tensor([0, *map(len, lines)]).cumsum(0).tolist()  # of the lines, and the end of the file

    def marked(spans: list[tuple[int, int]]) -> Tensor:
        marks = torch.zeros(len(source))
        for first, last in spans:
            marks[first:last] = 1
        return marks

    quotes, comments, opened = [], [], []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        first, last = (begins[line - 1] + column for line, column in (token.start, token.end))
        if kind == "FSTRING_START":  # since Python 3.12 an f-string is more than one token
            opened.append(first)
        elif kind == "FSTRING_END":
            first = opened.pop()
        if kind in ("STRING", "FSTRING_END"):
            quotes.append((first, last - 1))  # the string ends at the closing quote
        elif kind == "COMMENT":
            comments.append((first, last))
    bodies = [node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]
    blocks = [(begins[body[0].lineno - 1], begins[body[-1].end_lineno]) for body in bodies]
    columns, indents = [], []
    for line in lines:
        body = line.removesuffix("\n")
        column, back = torch.arange(1, len(body) + 1), torch.zeros(len(line) - len(body))  # a new line starts at 0
        columns += column.clamp(max=80), back
        indents += column.clamp(max=len(body) - len(body.lstrip(" "))), back
    return {
        "quotes": marked(quotes),
        "comments": marked(comments),
        "place in the line": torch.cat(columns),
        "indentation": torch.cat(indents),
        "body of an if": marked(blocks),
    }


class Recording(NamedTuple):
    text: str
    states: Tensor
    """After each character ``[N, H]``."""
    targets: dict[str, Tensor]
    """From :func:`tracked`, ``[N]`` each."""


@torch.no_grad()
def record(model: CharLM, files: Iterable[Path], limit: int, device: torch.device) -> Recording:
    """Reads files, each from its beginning, up to about ``limit`` characters in total."""
    texts, states, targets = [], [], []
    for file in files:
        ids, _ = read([file], limit)
        # Other characters than ASCII become letters, for Python's parser.
        text = "".join("x" if i == VOCABULARY - 1 else chr(i) for i in ids.tolist())
        text = text.replace("\r", " ").replace("\f", " ")
        try:
            of_file = tracked(text)
        except (SyntaxError, tokenize.TokenError):  # cut off by the limit
            continue
        texts.append(text)
        states.append(model.states(ids.unsqueeze(-1).to(device), None)[0].squeeze(1).cpu())
        targets.append(of_file)
        if sum(map(len, texts)) >= limit:
            break
    together = {name: torch.cat([of_file[name] for of_file in targets]) for name in targets[0]}
    return Recording("".join(texts), torch.cat(states), together)


def standard(columns: Tensor) -> Tensor:
    """Columns ``[N, K]`` with zero mean and unit norm: their products are correlations."""
    columns = columns - columns.mean(0)
    return columns / columns.norm(dim=0).clamp(min=1e-9)


class Found(NamedTuple):
    unit: int
    correlation: float
    shuffled: float


def search(recording: Recording, shuffles: int = 20) -> dict[str, Found]:
    """The unit for each target, chosen on the first half of the text, and its correlation on the second half.

    ``shuffled`` is the largest correlation that this search finds for targets shifted by random distances.
    """
    half = len(recording.text) // 2
    choosing, judging = (standard(states) for states in (recording.states[:half], recording.states[half:]))
    found = {}
    for name, target in recording.targets.items():
        moves = torch.randint(len(target) // 10, len(target) - len(target) // 10, (shuffles,)).tolist()
        targets = torch.stack([target.roll(move) for move in [0, *moves]], -1)
        units = (standard(targets[:half]).T @ choosing).abs().argmax(-1)
        reached = (standard(targets[half:]).T @ judging).gather(-1, units.unsqueeze(-1)).squeeze(-1)
        found[name] = Found(int(units[0]), reached[0].item(), reached[1:].abs().max().item())
    return found


COLORS = ("#d3302f", "#1f5fbf")  # below zero, above


def coloured(text: str, activations: Tensor) -> str:
    """The text as HTML, with activations, from -1 to 1, as background colours."""
    levels = (activations * LEVELS).round().int().tolist()
    pieces, start = [], 0
    for end in range(1, len(text) + 1):
        if end == len(text) or levels[end] != levels[start]:
            level, piece = levels[start], html.escape(text[start:end])
            pieces.append(f'<i class="{"np"[level > 0]}{abs(level)}">{piece}</i>' if level else piece)
            start = end
    return "".join(pieces)


def telling_part(text: str, target: Tensor, length: int) -> slice:
    """The part, from the beginning of a line, where the target varies most."""
    begins = [0] + [i + 1 for i, character in enumerate(text[:-length]) if character == "\n"]
    start = max(begins, key=lambda i: target[i : i + length].var().item())
    return slice(start, start + length)


def page(recording: Recording, found: dict[str, Found], length: int = 900) -> str:
    """The search's results as a table, then for each target a coloured part of the text."""
    text, states, targets = recording
    shades = [
        f".{kind}{level} {{ background: {color}{255 * level // LEVELS:02x}; }}"
        for kind, color in zip("np", COLORS, strict=True)
        for level in range(1, LEVELS + 1)
    ]
    rows, sections = [], []
    for name, (unit, correlation, shuffled) in found.items():
        rows.append(f"<tr><td>{name}<td>{unit}<td>{correlation:+.2f}<td>{shuffled:.2f}")
        part = telling_part(text, targets[name], length)
        body = coloured(text[part], states[part, unit])
        sections.append(f"<h2>{name}: unit {unit}</h2>\n<pre>{body}</pre>")
    style = "\n".join(
        [
            "body { font: 15px/1.4 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111; }",
            "pre { font: 12px/1.35 monospace; white-space: pre-wrap; } i { font-style: normal; }",
            "td, th { text-align: right; padding: 0 1.2em 0 0; } td:first-child, th:first-child { text-align: left; }",
            "h2 { font-size: 1em; margin-top: 2em; }",
            *shades,
        ]
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What single units keep track of</title>
<style>
{style}
</style>
<h1>What single units keep track of</h1>
<p>A recurrent network has read Python, one character after another, to foretell the next. Of its
{states.shape[1]} units these follow best what is said of them. The text's background is the unit's activation after
each character:
<i class="n{LEVELS}">&nbsp;-1&nbsp;</i> <i class="n{LEVELS // 2}">&nbsp;-0.5&nbsp;</i> 0
<i class="p{LEVELS // 2}">&nbsp;0.5&nbsp;</i> <i class="p{LEVELS}">&nbsp;1&nbsp;</i>.</p>
<table><tr><th>what it follows<th>unit<th>correlation<th>of the unit found for a shuffled target, at most
{chr(10).join(rows)}
</table>
{chr(10).join(sections)}
</html>
"""


def model_of(args: argparse.Namespace) -> CharLM:
    """The model that char_lm.py saved; trained now if there is none."""
    checkpoint = args.out / CHECKPOINT.name if args.quick else CHECKPOINT
    if not checkpoint.exists():
        return trained(args, checkpoint)[0].model
    print(f"the model of {checkpoint}")
    return Training.load(checkpoint, args.layers, args.device).model


def main() -> None:
    args = recipe.arguments(__doc__)
    model = model_of(args)
    with recipe.timed("reading held-out files"):
        # A small model's correlations are weaker: it takes more text to tell them from chance.
        recording = record(model, library_files()[1], 600_000 if args.quick else 300_000, args.device)
    displayed = record(model, sorted(Path(__file__).parent.glob("*.py")), 100_000, args.device)
    found = search(recording)
    path = args.out / "hidden_units.html"
    path.write_text(page(displayed, found), encoding="utf-8")
    print(f"page: {path}")
    for name, (unit, correlation, shuffled) in found.items():
        print(f"  {name}: unit {unit}, correlation {correlation:+.3f}; with shuffled targets at most {shuffled:.3f}")
    for name, (_, correlation, shuffled) in found.items():
        recipe.check(
            f"{name}: correlation beyond that with shuffled targets", abs(correlation) - shuffled, at_least=0.05
        )

    def reading(layers):
        model = CharLM(layers, recording.states.shape[1]).to(args.device)
        ids = read(library_files()[1], 4000)[0].unsqueeze(-1).to(args.device)
        return lambda: model.states(ids, None)

    with torch.no_grad():
        recipe.compare(args, reading, what="reading 4000 characters")


if __name__ == "__main__":
    main()
