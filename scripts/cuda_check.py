"""Lists what each kernel has become for Hopper: what ptxas says of it, and what its instructions are. No GPU is needed.
What the last build of the library for Hopper has compiled is not compiled again; `make cuda-check` builds it first.

Fails if a kernel spills registers, has a stack frame, or reads or writes local memory (LDL, STL): all of these put what
belongs in registers into slow memory.
Usage: python scripts/cuda_check.py [source.cu ...]
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCH = "sm_90a"

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers[^\n]*",
    re.DOTALL,
)

# What cuobjdump prints: a line per kernel, then lines such as "/*0a30*/  @!P0 LDG.E.128 R4, [R2.64] ;".
FUNCTION = re.compile(r"\t+Function : (\w+)")
INSTRUCTION = re.compile(r" {8}/\*[0-9a-f]+\*/ +(?:@!?\w+ )?([A-Z][\w.]*)")
KINDS = {
    "local": re.compile(r"(LDL|STL)\b").match,
    "tensor": re.compile(r"[A-Z]*MMA\b").match,  # products of the tensor cores
    "16-byte loads": re.compile(r"LD[GS]?\b.*\.128\b").match,
    "MUFU": re.compile(r"MUFU\b").match,
}


def readable(name):
    full = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|\(.*\)$", "", full).removeprefix("void ")


def compile_source(source, nvcc, flags, output):
    """What ptxas says."""
    command = f"{nvcc} {flags} -Xptxas -v -c -o {output} {source}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout}{done.stderr}")
    return done.stderr


def kernels_of(source, report):
    return list(KERNEL.finditer(report)) or sys.exit(f"cuda_check: ptxas reports no kernel in {source}")


def spills(kernel):
    return any(int(kernel[key]) for key in ("stack", "stores", "loads"))


def find_disassembler(nvcc):
    """The toolkit's own, which may be left out of it, or that of the dev extra: it must not be older than nvcc."""
    places = [str(Path(nvcc).resolve().parent), *(str(Path(place) / "nvidia/cu13/bin") for place in sys.path)]
    for place in places:
        if all(shutil.which(tool, path=place) for tool in ("cuobjdump", "nvdisasm")):
            return str(Path(place) / "cuobjdump")  # which finds nvdisasm beside itself
    sys.exit("cuda_check: there is no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def instructions_of(disassembler, compiled):
    """{kernel: how many instructions there are of each of KINDS}"""
    names = defaultdict(Counter)
    command = [disassembler, "-sass", "-arch", ARCH, str(compiled)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        kernel = None
        for line in running.stdout:
            if found := INSTRUCTION.match(line):
                names[kernel][found[1]] += 1
            elif found := FUNCTION.match(line):
                kernel = found[1]
    if running.returncode:
        sys.exit(f"cuda_check: {' '.join(command)} failed")
    return {
        kernel: {kind: sum(n for name, n in counts.items() if matches(name)) for kind, matches in KINDS.items()}
        for kernel, counts in names.items()
    }


def check(source, report, counts):
    """Prints one line per kernel; returns how many of them leave the registers."""
    bad = 0
    for kernel in kernels_of(source, report):
        shared = re.search(r"(\d+) bytes smem", kernel[0])
        has = counts.get(kernel["name"]) or sys.exit(f"cuda_check: {kernel['name']} of {source} was not disassembled")
        leaves = spills(kernel) or has["local"] > 0
        bad += leaves
        print(
            f"{'FAIL' if leaves else 'ok':4} {kernel['registers']:>3} registers,"
            f" {shared[1] if shared else 0:>6} bytes shared, {kernel['stack']:>4} stack,"
            f" {kernel['stores']:>4} spilled, {', '.join(f'{has[kind]:>3} {kind}' for kind in KINDS)}:"
            f" {source} {readable(kernel['name'])}",
            flush=True,
        )
    return bad


def main():
    setup = runpy.run_path(str(ROOT / "setup.py"))
    nvcc = setup["find_nvcc"]() or sys.exit("cuda_check: there is no nvcc")
    disassembler = find_disassembler(nvcc)
    found = [*(ROOT / "csrc").rglob("*.cu"), *(ROOT / "benchmarks").rglob("*.cu")]
    sources = sys.argv[1:] or sorted(str(path.relative_to(ROOT)) for path in found)
    flags = setup["nvcc_flags"]([ARCH.removeprefix("sm_")])

    def inspect(source):
        compiled = ROOT / setup["BUILD"] / f"{source}.o"
        log = Path(f"{compiled}.log")
        if log.exists() and f"for '{ARCH}'" in log.read_text():
            return log.read_text(), instructions_of(disassembler, compiled)
        with tempfile.TemporaryDirectory() as folder:
            compiled = Path(folder) / "kernels.o"
            return compile_source(source, nvcc, flags, compiled), instructions_of(disassembler, compiled)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # that wait for other processes
        bad = sum(check(source, *found) for source, found in zip(sources, pool.map(inspect, sources), strict=True))
    if bad:
        sys.exit(f"cuda_check: {bad} kernels use local memory")


if __name__ == "__main__":
    main()
