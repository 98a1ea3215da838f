"""The GPU kernels of a call of each side and their times; above all, which of cuDNN's kernels torch.nn gets.

    python -m benchmarks.gpu_kernels FILE [--seconds N] [--rehearse]

In a process of its own, since profiling slows down later runs. The file is written after every line.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from .devices import Gpu, StandIn, precision
from .problem import build
from .suites import GPU_STEPS, SUITES, Work

HIDDEN, BATCH = (64, 128, 512, 1024), (8, 64)  # enough to see where cuDNN changes algorithms
MOST_SHOWN = 6  # kernels of a call


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_kernels", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    device = StandIn() if options.rehearse else Gpu()
    device.require()
    end, found = time.monotonic() + options.seconds, {}
    for work in device.adapted([work for work in SUITES["gpu"] if is_sampled(work)]):
        if time.monotonic() > end:
            print("time is up")
            break
        try:
            found[str(work)] = kernels_of_sides(device, work)
        except Exception as error:
            found[str(work)] = f"{type(error).__name__}: {error}"
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{work}: {_slowest(found[str(work)])}", flush=True)


def is_sampled(work: Work) -> bool:
    shape = work.shape
    return not work.packed and shape.steps == GPU_STEPS and shape.hidden in HIDDEN and shape.batch in BATCH


def kernels_of_sides(device: Gpu, work: Work) -> dict[str, list[dict]]:
    with precision(work.tf32):
        sides = build(work).sides()
        return {name: kernels(device, side.run) for name, side in sides.items() if name in ("ours", "torch.nn")}


def kernels(device: Gpu, run) -> list[dict]:
    """The slowest kernels of one call: name, launches and total microseconds."""
    run()
    device.wait()
    with torch.profiler.profile(activities=[device.activity]) as profile:
        run()
        device.wait()
    events = profile.key_averages()
    times = {event.key: (event.count, _own_us(device, event)) for event in events}
    slowest = sorted(times.items(), key=lambda item: -item[1][1])[:MOST_SHOWN]
    return [{"kernel": name, "launches": count, "us": round(us, 1)} for name, (count, us) in slowest]


def _own_us(device: Gpu, event) -> float:
    return event.self_device_time_total if device.name == "cuda" else event.self_cpu_time_total


def _slowest(found: dict[str, list[dict]] | str) -> str:
    if isinstance(found, str):
        return found
    first = {name: kernels[0] if kernels else {"kernel": "nothing", "us": 0} for name, kernels in found.items()}
    return ", ".join(f"{name} {kernel['us']} us in {kernel['kernel'][:60]}" for name, kernel in first.items())


if __name__ == "__main__":
    main()
