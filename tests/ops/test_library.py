"""Errors when the compiled library does not load."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn.ops.missing import why_missing
from fused_rnn.ops.unfit import why_not_loaded
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


# ---- libraries that are there, but fit something else ----------------------------------------------------------------


def compiled(clone, source):
    """Puts a library of this C source in the place of the compiled one."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(clone / "fused_rnn/_C.so")]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("number", "machine"),
    [(183, "Linux on aarch64"), (243, "Linux on riscv64"), (9999, "Linux on machine 9999 of ELF")],
)
@pytest.mark.skipif(platform.system() != "Linux", reason="changes the header of an ELF file")
def test_library_of_another_machine_is_named(clone, number, machine):
    library = bytearray((PACKAGE / "_C.so").read_bytes())
    library[18:20] = number.to_bytes(2, "little")
    (clone / "fused_rnn/_C.so").write_bytes(library)
    message = error_of_import(path=clone)
    here = f"Linux on {platform.machine()}"
    assert f"built for {machine}, and this is {here}. Install the wheel for that, or build" in message


@pytest.mark.parametrize(
    ("start", "made_for"),
    [(b"MZ\x90", "Windows"), (b"\xcf\xfa\xed\xfe", "Darwin"), (b"\x7fELF", "no system: it is no library")],
)
def test_library_of_another_system_is_named(clone, start, made_for):
    (clone / "fused_rnn/_C.so").write_bytes(start)
    message = error_of_import(path=clone)
    assert message.startswith("ImportError: fused_rnn's compiled library could not be loaded: ")
    assert f"It was built for {made_for}, and this is {platform.system()} on" in message


def test_torch_of_another_abi_is_named(clone):
    compiled(
        clone, "int aoti_torch_of_tomorrow(void); int fused_rnn_version(void) { return aoti_torch_of_tomorrow(); }"
    )
    message = error_of_import(path=clone)
    assert f"The torch here, {torch.__version__}, has no aoti_torch_of_tomorrow: the library was built for" in message


@pytest.mark.parametrize("found", [("", ""), ("musl", "1.2.5")])  # by older versions of Python, by newer ones
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this Python does not run on glibc")
def test_a_c_library_other_than_glibc_is_named(clone, monkeypatch, found):
    library = clone / "fused_rnn/_C.so"
    shutil.copy(PACKAGE / "_C.so", library)
    error = OSError("Error relocating _C.so: __memcpy_chk: symbol not found")
    assert "glibc" not in why_not_loaded(library, error, "2.13.0")
    monkeypatch.setattr(platform, "libc_ver", lambda: found)
    message = why_not_loaded(library, error, "2.13.0")
    assert "built for the C library glibc, as all wheels are, and this Python uses another one, musl perhaps" in message
    assert message.endswith("pip install --no-build-isolation --force-reinstall .")


@pytest.mark.parametrize("symbol", ["GLIBC_2.38", "GLIBCXX_3.4.32", "CXXABI_1.3.15"])
def test_a_system_too_old_is_named(symbol):
    error = OSError(f"/lib/x86_64-linux-gnu/libstdc++.so.6: version `{symbol}' not found (required by _C.so)")
    assert f"newer: these lack {symbol}. Install a manylinux wheel" in why_not_loaded(
        PACKAGE / "_C.so", error, "2.13.0"
    )


def test_library_of_another_version_is_named(clone):
    shutil.copy(PACKAGE / "_C.so", clone / "fused_rnn")
    (clone / "fused_rnn/_version.py").write_text('__version__ = "9.8.7"\n')
    message = error_of_import(path=clone)
    found = f"fused_rnn 9.8.7 found the compiled library of version {fused_rnn.__version__}: they were not installed"
    assert message.startswith(f"ImportError: {found}")


def test_library_that_cannot_tell_its_version_is_named(clone):
    compiled(clone, "int fused_rnn_cell_count(void) { return 4; }")
    message = error_of_import(path=clone)
    assert f"fused_rnn {fused_rnn.__version__} found the compiled library of an older version" in message
