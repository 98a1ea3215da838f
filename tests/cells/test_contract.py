"""The contract of csrc/cells/cells.h, checked for the library's cells and three more that use more of it."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fused_rnn.ops import library
from support.paths import ROOT

CELLS = Path(__file__).resolve().parent
CXX = [*shlex.split(os.environ.get("CXX", "g++")), "-std=c++20", f"-I{ROOT / 'csrc'}"]

# What check.cpp prints, and the largest value allowed. A count of violations, or an error relative to 1 + |expected|:
# 1e-7 leaves central differences of width 1e-5 two digits; 1e-5 is float's rounding through one step.
LIMITS = {
    "finite_differences": 1e-7,
    "finite_differences_saturated": 1e-7,
    "whole_gradient": 1e-7,
    "whole_gradient_saturated": 1e-7,
    "tangents": 1e-7,
    "tangents_saturated": 1e-7,
    "advance_float": 0,
    "advance_double": 0,
    "vector": 0,
    "precision": 1e-5,
    "precision_saturated": 1e-5,
    "written": 0,
    "lost_nans_float": 0,
    "lost_nans_double": 0,
    "recurrent": 0,
    "shared_gates": 0,
    "reads_h": 0,
}


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{check: {cell: value}}"""
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"{CXX[0]} is not installed")
    program = tmp_path_factory.mktemp("cells") / "check"
    # Without contraction, scalar and vector results must agree in every bit.
    strict = ["-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    run(*CXX, *strict, str(CELLS / "check.cpp"), "-o", str(program))
    values = {}
    for line in run(str(program)).splitlines():
        cell, check, value = line.split()
        values.setdefault(check, {})[cell] = float(value)
    return values


def test_every_cell_and_limit_is_used(found):
    assert set(found) == set(LIMITS)
    names = list(found["tangents"])
    assert len(names) == library.cell_count() + 3 and names[-3:] == ["PeepholeLstm", "MinGru", "LinearLstm"]
    assert all(list(values) == names for values in found.values())


@pytest.mark.parametrize("check", LIMITS)
def test_contract(found, check):
    assert {cell: value for cell, value in found[check].items() if not value <= LIMITS[check]} == {}


def test_cells_need_nothing_but_the_math_library():
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"{CXX[0]} is not installed")
    rule = run(*CXX, "-M", "-x", "c++", str(ROOT / "csrc/cells/cells.h"))
    headers = [Path(name).resolve() for name in rule.replace("\\\n", " ").split(":", 1)[1].split()]
    own = [header for header in headers if header.is_relative_to(ROOT / "csrc")]
    assert {header.parent for header in own} == {ROOT / "csrc/cells"}
    others = [header for header in headers if header not in own]
    assert [h for h in others if re.search(r"torch|aten|c10|cuda", "/".join(h.parts[-3:]), re.IGNORECASE)] == []


def test_cells_are_device_code(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    target = ["-std=c++20", "-arch=sm_90a", "--Werror", "all-warnings", f"-I{ROOT / 'csrc'}"]
    run("nvcc", *target, "-c", str(CELLS / "check.cu"), "-o", str(tmp_path / "check.o"))
