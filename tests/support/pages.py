"""The Markdown pages of the project: their snippets of Python, headings and links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from support.paths import ROOT

DOCS = ROOT / "docs"
# A fence, with what stands behind it, and the comment right before it that names the packages it needs.
_FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>[\w ]+) -->\n)?^(?P<fence>`{3,})(?P<kind>[^\n`]*)\n(?P<body>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Snippet(NamedTuple):
    """A block of Python, and the packages without which it is left out."""

    line: int
    needs: tuple[str, ...]
    source: str


def pages() -> list[Path]:
    """All that a reader is sent to."""
    beside = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
    return [*(ROOT / name for name in beside), *sorted(DOCS.rglob("*.md"))]


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        if match["kind"] == "python":
            line = text.count("\n", 0, match.start("body"))
            found.append(Snippet(line, tuple((match["needs"] or "").split()), match["body"]))
    return found


def without_code(text: str) -> str:
    return _INLINE_CODE.sub("``", _FENCE.sub("", text))


def links(text: str) -> list[str]:
    """The targets of the links and pictures of a page."""
    return _LINK.findall(without_code(text))


def anchors(text: str) -> set[str]:
    """What links within a page may name: a slug for each heading, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ +(.+?) *$", without_code_blocks(text), re.MULTILINE)
    explicit = re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    return {slug(heading) for heading in headings} | set(explicit)


def without_code_blocks(text: str) -> str:
    return _FENCE.sub("", text)


def slug(heading: str) -> str:
    plain = re.sub(r"<[^>]*>|[`*]", "", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading))
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
