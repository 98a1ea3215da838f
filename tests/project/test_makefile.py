"""The Makefile: what it lets pip do to an environment."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from support.paths import ROOT

# What make passes on to the makes below it would have them print the folder they work in.
FROM_OUTSIDE = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
WHEEL = "wants_another-1.0-py3-none-any.whl"


def pip_commands(target):
    """The recipes of a target, as make would run them in this environment, that install this package's extras."""
    dry_run = shown("--what-if=pyproject.toml", target, f"PYTHON={sys.executable}")
    return [line for line in dry_run.replace("\\\n", " ").splitlines() if " -e " in line]


def wheel_that_requires(folder, requirement):
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        info = "wants_another-1.0.dist-info"
        head = "Metadata-Version: 2.1\nName: wants-another\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", f"{head}Requires-Dist: {requirement}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def shown(*arguments, **environment):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE} | environment
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_stays_as_it_is(variable):
    dry_run = shown("test", **{variable: "/elsewhere"})
    assert '".venv/bin/python" -m pytest' in dry_run
    note, rest = dry_run.split("\n", 1)
    assert note.startswith("make uses .venv; ") and note.endswith('PYTHON="/elsewhere/bin/python"')
    assert "/elsewhere" not in rest
    quiet = shown("test") + shown("help", **{variable: "/elsewhere"}) + shown("test", **{variable: f"{ROOT}/.venv"})
    assert "make uses" not in quiet


def test_the_environment_of_python_is_used():
    dry_run = shown("test", f"PYTHON={sys.executable}", VIRTUAL_ENV="/elsewhere")
    assert f'"{sys.executable}" -m pytest' in dry_run
    assert "/elsewhere" not in dry_run and ".venv/" not in dry_run.replace(sys.executable, "")


@pytest.mark.parametrize("target", ["test", "test-clients"])
@pytest.mark.parametrize(("requirement", "installs"), [("torch>=2.11", True), ("torch<2.11", False)])
def test_no_package_replaces_torch(target, requirement, installs, tmp_path):
    wheel_that_requires(tmp_path, requirement)
    (command,) = pip_commands(target)
    extras = f'-e ".[{target.removeprefix("test-")}]"'
    assert extras in command
    in_its_place = f'"{tmp_path / WHEEL}" --dry-run --no-index --find-links "{tmp_path}"'
    done = subprocess.run(
        command.replace(extras, in_its_place), shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == installs, done.stderr
    if not installs:
        assert f"torch=={torch.__version__}" in done.stderr
