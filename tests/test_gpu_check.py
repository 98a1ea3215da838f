"""Time on a GPU is scarce, so what runs there is rehearsed here."""

import itertools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ptx import building

from benchmarks import devices, run_gpu
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.results import Results
from benchmarks.suites import GPU_BATCH, GPU_HIDDEN, LOST, SUITES

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
GPU_CHECK = runpy.run_path(str(SCRIPTS / "gpu_check.py"))
CUDA_CHECK = runpy.run_path(str(SCRIPTS / "cuda_check.py"))
Step, run_steps = GPU_CHECK["Step"], GPU_CHECK["run_steps"]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


# ---- all of it, where there is no GPU --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def floors():
    """floors.cu as a program on the machine that executes PTX, built before a step's time runs."""
    if reason := building.why_not():
        pytest.skip(reason)
    return building.build_program(ROOT / "benchmarks/floors/floors.cu")


def test_rehearsal(tmp_path, floors):
    """Without expecttest, too, which such a machine need not have."""
    (tmp_path / "expecttest.py").write_text("raise ImportError('not on this machine')\n")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    out = tmp_path / "out"
    command = [str(SCRIPTS / "gpu_check.sh"), str(out), "--rehearse"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "gpu_check.log").read_text() == done.stdout
    steps = json.loads((out / "steps.json").read_text())
    assert {step["result"] for step in steps} == {"passed"}
    assert {"smoke", "floors", "verify", "tests", "memcheck", "benchmark", "kernels"} < {step["step"] for step in steps}
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


@pytest.mark.parametrize("order", range(1, 5))  # the rehearsal's is 0
def test_floors_in_other_orders(order, floors):
    program, environment = floors
    environment = os.environ | environment | {"FUSED_RNN_PTX_ORDER": str(order)}
    for word in ("hop", "exchange", "barrier"):  # where blocks wait for each other
        command = [program, "--rehearse", word]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and word in done.stdout, done.stdout


def test_calls_what_torch_has():
    """The rehearsal skips these calls, and would not see a wrong name."""
    files = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "fused_rnn").glob("*.py"), ROOT / "tests/test_cuda.py"]
    used = {name for file in files for name in re.findall(r"torch\.cuda\.(\w+)", file.read_text())}
    assert {"Event", "Stream", "CUDAGraph", "_sleep", "get_device_properties"} < used
    assert [name for name in sorted(used) if not hasattr(torch.cuda, name)] == []


def test_gpu_is_timed_by_its_events(monkeypatch):
    """With events that advance a millisecond for every run recorded between them."""
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
    """With the answers of an nvidia-smi, and without one."""
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


# ---- the steps -------------------------------------------------------------------------------------------------------


def test_steps_fit_into_their_time():
    for mode, seconds in GPU_CHECK["SECONDS"].items():
        assert seconds <= 570  # within ten minutes
        steps = GPU_CHECK["chosen"](mode, [])
        assert sum(step.reserved for step in steps) < seconds / 2
        for step in steps:
            assert not re.search(r"(?<!\$)\{", step.text(mode, out="/out", left=1))  # but for the shell's own
    assert [step.name for step in GPU_CHECK["chosen"]("full", ["benchmark", "build"])] == ["build", "benchmark"]
    with pytest.raises(SystemExit, match="no step is called bench: machine, build"):
        GPU_CHECK["chosen"]("full", ["bench"])


def test_failed_steps_stop_no_others(tmp_path):
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


def test_time_is_kept_for_the_benchmark(tmp_path):
    GPU_CHECK["stop"].__globals__["KILL_SECONDS"] = 0.1
    steps = [Step("slow", 60, "sleep 60"), Step("next", 60, "true"), Step("benchmark", 60, "true", reserved=1.5)]
    found = [outcome.result for outcome in run_steps(steps, "full", 2, tmp_path)]
    assert found == ["out of time", "no time left", "passed"]


# ---- the gpu suite ---------------------------------------------------------------------------------------------------


def test_suite_is_the_full_cross_and_begins_with_a_spread():
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
    """torch.testing._internal, once another test has imported it, forbids to set it for the rest of the process."""
    flags = torch.backends.disable_global_flags.__globals__  # torch.backends itself is another object
    monkeypatch.setitem(flags, "__allow_nonbracketed_mutation_flag", True)


def test_precision_is_set_and_put_back():
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


