"""Lists each kernel's resources on Hopper: ptxas's report, its instructions and its occupancy. Needs no GPU, and uses
what the last build for Hopper compiled; `make cuda-check` builds it first.

Occupancy is how many blocks fit on a multiprocessor, and what limits it. A block has the threads of __launch_bounds__,
or ~128 without one, as most kernels of the stepwise engine are launched. A persistent kernel's dynamic shared memory is
that of its shape; that of others is not known, and "<=" is the most with which as many blocks fit.

Fails if a kernel spills registers, has a stack frame or uses local memory (LDL, STL), or if not even one block fits.
Usage: python scripts/cuda_check.py [source.cu ...]
"""

import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCH = "sm_90a"
HOST_ONLY = {"gpu.cu", "watch.cu"}  # no kernels, only calls of CUDA's runtime

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers[^\n]*",
    re.DOTALL,
)

# Output of cuobjdump: a line per kernel, then lines such as "/*0a30*/  @!P0 LDG.E.128 R4, [R2.64] ;".
FUNCTION = re.compile(r"\t+Function : (\w+)")
INSTRUCTION = re.compile(r" {8}/\*[0-9a-f]+\*/ +(?:@!?\w+ )?([A-Z][\w.]*)")
KINDS = {
    "local": re.compile(r"(LDL|STL)\b").match,
    "tensor": re.compile(r"[A-Z]*MMA\b").match,  # products of the tensor cores
    "16-byte loads": re.compile(r"LD[GS]?\b.*\.128\b").match,
    "MUFU": re.compile(r"MUFU\b").match,
}
# The section of a kernel; then the attribute that it has if the kernel has __launch_bounds__.
BOUNDS = re.compile(
    r"^\.nv\.info\.(?P<kernel>\w+)$|\tEIATTR_MAX_THREADS\n.*\n\tValue:\t(?P<threads>\w+ \w+ \w+)", re.MULTILINE
)

# Limits of a multiprocessor, whose registers are split evenly among its four partitions.
WARPS, BLOCKS, REGISTERS, SHARED_BYTES = 64, 32, 65536, 228 << 10
REGISTER_UNIT, SHARED_UNIT = 256, 128  # allocation units of a warp and of a block
RESERVED_BYTES = 1 << 10  # of each block's shared memory
USUAL_THREADS = 128

# The parts of a persistent kernel's name that determine its shared memory: bytes of a number, link, products, tiles.
PERSISTENT = re.compile(r"persistent<.*Cell<.*?(\w+)>, (?:\w+::)*(\w+), (?:\w+::)*(\w+)<.*Tiles\{(.*?)\}")
NUMBER_BYTES = {"double": 8, "float": 4, "Half": 2, "BFloat16": 2}
PRINT_SHAPES = """
#include <cstdio>
#include <cstdlib>
#include "cuda/plan/plan.h"
using namespace fused_rnn::cuda;
void fused_rnn::unknown_value(const char*, int64_t) { std::abort(); }
int main() {
  constexpr const char* kLinks[] = {"OneBlock", "Cluster", "Polling", "Flags"};  // in the order of Blocks
  for (const Shape& shape : kShapes)
    for (int gates = 1; gates <= 4; ++gates) {
      const Shape s = for_gates(shape, gates);
      const auto [warps_m, warps_k, tiles_m, held, parked, tiles_n] = s.tiles;
      std::printf("%d %s %d %d, %d, %d, %d, %d, %d: %d\\n", int(number_bytes(s.format)), kLinks[int(s.blocks)],
                  s.tensor_cores(), warps_m, warps_k, tiles_m, held, parked, tiles_n, int(s.shared_bytes()));
    }
}
"""


def readable(name):
    full = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|\(.*\)$", "", full).removeprefix("void ")


def compile_source(source, nvcc, flags, output):
    """Returns ptxas's report."""
    command = f"{nvcc} {flags} -Xptxas -v -c -o {output} {source}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout}{done.stderr}")
    return done.stderr


def kernels_of(source, report, arch=ARCH):
    found = [kernel for kernel in KERNEL.finditer(report) if kernel["arch"] == arch]
    return found or sys.exit(f"cuda_check: ptxas reports no kernel in {source} for {arch}")


def spills(kernel):
    return any(int(kernel[key]) for key in ("stack", "stores", "loads"))


