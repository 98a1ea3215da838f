"""Builds the library with its CUDA engine on the emulator: ``torch.ops.fused_rnn_emulated``, all of it on the CPU."""

import ctypes
import os
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from compiling import CSRC, EMULATOR

ROOT = Path(__file__).resolve().parent.parent
OF_A_GPU = {"registration.cpp", "stream.cpp", "identity.cu"}  # library.cpp stands for them
ENGINE = [
    path
    for path in sorted((CSRC / "cuda").glob("*.c*"))
    if path.suffix in (".cpp", ".cu") and path.name not in OF_A_GPU
]
SOURCES = [
    *(CSRC / name for name in ("arguments.cpp", "gradients.cpp", "infer.cpp", "memory.cpp", "ops.cpp", "packed.cpp")),
    *ENGINE,
    EMULATOR / "library.cpp",
]
FOLDER = ROOT / "build/emulated"  # kept: the next run compiles what has changed since
# Runs of steps are projected ahead a few at a time, so that tests have several.
DEFINES = ["-DFUSED_RNN_LIBRARY=fused_rnn_emulated", "-DFUSED_RNN_AHEAD_BYTES=4096"]


class Program(NamedTuple):
    """A program or library to build: its file's name, its sources, and what the compiler is told."""

    name: str
    sources: list[Path]
    flags: str
    link_flags: str


def emulated_library():
    setup = runpy.run_path(str(ROOT / "setup.py"))
    flags = setup["cxx_flags"](setup["find_torch"](), None, []).replace("-Icsrc", "").replace("-O3", "-O1")
    torch_libraries = shlex.quote(str(Path(torch.__file__).parent / "lib"))
    link_flags = f"-shared -Wl,--no-undefined -L{torch_libraries} -lc10 -ltorch_cpu"
    return Program("emulated.so", SOURCES, f"{flags} {' '.join(DEFINES)}", link_flags)


def ninja_file(program, folder, csrc, changed, others):
    """For all of ``csrc``, or for its sources named in ``changed``, linked with what ``others`` has of the rest."""
    cxx = os.environ.get("CXX", "g++")
    flags = f"-I{csrc} -I{EMULATOR} {program.flags}"
    text = f"rule cxx\n  command = {cxx} {flags} -MD -MF $out.d -x c++ -c $in -o $out\n"
    text += "  depfile = $out.d\n  deps = gcc\n"
    text += f"rule link\n  command = {cxx} -o $out $in {program.link_flags}\n"
    objects = []
    for source in program.sources:
        if changed and source.name not in changed:
            objects.append(f"{others}/{source.name}.o")
            continue
        place = csrc / source.relative_to(CSRC) if source.is_relative_to(CSRC) else source
        objects.append(f"{folder}/{source.name}.o")
        text += f"build {objects[-1]}: cxx {place}\n"
    return text + f"build {folder}/{program.name}: link {' '.join(objects)}\n"


def build(folder, csrc=CSRC, changed=(), others=None, program=None):
    """The path of what was built: the emulated library, or another program. What has not changed is kept.

    A copy of the sources of which few have changed takes the other objects from an earlier build, in ``others``.
    """
    program = program or emulated_library()
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"{cxx[0]} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(program, folder, csrc, changed, others))
    ninja = runpy.run_path(str(ROOT / "setup.py"))["find_ninja"]()
    done = subprocess.run([*ninja, "-C", folder, "-j2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / program.name


def load():
    """Builds the library, unless FUSED_RNN_EMULATED names one, and registers its operators; its C functions."""
    path = os.environ.get("FUSED_RNN_EMULATED") or build(FOLDER)
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.emulator_schedule.argtypes = [ctypes.c_uint]
    library.emulator_fill_memory.argtypes = [ctypes.c_bool]
    return library
