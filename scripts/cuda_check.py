"""Lists what ptxas says of each kernel, compiled for Hopper: no GPU is needed. What the last build of the library for
Hopper has compiled is not compiled again; `make cuda-check` builds it first.

Fails if a kernel spills registers or has a stack frame: both put what belongs in registers into slow memory.
Usage: python scripts/cuda_check.py [source.cu ...]
"""

import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCH = "sm_90a"

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers[^\n]*",
    re.DOTALL,
)


def readable(name):
    full = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|\(.*\)$", "", full).removeprefix("void ")


def report_of(source, nvcc, flags, build):
    """What ptxas says."""
    built = ROOT / build / f"{source}.o.log"
    if built.exists() and f"for '{ARCH}'" in built.read_text():
        return built.read_text()
    command = f"{nvcc} {flags} -Xptxas -v -c -o /dev/null {source}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout}{done.stderr}")
    return done.stderr


def check(source, report):
    """Prints one line per kernel; returns how many of them leave the registers."""
    kernels = list(KERNEL.finditer(report)) or sys.exit(f"cuda_check: ptxas reports no kernel in {source}")
    bad = 0
    for kernel in kernels:
        shared = re.search(r"(\d+) bytes smem", kernel[0])
        leaves = any(int(kernel[key]) for key in ("stack", "stores", "loads"))
        bad += leaves
        print(
            f"{'FAIL' if leaves else 'ok':4} {kernel['registers']:>3} registers,"
            f" {shared[1] if shared else 0:>6} bytes shared, {kernel['stack']:>4} stack,"
            f" {kernel['stores']:>4} spilled: {source} {readable(kernel['name'])}",
            flush=True,
        )
    return bad


def main():
    setup = runpy.run_path(str(ROOT / "setup.py"))
    nvcc = setup["find_nvcc"]() or sys.exit("cuda_check: there is no nvcc")
    found = [*(ROOT / "csrc").rglob("*.cu"), *(ROOT / "benchmarks").rglob("*.cu")]
    sources = sys.argv[1:] or sorted(str(path.relative_to(ROOT)) for path in found)
    flags = setup["nvcc_flags"]([ARCH.removeprefix("sm_")])
    bad = sum(check(source, report_of(source, nvcc, flags, setup["BUILD"])) for source in sources)
    if bad:
        sys.exit(f"cuda_check: {bad} kernels spill registers or have a stack frame")


if __name__ == "__main__":
    main()
