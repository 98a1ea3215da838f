"""Compiles the kernels of a cell from its header, a struct ``Own`` under the contract of csrc/cells/cells.h."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from .._version import __version__
from ..ops import library
from .cache import HEADER, PLUG_IN, Entry
from .flags import CXX_FLAGS, OF_CELLS, camel, isas_of

_PACKAGE = Path(__file__).resolve().parents[1]
_ISAS = isas_of(platform.machine())


def sources() -> Path:
    """The folder of the engine's sources: of an installed package, or of its source tree."""
    installed = _PACKAGE / "include"
    return installed if installed.exists() else _PACKAGE.parent / "csrc"


def cell_id(header: str) -> int:
    """The id of this cell in operators' arguments and graphs: a hash of its text."""
    number = int(hashlib.sha256(header.encode()).hexdigest()[:15], 16)
    return number if number >= library.LEAST_OWN_ID else number + library.LEAST_OWN_ID


def load(header: str, dtypes: Iterable[torch.dtype], name: str = "cell") -> Path:
    """The plug-in with the kernels of a cell for these dtypes, for ``library.add_cell``; compiled unless it is cached.

    ``name`` is for messages. Raises RuntimeError if there is no compiler, or if it refuses the header.
    """
    wanted = sorted(set(dtypes), key=library.DTYPES.index)
    compiler = _compiler()
    builds = _builds(_gates(header), wanted)
    kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in wanted)
    return kept(
        Entry(_key(header, compiler, builds)),
        header,
        lambda folder: _compile(folder, compiler, builds, cell_id(header), f"{name} for {kinds}"),
    )


def kept(entry: Entry, header: str, compile: Callable[[Path], None]) -> Path:
    """The plug-in of an entry, after ``compile`` has put it into the folder that it is given, unless it is there."""
    if entry.is_whole():
        return entry.plug_in
    with entry.locked():
        if not entry.is_whole():  # another process may have written it by now
            with entry.written() as folder:
                (folder / HEADER).write_text(header)
                compile(folder)
    return entry.plug_in


def _gates(header: str) -> int:
    found = re.search(r"\bkGates\s*=\s*(\d+)", header)
    if found is None:
        raise ValueError("fused_rnn: a cell's header must define kGates")
    return int(found[1])


def _builds(gates: int, dtypes: Sequence[torch.dtype]) -> dict[str, tuple[str, int]]:
    """What to compile, by name of its flags: the instruction set and bits of dtypes."""
    builds: dict[str, tuple[str, int]] = {}
    for dtype in dtypes:
        for isa in library.instruction_sets(dtype, gates):
            kind = isa if isa != "amx" else "amx_bf16" if dtype == torch.bfloat16 else "amx_fp32"
            _, bits = builds.get(kind, (isa, 0))
            builds[kind] = (isa, bits | 1 << library.DTYPES.index(dtype))
    return builds


def _compiler() -> list[str]:
    """``CXX``, or the machine's compiler."""
    given = shlex.split(os.environ.get("CXX", ""))
    for command in [given] if given else (["g++"], ["c++"], ["clang++"]):
        if shutil.which(command[0]):
            return command
    looked_for = given[0] if given else "g++, c++ and clang++"
    raise RuntimeError(
        f"fused_rnn: there is no C++ compiler to compile this cell with (looked for {looked_for}). Install one (g++ 11 "
        "or newer), let CXX name it, or ask for the slow loop in plain PyTorch: layer(..., compiled=False)"
    )


@lru_cache
def version_of(compiler: tuple[str, ...]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout


@lru_cache
def digest_of_sources(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for part in OF_CELLS for path in (folder / part).rglob("*.*")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _key(header: str, compiler: list[str], builds: dict[str, tuple[str, int]]) -> str:
    parts = (
        header,
        __version__,
        digest_of_sources(sources()),
        version_of(tuple(compiler)),
        platform.machine(),
        CXX_FLAGS,
        os.environ.get("CXXFLAGS", ""),
        *(f"{kind} {_ISAS.engine[kind]} {bits}" for kind, (_, bits) in builds.items()),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def macros(header: Path, id: int) -> list[str]:
    """What tells the engine's sources the cell."""
    return [f'-DFUSED_RNN_OWN_CELL="{header}"', f"-DFUSED_RNN_OWN_ID={id}"]


def _compile(folder: Path, compiler: list[str], builds: dict[str, tuple[str, int]], id: int, what: str) -> None:
    """Compiles and links all of a plug-in in its folder."""
    common = [*compiler, *CXX_FLAGS.split(), *shlex.split(os.environ.get("CXXFLAGS", "")), f"-I{sources()}"]
    common += macros(folder / HEADER, id)
    common += _ISAS.chooses.split()
    listed = " ".join(f"X(k{camel(isa)}, {camel(kind)}, {bits})" for kind, (isa, bits) in builds.items())
    commands = [[*common, f"-DFUSED_RNN_OWN_KERNELS(X)={listed}", "-c", str(sources() / "cpu/plug_in.cpp")]]
    for kind, (_, bits) in builds.items():
        flags = [f"-DFUSED_RNN_ISA={camel(kind)}", f"-DFUSED_RNN_DTYPES={bits}", *_ISAS.engine[kind].split()]
        commands.append([*common, *flags, "-c", str(sources() / "cpu/kernels.cpp")])
    objects = [folder / f"{number}.o" for number in range(len(commands))]
    with Watch(what) as watch:
        watch.run([[*command, "-o", str(to)] for command, to in zip(commands, objects, strict=True)])
        watch.run([[*compiler, "-shared", "-o", str(folder / PLUG_IN), *map(str, objects)]])
    for path in objects:
        path.unlink()


class Watch:
    """Runs commands and says on a terminal how long that takes."""

    def __init__(self, what: str):
        self._what, self._start = what, time.monotonic()
        self._shows = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_) -> None:
        self._say("")

    def _say(self, text: str) -> None:
        if self._shows:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def run(self, commands: list[list[str]]) -> None:
        """Side by side, as many as there are processors."""
        waiting, running = list(commands), list[subprocess.Popen]()
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    running.append(subprocess.Popen(waiting.pop(0), stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
                self._say(f"fused_rnn: compiling {self._what}: {time.monotonic() - self._start:.0f} s")
                self._await(running)
        finally:
            for process in running:  # left by an error
                process.kill()
                process.communicate()

    def _await(self, running: list[subprocess.Popen]) -> None:
        """Waits a moment for the first of them, and removes it if it has ended."""
        try:
            output, _ = running[0].communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            return
        done = running.pop(0)
        if done.returncode:
            command = shlex.join(map(str, done.args))  # type: ignore[arg-type]
            raise RuntimeError(
                f"fused_rnn: {self._what} does not compile. {command}\n{output.decode(errors='replace')[-4000:]}"
            )
