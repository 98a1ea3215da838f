"""csrc/cpu/gemm/int8.h, compiled for each way to multiply bytes: exact sums, whatever the integers, and rounding."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import emulated
from support.compiling import BUILD_FLAGS, FLAGS, SOFTWARE_TILES, compile_library, processor_lacks

SOURCE = (Path(__file__).parent / "int8_check.cpp").read_text()
CHECKS = {"add_product": 20_000, "multiply": 300, "multiply_weights_only": 200, "quantize": 3000, "not_finite": 1}

NEON = ("neon", "neon_dot", "neon_i8mm")
MAIN = """
int main(int count, char** arguments) {
  for (int i = 1; i + 1 < count; i += 2) {
    const char* wrong = check_int8(arguments[i], 0, atoll(arguments[i + 1]));
    printf("%s %s\\n", arguments[i], wrong ? wrong : "right");
  }
}
"""
TILES = "multiply_on_tiles"

AVX512 = f"{BUILD_FLAGS} -march=x86-64-v4 -mprefer-vector-width=512 -mavx512vnni"
AMX = f"{AVX512} -mamx-tile -mamx-int8 -DFUSED_RNN_AMX_INT8=1 -DFUSED_RNN_X86_ISAS=1"
# Those of setup.py that "native" may not be: the processor's features, the compiler's flags.
OTHERS = {
    "avx_vnni": (["avx_vnni"], f"{BUILD_FLAGS} -march=x86-64-v3 -mavxvnni"),
    "avx512_vnni": (["avx512_vnni"], AVX512),
    "amx_int8": (["avx512_vnni", "amx_int8"], AMX),
    "software tiles": (["avx512_vnni"], f"{AMX} {SOFTWARE_TILES}"),
}

# In another process: reading past an end crashes it.
SCRIPT = """
import ctypes, sys
library, *checks = sys.argv[1:]
check = ctypes.CDLL(library).check_int8
check.restype, check.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int64]
for name, cases in zip(checks[::2], checks[1::2]):
    print(name, (check(name.encode(), 0, int(cases)) or b"right").decode())
"""


def run(command, checks):
    arguments = [str(part) for check in checks.items() for part in check]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"{name} right" for name in checks]), done.stderr


def in_python(library):
    return [sys.executable, "-c", SCRIPT, library._name]


@pytest.mark.parametrize("isa", FLAGS)
def test_int8(isa, tmp_path):
    run(in_python(compile_library(tmp_path, SOURCE, FLAGS[isa])), CHECKS)


@pytest.mark.parametrize("isa", NEON)
def test_int8_on_arm(isa, tmp_path):
    run(emulated.compile_program(tmp_path, SOURCE + MAIN, emulated.FLAGS[isa]), CHECKS)


@pytest.mark.parametrize("isa", OTHERS)
def test_other_ways_to_multiply(isa, tmp_path):
    features, flags = OTHERS[isa]
    if lacking := processor_lacks(*features):
        pytest.skip(f"this processor has no {lacking[0]}")
    on_tiles = {TILES: CHECKS["multiply"]} if "FUSED_RNN_AMX_INT8" in flags else {}
    run(in_python(compile_library(tmp_path, SOURCE, flags)), CHECKS | on_tiles)
