"""csrc/cpu/gemm/split.h and amx.h: split floats and their products on tiles against plain loops."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.compiling import BUILD_FLAGS, SOFTWARE_TILES, compile_library, processor_lacks

SOURCE = (Path(__file__).parent / "tiles_check.cpp").read_text()
AMX = (
    f"{BUILD_FLAGS} -march=x86-64-v4 -mprefer-vector-width=512 -mamx-tile -mamx-bf16 -mavx512bf16"
    " -DFUSED_RNN_AMX=1 -DFUSED_RNN_SPLIT_PRODUCTS=1 -DFUSED_RNN_X86_ISAS=1"
)
CHECKS = {"parts": 20_000, "rows": 2_000, "panel_rows": 100, "multiply": 150, "second": 60, "order": 60}

# In another process: reading past an end crashes it.
SCRIPT = """
import ctypes, sys
library, what, cases = sys.argv[1:]
check = ctypes.CDLL(library).check_tiles
check.restype, check.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int64]
print((check(what.encode(), 0, int(cases)) or b"right").decode())
"""


@pytest.fixture(scope="module", params=["amx_bf16", "software tiles"])
def library(request, tmp_path_factory):
    is_software = request.param == "software tiles"
    if lacking := processor_lacks("avx512_bf16", *([] if is_software else ["amx_bf16"])):
        pytest.skip(f"this processor has no {lacking[0]}")
    flags = f"{AMX} {SOFTWARE_TILES}" if is_software else AMX
    return compile_library(tmp_path_factory.mktemp("tiles"), SOURCE, flags)._name, 3 if is_software else 1


@pytest.mark.parametrize("what", CHECKS)
def test_tiles(library, what):
    path, slowness = library
    command = [sys.executable, "-c", SCRIPT, path, what, str(CHECKS[what] // slowness)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr
