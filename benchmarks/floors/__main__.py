"""Builds and runs floors.cu, then measures torch's matrix products: lower bounds for any recurrent kernel on this GPU.

    python -m benchmarks.floors FILE [--under COMMAND] [--rehearse]

The file gets a line of JSON for each floor, as soon as it is measured. --under: only those of floors.cu, a few steps
each, run by a command such as a sanitizer. --rehearse: on the tests' software GPU, where times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import torch

from ..devices import Gpu, StandIn, precision

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
REPEATS = 11
# Name: dtype, whether TF32 is allowed, and the width of square matrices, on a GPU.
PRODUCTS = {
    "float32": (torch.float32, False, 4096),
    "tf32": (torch.float32, True, 8192),
    "bfloat16": (torch.bfloat16, True, 8192),
    "float16": (torch.float16, True, 8192),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--under", default="")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    with options.file.open("w") as file:

        def record(line: str) -> None:
            file.write(line)
            file.flush()
            print(line, end="", flush=True)

        program, environment = build_rehearsal() if options.rehearse else (build(), {})
        flags = ["--rehearse"] if options.under or options.rehearse else []
        command = [*shlex.split(options.under), program, *flags]
        code = run_program(command, environment, record)
        if not options.under:
            device = StandIn() if options.rehearse else Gpu()
            for name in PRODUCTS:
                record(json.dumps(matrix_rate(device, name)) + "\n")
    return code


def build() -> Path:
    """Compiles the program like the library's kernels."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    program = ROOT / "build/floors"
    program.parent.mkdir(exist_ok=True)
    nvcc = setup["find_nvcc"]() or sys.exit("floors: nvcc not found")
    flags = shlex.split(setup["nvcc_flags"](setup["cuda_archs"]()))
    sources = [*FOLDER.glob("*.*"), *(ROOT / "csrc/cuda").rglob("*.h")]
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        subprocess.run([nvcc, *flags, str(FOLDER / "floors.cu"), "-o", str(program)], cwd=ROOT, check=True)
    return program


def build_rehearsal() -> tuple[Path, dict[str, str]]:
    """The program for the tests' software GPU, which executes its PTX, and the environment that it needs."""
    building = runpy.run_path(str(ROOT / "tests/ptx/building.py"))
    if reason := building["why_not"]():
        sys.exit(f"floors: {reason}")
    return building["build_program"](FOLDER / "floors.cu")


def run_program(command: list, environment: dict[str, str], record: Callable[[str], None]) -> int:
    """Passes each line to ``record`` as it arrives."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as running:
        for line in running.stdout:
            record(line)
    return running.returncode


def matrix_rate(device: Gpu, name: str) -> dict:
    """With random numbers, as a GPU multiplies zeros faster."""
    dtype, allowed, width = PRODUCTS[name]
    width = width if device.name == "cuda" else 32
    a, b = (torch.randn(width, width, device=device.name).to(dtype) for _ in range(2))
    with precision(tf32=allowed):
        rates = [2e-12 * width**3 / device.time_slice(lambda: a @ b) for _ in range(REPEATS)]
    low, median, high = quantiles(rates, n=4)
    return {
        "name": f"torch's matrix product, {name}, of {width}",
        "unit": "TFLOP/s",
        "median": float(f"{median:.5g}"),
        "quartiles": [float(f"{low:.5g}"), float(f"{high:.5g}")],
        "repeats": REPEATS,
    }


if __name__ == "__main__":
    sys.exit(main())
