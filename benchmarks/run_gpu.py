"""Measures the gpu suite beside torch.nn, which runs cuDNN there.

GPU time is expensive and new kernels may hang, so: there is a time limit; results are written as they come; a line that
fails is recorded and does not stop the others; and if a line hangs or makes the GPU unusable, the process exits with
LOST, and a new one continues after that line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

import fused_rnn

from . import gpu_table
from .devices import Gpu, precision
from .problem import LARGEST_DIFFERENCE_TF32, build, calls_of, check
from .results import Line, Results
from .run import asked, commit, machine_facts
from .suites import LOST, SUITES, Effort, Work
from .timing import Timing, time_interleaved

LINE_SECONDS = 30  # timeout of a line; the slowest should take 2
SAVE_SHARE = 0.05  # largest share of the time that goes into writing the file


class WrongResult(Exception):
    """Our result differs from torch.nn's; ``others`` has the other sides' times."""

    def __init__(self, why: str, others: dict[str, Timing]):
        super().__init__(why)
        self.others = others


def measure(device: Gpu, effort: Effort, seconds: float, only: list[str], folder: Path, resume: bool) -> Results:
    """As much of the suite as time allows. With ``resume``, only lines that the file in ``folder`` lacks."""
    end = time.monotonic() + seconds
    device.require()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` is run
    results = _new_results(device, effort)
    path = folder / results.file_name
    if resume and path.exists():
        results = Results.load(path)
    works = [work for work in device.adapted(SUITES["gpu"]) if asked(str(work), only)]
    known = {str(line.work) for line in results.lines} | {failure["work"] for failure in results.failures}
    works = [work for work in works if str(work) not in known]
    print(f"\ngpu suite, {len(works)} lines, at most {seconds:.0f} s")
    for key, value in results.machine.items():
        print(f"{key + ':':29} {value}")
    print(gpu_table.heading(), flush=True)

    save = _sparing(lambda: results.save(folder))
    save()
    try:
        for i, work in enumerate(works):
            if time.monotonic() > end:
                print(f"time is up: {len(works) - i} lines were not measured")
                break
            with _ends_the_process(results, folder, work):
                line = _line_or_failure(device, work, effort, results)
            print(gpu_table.row(line) if line else f"FAILED {work}: {results.failures[-1]['why']}", flush=True)
            if line is None and device.is_lost():
                sys.exit(LOST)
            save()
    finally:
        results.save(folder)  # before the state, which takes a while
        results.machine |= {f"{key}, at the end": value for key, value in device.state().items()}
        results.save(folder)
    print(gpu_table.summary(results))
    return results


def measure_line(device: Gpu, work: Work, effort: Effort) -> Line:
    with precision(work.tf32):
        problem = build(work)
        sides = problem.sides()
        runs = {name: side.run for name, side in sides.items()}
        with calls_of(work):
            try:
                check(work, sides, limit=LARGEST_DIFFERENCE_TF32 if work.tf32 else None)
            except AssertionError as error:
                del runs["ours"]  # still measure torch.nn
                why = str(error).removeprefix(f"{work}: ").removesuffix("; nothing was measured")
                raise WrongResult(why, time_interleaved(runs, effort, time_slice=device.time_slice)) from error
            times = time_interleaved(runs, effort, time_slice=device.time_slice)
        explanation = fused_rnn.explain(problem.ours, problem.input)
    found = {name: asdict(timing) for name, timing in times.items()}
    found["ours"]["engine"] = explanation.engine
    if explanation.engine == "persistent":  # other engines have no plan that varies
        found["ours"]["plan"] = explanation.reason
    return Line(work, found, {})


def _line_or_failure(device: Gpu, work: Work, effort: Effort, results: Results) -> Line | None:
    try:
        line = measure_line(device, work, effort)
        device.wait()  # so that a kernel's error is attributed to this line
    except WrongResult as error:
        sides = {name: asdict(timing) for name, timing in error.others.items()}
        results.failures.append({"work": str(work), "why": str(error), "sides": sides})
        return None
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        results.failures.append({"work": str(work), "why": f"{type(error).__name__}: {first_line}"})
        return None
    results.lines.append(line)
    return line


@contextmanager
def _ends_the_process(results: Results, folder: Path, work: Work):
    """Unless the block ends within LINE_SECONDS. A thread can do this, as torch releases the GIL while it waits."""

    def expire() -> None:
        results.failures.append({"work": str(work), "why": f"took more than {LINE_SECONDS} s"})
        results.save(folder)
        print(f"FAILED {work}: hangs", flush=True)
        os._exit(LOST)

    timer = threading.Timer(LINE_SECONDS, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _sparing(save: Callable[[], object]) -> Callable[[], None]:
    """Calls save() only as often as takes SAVE_SHARE of the time."""
    next_time = 0.0

    def sparing() -> None:
        nonlocal next_time
        begin = time.monotonic()
        if begin < next_time:
            return
        save()
        end = time.monotonic()
        next_time = end + (end - begin) / SAVE_SHARE

    return sparing


def _new_results(device: Gpu, effort: Effort) -> Results:
    return Results(
        suite="gpu",
        effort=effort.name,
        threads=torch.get_num_threads(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=commit(),
        machine=machine_facts() | device.facts(),
        peers={"torch.nn": torch.__version__},
        limits={},
    )
