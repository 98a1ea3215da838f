"""scripts/gpu_check.py, rehearsed without a GPU, since time on one is scarce."""

import json
import os
import re
import runpy
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.results import Results
from benchmarks.suites import SUITES
from ptx import building
from support.paths import ROOT

SCRIPTS = ROOT / "scripts"
GPU_CHECK = runpy.run_path(str(SCRIPTS / "gpu_check.py"))
Step, run_steps = GPU_CHECK["Step"], GPU_CHECK["run_steps"]


@pytest.fixture(scope="module")
def floors():
    """floors.cu built for the software GPU, before any step's time starts."""
    if reason := building.why_not():
        pytest.skip(reason)
    return building.build_program(ROOT / "benchmarks/floors/floors.cu")


@pytest.mark.exhaustive
def test_rehearsal(tmp_path, floors):
    """Also without expecttest, which a GPU machine may lack. Its steps have limits, so it needs a quiet machine."""
    (tmp_path / "expecttest.py").write_text("raise ImportError('not on this machine')\n")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    out = tmp_path / "out"
    command = [str(SCRIPTS / "gpu_check.sh"), str(out), "--rehearse"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "gpu_check.log").read_text() == done.stdout
    steps = json.loads((out / "steps.json").read_text())
    assert {step["result"] for step in steps} == {"passed"}
    assert {"smoke", "own", "floors", "verify", "tests", "memcheck", "benchmark", "kernels"} < {
        step["step"] for step in steps
    }
    found = [json.loads(line) for line in (out / "floors.jsonl").read_text().splitlines()]
    assert len({floor["name"] for floor in found}) == len(found) > 80
    assert all("repeats" in floor or floor["unit"] == "clusters" for floor in found)
    results = Results.load(out / "gpu-none.json")
    assert not results.failures
    assert {line.work.group for line in results.lines} == {work.group for work in SUITES["gpu"]}
    assert all(line.ratio("torch.nn") > 0 and line.sides["ours"]["engine"] == "fused" for line in results.lines)
    kernels = json.loads((out / "kernels.json").read_text())
    assert all(found["ours"] and found["torch.nn"] for found in kernels.values())
    assert not list(out.glob("*.new"))


@pytest.mark.parametrize(  # the rehearsal runs order 0
    "order", [1, *(pytest.param(order, marks=pytest.mark.exhaustive) for order in (2, 3, 4))]
)
def test_floors_in_other_orders(order, floors):
    program, environment = floors
    environment = os.environ | environment | {"FUSED_RNN_PTX_ORDER": str(order)}
    for word in ("hop", "exchange", "barrier"):  # where blocks wait for each other
        command = [program, "--rehearse", word]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and word in done.stdout, done.stdout


def test_torch_has_the_functions_called():
    """The rehearsal skips these calls, and would not notice a wrong name."""
    files = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "fused_rnn").glob("*.py")]
    files += [*(ROOT / "tests/cuda").glob("test_gpu*.py"), ROOT / "tests/support/gpu.py"]
    files += [*(ROOT / "fused_rnn/own").glob("*.py")]
    used = {name for file in files for name in re.findall(r"torch\.cuda\.(\w+)", file.read_text())}
    assert {"Event", "Stream", "CUDAGraph", "_sleep", "get_device_properties"} < used
    assert [name for name in sorted(used) if not hasattr(torch.cuda, name)] == []


# ---- the steps -------------------------------------------------------------------------------------------------------


def test_steps_fit_into_their_time():
    for mode, seconds in GPU_CHECK["SECONDS"].items():
        assert seconds <= 570  # within ten minutes
        steps = GPU_CHECK["chosen"](mode, [])
        assert sum(step.reserved for step in steps) < seconds / 2
        for step in steps:
            assert not re.search(r"(?<!\$)\{", step.text(mode, out="/out", left=1))  # but for the shell's ${
    assert [step.name for step in GPU_CHECK["chosen"]("full", ["benchmark", "build"])] == ["build", "benchmark"]
    with pytest.raises(SystemExit, match="no step is called bench: machine, build"):
        GPU_CHECK["chosen"]("full", ["bench"])


def test_failed_steps_do_not_stop_others(tmp_path):
    steps = [
        Step("fails", 9, "exit 3"),
        Step("hangs", 0.3, "trap '' TERM; sleep 60 & sleep 60"),
        Step("crashes", 9, "kill -SEGV $$"),
        Step("works", 9, "touch {out}/worked"),
    ]
    GPU_CHECK["stop"].__globals__["KILL_SECONDS"] = 0.2
    begin = time.monotonic()
    found = [outcome.result for outcome in run_steps(steps, "full", 20, tmp_path)]
    assert time.monotonic() - begin < 10
    assert found == ["failed with status 3", "out of time", "failed with status -11", "passed"]
    assert (tmp_path / "worked").exists()
    assert [step["result"] for step in json.loads((tmp_path / "steps.json").read_text())] == found


def test_time_is_reserved_for_the_benchmark(tmp_path):
    GPU_CHECK["stop"].__globals__["KILL_SECONDS"] = 0.1
    steps = [Step("slow", 60, "sleep 60"), Step("next", 60, "true"), Step("benchmark", 60, "true", reserved=1.5)]
    found = [outcome.result for outcome in run_steps(steps, "full", 2, tmp_path)]
    assert found == ["out of time", "no time left", "passed"]
