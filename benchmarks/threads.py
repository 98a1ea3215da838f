"""Every side of a comparison gets the same number of threads, each on a core of its own.

A process measures with one number of threads only. It is confined to as many cores before torch, JAX or OpenMP are
imported, since they size their pools by the processors they may run on, and JAX has no other way to be told.
"""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> list[int]:
    """One processor of each core this process may use: hyper-threads share the units that are measured."""
    first_of_core: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        first_of_core.setdefault(core, cpu)
    return list(first_of_core.values())


def confine(threads: int) -> None:
    """To be called before torch is imported."""
    available = cores()
    if not 1 <= threads <= len(available):
        raise SystemExit(f"--threads must be 1 to {len(available)}, the cores of this machine; got {threads}")
    os.sched_setaffinity(0, available[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:  # else XLA hands matrix products to a pool, whose one thread has the same core
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
