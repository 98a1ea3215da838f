"""The folder of what this library keeps for its user: measurements, and compiled cells."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def folder() -> Path:
    """``FUSED_RNN_CACHE``, or fused_rnn in the user's folder for caches."""
    given = os.environ.get("FUSED_RNN_CACHE")
    if given:
        return Path(given).expanduser().resolve()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (base.expanduser() / "fused_rnn").resolve()


def make() -> Path:
    """Makes the folder, where nobody else may write: compiled cells are code."""
    found = folder()
    found.mkdir(mode=0o700, parents=True, exist_ok=True)
    return found
