"""The Makefile: what it lets pip do to an environment."""

import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from support.paths import ROOT

WHEEL = "wants_another-1.0-py3-none-any.whl"


def pip_commands(target):
    """The recipes of a target, as make would run them in this environment, that install this package's extras."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--dry-run", "--what-if=pyproject.toml", target, f"PYTHON={sys.executable}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in shown.replace("\\\n", " ").splitlines() if " -e " in line]


def wheel_that_requires(folder, requirement):
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        info = "wants_another-1.0.dist-info"
        head = "Metadata-Version: 2.1\nName: wants-another\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", f"{head}Requires-Dist: {requirement}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


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
