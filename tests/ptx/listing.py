"""A kernel's PTX by statement, each with the functions that it stands in, for tests that change it or report on it."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

from . import names

LOC = re.compile(r"\s*\.loc\s+(\d+) (\d+) (\d+)(?:, function_name ([^,]+), inlined_at (\d+) (\d+) (\d+))?")
FILE = re.compile(r'\s*\.file\s+(\d+)\s+"([^"]+)"')


class Frame(NamedTuple):
    function: str  # its short name
    path: str
    line: int  # of the source, for people

    def __str__(self):
        return f"{self.function} ({Path(self.path).name}:{self.line})"

    def source(self) -> str:
        """Its line of the source, for reports: nothing is found by it."""
        path = Path(self.path)
        lines = _lines(path)
        return f"{path.name}:{self.line}: {lines[self.line - 1].strip() if 0 < self.line <= len(lines) else ''}"


class Statement(NamedTuple):
    line: int  # of the PTX
    opcode: str
    text: str  # without a line break
    frames: tuple[Frame, ...]  # of the function that it stands in, then of the one that this was inlined in, and so on
    executed: int  # how often, by how few lanes ever, since counts were last reset

    @property
    def functions(self) -> str:
        """Its own, and after each < the one that this was inlined in; the kernel's is the last."""
        return " < ".join(frame.function for frame in self.frames)


@functools.cache
def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n") if path.exists() else []


def _frames_by_line(text: list[str], kernel: str) -> dict[int, tuple[Frame, ...]]:
    """Of every line of a kernel's PTX. A .loc tells the place that it was inlined at, and one before it tells about
    that."""
    files = dict(match.groups() for line in text if (match := FILE.match(line)))
    first = next(number for number, line in enumerate(text, 1) if f".entry {kernel}(" in line)
    last = text.index("}", first)
    locs = {number: match for number in range(first, last) if (match := LOC.match(text[number - 1]))}
    functions = names.by_label(text, {match[4] for match in locs.values()})
    functions[None] = names.short(kernel)
    known: dict[tuple, tuple] = {}  # the frames of a .loc, its own first
    found, now = {}, ()
    for number in range(first, last):
        if match := locs.get(number):
            place, at = match.group(1, 2, 3), match.group(5, 6, 7)
            own = Frame(functions[match[4]], files[place[0]], int(place[1]))
            now = known[place] = (own, *known[at]) if match[4] else (own,)
        found[number] = now
    return found


@functools.lru_cache(maxsize=64)
def _parts(machine, kernel: str) -> tuple[list[str], dict[int, tuple[Frame, ...]]]:
    text = machine.text_of(kernel)
    return text, _frames_by_line(text, kernel)


def statements(machine, kernel: str) -> list[Statement]:
    """Of a kernel that is not changed now. What one line of PTX makes several instructions of is there once."""
    text, frames = _parts(machine, kernel)
    counts = machine.counts(kernel)
    found: dict[int, Statement] = {}
    for (line, opcode, _, _), (executed, *_) in zip(counts.lines, counts.numbers, strict=True):
        if line > 0:
            found[line] = Statement(line, opcode, text[line - 1], frames[line], int(executed))
    return list(found.values())
