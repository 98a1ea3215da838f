"""Shows that the CUDA path works on this GPU, and measures what later kernels are held against.

    python scripts/gpu_check.py OUT_DIR [--quick] [--rehearse]

Writes OUT_DIR/baseline.json after every section, so that a run that is cut short still leaves its numbers:
  environment   GPU, driver, versions, date, commit
  stream        fused_rnn's null kernel runs on torch's current stream, not on stream 0, and in a CUDA graph
  floors        copy bandwidth and matrix rates
  torch_nn      torch.nn's microseconds per timestep, forward (inference) and forward + backward
  kernels       the GPU kernels behind torch.nn's recurrent layers, with their times
  blocks        a launch, and the ways in which blocks can meet (last: a fault in it could hang the GPU)

--quick     fewer shapes: about two minutes in place of five
--rehearse  tiny sizes on the CPU, without stream and blocks: shows that the script itself is sound
"""

import argparse
import ctypes
import datetime
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
CELLS = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}
# Name: dtype, and whether cuDNN may round float32 to TF32. (It may by default, so torch users get "tf32".)
PRECISIONS = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, True),
    "fp16": (torch.float16, True),
}
BLOCK_FLOORS = {  # function of floors.cu and its arguments: blocks, threads, repetitions
    "launch": ("floor_launch", 5000),
    "hop": ("floor_hop", 20000),
    **{f"grid_sync_{b}x256": ("floor_grid_sync", b, 256, 20000) for b in (32, 64, 128)},
    **{f"flag_barrier_{b}x256": ("floor_flag_barrier", b, 256, 20000) for b in (32, 64, 128)},
    **{f"cluster_sync_{b}x256": ("floor_cluster_sync", b, 256, 20000) for b in (2, 4, 8, 16)},
}


class Gpu:
    name = "cuda"
    hidden_sizes = (64, 128, 256, 512, 768, 1024, 2048)
    batch_sizes = (1, 16, 64, 256)
    profiled_sizes = ((128, 16), (512, 16), (1024, 64))
    steps, copy_bytes, matrix, seconds_each = 256, 4 << 30, 8192, 0.25

    def times_us(self, run, repeats):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        torch.cuda.synchronize()
        return [1e3 * begin.elapsed_time(end) for begin, end in itertools.pairwise(marks)]


class QuickGpu(Gpu):
    hidden_sizes = (128, 512, 1024)
    batch_sizes = (1, 16, 64)
    profiled_sizes = ((512, 16),)
    seconds_each = 0.1


class Rehearsal:
    name = "cpu"
    hidden_sizes, batch_sizes, profiled_sizes = (8,), (1, 2), ((8, 2),)
    steps, copy_bytes, matrix, seconds_each = 3, 1 << 16, 32, 0.0

    def times_us(self, run, repeats):
        marks = [time.perf_counter()]
        for _ in range(repeats):
            run()
            marks.append(time.perf_counter())
        return [1e6 * (end - begin) for begin, end in itertools.pairwise(marks)]


def median_us(device, run):
    """The median time of run(), warmed up, over as many repetitions as fit into device.seconds_each."""
    once = device.times_us(run, 3)[-1]
    repeats = min(50, max(5, round(1e6 * device.seconds_each / once)))
    return statistics.median(device.times_us(run, repeats))


def output_of(*command):
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(device):
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": output_of("git", "describe", "--always", "--dirty"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if device.name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "nvidia_smi": output_of("nvidia-smi", query, "--format=csv,noheader"),
            "nvcc": output_of("nvcc", "--version").splitlines()[-1],
        }
    for key, value in found.items():
        print(f"  {key:16} {value}", flush=True)
    return found


