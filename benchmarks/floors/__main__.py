"""Builds and runs floors.cu, then measures torch's matrix products: what no recurrent kernel on this GPU can beat.

    python -m benchmarks.floors FILE [--under COMMAND] [--rehearse]

The file has a line of JSON for each floor, written when it is known. --under: only floors.cu's, a few steps of each,
by a command such as a sanitizer's. --rehearse: on the tests' emulator, where times mean nothing.
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

        small = options.under or options.rehearse
        program = [*shlex.split(options.under), build(options.rehearse), *(["--rehearse"] if small else [])]
        code = run_program(program, record)
        if not options.under:
            device = StandIn() if options.rehearse else Gpu()
            for name in PRODUCTS:
                record(json.dumps(matrix_rate(device, name)) + "\n")
    return code


def build(emulated: bool) -> Path:
    """The program, compiled as the library's kernels are, or by the C++ compiler for the emulator."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    program = ROOT / "build" / ("floors-emulated" if emulated else "floors")
    program.parent.mkdir(exist_ok=True)
    if emulated:
        flags = "-std=c++20 -O1 -Icsrc -Itests/emulator -x c++"
        command = shlex.split(f"{os.environ.get('CXX', 'g++')} {flags}")
    else:
        nvcc = setup["find_nvcc"]() or sys.exit("floors: there is no nvcc")
        flags = setup["nvcc_flags"](setup["cuda_archs"]())
        command = [nvcc, *shlex.split(flags)]
    sources = [*FOLDER.glob("*.*"), *(ROOT / "csrc/cuda").glob("*.h"), *(ROOT / "tests/emulator").glob("*.h")]
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        subprocess.run([*command, str(FOLDER / "floors.cu"), "-o", str(program)], cwd=ROOT, check=True)
    return program


def run_program(command: list, record: Callable[[str], None]) -> int:
    """Hands over every line as it comes."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            record(line)
    return running.returncode


def matrix_rate(device: Gpu, name: str) -> dict:
    """Of random numbers: a GPU multiplies zeros faster."""
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
