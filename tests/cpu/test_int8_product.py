"""csrc/cpu/gemm/int8.h, compiled for each way to multiply bytes: exact sums, whatever the integers, and rounding."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from support.compiling import BUILD_FLAGS, FLAGS, compile_library

SOURCE = (Path(__file__).parent / "int8_check.cpp").read_text()
CHECKS = {"add_product": 20_000, "multiply": 300, "multiply_weights_only": 200, "quantize": 3000, "not_finite": 1}

# Those of setup.py that "native" may not be, by the processor's flag in /proc/cpuinfo.
VNNI = {
    "avx_vnni": f"{BUILD_FLAGS} -march=x86-64-v3 -mavxvnni",
    "avx512_vnni": f"{BUILD_FLAGS} -march=x86-64-v4 -mprefer-vector-width=512 -mavx512vnni",
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


@pytest.mark.parametrize("isa", [*FLAGS, *VNNI])
def test_int8(isa, tmp_path):
    if isa in VNNI:
        processor = Path("/proc/cpuinfo")
        if platform.machine() != "x86_64" or not processor.exists() or f" {isa}" not in processor.read_text():
            pytest.skip(f"this processor has no {isa}")
    library = compile_library(tmp_path, SOURCE, (FLAGS | VNNI)[isa])._name
    arguments = [str(part) for check in CHECKS.items() for part in check]
    command = [sys.executable, "-c", SCRIPT, library, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"{name} right" for name in CHECKS]), done.stderr
