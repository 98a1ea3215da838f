"""The process that measures: a line of JSON in is a job; lines out say what it is about to do, and what it found.

It may hang or die of a kernel's fault, which then costs its parent (run.py) one engine of one job.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from ...ops.measured import Sizes
from . import measuring, thresholds


def main() -> None:
    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    say(event="ready")
    for line in sys.stdin:
        job = json.loads(line)
        torch.set_num_threads(job["threads"])
        clock = measuring.Clock(job["device"])

        def announce(name: str) -> None:
            say(event="begins", name=name)

        try:
            if job["what"] == "thresholds":
                say(event="thresholds", found=thresholds.measure(clock, announce))
                continue
            sizes = Sizes(*job["sizes"])
            times, verified, failed = measuring.measure(sizes, job["names"], job["device"], clock, announce)
            say(event="measured", times=times, verified=verified, failed=failed)
        except (RuntimeError, MemoryError) as error:  # the GPU may be lost for this process: the parent starts another
            say(event="failed", reason=str(error))


if __name__ == "__main__":
    main()
