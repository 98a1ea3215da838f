"""What single units of the character model keep track of:  python examples/hidden_units.py

Shows: a page, ``hidden_units.html``, that colours the text of these recipes by one unit's activation, red below zero
and blue above; and the search that found the units: which one's states go up and down most closely with being within
quotes, within a comment, with the place in the line, the indentation, being within the body of an ``if``. Nobody told
the model of any of these. The model is the one that ``char_lm.py`` left; where there is none it is trained first.

Promises: on held-out text, other than that which the unit was chosen by, the correlation of each of the five units
beats what the same search arrives at with a shuffled target, one moved along the text so that its runs stay whole.
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

LEVELS = 8  # of colour, on either side of white


def tracked(source: str) -> dict[str, Tensor]:
    """What units may keep track of in a Python file, as it is after each character: ``[N]`` numbers each."""
    lines = list(io.StringIO(source))
    begins = torch.tensor([0, *map(len, lines)]).cumsum(0).tolist()  # of each line, and the end

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
            quotes.append((first, last - 1))  # at the closing quote the string is over
        elif kind == "COMMENT":
            comments.append((first, last))
    bodies = [node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]
    blocks = [(begins[body[0].lineno - 1], begins[body[-1].end_lineno]) for body in bodies]
    columns, indents = [], []
    for line in lines:
        body = line.removesuffix("\n")
        column, back = torch.arange(1, len(body) + 1), torch.zeros(len(line) - len(body))  # a new line begins at 0
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
    """As :func:`tracked` says, ``[N]`` each."""


@torch.no_grad()
def record(model: CharLM, files: Iterable[Path], limit: int, device: torch.device) -> Recording:
    """Reads files, each from its beginning, about ``limit`` characters of all."""
    texts, states, targets = [], [], []
    for file in files:
        ids, _ = read([file], limit)
        # What is not ASCII is a letter here, for Python's own parser.
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
    """Columns ``[N, K]`` about zero and of length one: products of them are correlations."""
    columns = columns - columns.mean(0)
    return columns / columns.norm(dim=0).clamp(min=1e-9)


class Found(NamedTuple):
    unit: int
    correlation: float
    shuffled: float


def search(recording: Recording, shuffles: int = 20) -> dict[str, Found]:
    """The unit for each target, chosen by the first half of the text, and its correlation on the second half.

    ``shuffled`` is the greatest that such a search arrives at with the target moved along by random distances.
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
    """The text as HTML, each character before the colour of its activation, from -1 to 1."""
    levels = (activations * LEVELS).round().int().tolist()
    pieces, start = [], 0
    for end in range(1, len(text) + 1):
        if end == len(text) or levels[end] != levels[start]:
            level, piece = levels[start], html.escape(text[start:end])
            pieces.append(f'<i class="{"np"[level > 0]}{abs(level)}">{piece}</i>' if level else piece)
            start = end
    return "".join(pieces)


def telling_part(text: str, target: Tensor, length: int) -> slice:
    """Where, from the beginning of a line on, the target varies most."""
    begins = [0] + [i + 1 for i, character in enumerate(text[:-length]) if character == "\n"]
    start = max(begins, key=lambda i: target[i : i + length].var().item())
    return slice(start, start + length)


def page(shown: Recording, found: dict[str, Found], length: int = 900) -> str:
    """The search's result as a table, then for each target a part of a text, coloured."""
    text, states, targets = shown
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
    """The model that char_lm.py left; trained now where there is none."""
    checkpoint = args.out / CHECKPOINT.name if args.quick else CHECKPOINT
    if not checkpoint.exists():
        return trained(args, checkpoint)[0].model
    print(f"the model of {checkpoint}")
    return Training.load(checkpoint, args.layers, args.device).model


def main() -> None:
    args = recipe.arguments(__doc__)
    model = model_of(args)
    with recipe.timed("reading held-out files"):
        # A small model's units follow less closely: it takes more text to tell that from chance.
        recording = record(model, library_files()[1], 600_000 if args.quick else 300_000, args.device)
    shown = record(model, sorted(Path(__file__).parent.glob("*.py")), 100_000, args.device)
    found = search(recording)
    path = args.out / "hidden_units.html"
    path.write_text(page(shown, found), encoding="utf-8")
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
