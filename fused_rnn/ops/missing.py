"""The error message for a missing compiled library, for instance in a source tree that shadows an install."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path


def why_missing(library: Path) -> str:
    """The message of the ImportError; ``library``: the path where it should be, ``.../fused_rnn/_C.so``."""
    message = f"fused_rnn's compiled library is missing ({library})."
    root, other = library.parents[1], _other_install(library)
    is_source = (root / "setup.py").exists() and (root / "pyproject.toml").exists()
    in_place = f"pip install --no-build-isolation -e {root}"
    if other is not None and is_source:
        return (
            f"{message} Python found fused_rnn in the source tree, {root}, before the installed one, {other}. "
            f"Start Python in another folder, or install the source tree itself: {in_place}"
        )
    if other is not None:
        return f"{message} It shadows {other}, which has one: start Python in another folder."
    if is_source:
        return (
            f"{message} The source tree in {root} has not been built. To use it from any folder, its own included: "
            f"{in_place}"
        )
    return f"{message} Reinstall fused_rnn, or build it in its source tree with: pip install --no-build-isolation ."


def _other_install(library: Path) -> Path | None:
    """The folder of another, complete fused_rnn that this one shadows."""
    places = [Path(entry or ".") / "fused_rnn" / library.name for entry in sys.path]
    with suppress(metadata.PackageNotFoundError):
        places.append(Path(metadata.distribution("fused_rnn").locate_file(f"fused_rnn/{library.name}")))
    return next((place.parent for place in places if place.exists() and place.resolve() != library.resolve()), None)
