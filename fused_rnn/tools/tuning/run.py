"""``tune``: hands jobs to a process that measures, replaces it when it hangs or dies, and writes the table."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...ops import library, tables, torch_private
from ...ops.checks import check_device
from ...ops.measured import Entry, Sizes, Table
from ..progress import progress
from . import sizes
from .report import Tuned

COMMAND = (sys.executable, "-m", "fused_rnn.tools.tuning.worker")
START_SECONDS = 120  # importing torch, and a GPU's first use
STEP_SECONDS = 60  # of one engine, verified or timed once
ON_CUDA = ("torch", "stepwise", "one", "cluster", "polling", "flags")
ON_CPU = ("torch", "ours")


class Lost(Exception):
    """The process died, or did not answer in time."""


class Worker:
    """A process that measures."""

    def __init__(self, command: Sequence[str] = COMMAND):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.next(START_SECONDS)
        except Lost:
            self.end()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def next(self, seconds: float) -> dict[str, Any]:
        """What it says next."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise Lost(f"it did not answer within {seconds:g} s") from None
        if line is None:
            raise Lost(f"its process died (exit status {self.process.wait()})")
        return json.loads(line)

    def ask(self, job: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Lost(str(error)) from error

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Tuner:
    """Runs jobs, one after the other, in a process at a time."""

    def __init__(self, device: str, start: Callable[[], Worker] = Worker, step_seconds: float = STEP_SECONDS):
        self.device, self.start, self.step_seconds = device, start, step_seconds
        self.worker: Worker | None = None
        self.failures: list[tuple[Sizes, str, str]] = []

    def _run(self, job: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The answer to a job, and the engine it was at last busy with; raises Lost with that name."""
        busy = ""
        try:
            if self.worker is None:
                self.worker = self.start()
            self.worker.ask({"device": self.device, "threads": torch.get_num_threads(), **job})
            while (said := self.worker.next(self.step_seconds))["event"] == "begins":
                busy = said["name"]
        except Lost as loss:
            self.end()
            raise Lost(busy, str(loss)) from loss
        if said["event"] == "failed":  # perhaps of a lost GPU
            self.end()
        return said, busy

    def measure(self, sizes: Sizes, names: Sequence[str]) -> Entry | None:
        """None: not even torch.nn's module could be timed."""
        left = list(names)
        while True:
            try:
                said, busy = self._run({"what": "measure", "sizes": list(sizes), "names": left})
                reason = said.get("reason", "")
            except Lost as loss:
                (busy, reason), said = loss.args, {}
            if said.get("event") == "measured":
                self.failures += [(sizes, name, reason) for name, reason in said["failed"].items()]
                return Entry(sizes, said["times"], frozenset(said["verified"]))
            self.failures.append((sizes, busy, reason))
            if busy not in left:
                return None
            left.remove(busy)

    def thresholds(self) -> dict[str, int]:
        try:
            said, _ = self._run({"what": "thresholds"})
        except Lost:
            return {}
        return said.get("found", {})

    def end(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None


def machine_is_busy() -> bool:
    """Whether more processes wanted to run in the last minute than there are processors."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)


def tune(
    device: str = "cpu",
    jobs: Sequence[Sizes] | None = None,
    *,
    effort: str = "default",
    seconds: float | None = None,
    tuner: Tuner | None = None,
    show_progress: bool = True,
) -> Tuned:
    """Verifies and times engines on this device, and writes its table; what is there already is kept.

    ``effort``: quick, default or full; ``jobs``: the sizes to measure, instead of that effort's.
    """
    kind = torch.device(device).type
    check_device(torch.device(device))
    if kind == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU to measure on")
    is_busy = machine_is_busy()
    until = time.monotonic() + (sizes.SECONDS[effort] if seconds is None else seconds)
    name, versions = tables.device_name(kind), tables.made_with(kind)
    before = tables.find(name, versions) or Table(name)
    tuner, jobs = tuner or Tuner(kind), sizes.standard(kind, effort) if jobs is None else jobs
    engines = ON_CPU if kind == "cpu" else ON_CUDA if library.cuda_archs() else ON_CUDA[:1]
    found: list[Entry] = []
    left, thresholds = 0, dict(before.thresholds)
    try:
        for each in progress(jobs, len(jobs), str, show_progress):
            if time.monotonic() > until:
                left += 1
                continue
            entry = tuner.measure(each, engines)
            if entry is not None:
                found.append(entry)
        # Which noise would move, and a whole process goes by them.
        if kind == "cpu" and not is_busy and time.monotonic() < until:
            thresholds = tuner.thresholds()
    finally:
        tuner.end()
    # Another process may have written meanwhile.
    latest = tables.find(name, versions) or before
    if kind == "cuda":
        versions = versions | {"driver": torch_private.cuda_driver()}
    table = Table(name, versions, latest.entries, thresholds).with_entries(found)
    tables.write(table, tables.path_of(name))
    tables.forget()
    tables.use_for_cpu()
    return Tuned(table, found, tuner.failures, left, is_busy)
