"""Kernels of cells that are registered at run time, compiled for the machine as the library compiles them for a GPU."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from fused_rnn.ops import library
from fused_rnn.own import build, cuda, register

from .building import FOLDER

KEPT = FOLDER / "own"  # between runs


def plug_in(header, dtype, machine):
    """The plug-in, linked with the machine's runtime in place of CUDA's, and the PTX of its kernels."""
    nvcc = cuda.find_nvcc()
    key = (header, build.digest_of_sources(build.sources()), build.version_of((nvcc,)), dtype, cuda.NVCC_FLAGS, machine)
    folder = KEPT / hashlib.sha256("\0".join(map(str, key)).encode()).hexdigest()[:32]
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / "lock"):
        if not folder.exists():
            new = Path(tempfile.mkdtemp(dir=KEPT))
            (new / "cell.h").write_text(header)
            *command, source = cuda.compile_command(nvcc, new / "cell.h", build.cell_id(header), dtype)
            # The machine tells kernels apart by their names, which the file's name is a part of; a GPU by their files.
            own = shutil.copy(source, new / f"plug_in_{folder.name}.cu")
            _run([*command, own, "--keep", "--keep-dir", new, "-o", new / "cell.o"])
            _run([os.environ.get("CXX", "g++"), "-shared", "-o", new / "cell.so", new / "cell.o", machine])
            shutil.move(new, folder)
    (text,) = folder.glob("*.ptx")
    return folder / "cell.so", text


def _run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Cells:
    """What the machine's own table of cells is told."""

    def __init__(self, module):
        self._module, self._library = module, ctypes.CDLL(module.__file__)
        library.declare_cuda(self._library)
        self._loader = library.in_c(self._load)
        self._library.fused_rnn_set_cuda_loader(self._loader)
        self._plug_ins = []

    def _load(self, cell_id, dtype):
        _, header = register.source_of(cell_id)
        path, text = plug_in(header, dtype, self._module.__file__)
        self._module.read_file(str(text))
        self._plug_ins.append(library.add_to(self._library.fused_rnn_add_cuda_cell, path, "fused_rnn_cuda_plug_in"))

    def declare(self, cell_id, traits):
        error, numbers = ctypes.create_string_buffer(256), (ctypes.c_int64 * len(traits))(*map(int, traits))
        declare = self._library.fused_rnn_declare_cell
        declare.argtypes = library.compiled.fused_rnn_declare_cell.argtypes
        assert declare(cell_id, numbers, error, len(error)), error.value
