"""The benchmark of a GPU, on a device that stands in for one: lines that fail, hang or are cut short."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import devices, run_gpu
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.results import Results
from benchmarks.suites import GPU_BATCH, GPU_HIDDEN, LOST, SUITES
from support.paths import ROOT


def test_gpu_is_timed_by_its_events(monkeypatch):
    """With fake events that advance a millisecond for every run between them."""
    ran = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = len(ran)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return float(end.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert devices.Gpu().time_slice(lambda: ran.append(1)) == pytest.approx(1e-3)
    assert len(ran) == 1 + 10


def test_facts_of_a_gpu(monkeypatch):
    """With a fake nvidia-smi, and without one."""
    properties = SimpleNamespace(name="NVIDIA H200", multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    answer = "580.1, 1980 MHz, 1980 MHz, 3201 MHz, 31, 120.5 W\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, answer))
    facts = devices.Gpu().facts()
    assert (facts["GPU"], facts["driver_version"], facts["power.draw"]) == ("NVIDIA H200", "580.1", "120.5 W")
    results = Results("gpu", "quick", 1, "", None, facts, {}, {})
    assert results.file_name == "gpu-nvidia-h200.json"

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert devices.Gpu().state() == {"nvidia-smi": "nvidia-smi"}


def test_suite_covers_all_combinations_and_starts_with_a_spread():
    plain = [work for work in SUITES["gpu"] if work.shape.steps == 128 and not work.packed and work.shape.batch != 16]
    assert len(plain) == 4 * 3 * 2 * len(GPU_HIDDEN) * len(GPU_BATCH)
    first = SUITES["gpu"][:60]
    assert {work.shape.hidden for work in first} >= {128, 512, 1024}
    assert {work.shape.batch for work in first} >= {1, 8, 16, 64}
    assert {work.group for work in first} >= {"bfloat16", "float32"}
    assert {work.mode for work in first} == {"inference", "training"}
    assert all(work.tf32 == (work.group == "tf32") for work in SUITES["gpu"])


@pytest.fixture(autouse=True)
def settable_precision(monkeypatch):
    """Lets these tests set allow_tf32, which torch.testing._internal forbids as soon as a test has imported it."""
    flags = torch.backends.disable_global_flags.__globals__  # torch.backends itself is another object
    monkeypatch.setitem(flags, "__allow_nonbracketed_mutation_flag", True)


def test_precision_is_set_and_restored():
    work = next(work for work in SUITES["gpu"] if work.tf32)
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for one in (work, replace(work, tf32=False)):
        with devices.precision(one.tf32):
            assert [backend.allow_tf32 for backend in backends] == [one.tf32] * 2
    assert [backend.allow_tf32 for backend in backends] == before


def measure(folder, resume=False, seconds=60, device=None):
    device = device or devices.StandIn()
    before = signal.getsignal(signal.SIGTERM)
    try:
        return run_gpu.measure(device, device.effort, seconds, ["LSTM", "inference"], folder, resume)
    finally:
        signal.signal(signal.SIGTERM, before)


def saved(folder):
    return Results.load(folder / "gpu-none.json")


def test_a_failing_line_does_not_stop_others(tmp_path, monkeypatch):
    right = run_gpu.measure_line

    def sometimes_wrong(device, work, effort):
        if work.group == "float16":
            raise ValueError("fails\nat length")
        return right(device, work, effort)

    monkeypatch.setattr(run_gpu, "measure_line", sometimes_wrong)
    results = measure(tmp_path)
    assert results.failures == [{"work": "float16 LSTM inference T3 B4 H6", "why": "ValueError: fails"}]
    assert len(results.lines) == 5
    assert saved(tmp_path).failures == results.failures


def test_a_wrong_line_keeps_the_time_of_torch_nn(tmp_path, monkeypatch):
    monkeypatch.setattr(run_gpu, "LARGEST_DIFFERENCE_TF32", 1e-30)
    (failure,) = measure(tmp_path).failures
    assert failure["why"].startswith("ours differs from torch.nn by")
    assert failure["sides"]["torch.nn"]["ms"] > 0 and "ours" not in failure["sides"]


def test_another_process_continues_after_the_gpu_is_lost(tmp_path):
    class Lost(devices.StandIn):
        def wait(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(SystemExit, match=str(LOST)):
        measure(tmp_path, device=Lost())
    (failure,) = saved(tmp_path).failures
    assert failure["why"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert len(measure(tmp_path, resume=True).lines) == 5


def test_an_interrupted_run_keeps_its_lines(tmp_path, monkeypatch):
    right, measured = run_gpu.measure_line, []

    def ends_at_the_third(device, work, effort):
        if len(measured) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        measured.append(work)
        return right(device, work, effort)

    monkeypatch.setattr(run_gpu, "measure_line", ends_at_the_third)
    with pytest.raises(SystemExit):
        measure(tmp_path)
    assert [line.work for line in saved(tmp_path).lines] == measured[:2]
    monkeypatch.setattr(run_gpu, "measure_line", right)
    measure(tmp_path, resume=True)
    assert len({line.work for line in saved(tmp_path).lines}) == len(saved(tmp_path).lines) == 6


def test_no_line_starts_after_the_time_limit(tmp_path):
    assert measure(tmp_path, seconds=0).lines == saved(tmp_path).lines == []


def test_lost_processes_are_restarted_with_the_time_left(monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, LOST if len(commands) < 3 else 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--seconds", "50", "--out", "here"])
    assert benchmarks_main() == 0
    assert ["--resume" in command for command in commands] == [False, True, True]
    left = [float(command[-1]) for command in commands]
    assert 50 >= left[0] > left[1] > left[2] > 40


def test_a_hanging_line_ends_the_process(tmp_path):
    program = f"""
import time
from pathlib import Path
from benchmarks import devices, run_gpu
from benchmarks.__main__ import main as benchmarks_main
device, right = devices.StandIn(), run_gpu.measure_line
def hang_at_float32(device, work, effort):
    time.sleep(60 if work.group == "float32" else 0)
    return right(device, work, effort)
run_gpu.measure_line, run_gpu.LINE_SECONDS = hang_at_float32, 2
run_gpu.measure(device, device.effort, 60, ["LSTM", "inference"], Path({str(tmp_path)!r}), False)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == LOST, done.stderr
    assert [failure["why"] for failure in saved(tmp_path).failures] == ["took more than 2 s"]
    results = measure(tmp_path, resume=True)
    assert len(results.lines) == 5
    assert "float32" not in {line.work.group for line in results.lines}