def stream(device):
    """Fails with an AssertionError where the null kernel ran anywhere but on the current stream."""
    if device.name != "cuda":
        return "not on a CPU"
    import fused_rnn  # noqa: F401, registers the operator

    def filled_late(reader=None):
        """A copy, made on `reader` or else on the same stream, of what a stream writes after a pause of 0.1 s."""
        writer, data = torch.cuda.Stream(), torch.empty(1 << 20, device="cuda")
        reader = reader or writer
        torch.cuda.synchronize()
        with torch.cuda.stream(reader):  # once before: loading a kernel or new memory may wait for the GPU
            torch.ops.fused_rnn.cuda_identity(data.fill_(1))
        torch.cuda.synchronize()
        with torch.cuda.stream(writer):
            torch.cuda._sleep(200_000_000)  # clock cycles
            data.fill_(7)
        with torch.cuda.stream(reader):
            copy = torch.ops.fused_rnn.cuda_identity(data)
        assert not writer.query(), "cuda_identity waited for the GPU"
        torch.cuda.synchronize()
        return copy

    assert (filled_late() == 7).all(), "cuda_identity did not run on the current stream"
    early = filled_late(reader=torch.cuda.default_stream())
    assert (early == 1).all(), "this check cannot tell streams apart: the default stream waited for the other"

    strided = torch.arange(24.0, device="cuda").view(4, 6).t()
    assert torch.equal(torch.ops.fused_rnn.cuda_identity(strided), strided)
    assert torch.ops.fused_rnn.cuda_identity(strided[:0]).shape == (0, 4)

    data, graph = torch.zeros(1 << 20, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy = torch.ops.fused_rnn.cuda_identity(data)
    data.fill_(3)
    graph.replay()
    torch.cuda.synchronize()
    assert (copy == 3).all(), "cuda_identity was not captured in the CUDA graph"
    return "passed"


def copy_rate(device):
    source = torch.ones(device.copy_bytes, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    return 2e-3 * device.copy_bytes / median_us(device, lambda: target.copy_(source))  # read and written


def matrix_rate(device, precision):
    dtype, torch.backends.cuda.matmul.allow_tf32 = PRECISIONS[precision]
    a, b = torch.randn(2, device.matrix, device.matrix, device=device.name, dtype=dtype)
    return 2e-6 * device.matrix**3 / median_us(device, lambda: a @ b)


def floors(device):
    found = {"copy_GB_per_s": copy_rate(device)}
    for precision in PRECISIONS:
        found[f"matmul_{precision}_TFLOP_per_s"] = matrix_rate(device, precision)
    for key, value in found.items():
        print(f"  {key:28} {value:.3f}", flush=True)
    return found


def passes(device, cell, precision, hidden, batch):
    """The two things that are timed, for one layer with as many inputs as hidden units."""
    dtype, torch.backends.cudnn.allow_tf32 = PRECISIONS[precision]
    layer = CELLS[cell](hidden, hidden).to(device.name, dtype)
    data = torch.randn(device.steps, batch, hidden, device=device.name, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(data)
    wanted = [data, *layer.parameters()]

    @torch.no_grad()
    def forward():
        layer(data)

    def forward_backward():
        torch.autograd.grad(layer(data)[0], wanted, gradient)

    return {"forward": forward, "forward_backward": forward_backward}


def torch_nn(device):
    rows = []
    cases = itertools.product(CELLS, PRECISIONS, device.hidden_sizes, device.batch_sizes)
    for cell, precision, hidden, batch in cases:
        row = {"cell": cell, "precision": precision, "hidden": hidden, "batch": batch, "steps": device.steps}
        for name, run in passes(device, cell, precision, hidden, batch).items():
            row[f"{name}_us_per_step"] = round(median_us(device, run) / device.steps, 3)
        rows.append(row)
        forward, both = row["forward_us_per_step"], row["forward_backward_us_per_step"]
        case = f"{cell:4} {precision} H{hidden:<4} B{batch:<3}"
        print(f"  {case} us/step forward {forward:9.2f}   with backward {both:9.2f}", flush=True)
    return rows


def kernels(device):
    activity = {"cuda": torch.profiler.ProfilerActivity.CUDA, "cpu": torch.profiler.ProfilerActivity.CPU}
    found = {}
    for (hidden, batch), cell, precision in itertools.product(device.profiled_sizes, CELLS, PRECISIONS):
        for name, run in passes(device, cell, precision, hidden, batch).items():
            run()
            with torch.profiler.profile(activities=[activity[device.name]]) as profile:
                run()
                if device.name == "cuda":
                    torch.cuda.synchronize()
            events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
            case = f"{cell} {precision} H{hidden} B{batch} {name}"
            found[case] = [
                {"kernel": event.key, "calls": event.count, "us": round(event.self_device_time_total, 1)}
                for event in events[:6]
            ]
            print(f"  {case}: {found[case][0] if events else 'nothing recorded'}", flush=True)
    return found


def blocks(device):
    if device.name != "cuda":
        return "not on a CPU"
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/floors.so"
        arch = "-arch=sm_{}{}".format(*torch.cuda.get_device_capability())
        command = ["nvcc", "-std=c++20", "-O3", arch, "-shared", "-Xcompiler", "-fPIC", "-o", library]
        subprocess.run([*command, str(ROOT / "scripts/floors.cu")], check=True)
        functions = ctypes.CDLL(library)
    found = {}
    for name, (function, *arguments) in BLOCK_FLOORS.items():
        call = getattr(functions, function)
        call.restype = ctypes.c_double
        us = min(call(*arguments) for _ in range(5))  # the fastest, for a floor; negative for an error
        found[f"{name}_us"] = us if us >= 0 else f"CUDA error {-us:.0f}"
        print(f"  {name:24} {found[f'{name}_us']}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    device = Rehearsal() if options.rehearse else QuickGpu() if options.quick else Gpu()
    options.out_dir.mkdir(parents=True, exist_ok=True)

    results, failed, started = {}, [], time.monotonic()
    for section in (environment, stream, floors, torch_nn, kernels, blocks):
        name = section.__name__
        print(f"{name} (after {time.monotonic() - started:.0f} s)", flush=True)
        try:
            results[name] = section(device)
        except Exception:  # one section that fails must not cost the others' numbers
            traceback.print_exc()
            results[name] = f"failed: {traceback.format_exc()}"
            failed.append(name)
        (options.out_dir / "baseline.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"gpu_check: {time.monotonic() - started:.0f} s, {f'FAILED {failed}' if failed else 'all passed'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