def find_disassembler(nvcc):
    """The toolkit's cuobjdump, if installed, or that of the dev extra; it must not be older than nvcc."""
    places = [str(Path(nvcc).resolve().parent), *(str(Path(place) / "nvidia/cu13/bin") for place in sys.path)]
    for place in places:
        if all(shutil.which(tool, path=place) for tool in ("cuobjdump", "nvdisasm")):
            return str(Path(place) / "cuobjdump")  # which finds nvdisasm beside itself
    sys.exit("cuda_check: cuobjdump not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def instructions_of(disassembler, compiled):
    """{kernel: its number of instructions of each of KINDS}"""
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


def bounds_of(disassembler, compiled):
    """{kernel: its largest number of threads}, for kernels with __launch_bounds__"""
    command = [disassembler, "-elf", "-arch", ARCH, str(compiled)]
    bounds, kernel = {}, None
    for found in BOUNDS.finditer(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout):
        kernel = found["kernel"] or kernel
        if found["threads"]:
            bounds[kernel] = math.prod(int(n, 16) for n in found["threads"].split())
    return bounds


def shared_of_shapes():
    """{the parts of a persistent kernel's name: bytes of dynamic shared memory}, from plan.h"""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/shapes"
        cxx = shlex.split(os.environ.get("CXX", "g++"))
        command = [*cxx, "-std=c++20", "-Icsrc", "-x", "c++", "-", "-o", program]
        subprocess.run(command, input=PRINT_SHAPES, text=True, cwd=ROOT, check=True)
        lines = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return {shape: int(size) for shape, size in (line.split(": ") for line in lines)}


def dynamic_bytes(name, shapes):
    """Bytes of dynamic shared memory of a persistent kernel, by its name; None for other kernels."""
    if "persistent<" not in name:
        return None
    number, link, products, tiles = PERSISTENT.search(name).groups()
    shape = f"{NUMBER_BYTES[number]} {link} {products != 'Scalars':d} {tiles}"
    return shapes.get(shape) or sys.exit(f"cuda_check: plan.h has no shape '{shape}', of {name}")


def round_up(number, unit):
    return -(-number // unit) * unit


def occupancy(registers, threads, shared):
    """The number of blocks that fit on a multiprocessor, what limits it, and the shared memory that each may have."""
    warps = round_up(threads, 32) // 32
    room = {
        "registers": REGISTERS // 4 // round_up(32 * registers, REGISTER_UNIT) * 4 // warps,
        "warps": WARPS // warps,
        "blocks": BLOCKS,
        "shared memory": SHARED_BYTES // round_up(shared + RESERVED_BYTES, SHARED_UNIT),
    }
    blocks = min(room.values())
    limits = " and ".join(what for what, fit in room.items() if fit == blocks)
    return blocks, limits, SHARED_BYTES // max(blocks, 1) // SHARED_UNIT * SHARED_UNIT - RESERVED_BYTES


def occupancy_line(registers, static, bound, dynamic):
    """The number of resident blocks, and its part of the line. `bound` and `dynamic` are None if unknown."""
    threads = bound or USUAL_THREADS
    blocks, limits, most = occupancy(registers, threads, static + (dynamic or 0))
    warps = blocks * round_up(threads, 32) // 32
    return blocks, (
        f"{blocks:>2} blocks of {f'{threads}' if bound else f'~{threads}':>4} threads and"
        f" {f'<={most - static}' if dynamic is None else dynamic:>8} bytes dynamic ="
        f" {warps:>2} warps, {warps / WARPS:4.0%}, by {limits}"
    )


def check(source, report, counts, bounds, shapes):
    """Prints one line per kernel; returns how many of them use local memory or do not fit."""
    bad = 0
    for kernel in kernels_of(source, report):
        shared = re.search(r"(\d+) bytes smem", kernel[0])
        static = int(shared[1]) if shared else 0
        has = counts.get(kernel["name"]) or sys.exit(f"cuda_check: {kernel['name']} of {source} was not disassembled")
        name = readable(kernel["name"])
        known = bounds.get(kernel["name"]), dynamic_bytes(name, shapes)
        blocks, resident = occupancy_line(int(kernel["registers"]), static, *known)
        fails = spills(kernel) or has["local"] > 0 or blocks == 0
        bad += fails
        print(
            f"{'FAIL' if fails else 'ok':4} {kernel['registers']:>3} registers,"
            f" {static:>6} bytes shared, {kernel['stack']:>4} stack,"
            f" {kernel['stores']:>4} spilled, {', '.join(f'{has[kind]:>3} {kind}' for kind in KINDS)},"
            f" {resident}: {source} {name}",
            flush=True,
        )
    return bad


def main():
    setup = runpy.run_path(str(ROOT / "setup.py"))
    nvcc = setup["find_nvcc"]() or sys.exit("cuda_check: nvcc not found")
    disassembler = find_disassembler(nvcc)
    setup["write_sources"]()
    found = [*setup["cuda_sources"](), *(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.cu"))]
    sources = sys.argv[1:] or [str(path) for path in found if path.name not in HOST_ONLY]
    flags = setup["nvcc_flags"]([ARCH.removeprefix("sm_")])
    shapes = shared_of_shapes()

    def disassembled(compiled):
        return instructions_of(disassembler, compiled), bounds_of(disassembler, compiled)

    def inspect(source):
        compiled = ROOT / setup["object_of"](Path(source))
        log = Path(f"{compiled}.log")
        if log.exists() and f"for '{ARCH}'" in log.read_text():
            return log.read_text(), *disassembled(compiled)
        with tempfile.TemporaryDirectory() as folder:
            compiled = Path(folder) / "kernels.o"
            return compile_source(source, nvcc, flags, compiled), *disassembled(compiled)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads that wait for subprocesses
        reports = zip(sources, pool.map(inspect, sources), strict=True)
        bad = sum(check(source, *found, shapes) for source, found in reports)
    if bad:
        sys.exit(f"cuda_check: {bad} kernels use local memory, or are too large for a multiprocessor")


if __name__ == "__main__":
    main()
