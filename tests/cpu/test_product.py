"""csrc/cpu/gemm/product.h, compiled for each instruction set: tiles, panels and packing against plain loops.

And products of bfloat16, where this processor or the emulator has them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from support import emulated
from support.compiling import BUILD_FLAGS, FLAGS, compile_library, processor_lacks

SOURCE = (Path(__file__).parent / "product_check.cpp").read_text()
CHECKS = [
    ("multiply", 0, 300),
    ("multiply", 1, 300),
    ("order", 0, 100),
    ("order", 1, 100),
    ("transpose", 0, 1),
    ("transpose", 1, 1),
    ("packing", 0, 300),
    ("packing", 1, 300),
    ("packing_16_bits", 0, 300),
    ("strip", 0, 500),
    ("strip", 1, 500),
    ("strip_16_bits", 0, 500),
]
BFLOAT16_CHECKS = [("multiply_bfloat16", 0, 200), ("order_bfloat16", 0, 60)]
BFLOAT16_FLAGS = {
    "avx512_bf16": f"{BUILD_FLAGS} -march=x86-64-v4 -mprefer-vector-width=512 -mavx512bf16"
    " -DFUSED_RNN_BFLOAT16_PRODUCTS=1",
    "neon_bf16": emulated.FLAGS["neon_bf16"],
}
MAIN = """
int main(int, char** arguments) {
  const char* wrong = check_product(arguments[1], atoi(arguments[2]), 0, atoll(arguments[3]));
  puts(wrong ? wrong : "right");
}
"""


# In another process: reading past an end crashes it.
SCRIPT = """
import ctypes, sys
library, what, is_double, cases = sys.argv[1:]
check = ctypes.CDLL(library).check_product
check.restype, check.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int64]
print((check(what.encode(), int(is_double), 0, int(cases)) or b"right").decode())
"""


def command_for(folder, isa, flags):
    """What runs a check, but for its arguments."""
    if isa in emulated.FLAGS:
        return emulated.compile_program(folder, SOURCE + MAIN, flags)
    return [sys.executable, "-c", SCRIPT, compile_library(folder, SOURCE, flags)._name]


@pytest.fixture(scope="module", params=[*FLAGS, "neon"])
def checks(request, tmp_path_factory):
    flags = (FLAGS | emulated.FLAGS)[request.param]
    return command_for(tmp_path_factory.mktemp("product"), request.param, flags)


@pytest.fixture(scope="module", params=BFLOAT16_FLAGS)
def bfloat16_checks(request, tmp_path_factory):
    if request.param == "avx512_bf16" and processor_lacks(request.param):
        pytest.skip(f"this processor has no {request.param}")
    return command_for(tmp_path_factory.mktemp("bfloat16"), request.param, BFLOAT16_FLAGS[request.param])


def run(command, *arguments):
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr


@pytest.mark.parametrize("check", CHECKS)
def test_product(checks, check):
    run(checks, *check)


@pytest.mark.parametrize("check", BFLOAT16_CHECKS)
def test_product_of_bfloat16(bfloat16_checks, check):
    run(bfloat16_checks, *check)
