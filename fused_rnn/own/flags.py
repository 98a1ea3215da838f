"""The compilers' flags, for the library (setup.py runs this file) and for the cells that are compiled at run time."""

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

PIC = "" if sys.platform == "win32" else "-fPIC"  # every code of Windows can be moved
# GCC copies whole loops for each side of a branch in them: a quarter of the code and of the compile time, for no speed.
# Clang does not know the flag.
NO_COPIES = "-fno-unswitch-loops -Wno-ignored-optimization-argument"
CXX_FLAGS = f"-std=c++20 -O3 {NO_COPIES} {PIC} -fvisibility=hidden -fno-math-errno -fno-trapping-math"

AVX2 = "-march=x86-64-v3"
AVX512 = "-march=x86-64-v4 -mprefer-vector-width=512"
AMX = f"{AVX512} -mamx-tile -mamx-bf16 -DFUSED_RNN_AMX=1"
VNNI = "-mavx512vnni"
NEON = "-march=armv8.2-a"  # what processors with the rest of these flags have
BFLOAT16 = "-DFUSED_RNN_BFLOAT16_PRODUCTS=1"  # for layers of bfloat16 alone
SPLIT = "-DFUSED_RNN_SPLIT_PRODUCTS=1"  # for layers of float32 alone
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}  # names of the same

NVCC_FLAGS, NVCC_HOST_FLAGS = "-std=c++20 -O3", "-fPIC,-fvisibility=hidden"

OF_CELLS = ("core", "cells", "cpu", "cuda/device", "cuda/stepwise")
"""The folders of csrc that cells are compiled from."""


def gencode(archs: Sequence[str]) -> str:
    """For GPUs of these architectures, oldest first, such as ``["80", "90a"]``."""
    flags = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs]
    portable = [arch for arch in archs if arch.isdigit()]
    if portable:  # PTX too, for GPUs newer than any in the list
        flags.append("-gencode arch=compute_{0},code=compute_{0}".format(portable[-1]))
    return " ".join(flags)


def nvcc_places() -> str:
    """Where nvcc is looked for, as a PATH."""
    home = os.environ.get("CUDA_HOME")
    return f"{home}/bin" if home else f"{os.environ.get('PATH', os.defpath)}:/usr/local/cuda/bin"


class Isas(NamedTuple):
    """The instruction sets of a machine: the compiler's flags by their names.

    The CPU engine is compiled once for each; the library picks one of them when it runs.
    """

    engine: dict[str, str]
    int8: dict[str, str]  # of the engine for weights of 8 bits
    chooses: str  # tells the files that choose one


def isas_of(machine: str) -> Isas:
    machine = MACHINES.get(machine, machine)
    if machine == "x86_64":
        baseline = {"baseline": "-O1"}  # of processors before 2013, which few have: it compiles faster
        engine = {
            "avx2": AVX2,
            "avx512": AVX512,
            "avx512_bf16": f"{AVX512} -mavx512bf16 {BFLOAT16}",
            "amx_bf16": f"{AMX} -mavx512bf16 {BFLOAT16}",
            "amx_fp32": f"{AMX} -mavx512bf16 {SPLIT}",
        }
        int8 = {
            "avx2": AVX2,
            "avx_vnni": f"{AVX2} -mavxvnni",
            "avx512_vnni": f"{AVX512} {VNNI}",
            "amx_int8": f"{AVX512} {VNNI} -mamx-tile -mamx-int8 -DFUSED_RNN_AMX_INT8=1",  # for rows of 8 bits too
        }
        return Isas(baseline | engine, baseline | int8, "-DFUSED_RNN_X86_ISAS=1")
    baseline = {"baseline": ""}
    if machine == "aarch64":
        engine = {"neon_bf16": f"{NEON}+bf16 {BFLOAT16}"}
        int8 = {"neon_dot": f"{NEON}+dotprod", "neon_i8mm": f"{NEON}+dotprod+i8mm"}
        return Isas(baseline | engine, baseline | int8, "-DFUSED_RNN_ARM_ISAS=1")
    return Isas(baseline, baseline, "")


def camel(isa: str) -> str:
    """The name of an instruction set's kernels in C++: Avx512Bf16 for avx512_bf16."""
    return isa.title().replace("_", "")
