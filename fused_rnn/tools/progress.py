"""A progress bar on stderr; silent if stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], total: int | None, describe: Callable[[Any], str] = str, show: bool = True
) -> Iterator[Item]:
    """Yields ``items`` and draws a bar with ``describe(item)`` beside it, or only a count if the total is unknown."""
    show = show and sys.stderr.isatty()
    try:
        for done, item in enumerate(items):
            if show:
                line = f"{_bar(done, total)} {describe(item)}"
                print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            yield item
    finally:  # also if left early or by an error
        if show:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _bar(done: int, total: int | None) -> str:
    if total is None:
        return f"{done}"
    filled = 24 * min(done, total) // total
    return "█" * filled + "░" * (24 - filled) + f" {done}/{total}"
