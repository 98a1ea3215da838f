"""Two copies of the source tree, each edited and built: a wrong formula must be seen, a new cell must just work."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ptx import building

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# setup.py as it is; on a machine of another kind it builds the baseline instruction set only, a fifth of the work.
BUILD = """
import platform, runpy, sys
platform.machine = lambda: "other"
sys.argv = ["setup.py", "--quiet", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
ENVIRONMENT = os.environ | {"FUSED_RNN_CUDA": "0", "FUSED_RNN_ISA": "", "CXXFLAGS": "-O1", "MAX_JOBS": "1"}

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
    """What a build needs: the sources, and the files beside setup.py, which pyproject.toml names."""
    for folder in ("csrc", "fused_rnn"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, to)


def edit(file, pattern, replacement):
    text, count = re.subn(pattern, replacement, file.read_text())
    assert count == 1, f"{pattern!r} occurs {count} times in {file.name}"
    file.write_text(text)


def flip_a_sign(tree):
    edit(tree / "csrc/cells/gru.h", r"dx\[1\] = dr\[1\] = dh", "dx[1] = dr[1] = -dh")


def add_cells(tree):
    """The steps of CONTRIBUTING.md, whose example is one of them."""
    for header in ("peephole_lstm.h", "min_gru.h", "linear_lstm.h"):
        shutil.copy(TESTS / "cells" / header, tree / "csrc/cells")
    cells = tree / "csrc/cells/cells.h"
    edit(
        cells,
        r'(#include "cells/lstm\.h")',
        r'\1\n#include "cells/min_gru.h"\n#include "cells/peephole_lstm.h"\n#include "cells/linear_lstm.h"',
    )
    count = len(re.findall(r"X\(\d+, \w+\)", cells.read_text()))
    rows = [f"X({count}, PeepholeLstm)", f"X({count + 1}, MinGru)", f"X({count + 2}, LinearLstm)"]
    edit(cells, rf"(X\({count - 1}, \w+\)) *\n", r" \\\n  ".join([r"\1", *rows]) + "\n")
    added = "".join(f'    Row("{name}"),\n' for name in ("peephole_lstm", "min_gru", "linear_lstm"))
    edit(tree / "fused_rnn/ops/cells.py", r"(?s)(\n_ROWS = \(.*?\n)\)\n", rf"\1{added})\n")
    step, module = map(
        textwrap.dedent, re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    )
    (tree / "fused_rnn/nn/peephole_lstm.py").write_text(module)
    reference = tree / "fused_rnn/reference.py"
    edit(reference, r"(STEPS = \([^)]*?),?\s*\)", r"\1, peephole_lstm_step, min_gru_step, linear_lstm_step)")
    edit(reference, r"(# By the cells' ids)", rf"{step}\n\n{OTHER_STEPS}\n\n\1")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """{"wrong": ..., "extended": ...}, built side by side."""
    if shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None:
        pytest.skip("there is no C++ compiler")
    folders, builds = {}, {}
    for name, change in (("wrong", flip_a_sign), ("extended", add_cells)):
        folders[name] = tmp_path_factory.mktemp(name)
        copy_tree(folders[name])
        change(folders[name])
        builds[name] = subprocess.Popen(
            [sys.executable, "-c", BUILD],
            cwd=folders[name],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    logs = {name: build.communicate()[0] for name, build in builds.items()}
    assert {name: logs[name] for name, build in builds.items() if build.returncode} == {}
    return folders


def run_python(tree, *arguments, **variables):
    """Python with ``tree`` first on its path, as ``-m`` and ``-c`` put the current folder there."""
    command = [sys.executable, *arguments]
    environment = ENVIRONMENT | variables
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_verify_sees_a_wrong_sign(trees):
    done = run_python(trees["wrong"], "-m", "fused_rnn", "verify", "--quick", "--cell", "gru")
    assert done.returncode == 1, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("gru ")]
    failed = [line for line in table if "FAILED" in line]
    assert len(failed) > len(table) / 2
    assert f"{len(failed)} failed" in done.stdout


@pytest.mark.parametrize(("api", "passes"), [("functional", False), ("reference", True)])
def test_finite_differences_see_it_too(trees, api, passes):
    script = f"""
import torch
from fused_rnn import {api}
from fused_rnn.tools import verify
from fused_rnn.ops.cells import CELLS
case = verify.Case("small", steps=3, batch=2, input_size=2, hidden=3)
problem = verify.make_problem(CELLS["gru"], case, torch.float64, "cpu")
tensors = [t.requires_grad_() for t in problem.tensors]
torch.autograd.gradcheck(lambda *t: tuple(problem.call({api}, t)), tensors)
"""
    done = run_python(trees["wrong"], "-c", script)
    assert (done.returncode == 0) == passes, done.stderr
    assert passes or "GradcheckError: Jacobian mismatch" in done.stderr


def test_verify_passes_without_it(trees):
    done = run_python(trees["extended"], "-m", "fused_rnn", "verify", "--quick", "--cell", "gru")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


def test_added_cells_agree_with_reference(trees):
    shutil.copy(TESTS / "cells/added_cells.py", trees["extended"])
    done = run_python(trees["extended"], "-m", "pytest", "-q", "added_cells.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout


def test_added_cells_agree_on_the_stepwise_cuda_engine(trees):
    """Which has no cell with parameters or without a recurrent matrix otherwise."""
    if reason := building.why_not():
        pytest.skip(reason)
    shutil.copy(TESTS / "cells/added_cells.py", trees["extended"])
    variables = building.build_with_cells_of(trees["extended"]) | {"PYTHONPATH": str(TESTS)}
    done = run_python(trees["extended"], "-m", "pytest", "-q", "-p", "on_machine", "added_cells.py", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout
