"""Builds the machine: a Python module of its sources, this library's own objects and a CUDA runtime that it brings."""

import importlib.util
import os
import runpy
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest

MODULE = "fused_rnn_machine"
MACHINE = Path(__file__).resolve().parent / "machine"
ROOT = MACHINE.parents[2]
SETUP = runpy.run_path(str(ROOT / "setup.py"))
NATIVE = ROOT / SETUP["BUILD"]
FOLDER = ROOT / "build/ptx"  # kept: the next run compiles what has changed since
# Of the CUDA engine, what stands between torch's CUDA and the kernels: engine.cpp stands for it.
OF_A_GPU = {"registration.cpp", "stream.cpp"}
SHARED = ("arguments.cpp", "gradients.cpp", "infer.cpp", "memory.cpp", "packed.cpp")
NAMESPACE = "-DFUSED_RNN_LIBRARY=fused_rnn_emulated"


def engine_objects():
    """The library's objects that make up its CUDA engine, as setup.py has compiled them."""
    cuda = sorted(NATIVE.glob("csrc/cuda/*.o"))
    wanted = [path for path in cuda if path.name.removesuffix(".o") not in OF_A_GPU]
    return wanted + [NATIVE / "csrc" / f"{name}.o" for name in SHARED]


def ptx_files():
    """What nvcc made of the kernels for Hopper, on the way to the machine code in those same objects."""
    files = sorted(NATIVE.glob("csrc/cuda/*.keep/*.ptx"))
    return [path for path in files if ".target sm_90a" in path.read_text()[:4000]]


def cuda_include():
    """Where the CUDA headers are that nvcc compiles with."""
    said = subprocess.run(
        [SETUP["find_nvcc"](), "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    top = next(line.partition("TOP=")[2] for line in said.stderr.splitlines() if "TOP=" in line)
    return Path(top).resolve() / "include"


def why_not():
    """What keeps the machine from being built here; None: nothing does."""
    if shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None:
        return "there is no C++ compiler"
    if SETUP["find_nvcc"]() is None:
        return "nvcc is not installed, or FUSED_RNN_CUDA=0: there is no PTX to execute"
    if not all(path.exists() for path in engine_objects()) or not ptx_files():
        return "the library was not built with CUDA for sm_90a: there is no PTX to execute"
    return None


def ninja_file():
    cxx = os.environ.get("CXX", "g++")
    torch = Path(SETUP["find_torch"]())
    flags = [
        "-std=c++20 -O3 -march=native -fPIC -fvisibility=hidden -Wall -Wextra",
        "-ffp-contract=off -frounding-math -fno-strict-aliasing",  # numbers as PTX has them; registers of any type
        f"-DFUSED_RNN_MACHINE={MODULE} {NAMESPACE} -DTORCH_TARGET_VERSION=0x{{:02x}}{{:02x}}000000000000".format(
            *SETUP["OLDEST_TORCH"]
        ),
        f"-I{ROOT / 'csrc'} -isystem {torch / 'include'} -isystem {cuda_include()}",
        f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}",
    ]
    sources = [*sorted(MACHINE.glob("*.cpp")), ROOT / "csrc/ops.cpp"]
    objects = [f"{source.name}.o" for source in sources]
    text = f"rule cxx\n  command = {cxx} {' '.join(flags)} -MD -MF $out.d -c $in -o $out\n"
    text += "  depfile = $out.d\n  deps = gcc\n"
    libraries = f"-L{shlex.quote(str(torch / 'lib'))} -lc10 -ltorch_cpu -ldl"
    text += f"rule link\n  command = {cxx} -shared -Wl,-Bsymbolic -o $out $in {libraries}\n"
    for source, target in zip(sources, objects, strict=True):
        text += f"build {target}: cxx {source}\n"
    return text + f"build {MODULE}.so: link {' '.join([*objects, *map(str, engine_objects())])}\n"


def build():
    """The path of the module. What has not changed is kept."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "build.ninja").write_text(ninja_file())
    done = subprocess.run([*SETUP["find_ninja"](), "-C", FOLDER, "-j2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return FOLDER / f"{MODULE}.so"


def load_module():
    """Builds the module, unless FUSED_RNN_EMULATED names one, and loads it; skips the test where that cannot be."""
    path = os.environ.get("FUSED_RNN_EMULATED")
    if not path and (reason := why_not()):
        pytest.skip(reason)
    spec = importlib.util.spec_from_file_location(MODULE, path or build())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
