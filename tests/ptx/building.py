"""Builds the machine: a Python module of its sources, a CUDA runtime of its own, and this library's object files."""

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
import torch
from filelock import FileLock  # torch needs it too

MODULE = "fused_rnn_machine"
MACHINE = Path(__file__).resolve().parent / "machine"
ROOT = MACHINE.parents[2]
SETUP = runpy.run_path(str(ROOT / "setup.py"))
NATIVE = ROOT / SETUP["BUILD"]
TORCH = Path(torch.__file__).parent
FOLDER = ROOT / "build/ptx"  # kept between runs: only changed files are compiled again
# Parts of the CUDA engine that need torch's CUDA; the machine's engine.cpp replaces them.
OF_A_GPU = {"engine.cpp", "stream.cpp"}
SHARED = (
    "arguments.cpp",
    "gradients.cpp",
    "infer.cpp",
    "memory.cpp",
    "normed.cpp",
    "packed.cpp",
    "registry.cpp",
    "step.cpp",
)
# Parts of the machine that programs do not need.
OF_PYTHON = {"python.cpp", "engine.cpp", "tensor_memory.cpp", "products.cpp"}
WRAPPED = "--wrap=_ZN9fused_rnn4cuda7Product3runEv"  # by products.cpp
NAMESPACE = "-DFUSED_RNN_LIBRARY=fused_rnn_emulated"


def engine_objects():
    """The library's objects that make up its CUDA engine, as setup.py has compiled them."""
    wanted = []
    for _, source, target, _ in SETUP["compile_steps"](with_cuda=True):
        of_cuda = "cuda" in source.parts or source.suffix == ".cu"
        if source.name not in OF_A_GPU if of_cuda else source.name in SHARED:
            wanted.append(ROOT / target)
    return wanted


def ptx_files():
    """The kernels' PTX for Hopper, which nvcc left beside those objects."""
    files = [path for each in engine_objects() for path in sorted(Path(f"{each}.keep").glob("*.ptx"))]
    return [path for path in files if ".target sm_90a" in path.read_text()[:4000]]


def cuda_include():
    """The folder of nvcc's CUDA headers."""
    said = subprocess.run(
        [SETUP["find_nvcc"](), "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    top = next(line.partition("TOP=")[2] for line in said.stderr.splitlines() if "TOP=" in line)
    return Path(top).resolve() / "include"


def why_not():
    """Why the machine cannot be built here, or None."""
    if shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None:
        return "there is no C++ compiler"
    if SETUP["find_nvcc"]() is None:
        return "nvcc is not installed, or FUSED_RNN_CUDA=0: there is no PTX to execute"
    if not all(path.exists() for path in engine_objects()) or not ptx_files():
        return "the library was not built with CUDA for sm_90a: there is no PTX to execute"
    return None


def compile_rule():
    """The ninja rule that compiles the machine's C++."""
    cxx = os.environ.get("CXX", "g++")
    flags = [
        "-std=c++20 -O3 -march=native -fPIC -fvisibility=hidden -Wall -Wextra",
        "-ffp-contract=off -fno-strict-aliasing",  # arithmetic as in PTX; registers are read as any type
        f"-DFUSED_RNN_MACHINE={MODULE} {NAMESPACE} -DTORCH_TARGET_VERSION=0x{{:02x}}{{:02x}}000000000000".format(
            *SETUP["OLDEST_TORCH"]
        ),
        f"-I{ROOT / 'csrc'} -isystem {TORCH / 'include'} -isystem {cuda_include()}",
        f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}",
    ]
    text = f"rule cxx\n  command = {cxx} {' '.join(flags)} -MD -MF $out.d -c $in -o $out\n"
    return text + "  depfile = $out.d\n  deps = gcc\n"


def compile_steps(sources):
    """The build steps, and the names of their objects."""
    objects = [f"{source.name}.o" for source in sources]
    steps = (f"build {target}: cxx {source}\n" for source, target in zip(sources, objects, strict=True))
    return "".join(steps), objects


def module_file(engine, target=f"{MODULE}.so"):
    """build.ninja of the module, linked with these objects of the CUDA engine."""
    steps, objects = compile_steps([*sorted(MACHINE.glob("*.cpp")), ROOT / "csrc/ops/ops.cpp"])
    cxx, libraries = os.environ.get("CXX", "g++"), f"-L{shlex.quote(str(TORCH / 'lib'))} -lc10 -ltorch_cpu -ldl"
    link = f"{cxx} -shared -Wl,-Bsymbolic,{WRAPPED} -o $out.new $in {libraries}"
    link += " && mv $out.new $out"  # a process may have it loaded
    text = f"{compile_rule()}rule link\n  command = {link}\n{steps}"
    return f"{text}build {target}: link {' '.join([*objects, *map(str, engine)])}\n"


def program_file(source):
    """build.ninja of a program that is one .cu file, with the machine in place of CUDA's runtime."""
    steps, objects = compile_steps([path for path in sorted(MACHINE.glob("*.cpp")) if path.name not in OF_PYTHON])
    nvcc = SETUP["nvcc_command"](SETUP["find_nvcc"](), ["90a"])
    text = f"{compile_rule()}rule nvcc\n  command = {nvcc}\n  depfile = $out.d\n  deps = gcc\n"
    text += f"rule link\n  command = {os.environ.get('CXX', 'g++')} -o $out $in -ldl\n"
    text += f"{steps}build {source.name}.o: nvcc {source}\n  flags = -I{ROOT / 'csrc'}\n"
    return f"{text}build {source.stem}: link {' '.join([f'{source.name}.o', *objects])}\n"


def build(target, ninja_file):
    """Builds a target if it is out of date, and returns its path."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{Path(target).name}.ninja"
    command = [*SETUP["find_ninja"](), "-C", FOLDER, "-f", file, "-j2", target]
    with FileLock(FOLDER / "lock"):  # of the tests' processes one builds, and the others find it done
        file.write_text(ninja_file)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return FOLDER / target


def build_program(source):
    """A program, and the environment variable that names its kernels' PTX."""
    program = build(source.stem, program_file(source))
    (kernels,) = (FOLDER / f"{source.name}.o.keep").glob("*.ptx")
    return program, {"FUSED_RNN_PTX": str(kernels)}


def build_with_cells_of(tree):
    """The module with the stepwise kernels of another source tree, where cells were added; and its environment."""
    setup = runpy.run_path(str(tree / "setup.py"))
    own = [path.relative_to(ROOT) for path in engine_objects() if "persistent" not in path.parent.parts]
    (tree / "build/native/kernels.ninja").write_text(setup["ninja_file"](TORCH, setup["find_nvcc"](), ["90a"]))
    command = [*setup["find_ninja"](), "-f", "build/native/kernels.ninja", "-j2", *map(str, own)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    objects = [tree / path if (path := each.relative_to(ROOT)) in own else each for each in engine_objects()]
    target = tree / "build" / f"{MODULE}.so"
    kernels = [path for path in ptx_files() if "stepwise" not in path.parts]
    kernels += (tree / "build/native").glob("csrc/cuda/stepwise/*.keep/*.ptx")
    module = build(target, module_file(objects, target))
    return {"FUSED_RNN_EMULATED": str(module), "FUSED_RNN_PTX": ":".join(map(str, kernels))}


def load_module():
    """Builds the module, unless FUSED_RNN_EMULATED names one, and loads it; skips the test where that cannot be."""
    path = os.environ.get("FUSED_RNN_EMULATED")
    if not path and (reason := why_not()):
        pytest.skip(reason)
    spec = importlib.util.spec_from_file_location(MODULE, path or build(f"{MODULE}.so", module_file(engine_objects())))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
