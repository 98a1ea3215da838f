"""The CPU engine on aarch64, cross-compiled and run under qemu-user: every pass against the same on this processor.

What passes are made of is tested with the other instruction sets: test_vector.py, test_storage.py, test_product.py and
test_int8_product.py. Nothing here says how fast it is.
"""

import os
import runpy
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from support import emulated
from support.compiling import BUILD_FLAGS, CSRC
from support.paths import ROOT, TESTS

SETUP = runpy.run_path(str(ROOT / "setup.py"))
SOURCE = f'#include "{TESTS / "cpu/sanitize_check.cpp"}"\n'
CASES = 200
QUICK = "-O1 -fno-math-errno -fno-trapping-math"  # compiles in half the time, but adds no product and sum as one
# Flags of both builds, instruction set, bound of all results' norm.
KINDS = {
    "float32": ("-DFUSED_RNN_ONE_DTYPE=float", "neon", 1e-5),
    "bfloat16 by matrices": ("-DFUSED_RNN_ONE_DTYPE=BFloat16", "neon_bf16", 2e-2),
}
EXHAUSTIVE = KINDS | {
    "float64": ("-DFUSED_RNN_ONE_DTYPE=double", "neon", 1e-13),
    "float16": ("-DFUSED_RNN_ONE_DTYPE=Half", "neon", 5e-3),
    "bfloat16": ("-DFUSED_RNN_ONE_DTYPE=BFloat16", "neon", 2e-2),
    "int8": ("-DFUSED_RNN_INT8", "neon", 1e-2),
    "int8 by dot products": ("-DFUSED_RNN_INT8", "neon_dot", 1e-2),
    "int8 by matrices": ("-DFUSED_RNN_INT8", "neon_i8mm", 1e-2),
}


def numbers_of(folder, name, command):
    """What the check finds in random layers."""
    path = folder / name
    done = subprocess.run([*command, str(CASES), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.fromfile(path)


def native_program(folder, flags):
    program = folder / "native"
    command = [*shlex.split(os.environ.get("CXX", "g++")), "-std=c++20", *flags.split(), f"-I{CSRC}"]
    command += ["-o", str(program), "-x", "c++", "-"]
    done = subprocess.run(command, input=SOURCE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [str(program)]


def compare(folder, optimise, flags, isa, bound):
    emulated.skip_without_tools()
    with ThreadPoolExecutor(2) as pool:
        both = f"{optimise} {flags} -DFUSED_RNN_ISA=Baseline"
        here = pool.submit(native_program, folder, both)
        of_isa = emulated.FLAGS[isa].replace(BUILD_FLAGS, both)
        there = pool.submit(emulated.compile_program, folder, SOURCE, of_isa)
    expected, found = numbers_of(folder, "here", here.result()), numbers_of(folder, "there", there.result())
    assert len(found) == len(expected) > 100_000
    assert np.linalg.norm(found - expected) <= bound * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_passes(kind, tmp_path):
    compare(tmp_path, QUICK, *KINDS[kind])


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", EXHAUSTIVE)
def test_passes_as_they_are_built(kind, tmp_path):
    compare(tmp_path, BUILD_FLAGS, *EXHAUSTIVE[kind])


# ---- which instruction set -------------------------------------------------------------------------------------------

CHOICE = """
#include <stdio.h>
#include "cpu/schedule/isa.cpp"
#include "cpu/schedule/tile_support.cpp"
namespace fused_rnn::cpu {
extern const Kernels kKernelsBaseline = {}, kKernelsNeonBf16 = {};
extern const Int8Kernels kInt8KernelsBaseline = {}, kInt8KernelsNeonDot = {}, kInt8KernelsNeonI8Mm = {};
}
using namespace fused_rnn;
using namespace fused_rnn::cpu;
int main() try {
  for (const Dtype dtype : {Dtype::kFloat, Dtype::kBFloat16}) {
    const Isa isa = isas_for(dtype)[0];
    if (&kernels_for(isa, dtype) != (isa == Isa::kNeonBf16 ? &kKernelsNeonBf16 : &kKernelsBaseline)) return 1;
    puts(isa_name(isa));
  }
  const Isa isa = isas_for(Dtype::kFloat, WeightFormat::kInt8)[0];
  const Int8Kernels& kernels = int8_kernels_for(isa);
  if (isa == Isa::kNeonDot && &kernels != &kInt8KernelsNeonDot) return 1;
  if (isa == Isa::kNeonI8Mm && &kernels != &kInt8KernelsNeonI8Mm) return 1;
  puts(isa_name(isa));
} catch (const std::exception& e) {
  puts(e.what());
}
"""


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    flags = f"-O1 {SETUP['isas_of']('aarch64').chooses}"
    return emulated.compile_program(tmp_path_factory.mktemp("choice"), CHOICE, flags)


@pytest.mark.parametrize(
    ("processor", "asked", "chosen"),
    [
        ("cortex-a72", "", ["baseline", "baseline", "baseline"]),
        ("neoverse-n1", "", ["baseline", "baseline", "neon_dot"]),
        ("max", "", ["baseline", "neon_bf16", "neon_i8mm"]),
        ("max", "neon_i8mm", ["baseline", "baseline", "neon_i8mm"]),
        ("max", "neon_dot", ["baseline", "baseline", "neon_dot"]),
        ("max", "baseline", ["baseline", "baseline", "baseline"]),
        ("neoverse-n1", "neon_bf16", ["FUSED_RNN_ISA=neon_bf16 is not supported by this processor or build"]),
        ("max", "avx2", ["FUSED_RNN_ISA must be neon_bf16, neon_i8mm, neon_dot or baseline, got 'avx2'"]),
    ],
)
def test_choice(choice, processor, asked, chosen):
    command = [processor if part == "max" else part for part in choice]
    environment = os.environ | {"FUSED_RNN_ISA": asked}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, chosen), done.stderr


# ---- the whole library -----------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_everything_compiles_for_aarch64(tmp_path):
    """Without warnings; what is compiled for one instruction set has nothing that the linker may use for another."""
    emulated.skip_without_tools()
    common = [emulated.COMPILER, *shlex.split(SETUP["cxx_flags"](SETUP["find_torch"](), None, [])), "-Werror"]

    def compiled(step):
        number, (_, source, _, flags) = step
        path = tmp_path / f"{number}.o"
        command = [*common, *shlex.split(flags), "-c", str(source), "-o", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return source, path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, enumerate(SETUP["compile_steps"](with_cuda=False, machine="aarch64"))))
    for source, path in objects:
        if source in (SETUP["ENGINE"], SETUP["INT8_ENGINE"]):
            listed = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
            assert [line for line in listed.splitlines() if line.split()[-2] in tuple("WVu")] == []
