"""Errors when the compiled library does not load."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fused_rnn
from fused_rnn.ops.missing import why_missing
from support.processes import run_python

PACKAGE = Path(fused_rnn.__file__).parent


@pytest.mark.parametrize("version", ["2.10.1+cpu", "1.13.0", "2.9.0a0+git1234"])
def test_a_torch_too_old_is_named(version):
    message = error_of_import(f"import torch; torch.__version__ = {version!r}")
    assert message.startswith(f"ImportError: fused_rnn needs torch 2.11 or newer, found {version}")
    assert message.endswith("pip install --upgrade torch")


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+git1234", "3.0.0+cu130"])
def test_newer_versions_of_torch_are_accepted(version):
    found = run_python("-c", f"import torch; torch.__version__ = {version!r}; import fused_rnn; print(fused_rnn.GRU)")
    assert found == "<class 'fused_rnn.GRU'>\n"


def test_missing_library_is_named(clone):
    (clone / "setup.py").unlink()
    message = error_of_import(path=clone)
    assert message.startswith(f"ImportError: fused_rnn's compiled library is missing ({clone}/fused_rnn/_C.so)")


@pytest.fixture
def clone(tmp_path):
    """A source tree that has not been built."""
    shutil.copytree(PACKAGE, tmp_path / "clone/fused_rnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / "clone" / name).touch()
    return tmp_path / "clone"


def error_of_import(before="pass", path=PACKAGE.parent, folder=None):
    """The last line of the error when Python imports the package on ``path``."""
    command = [sys.executable, "-c", f"{before}; import fused_rnn"]
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(command, cwd=folder or path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_a_source_tree_that_shadows_an_installed_library_says_so(clone, tmp_path):
    installed = tmp_path / "site/fused_rnn"
    installed.mkdir(parents=True)
    (installed / "_C.so").touch()
    message = error_of_import(path=installed.parent, folder=clone)
    assert message.startswith(f"ImportError: fused_rnn's compiled library is missing ({clone}/fused_rnn/_C.so)")
    assert f"found fused_rnn in the source tree, {clone}, before the installed one, {installed}" in message
    assert "Start Python in another folder" in message
    assert message.endswith(f"pip install --no-build-isolation -e {clone}")
    (clone / "setup.py").unlink()
    assert f"It shadows {installed}, which has one" in error_of_import(path=installed.parent, folder=clone)


def test_a_source_tree_that_is_not_built_says_so(clone, monkeypatch):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", none)
    monkeypatch.setattr(sys, "path", [str(clone)])
    library = clone / "fused_rnn/_C.so"
    message = why_missing(library)
    assert f"The source tree in {clone} has not been built" in message
    assert message.endswith(f"pip install --no-build-isolation -e {clone}")
    (clone / "setup.py").unlink()
    assert why_missing(library).endswith("pip install --no-build-isolation .")


def test_library_of_another_platform_is_named(clone):
    (clone / "fused_rnn/_C.so").write_bytes(b"MZ not an ELF file")
    message = error_of_import(path=clone)
    assert "compiled library could not be loaded: " in message
    assert "built for another platform; rebuild it" in message
