"""How busy the machine is during a measurement: our threads, and the cores that everything else takes meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
SLACK = 0.5  # in cores: a run on all cores takes all of them, and something small always runs now and then


class Load:
    """From here on until ``facts``."""

    def __init__(self, threads: int, cores: int):
        self._threads, self._cores = threads, cores
        self._start, self._others = time.monotonic(), _others()

    def facts(self) -> dict[str, float]:
        """The mean load, in cores, and how many there are."""
        others = (_others() - self._others) / (time.monotonic() - self._start)
        return {"mean": self._threads + max(0.0, others), "cores": self._cores}


def _others() -> float:
    """Seconds that the machine's processors have worked, this process left out, or were taken away by their host."""
    user, nice, system, _idle, _waiting, *more = map(int, STAT.read_text().split("\n", 1)[0].split()[1:])
    interrupts, steal = sum(more[:2]), more[2]
    return (user + nice + system + interrupts + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def exceeds(facts: dict[str, float]) -> bool:
    """False if nothing is known."""
    return bool(facts) and facts["mean"] > facts["cores"] + SLACK
