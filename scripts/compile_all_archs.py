"""Compiles every CUDA source for every architecture of a general wheel, one after the other, in half an hour. Prints a
line for each, and fails if any does not compile. Run it before a release.

Usage: python scripts/compile_all_archs.py [--archs 75 90a ...] [source.cu ...]
"""

import argparse
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cuda_check

ROOT = Path(__file__).resolve().parent.parent
ARCHS = ("75", "80", "86", "89", "90a", "100a", "103a", "120a")


def known_to(nvcc):
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in ARCHS if f"sm_{arch.rstrip('a')}" in listed]


def line(arch, source, seconds, report):
    kernels = cuda_check.kernels_of(source, report, f"sm_{arch}")
    most = max(int(kernel["registers"]) for kernel in kernels)
    spilling = sum(map(cuda_check.spills, kernels))
    return (
        f"sm_{arch:5} {source:34} {seconds:6.1f} s, {len(kernels):3} kernels, at most {most:3} registers,"
        f" {spilling:2} spill"
    )


def main():
    setup = runpy.run_path(str(ROOT / "setup.py"))
    nvcc = setup["find_nvcc"]() or sys.exit("compile_all_archs: nvcc not found")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=known_to(nvcc))
    parser.add_argument("sources", nargs="*")
    options = parser.parse_args()
    setup["write_sources"]()
    found = [str(path) for path in setup["cuda_sources"]() if path.name not in cuda_check.HOST_ONLY]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for arch in options.archs:
            for source in options.sources or found:
                begin = time.monotonic()
                try:
                    report = cuda_check.compile_source(source, nvcc, setup["nvcc_flags"]([arch]), f"{folder}/kernels.o")
                except SystemExit as error:
                    print(f"sm_{arch:5} {source:34} FAIL\n{error}", flush=True)
                    failed.append(f"{source} for sm_{arch}")
                else:
                    print(line(arch, source, time.monotonic() - begin, report), flush=True)
    if failed:
        sys.exit(f"compile_all_archs: {len(failed)} did not compile: {', '.join(failed)}")


if __name__ == "__main__":
    main()
