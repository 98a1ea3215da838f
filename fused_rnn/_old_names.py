"""The modules' former names, importable for one more version: old pickles and imports refer to them.

``fused_rnn.modules.LSTM`` and the like still work, with a DeprecationWarning. The public names are in ``fused_rnn``
itself, which is what pickles refer to now: loading and saving an old model brings it up to date.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType

# Former name: current module.
MOVED = {
    "cells": ("nn.cells",),
    "convert": ("nn.convert",),
    "deep": ("nn.stack",),
    "diagnostics": ("tools.explain", "tools.info"),
    "engines": ("ops.engines",),
    "flow": ("tools.gradient_flow",),
    "freezing": ("nn.freeze",),
    "gates": ("tools.gate_statistics",),
    "modules": ("nn.layers",),
    "spectra": ("tools.spectrum",),
    "training": ("tools.tbptt",),
    "verification": ("tools.verify",),
}


class _Moved(ModuleType):
    """A module by its former name."""

    def __getattr__(self, name: str):
        package, _, old = self.__name__.rpartition(".")
        if not name.startswith("_"):
            for place in MOVED[old]:
                module = import_module(f"{package}.{place}")
                if hasattr(module, name):
                    where = package if hasattr(sys.modules[package], name) else module.__name__
                    warnings.warn(
                        f"{self.__name__} will go away in the next version: use {where}.{name}, and load and save "
                        "models that were pickled with the old name",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def register(package: ModuleType) -> None:
    """Makes the old names importable, also as attributes of the package."""
    for old in MOVED:
        moved = _Moved(f"{package.__name__}.{old}", f"Its names are in ``{package.__name__}``.")
        sys.modules[moved.__name__] = moved
        setattr(package, old, moved)
