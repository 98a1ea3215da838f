"""A progress bar on stderr, for what a person waits for. Silent when nobody watches (no terminal)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, describe=str, show: bool = True) -> Iterator[Item]:
    """Yields ``items``, drawing a bar with ``describe(item)`` beside it."""
    show = show and sys.stderr.isatty()
    for done, item in enumerate(items):
        if show:
            filled = 24 * done // total
            bar = "█" * filled + "░" * (24 - filled)
            print(f"\r\033[K{bar} {done}/{total} {describe(item)}", end="", file=sys.stderr, flush=True)
        yield item
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
