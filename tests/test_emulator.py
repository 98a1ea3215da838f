"""The emulator of GPUs in tests/emulator/: right kernels pass in every order, and each seeded fault is seen."""

import ctypes
import math
import os
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from compiling import CSRC, EMULATOR, compile_library

FAULTS = EMULATOR / "faults.cpp"
SEEDS = range(15)  # every order of schedule.h three times

# Faults of a kind that an order may hide: then another must show it. The emulator sees all others in every order.
DEPENDS_ON_ORDER = {"missing_cluster_wait", "single_slot"}
# What it says, for faults that do not just make the result wrong.
SAYS = {
    "barrier_not_reached_by_all": "deadlock: 32 threads have ended, 32 threads wait for __syncthreads at kernels.cuh",
    "barriers_of_two_branches": "divergent: threads meet in __syncthreads from kernels.cuh",
    "block_left_its_cluster": "reaches into the shared memory of a block that has ended",
    "data_that_never_comes": "nothing happens any more: .* threads poll at kernels.cuh",
    "grid_not_cooperative": "nothing happens any more: 1 threads poll at kernels.cuh",
    "mbarrier_not_armed_again": "nothing happens any more: 512 threads poll at device.h",
    "mbarrier_not_initialized": "an mbarrier is used before it was initialized",
    "polls_for_ever": "nothing happens any more: 64 threads poll at kernels.cuh",
    "shared_memory_overrun": "shared memory was written 0 bytes past its end",
    "shuffle_without_all_lanes": "deadlock: 25 threads have ended, 7 threads wait for a warp's barrier at kernels.cuh",
    "too_many_threads": r"a block of \(1025,1,1\) threads",
    "too_much_shared_memory": "232449 bytes of shared memory",
}
NAMES = [
    "buffer_used_too_early",
    "missing_block_barrier",
    "missing_cluster_wait",
    "missing_grid_barrier",
    "missing_mbarrier_wait",
    "missing_warp_barrier",
    "read_before_written",
    "single_slot",
    *SAYS,
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    flags = f"-O1 -Wall -Wextra -Werror -I{EMULATOR}"
    loaded = compile_library(tmp_path_factory.mktemp("emulator"), FAULTS.read_text(), flags)
    for function in (loaded.run_case, loaded.case_names):
        function.restype = ctypes.c_char_p
    return loaded


def run(library, name, fault):
    return [library.run_case(name.encode(), fault, seed).decode() for seed in SEEDS]


def test_every_case_is_listed(library):
    assert sorted(library.case_names().decode().split()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_right_kernels_pass(library, name):
    assert set(run(library, name, fault=False)) == {""}


@pytest.mark.parametrize("name", NAMES)
def test_faults_are_caught(library, name):
    found = run(library, name, fault=True)
    caught = [message for message in found if message]
    assert caught if name in DEPENDS_ON_ORDER else len(caught) == len(found)
    assert name not in SAYS or any(re.search(SAYS[name], message) for message in caught), caught


def words(matrix, dtype):
    """The bits of a matrix's rows, two 16-bit numbers in a word."""
    return matrix.to(dtype).contiguous().view(torch.int32)


@pytest.mark.parametrize(("kind", "dtype", "depth"), [(0, torch.bfloat16, 16), (1, torch.float16, 16), (2, None, 8)])
def test_matrix_products(library, kind, dtype, depth):
    a, b, d = torch.randn(16, depth), torch.randn(8, depth), torch.full((16, 8), torch.nan)
    a[0, 0], b[3, depth - 1] = 2.0**-20, 2.0**-16  # subnormal in float16
    if dtype is None:  # TF32: the last 13 bits of the fraction are not read
        a, b = ((m.view(torch.int32) & ~0x1FFF).view(torch.float32) for m in (a, b))
        given = [a.view(torch.int32) | 0x1FFF, b.view(torch.int32) | 0x1FFF]
    else:
        a, b = (m.to(dtype).float() for m in (a, b))
        given = [words(a, dtype), words(b, dtype)]
    library.multiply(kind, *(ctypes.c_void_p(t.data_ptr()) for t in (*given, d)))
    torch.testing.assert_close(d, a @ b.T, rtol=1e-6, atol=1e-6)


def test_rounding_to_tf32(library):
    """To the nearest, ties away from zero, into the next power of two or to infinity; infinities and NaN stay."""
    given = [1.0, 1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 2**-11, 2 - 2**-12, 3.4028234e38, math.inf, math.nan]
    rounded = [1.0, 1 + 2**-10, 1.0, -1 - 2**-10, 2.0, math.inf, math.inf, math.nan]
    for number, expected in zip(given, rounded, strict=True):
        a, b, d = torch.zeros(16, 8), torch.zeros(8, 8), torch.full((16, 8), torch.nan)
        a[5, 3], b[:, 3] = number, 1.0
        library.multiply(3, *(ctypes.c_void_p(t.data_ptr()) for t in (a, b, d)))
        torch.testing.assert_close(d[5], torch.full((8,), expected), rtol=0, atol=0, equal_nan=True)
    low_bits = torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)  # a NaN by its last bit alone
    a[5, 3] = low_bits
    library.multiply(3, *(ctypes.c_void_p(t.data_ptr()) for t in (a, b, d)))
    assert d[5].isnan().all()


# ---- with sanitizers -----------------------------------------------------------------------------------------------

SANITIZERS = {
    "thread": "-fsanitize=thread -DEMULATOR_THREADS",
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
}
# Faults that each has to see, with a part of its report. ThreadSanitizer alone sees a race that did no harm.
REPORTS = {
    "thread": {
        "missing_block_barrier": "data race",
        "missing_warp_barrier": "data race",
        "buffer_used_too_early": "data race",
        "missing_grid_barrier": "data race",
        "missing_mbarrier_wait": "data race",
    },
    "address": {"shared_memory_overrun": "use-after-poison", "missing_block_barrier": "wrong result"},
}
PASSED = {
    "thread": [*REPORTS["thread"], "missing_cluster_wait", "data_that_never_comes", "single_slot"],
    "address": NAMES,
}


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory):
    """(the sanitizer's name, the program of faults.cpp built with it)"""
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"{cxx[0]} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    flags = [*cxx, *SANITIZERS[request.param].split(), "-std=c++20", "-O1", "-g", f"-I{CSRC}", f"-I{EMULATOR}"]
    (folder / "empty.cpp").write_text("int main() {}")
    empty = subprocess.run(
        [*flags, "empty.cpp", "-o", "empty"], cwd=folder, capture_output=True, text=True, check=False
    )
    if empty.returncode or subprocess.run([folder / "empty"], check=False, capture_output=True).returncode:
        pytest.skip(f"{cxx[0]} has no runtime of the {request.param} sanitizer here: {empty.stderr[-200:]}")
    subprocess.run([*flags, str(FAULTS), "-o", "program"], cwd=folder, check=True)
    return request.param, folder / "program"


def test_sanitizers_pass_right_kernels(program):
    sanitizer, path = program
    done = subprocess.run([path, "right", *PASSED[sanitizer]], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_sanitizers_report_faults(program):
    sanitizer, path = program
    for name, report in REPORTS[sanitizer].items():
        done = subprocess.run([path, "faults", name], capture_output=True, text=True, check=False)
        assert done.returncode != 0 and report in done.stderr, name


# ---- on the way to a GPU -------------------------------------------------------------------------------------------


def test_kernels_are_device_code(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    target = ["-std=c++20", "-arch=sm_90a", "--Werror", "all-warnings", f"-I{CSRC}"]
    source = EMULATOR / "kernels.cu"
    done = subprocess.run(
        ["nvcc", *target, "-c", source, "-o", tmp_path / "kernels.o"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
