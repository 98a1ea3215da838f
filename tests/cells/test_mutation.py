"""A copy of the source tree with more cells: correct ones must work, and a wrong formula must be detected."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

from ptx import building
from support.paths import ROOT, TESTS

# What setup.py does, but for another machine: it then builds the baseline instruction set only, a fifth of the work.
BUILD = """
import runpy, sys
setup = runpy.run_path("setup.py", run_name="setup")
setup["compile_steps"].__globals__["target_machine"] = lambda: "other"
sys.argv = ["setup.py", "--quiet", "build_ext", "--inplace"]
setup["setup"](ext_modules=[setup["Extension"]("fused_rnn._C", [])], cmdclass={"build_ext": setup["NinjaBuild"]})
"""
ENVIRONMENT = os.environ | {"FUSED_RNN_CUDA": "0", "FUSED_RNN_ISA": "", "CXXFLAGS": "-O1", "MAX_JOBS": ""}

OTHER_STEPS = """\
def min_gru_step(x, r, h):
    z, n = x.chunk(2, -1)
    return ((1 - z.sigmoid()) * h + z.sigmoid() * n,)


def linear_lstm_step(x, r, h, c):
    i, f, g, o = lstm_gates(x, r)
    c_next = f * c + i * g
    return o * c_next, c_next
"""


def copy_tree(to):
    """Copies what a build needs: the sources, setup.py and the files beside it."""
    for folder in ("csrc", "fused_rnn"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, to)


def add_lines(file, after, lines):
    """After line number ``after``, counted from 1."""
    text = file.read_text().splitlines()
    file.write_text("\n".join([*text[:after], *lines, *text[after:]]) + "\n")


def end_of(file, name):
    """Number of the last line of what a Python module assigns to ``name``."""
    assigned = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Assign)]
    return next(node.end_lineno for node in assigned if node.targets[0].id == name)


# In the order of their ids: the header of each, its struct, and the name of its step in the reference.
CELLS = {
    "peephole_lstm": ("PeepholeLstm", "peephole_lstm_step"),
    "min_gru": ("MinGru", "min_gru_step"),
    "linear_lstm": ("LinearLstm", "linear_lstm_step"),
    "wrong_gru": ("WrongGru", "gru_step"),
}


def add_cells(tree):
    """Follows the steps of CONTRIBUTING.md, whose example is one of the cells."""
    for name in CELLS:
        shutil.copy(TESTS / f"cells/{name}.h", tree / "csrc/cells")
    registry = tree / "csrc/cells/cells.h"
    names = [struct for struct, _ in CELLS.values()]
    registry.write_text(with_rows(registry.read_text(), names, [f"cells/{name}.h" for name in CELLS]))
    rows = tree / "fused_rnn/ops/cells.py"
    add_lines(rows, end_of(rows, "_ROWS") - 1, [f'    Row("{name}"),' for name in CELLS])
    page = (ROOT / "CONTRIBUTING.md").read_text()
    step, module = map(textwrap.dedent, re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    (tree / "fused_rnn/nn/peephole_lstm.py").write_text(module)
    steps = ", ".join(step for _, step in CELLS.values())
    reference = tree / "fused_rnn/reference.py"
    add_lines(
        reference, end_of(reference, "STEPS"), [step, OTHER_STEPS, f"STEPS |= dict(enumerate(({steps}), len(STEPS)))"]
    )


def with_rows(text, structs, headers):
    """The registry with more cells: an include for each, and a row each at the end of the table."""
    *_, last = re.finditer(r"X\((\d+), \w+\)", text)
    first = int(last[1]) + 1
    rows = "".join(f" X({id}, {struct})" for id, struct in enumerate(structs, first))
    includes = "".join(f'#include "{header}"\n' for header in headers)
    return includes + text[: last.end()] + rows + text[last.end() :]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    if shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("more_cells")
    copy_tree(folder)
    add_cells(folder)
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def run_python(tree, *arguments, **variables):
    """Runs Python in ``tree``, which ``-m`` and ``-c`` put first on its path."""
    command = [sys.executable, *arguments]
    environment = ENVIRONMENT | variables
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_verify_detects_a_wrong_sign(tree):
    done = run_python(tree, "-m", "fused_rnn", "verify", "--quick", "--cell", "wrong_gru")
    assert done.returncode == 1, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("wrong_gru ")]
    failed = [line for line in table if "FAILED" in line]
    assert len(failed) > len(table) / 2
    assert f"{len(failed)} failed" in done.stdout


@pytest.mark.parametrize(("api", "passes"), [("functional", False), ("reference", True)])
def test_finite_differences_detect_a_wrong_sign(tree, api, passes):
    script = f"""
import torch
from fused_rnn import {api}
from fused_rnn.tools import verify
from fused_rnn.ops.cells import CELLS
case = verify.Case("small", steps=3, batch=2, input_size=2, hidden=3)
problem = verify.make_problem(CELLS["wrong_gru"], case, torch.float64, "cpu")
tensors = [t.requires_grad_() for t in problem.tensors]
torch.autograd.gradcheck(lambda *t: tuple(problem.call({api}, t)), tensors)
"""
    done = run_python(tree, "-c", script)
    assert (done.returncode == 0) == passes, done.stderr
    assert passes or "GradcheckError: Jacobian mismatch" in done.stderr


def test_verify_passes_for_correct_cells(tree):
    done = run_python(tree, "-m", "fused_rnn", "verify", "--quick", "--cell", "gru")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


def test_added_cells_agree_with_reference(tree):
    shutil.copy(TESTS / "cells/added_cells.py", tree)
    done = run_python(tree, "-m", "pytest", "-q", "added_cells.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout


@pytest.mark.exhaustive
def test_added_cells_agree_on_the_stepwise_cuda_engine(tree):
    """Where no other cell has parameters of its own or lacks a recurrent matrix."""
    if reason := building.why_not():
        pytest.skip(reason)
    shutil.copy(TESTS / "cells/added_cells.py", tree)
    variables = building.build_with_cells_of(tree) | {"PYTHONPATH": str(TESTS)}
    done = run_python(tree, "-m", "pytest", "-q", "-p", "support.on_machine", "added_cells.py", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout
