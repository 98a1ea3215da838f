"""Packages that use torch.nn's recurrent layers, imported by the tests of tests/clients."""

import contextlib
import importlib
import io
import os
import types
import warnings

import pytest


@contextlib.contextmanager
def quiet():
    """Without what a package prints and warns of."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def client(name: str) -> types.ModuleType:
    """The module; without it the test is skipped."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with quiet():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name != name.split(".")[0]:
                raise
            return pytest.skip(
                f"{missing.name} is not installed: pip install '.[clients]' in a clone", allow_module_level=True
            )