def test_line_that_fails_stops_no_others(tmp_path, monkeypatch):
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


def test_wrong_line_has_the_time_of_torch_nn(tmp_path, monkeypatch):
    monkeypatch.setattr(run_gpu, "LARGEST_DIFFERENCE_TF32", 1e-30)
    (failure,) = measure(tmp_path).failures
    assert failure["why"].startswith("ours differs from torch.nn by")
    assert failure["sides"]["torch.nn"]["ms"] > 0 and "ours" not in failure["sides"]


def test_another_process_goes_on_when_the_gpu_is_lost(tmp_path):
    class Lost(devices.StandIn):
        def wait(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(SystemExit, match=str(LOST)):
        measure(tmp_path, device=Lost())
    (failure,) = saved(tmp_path).failures
    assert failure["why"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert len(measure(tmp_path, resume=True).lines) == 5


def test_run_that_is_cut_leaves_its_lines(tmp_path, monkeypatch):
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


def test_no_line_begins_after_the_time(tmp_path):
    assert measure(tmp_path, seconds=0).lines == saved(tmp_path).lines == []


def test_another_process_goes_on(monkeypatch):
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


def test_line_that_hangs_ends_the_process(tmp_path):
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


# ---- compilation and what it leads to: cuda_check, compile_all_archs -------------------------------------------------


def run_script(name, *arguments):
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_nvcc
@pytest.mark.parametrize(
    ("body", "passes"),
    [
        ("p[0] = p[1];", True),
        ("int local[64]; for (int i = 0; i < 64; ++i) local[p[i]] = i; p[0] = local[p[1]];", False),
    ],
)
def test_cuda_check_fails_on_local_memory(tmp_path, body, passes):
    source = tmp_path / "kernel.cu"
    source.write_text(f"__global__ void kernel(int* p) {{ {body} }}\n")
    done = run_script("cuda_check.py", source)
    if "cuobjdump not found" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode == 0) == passes, done.stdout + done.stderr
    assert ("FAIL" in done.stdout) != passes
    in_local_memory = re.search(r"(\d+) local", done.stdout)
    assert (int(in_local_memory[1]) > 0) != passes


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks", "limits"),
    [
        (32, 128, 0, 16, "registers and warps"),
        (33, 128, 0, 12, "registers"),  # a warp takes 40 * 32, so that a quarter is enough for 12
        (56, 128, 0, 9, "registers"),
        (128, 256, 0, 2, "registers"),
        (129, 256, 0, 1, "registers"),
        (255, 288, 0, 0, "registers"),
        (16, 96, 0, 21, "warps"),
        (16, 97, 0, 16, "warps"),
        (16, 32, 0, 32, "blocks"),
        (16, 128, 48 << 10, 4, "shared memory"),
        (246, 256, 160 << 10, 1, "registers and shared memory"),
        (16, 128, 227 << 10, 1, "shared memory"),
        (16, 128, (227 << 10) + 1, 0, "shared memory"),
    ],
)
def test_occupancy(registers, threads, shared, blocks, limits):
    assert CUDA_CHECK["occupancy"](registers, threads, shared)[:2] == (blocks, limits)


ASK_CUDA = """
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  cudaOccDeviceProp hopper;
  hopper.computeMajor = 9;
  hopper.computeMinor = 0;
  hopper.maxThreadsPerBlock = 1024;
  hopper.maxThreadsPerMultiprocessor = 2048;
  hopper.regsPerBlock = hopper.regsPerMultiprocessor = 65536;
  hopper.warpSize = 32;
  hopper.sharedMemPerBlock = 48 << 10;
  hopper.sharedMemPerBlockOptin = 227 << 10;
  hopper.sharedMemPerMultiprocessor = 228 << 10;
  hopper.reservedSharedMemPerBlock = 1 << 10;
  hopper.numSms = 132;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = 227 << 10;
  const cudaOccDeviceState state;
  cudaOccResult found;
  int threads, shared;
  while (std::scanf("%d %d %d", &kernel.numRegs, &threads, &shared) == 3) {
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&found, &hopper, &kernel, &state, threads, shared)) return 1;
    std::printf("%d\\n", found.activeBlocksPerMultiprocessor);
  }
}
"""


