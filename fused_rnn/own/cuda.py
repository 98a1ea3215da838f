"""Compiles the kernels of a cell for CUDA, step by step, when it is first run there."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from pathlib import Path

import torch

from .._version import __version__
from ..ops import library
from . import build
from .cache import HEADER, PLUG_IN, Entry
from .flags import NVCC_FLAGS, NVCC_HOST_FLAGS, gencode, nvcc_places

WITHOUT_CUDA = (
    "fused_rnn: this library was built without CUDA, so it has no engine there for cells of your own: build it with "
    "CUDA, keep layer and input on the CPU, or ask for the slow loop in plain PyTorch: layer(..., compiled=False)"
)
_OF_NVCC = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")  # which it reads itself


def load(header: str, dtype: torch.dtype, name: str = "cell") -> Path:
    """The plug-in with a cell's kernels for a dtype, for ``library.add_cuda_cell``; compiled unless it is cached.

    ``name`` is for messages. Raises RuntimeError if there is no nvcc, or if it refuses the header.
    """
    nvcc = find_nvcc()

    def compile(folder: Path) -> None:
        made = folder / "cell.o"
        command = compile_command(nvcc, folder / HEADER, build.cell_id(header), dtype)
        with build.Watch(f"{name} for {str(dtype).removeprefix('torch.')} on CUDA") as watch:
            watch.run([[*command, "-o", str(made)]])
            watch.run([[nvcc, "-shared", "-cudart", "static", "-o", str(folder / PLUG_IN), str(made)]])
        made.unlink()

    return build.kept(_entry(header, dtype, nvcc), header, compile)


def find(header: str, dtype: torch.dtype) -> Path | None:
    """The plug-in, if it has been compiled."""
    entry = _entry(header, dtype, find_nvcc())
    return entry.plug_in if entry.is_whole() else None


def find_nvcc() -> str:
    places = nvcc_places()
    nvcc = shutil.which("nvcc", path=places)
    if nvcc is None:
        raise RuntimeError(
            f"fused_rnn: there is no nvcc to compile this cell for CUDA with (looked in {places}). Install the CUDA "
            "toolkit, let CUDA_HOME name it, or ask for the slow loop in plain PyTorch: layer(..., compiled=False)"
        )
    return nvcc


def compile_command(nvcc: str, header: Path, id: int, dtype: torch.dtype) -> list[str]:
    """Compiles the plug-in's one file, but for where to."""
    flags = [*NVCC_FLAGS.split(), "-Xcompiler", NVCC_HOST_FLAGS, *gencode(_archs()).split(), f"-I{build.sources()}"]
    own = [*build.macros(header, id), f"-DFUSED_RNN_OWN_DTYPE={library.DTYPES.index(dtype)}"]
    return [nvcc, *flags, *own, "-c", str(build.sources() / "cuda/stepwise/plug_in.cu")]


def _archs() -> list[str]:
    """Of this machine's GPUs, else of the library; without the letter, as the kernels are for any GPU."""
    if torch.cuda.is_available():
        found = {"{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
    else:
        found = {arch.rstrip("af") for arch in library.cuda_archs()}
    return sorted(found, key=int)


def _entry(header: str, dtype: torch.dtype, nvcc: str) -> Entry:
    parts = (
        header,
        __version__,
        build.digest_of_sources(build.sources()),
        build.version_of((nvcc,)),
        shlex.join(compile_command("nvcc", Path(HEADER), 0, dtype)),
        *(os.environ.get(variable, "") for variable in _OF_NVCC),
    )
    return Entry(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32])
