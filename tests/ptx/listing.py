"""A kernel's PTX by statement, each with its source lines, for tests that change it or report on it."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

LOC = re.compile(r"\s*\.loc\s+(\d+) (\d+) (\d+)(?:, function_name [^,]+, inlined_at (\d+) (\d+) (\d+))?")
FILE = re.compile(r'\s*\.file\s+(\d+)\s+"([^"]+)"')


class Frame(NamedTuple):
    file: str  # its name
    line: int
    text: str  # of that line


class Statement(NamedTuple):
    line: int  # of the PTX
    opcode: str
    text: str  # without a line break
    frames: tuple[Frame, ...]  # where it stands in the source, then where that was inlined, and so on
    executed: int  # how often, by how few lanes ever, since counts were last reset

    @property
    def origin(self) -> str:
        return "\n".join(f"{frame.file}: {frame.text}" for frame in self.frames)


@functools.cache
def _lines(path: str) -> list[str]:
    return Path(path).read_text().split("\n") if Path(path).exists() else []


@functools.cache
def _frame(path: str, line: int) -> Frame:
    lines = _lines(path)
    return Frame(Path(path).name, line, lines[line - 1].strip() if 0 < line <= len(lines) else "")


def _frames_by_line(text: list[str]) -> list[tuple[Frame, ...]]:
    """Of every line of the PTX. A .loc tells the place that it was inlined at, and one before it tells about that."""
    files = dict(match.groups() for match in map(FILE.match, text) if match)
    known: dict[tuple, tuple] = {}  # the places of a .loc, its own first
    frames: dict[tuple, tuple[Frame, ...]] = {(): ()}
    found, now = [], ()
    for line in text:
        if match := LOC.match(line):
            place, at = match.group(1, 2, 3), match.group(4, 5, 6)
            now = known[place] = (place, *(known.get(at, (at,)) if at[0] else ()))
            if now not in frames:
                frames[now] = tuple(_frame(files[file], int(number)) for file, number, _ in now if file in files)
        found.append(frames[now])
    return found


@functools.lru_cache(maxsize=64)
def _parts(machine, kernel: str) -> tuple[list[str], list[tuple[Frame, ...]]]:
    text = machine.text_of(kernel)
    return text, _frames_by_line(text)


def statements(machine, kernel: str) -> list[Statement]:
    """Of a kernel that is not changed now. What one line of PTX makes several instructions of is there once."""
    text, frames = _parts(machine, kernel)
    counts = machine.counts(kernel)
    found: dict[int, Statement] = {}
    for (line, opcode, _, _), (executed, *_) in zip(counts.lines, counts.numbers, strict=True):
        if line > 0:
            found[line] = Statement(line, opcode, text[line - 1], frames[line - 1], int(executed))
    return list(found.values())
