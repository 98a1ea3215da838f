"""Faults put into a copy of the stepwise engine: test_stepwise.py must see every one of them on the emulator."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulating
import pytest
from compiling import CSRC

TESTS = Path(__file__).resolve().parent

# name: (file, what stands there, what is put in its place, the source to compile again)
FAULTS = {
    "a reset forgets the memory": (
        "step_forward.cuh",
        "state[1] = cut ? T(0) : *c;",
        "state[1] = *c;",
        "stepwise.cu",
    ),
    "gradients flow through a reset": (
        "step_backward.cuh",
        "+ j * H + unit), cut ? T(0) : dr_j);",
        "+ j * H + unit), dr_j);",
        "stepwise.cu",
    ),
    "padding is masked one step late": (
        "matrices.cuh",
        "is_active(g, m, t, b)",
        "is_active(g, m, t - 1, b)",
        "stepwise.cu",
    ),
    "norms without their barrier": ("step_backward.cuh", "    __syncthreads();\n", "", "stepwise.cu"),
    "rows of a packed step are mixed up": (
        "stepwise_backward.cpp",
        "rows = std::max(step.rows, present_before);",
        "rows = step.rows;",
        "stepwise_backward.cpp",
    ),
    "steps ahead overlap": (
        "stepwise_forward.cpp",
        "arrays_.x_first_row[d] = row;",
        "arrays_.x_first_row[d] = row + (first > 0);",
        "stepwise_forward.cpp",
    ),
}


@pytest.fixture(scope="module")
def right():
    """The folder in which the unchanged library has been built: what a fault does not touch is taken from there."""
    emulating.build(emulating.FOLDER)
    return emulating.FOLDER


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_seen(right, fault, tmp_path):
    name, before, after, source = FAULTS[fault]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    text = (csrc / "cuda" / name).read_text()
    assert text.count(before) == 1, f"{before!r} occurs {text.count(before)} times in {name}"
    (csrc / "cuda" / name).write_text(text.replace(before, after))
    library = emulating.build(tmp_path / "build", csrc, changed={source}, others=right)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=no_shrinking",
    ]
    done = subprocess.run(
        [*command, TESTS / "test_stepwise.py", "-k", "operators_equal"],
        env=os.environ | {"FUSED_RNN_EMULATED": str(library), "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout + done.stderr