@needs_nvcc
def test_occupancy_is_that_of_cuda(tmp_path):
    """Whose header is asked about a Hopper."""
    source, program = tmp_path / "ask.cu", tmp_path / "ask"
    source.write_text(ASK_CUDA)
    subprocess.run(["nvcc", "-std=c++17", source, "-o", program], check=True)

    def ask(kernels):
        asked = "".join("{} {} {}\n".format(*kernel) for kernel in kernels)
        answers = subprocess.run([program], input=asked, capture_output=True, text=True, check=True).stdout.split()
        return [int(blocks) for blocks in answers]

    threads, shared = (1, 32, 96, 128, 160, 256, 480, 1024), (0, 1, 1025, 50000, 160 << 10, 227 << 10)
    kernels = list(itertools.product(range(1, 256), threads, shared))
    found = [CUDA_CHECK["occupancy"](*kernel) for kernel in kernels]
    expected = ask(kernels)
    assert [blocks for blocks, _, _ in found] == expected
    most = [(*kernel[:2], shared) for kernel, (_, _, shared) in zip(kernels, found, strict=True)]
    too_much = [(*kernel, shared + 1) for *kernel, shared in most]
    for blocks, same, fewer in zip(expected, ask(most), ask(too_much), strict=True):
        assert blocks == 0 or fewer < blocks == same


KERNELS = """
#include "cuda/persistent/instances.cuh"
namespace fused_rnn::cuda {
namespace {
__global__ void unbounded(int* p) { p[0] = p[1]; }
__global__ void __launch_bounds__(512) bounded(int* p) {
  __shared__ int of_block[256];
  of_block[threadIdx.x % 256] = p[threadIdx.x];
  __syncthreads();
  p[0] = of_block[p[1]];
}
using Walk = BackwardCell<Rnn<Tanh>, double>;
template __global__ void persistent<Persistent<Walk, Flags, Scalars<double, 1>, Tiles{1, 8, 1, 2, PARKED, 1}>>(
    Walk::Args, Walk::Arrays, Cut);
}
}
"""


@needs_nvcc
def test_cuda_check_knows_how_kernels_are_launched(tmp_path):
    source = tmp_path / "kernels.cu"
    source.write_text(KERNELS.replace("PARKED", "6"))
    done = run_script("cuda_check.py", source)
    if "cuobjdump not found" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        re.search(r"fused_rnn::cuda::(\w+)", line)[1]: re.search(
            r"\S+ blocks of +(\S+) threads and +(\S+) bytes", line
        ).group()
        for line in done.stdout.splitlines()
    }
    assert re.sub(" +", " ", str(found)) == str(
        {
            "persistent": "1 blocks of 256 threads and 229376 bytes",  # sums 16384, parked 196608, shown 16384
            "bounded": "4 blocks of 512 threads and <=56320 bytes",
            "unbounded": "16 blocks of ~128 threads and <=13568 bytes",
        }
    )
    source.write_text(KERNELS.replace("PARKED", "7"))
    assert "plan.h has no shape '8 Flags 0 1, 8, 1, 2, 7, 1'" in run_script("cuda_check.py", source).stderr


@needs_cxx
@pytest.mark.parametrize(("threads", "bad"), [(256, 0), (288, 1)])
def test_cuda_check_fails_where_no_block_fits(threads, bad, capsys):
    report = (
        "ptxas info    : Compiling entry function 'kernel' for 'sm_90a'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 0 barriers\n"
    )
    counts = {"kernel": dict.fromkeys(CUDA_CHECK["KINDS"], 0)}
    assert CUDA_CHECK["check"]("kernel.cu", report, counts, {"kernel": threads}, {}) == bad
    assert ("FAIL" in capsys.readouterr().out) == bool(bad)


@needs_nvcc
def test_compile_all_archs(tmp_path):
    right, wrong = tmp_path / "right.cu", tmp_path / "wrong.cu"
    right.write_text("__global__ void kernel(int* p) { p[0] = p[1]; }\n")
    wrong.write_text("#if __CUDA_ARCH__ == 750\n#error not here\n#endif\n")
    done = run_script("compile_all_archs.py", "--archs", "75", "90a", "--", right)
    assert done.returncode == 0 and len(re.findall(r"1 kernels, at most +\d+ registers, +0 spill", done.stdout)) == 2
    done = run_script("compile_all_archs.py", "--archs", "75", "--", right, wrong)
    assert done.returncode == 1 and "1 did not compile" in done.stderr and "error: #error not here" in done.stdout
