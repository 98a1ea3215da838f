"""The device of the gpu suite: a GPU, or, to rehearse the suite, the CPU in its place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

import fused_rnn

from .suites import Effort, Shape, Work
from .timing import cpu_slice, gpu_slice

NVIDIA_SMI = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"


class Gpu:
    name = "cuda"
    effort: Effort | None = None  # as asked for
    activity = torch.profiler.ProfilerActivity.CUDA
    time_slice = staticmethod(gpu_slice)

    def require(self) -> None:
        """Exits with the reason if the suite cannot run."""
        if not torch.cuda.is_available():
            raise SystemExit("the gpu suite needs a GPU that torch can use; torch sees none")
        try:
            fused_rnn.LSTM(1, 1, device="cuda")(torch.zeros(1, 1, 1, device="cuda"))
        except RuntimeError as error:
            raise SystemExit(f"the gpu suite needs fused_rnn's CUDA engine: {error}") from error

    def adapted(self, works: list[Work]) -> list[Work]:
        return works

    def wait(self) -> None:
        torch.cuda.synchronize()

    def is_lost(self) -> bool:
        """Whether a kernel's error has made the GPU unusable for the rest of the process."""
        try:
            self.wait()
        except RuntimeError:
            return True
        return False

    def facts(self) -> dict[str, str]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "GPU": properties.name,
            "multiprocessors": str(properties.multi_processor_count),
            "cuDNN": str(torch.backends.cudnn.version()),
            "FUSED_RNN_ENGINE": os.environ.get("FUSED_RNN_ENGINE", "not set"),
        } | self.state()

    def state(self) -> dict[str, str]:
        """What changes during the run, clocks above all."""
        command = ["nvidia-smi", "--id=0", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        except (OSError, subprocess.SubprocessError) as error:
            return {"nvidia-smi": str(error)}
        return dict(zip(NVIDIA_SMI.split(","), map(str.strip, found.split(",")), strict=False))


class StandIn(Gpu):
    """The CPU, with tiny sizes."""

    name = "cpu"
    effort = Effort("rehearsal", "a second", 0.0, 1, 1)
    activity = torch.profiler.ProfilerActivity.CPU
    time_slice = staticmethod(cpu_slice)

    def require(self) -> None:
        pass

    def adapted(self, works: list[Work]) -> list[Work]:
        """One line of each group, layer and mode."""
        small = (replace(work, device="cpu", shape=Shape(3, 4, 6)) for work in works)
        return list(dict.fromkeys(small))

    def wait(self) -> None:
        pass

    def facts(self) -> dict[str, str]:
        return {"GPU": "none"}

    def state(self) -> dict[str, str]:
        return {}


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Sets whether cuBLAS and cuDNN may use TF32; torch has a flag for each."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = tf32
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
