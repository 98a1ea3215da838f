"""How busy the machine is during a run: our threads, and whatever else wants to run while these are idle."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

LOADAVG = Path("/proc/loadavg")
SLACK = 0.5  # in tasks: a run on all cores takes all of them, and something small always runs now and then


class Load:
    def __init__(self, threads: int, cores: int):
        self.threads, self.cores = threads, cores
        self._others: list[int] = []

    def sample(self) -> None:
        """Call this while our own threads are idle."""
        runnable = LOADAVG.read_text().split()[3].split("/")[0]
        self._others.append(int(runnable) - 1)  # without this process, which is reading the file

    def facts(self) -> dict[str, float]:
        return {"mean": self.threads + fmean(self._others or [0]), "cores": self.cores}


def exceeds(facts: dict[str, float]) -> bool:
    """False if nothing is known."""
    return bool(facts) and facts["mean"] > facts["cores"] + SLACK
