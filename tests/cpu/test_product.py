"""csrc/cpu/gemm/product.h, compiled for each instruction set: tiles, panels and packing against plain loops."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.compiling import FLAGS, compile_library

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


# In another process: reading past an end crashes it.
SCRIPT = """
import ctypes, sys
library, what, is_double, cases = sys.argv[1:]
check = ctypes.CDLL(library).check_product
check.restype, check.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int64]
print((check(what.encode(), int(is_double), 0, int(cases)) or b"right").decode())
"""


@pytest.fixture(scope="module", params=FLAGS)
def library(request, tmp_path_factory):
    return compile_library(tmp_path_factory.mktemp("product"), SOURCE, FLAGS[request.param])._name


@pytest.mark.parametrize(("what", "is_double", "cases"), CHECKS)
def test_product(library, what, is_double, cases):
    command = [sys.executable, "-c", SCRIPT, library, what, str(is_double), str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr
