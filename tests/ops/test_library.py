"""What is said when the compiled library does not load."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn.ops.missing import why_missing


@pytest.mark.parametrize("version", ["2.10.1+cpu", "1.13.0", "2.9.0a0+git1234"])
def test_too_old_a_torch_is_named(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match=r"needs torch 2\.11 or newer, found .*pip install --upgrade torch") as caught:
        fused_rnn.ops.library._load()
    assert version in str(caught.value)


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+git1234", "3.0.0+cu130"])
def test_newer_versions_of_torch_are_taken(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert fused_rnn.ops.library._load().fused_rnn_cell_count() == fused_rnn.ops.library.cell_count()


def test_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(fused_rnn.ops.library, "PATH", tmp_path / "_C.so")
    with pytest.raises(ImportError, match=r"compiled library is missing \(.*_C.so\)"):
        fused_rnn.ops.library._load()


@pytest.fixture
def clone(tmp_path):
    """A source tree that has not been built."""
    package = Path(fused_rnn.__file__).parent
    shutil.copytree(package, tmp_path / "clone/fused_rnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / "clone" / name).touch()
    return tmp_path / "clone"


def error_of_import(folder, path):
    command = [sys.executable, "-c", "import fused_rnn"]
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_a_source_tree_that_shadows_an_installed_library_says_so(clone, tmp_path):
    installed = tmp_path / "site/fused_rnn"
    installed.mkdir(parents=True)
    (installed / "_C.so").touch()
    message = error_of_import(clone, installed.parent)
    assert message.startswith(f"ImportError: fused_rnn's compiled library is missing ({clone}/fused_rnn/_C.so)")
    assert f"found fused_rnn in the source tree, {clone}, before the installed one, {installed}" in message
    assert "Start Python in another folder" in message
    assert message.endswith(f"pip install --no-build-isolation -e {clone}")
    (clone / "setup.py").unlink()
    assert f"It shadows {installed}, which has one" in error_of_import(clone, installed.parent)


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


def test_library_of_another_platform_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"MZ not an ELF file")
    monkeypatch.setattr(fused_rnn.ops.library, "PATH", broken)
    with pytest.raises(ImportError, match=r"could not be loaded: .*built for another platform; rebuild it"):
        fused_rnn.ops.library._load()
