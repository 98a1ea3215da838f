"""Compiles single headers of csrc for a test."""

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fused_rnn.own.flags import NO_COPIES
from support.paths import ROOT, TESTS

CSRC = ROOT / "csrc"
BUILD_FLAGS = f"-O3 {NO_COPIES} -fno-math-errno -fno-trapping-math"  # setup.py's
# setup.py's flags, those of this machine, and vectors of one lane. The library picks one set; these try each.
FLAGS = {"baseline": BUILD_FLAGS, "scalar": f"{BUILD_FLAGS} -DFUSED_RNN_VECTOR_BYTES=4 -fno-tree-vectorize"}
if platform.machine() in ("x86_64", "AMD64"):
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        FLAGS["avx2"] = f"{BUILD_FLAGS} -march=x86-64-v3"
    FLAGS["native"] = f"{BUILD_FLAGS} -march=native -mprefer-vector-width=512"
elif platform.machine() == "aarch64":
    FLAGS["native"] = f"{BUILD_FLAGS} -mcpu=native"


class Functions:
    """C functions (to, from, count) of a library, called with tensors."""

    def __init__(self, library):
        self.library = library

    def apply(self, name, to, source):
        function = getattr(self.library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function(to.data_ptr(), source.data_ptr(), source.numel())


# Has AMX's instructions computed in software (tests/cpu/software_tiles/), for processors without them.
SOFTWARE_TILES = f"-iquote {TESTS / 'cpu/software_tiles'}"


def processor_lacks(*features):
    """Those of Linux's names of features that this processor does not have, as far as is known."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {word for line in lines if line.startswith("flags") for word in line.split()}
    return [feature for feature in features if feature not in known]


def compile_library(folder, source, flags):
    """Compiles C++ ``source``, which may include from csrc/, and loads it; skips the test if there is no compiler."""
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"{cxx[0]} is not installed")
    path = folder / "library.so"
    command = [
        *cxx,
        "-std=c++20",
        f"-I{CSRC}",
        f"-I{TESTS / 'cpu'}",
        "-shared",
        "-fPIC",
        *flags.split(),
        "-x",
        "c++",
        "-",
        "-o",
        str(path),
    ]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path))
