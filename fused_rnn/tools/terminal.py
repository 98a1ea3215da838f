"""Text for a terminal: colours and line breaks there, plain text in files and pipes.

These few lines are all that the commands need, so no library for it is a dependency.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap


def bold(text: str) -> str:
    """For names."""
    return _styled(text, "1")


def red(text: str) -> str:
    """For what failed."""
    return _styled(text, "31")


def wrapped(text: str, indent: int) -> str:
    """The text in lines as wide as the terminal, or in one; each begins with ``indent`` blanks."""
    margin = " " * indent
    if not sys.stdout.isatty():
        return margin + text
    width = max(shutil.get_terminal_size().columns, indent + 30)
    return textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin)


def _styled(text: str, code: str) -> str:
    """https://no-color.org: no colours where NO_COLOR is set and not empty."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\033[{code}m{text}\033[0m"
