"""Import hooks: run code once a module that is slow to import has been imported by others."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType


def after_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """Calls ``then(module)`` once the module of that name is imported; at once if it already is."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, then: Callable[[ModuleType], None]):
        self.name, self.then = name, then
        self._searching = False

    def find_spec(self, name: str, path, target=None):
        if name != self.name or self._searching:
            return None
        self._searching = True  # so that the search below does not come here again
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:  # the first import that succeeds
                sys.meta_path.remove(self)
                self.then(module)

        spec.loader.exec_module = exec_module
        return spec
