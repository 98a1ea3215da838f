"""Gives every side of a comparison the same number of threads, each on its own core.

A process measures with one number of threads only. It is confined to as many cores before torch, JAX or OpenMP are
imported: they size their pools by the available processors, and JAX has no other option.
"""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> list[int]:
    """One processor of each core that this process may use, as hyper-threads share execution units."""
    first_of_core: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        first_of_core.setdefault(core, cpu)
    return list(first_of_core.values())


def confine(threads: int) -> None:
    """Call this before torch is imported."""
    available = cores()
    if not 1 <= threads <= len(available):
        raise SystemExit(f"--threads must be 1 to {len(available)}, the cores of this machine; got {threads}")
    os.sched_setaffinity(0, available[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:  # otherwise XLA uses a pool, whose one thread shares this core
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
