"""Builds the library with its CUDA engine on the emulator: ``torch.ops.fused_rnn_emulated``, all of it on the CPU."""

import ctypes
import os
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from compiling import CSRC, EMULATOR

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    *(CSRC / name for name in ("arguments.cpp", "infer.cpp", "memory.cpp", "ops.cpp", "packed.cpp")),
    *(path for path in sorted((CSRC / "cuda").glob("*.c*")) if path.suffix in (".cpp", ".cu")),
    EMULATOR / "library.cpp",
]
FOLDER = ROOT / "build/emulated"  # kept: the next run compiles what has changed since
OF_A_GPU = {"registration.cpp", "stream.cpp", "identity.cu"}  # library.cpp stands for them
# Runs of steps are projected ahead a few at a time, so that tests have several.
DEFINES = ["-DFUSED_RNN_LIBRARY=fused_rnn_emulated", "-DFUSED_RNN_AHEAD_BYTES=4096"]


def ninja_file(folder, csrc, changed, others):
    """For all of ``csrc``, or for its sources named in ``changed``, linked with what ``others`` has of the rest."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    cxx = os.environ.get("CXX", "g++")
    flags = setup["cxx_flags"](setup["find_torch"](), None, []).replace("-Icsrc", f"-I{csrc}").replace("-O3", "-O1")
    torch_libraries = Path(torch.__file__).parent / "lib"
    flags = f"{flags} {' '.join(DEFINES)} -I{EMULATOR}"
    text = f"rule cxx\n  command = {cxx} {flags} -MD -MF $out.d -x c++ -c $in -o $out\n"
    text += "  depfile = $out.d\n  deps = gcc\n"
    text += f"rule link\n  command = {cxx} -shared -Wl,--no-undefined -o $out $in"
    text += f" -L{shlex.quote(str(torch_libraries))} -lc10 -ltorch_cpu\n"
    objects = []
    for source in SOURCES:
        if source.name in OF_A_GPU:
            continue
        if changed and source.name not in changed:
            objects.append(f"{others}/{source.name}.o")
            continue
        place = csrc / source.relative_to(CSRC) if source.is_relative_to(CSRC) else source
        objects.append(f"{folder}/{source.name}.o")
        text += f"build {objects[-1]}: cxx {place}\n"
    return text + f"build {folder}/emulated.so: link {' '.join(objects)}\n"


def build(folder, csrc=CSRC, changed=(), others=None):
    """The built library's path. What has not changed since an earlier build in ``folder`` is kept.

    A copy of the sources of which few have changed takes the other objects from an earlier build, in ``others``.
    """
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"{cxx[0]} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(folder, csrc, changed, others))
    ninja = runpy.run_path(str(ROOT / "setup.py"))["find_ninja"]()
    done = subprocess.run([*ninja, "-C", folder, "-j2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "emulated.so"


def load():
    """Builds the library, unless FUSED_RNN_EMULATED names one, and registers its operators; its C functions."""
    path = os.environ.get("FUSED_RNN_EMULATED") or build(FOLDER)
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.emulator_schedule.argtypes = [ctypes.c_uint]
    library.emulator_fill_memory.argtypes = [ctypes.c_bool]
    return library
