"""Which of several statements of a kernel is meant, by how they stand to others."""

import re
from collections.abc import Callable

from .listing import Statement

# From all statements of a kernel and those that fit: which of these are meant.
Which = Callable[[list[Statement], list[Statement]], list[Statement]]

WRITES = re.compile(r"(?:@!?%\w+\s+)?(?!st|bra|bar|red|mbarrier|fence)[a-z][\w.:]*\s+(%\w+),")
CONDITION = re.compile(r"@!?(%\w+)\s+bra|\bselp\..*(%\w+);")
PASSES_ON = re.compile(r"(setp|selp|and|or|xor|not|mov|cvt)\.")  # what a condition is made by
ZERO = re.compile(r"mov\.\w+\s+%\w+, (0|0[fd]0+);")
STORED = re.compile(r"st\.\S+\s+\[\S+\], (%\w+);")


def all_that_fit(_: list[Statement], fit: list[Statement]) -> list[Statement]:
    return fit


def both(first: Which, second: Which) -> Which:
    """What the second means of what the first does."""
    return lambda statements, fit: second(statements, first(statements, fit))


def decided_by(functions: str) -> Which:
    """Branches and selects whose condition comes from such functions, through comparisons and logic alone."""

    def which(statements, fit):
        definitions = _definitions(statements)
        conditions = ((s, CONDITION.search(s.text)) for s in fit)
        return [s for s, found in conditions if found and _comes_from(functions, found[1] or found[2], definitions)]

    return which


def _comes_from(functions: str, register: str, definitions: dict[str, list[Statement]]) -> bool:
    waiting, seen = [register], {register}
    while waiting:
        for statement in definitions.get(waiting.pop(), ()):
            if re.search(functions, statement.functions):
                return True
            if PASSES_ON.match(statement.opcode):
                read = set(re.findall(r"%\w+", statement.text)) - seen
                waiting += read
                seen |= read
    return False


def last_before(functions: str) -> Which:
    """The last one before each run of statements of such functions."""

    def which(statements, fit):
        found, last, lines = [], None, {s.line for s in fit}
        for statement in statements:
            if statement.line in lines:
                last = statement
            elif last and re.search(functions, statement.functions):
                found.append(last)
                last = None
        return found

    return which


def stores_of_zero(statements: list[Statement], fit: list[Statement]) -> list[Statement]:
    """Of a register that never is anything else."""
    zeros = {r for r, made in _definitions(statements).items() if all(ZERO.fullmatch(s.text.strip()) for s in made)}
    return [s for s in fit if (found := STORED.search(s.text)) and found[1] in zeros]


def _definitions(statements: list[Statement]) -> dict[str, list[Statement]]:
    """By register, what it is written by."""
    found: dict[str, list[Statement]] = {}
    for statement in statements:
        if match := WRITES.match(statement.text.strip()):
            found.setdefault(match[1], []).append(statement)
    return found
