"""The machine's own limits, measured in the same run: multiply-adds per second, and bytes read from each cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch

SOURCE = Path(__file__).with_name("limits.cpp")
BUILD = Path(__file__).resolve().parent.parent / "build" / "benchmarks"
# The instructions that a dtype may be computed with; the fastest is its limit.
ARITHMETIC = {
    "float32": ("float32",),
    "float64": ("float64",),
    "bfloat16": ("float32", "bfloat16", "bfloat16_amx"),
    "float16": ("float32",),
}
INSTRUCTIONS = sorted({kind for kinds in ARITHMETIC.values() for kind in kinds})
MOST_BYTES = 1 << 30  # to read from memory: processors with larger caches are measured at the cache's rate
PROBE_SECONDS = 0.002


@dataclass(frozen=True)
class Level:
    """A cache, or memory."""

    name: str
    bytes_per_core: float  # its capacity, divided by the cores in use that share it


class Limits:
    """Rates of ``threads`` cores together. Measured again beside every line, as clocks of virtual machines vary."""

    def __init__(self, threads: int):
        self.threads = threads
        self._library = _library()
        self._pool = ThreadPoolExecutor(threads)
        self._buffers: dict[str, list[torch.Tensor]] = {}
        self.levels = _levels(threads)

    def operations(self, kind: str, seconds: float = PROBE_SECONDS) -> float:
        """Operations per second with one of INSTRUCTIONS, 0 if the processor lacks it."""
        function = getattr(self._library, f"limits_{kind}")
        return sum(self._pool.map(lambda _: function(seconds), range(self.threads)))

    @cache  # noqa: B019 - a process has one Limits
    def fastest(self, dtype: str) -> str:
        """The one of INSTRUCTIONS that is the limit for a dtype."""
        return max(ARITHMETIC[dtype], key=self.operations)

    def shares(self, bytes_per_core: float) -> dict[Level, float]:
        """The share of a repeatedly read working set that each level holds, nearest first.

        A cache that is slightly too small still serves its share, if sweeps alternate in direction.
        """
        found, held = {}, 0.0
        for level in self.levels:
            now_held = min(bytes_per_core, level.bytes_per_core)
            if now_held > held:
                found[level] = (now_held - held) / bytes_per_core
                held = now_held
        return found

    def read(self, level: Level, seconds: float = PROBE_SECONDS) -> float:
        """Bytes per second, with a buffer for each thread."""
        if level.name not in self._buffers:
            size = self._probe_bytes(level)
            self._buffers[level.name] = [torch.ones(size // 4) for _ in range(self.threads)]
        return sum(
            self._pool.map(
                lambda data: self._library.limits_read(data.data_ptr(), 4 * data.numel(), seconds),
                self._buffers[level.name],
            )
        )

    def _probe_bytes(self, level: Level) -> int:
        """Half of a cache, but well above the size of the previous one; for memory, twice the last cache."""
        k = self.levels.index(level)
        before = self.levels[k - 1].bytes_per_core if k else 0
        if level is self.levels[-1]:
            return int(min(2 * before, MOST_BYTES / self.threads))
        return int(min(level.bytes_per_core / 2, max(4 * before, 1 << 14)))

    def overview(self) -> dict[str, float]:
        """All limits, measured once, in GFLOP/s and GB/s."""
        found = {}
        for kind in INSTRUCTIONS:
            found[f"{kind} GFLOP/s"] = _rounded(median(self.operations(kind, 0.01) for _ in range(5)))
        for level in self.levels:
            found[f"{level.name} read GB/s"] = _rounded(median(self.read(level, 0.01) for _ in range(5)))
        del self._buffers[self.levels[-1].name]  # large, and no line reads its weights from memory
        return found


def _rounded(rate: float) -> float:
    return round(rate / 1e9, 1)


def _levels(threads: int) -> list[Level]:
    levels = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, number, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            shared = threads if number == "3" else 1
            levels.append(Level(f"L{number}", int(size.removesuffix("K")) * 1024 / shared))
    return [*levels, Level("memory", float("inf"))]


def _library() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        raise SystemExit(f"{SOURCE.name}, which measures the machine's limits, needs a C++ compiler: set CXX")
    command = [*compiler, "-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", str(SOURCE)]
    if platform.machine() in ("x86_64", "AMD64"):
        command.append("-mprefer-vector-width=512")
    # The processor's features are in the name, as machines that share the folder differ in what "native" means.
    features = re.search("^flags.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    key = hashlib.sha256(repr((command, SOURCE.read_text(), features and features[0])).encode()).hexdigest()[:12]
    path = BUILD / f"limits-{key}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    for kind in INSTRUCTIONS:
        function = getattr(library, f"limits_{kind}")
        function.argtypes, function.restype = [ctypes.c_double], ctypes.c_double
    library.limits_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double]
    library.limits_read.restype = ctypes.c_double
    return library
