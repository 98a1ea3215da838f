"""scripts/cuda_check.py and scripts/compile_all_archs.py: what they find in kernels that nvcc compiles."""

import itertools
import re
import runpy
import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT

SCRIPTS = ROOT / "scripts"
CUDA_CHECK = runpy.run_path(str(SCRIPTS / "cuda_check.py"))
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


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
        (33, 128, 0, 12, "registers"),  # a warp takes 40 * 32 registers: 12 blocks of 4 warps fit
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
def test_occupancy_equals_cudas(tmp_path):
    """cuda_occupancy.h, asked about a Hopper GPU."""
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
using ThreadCell = BackwardCell<Rnn<Tanh>, double>;
template __global__ void persistent<Persistent<ThreadCell, Flags, Scalars<double, 1>, Tiles{1, 8, 1, 2, PARKED, 1}>>(
    ThreadCell::Args, ThreadCell::Arrays, Partition);
}
}
"""


@needs_nvcc
def test_cuda_check_finds_launch_sizes(tmp_path):
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
def test_cuda_check_fails_if_no_block_fits(threads, bad, capsys):
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
