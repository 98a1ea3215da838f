"""Peak memory of a training step as the operating system counts it, so including all scratch memory.

Each step runs in a process of its own, forked from one that has imported everything and started no threads, after a
tiny step of the same kind; the high-water mark is reset in between (Linux: "5" into /proc/self/clear_refs).
"""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import replace
from pathlib import Path

from .suites import Shape, Work

SIDES = ("ours", "torch.nn")


def peak(work: Work, threads: int) -> dict:
    """Megabytes of each side."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.problem"])
    found = {}
    for side in SIDES:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(work, side, threads, sending))
        process.start()
        sending.close()
        found[side] = receiving.recv()
        process.join()
    return {"work": work.to_json(), "megabytes": found}


def _child(work: Work, side: str, threads: int, sending) -> None:
    import torch

    from .problem import build

    torch.set_num_threads(threads)
    build(replace(work, shape=Shape(2, 2, 16))).sides()[side].run()
    step = build(work).sides()[side].run
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    sending.send((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    """Kilobytes."""
    return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
