"""Measures fused_rnn beside torch.nn, its 8-bit layers and torch.compile, beside ONNX Runtime, OpenVINO and JAX, and
against the machine's own limits.

Each number of threads runs in a process of its own, confined to as many cores. Whole runs are written to
benchmarks/results/; ``report`` makes the README's summary, docs/performance.md, docs/peers.md and the plots from those.
The gpu suite runs alone, its most informative lines first, until --seconds have passed, and writes results to --out as
it goes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from .results import FOLDER
from .suites import EFFORTS, LOST, SUITES
from .threads import confine, cores

DEFAULT_SUITES = ["cpu", "features"]
KNOWN = [*SUITES, "features", "rl", "own", "report"]


def main() -> int:
    options = arguments_of(sys.argv[1:])
    if "report" in options.what:
        from .report import report

        report(options.out or FOLDER)
        return 0
    if options.what == ["gpu"]:
        return run_gpu(options)
    most_threads = len(cores())
    if options.threads is None:
        suites = " and ".join(options.what)
        print(f"{suites}, {options.effort}: expect {EFFORTS[options.effort].expected}", flush=True)
        for threads in sorted({1, most_threads}):
            done = subprocess.run([sys.executable, "-m", "benchmarks", *sys.argv[1:], "--threads", str(threads)])
            if done.returncode:
                return done.returncode
        return 0

    confine(options.threads)
    from .run import measure

    for suite in options.what:
        results = measure(suite, EFFORTS[options.effort], options.threads, most_threads, options.only)
        complete = options.effort != "quick" and not options.only
        measured = results.lines or results.features  # the cells have lines on two threads with --full alone
        if measured and (complete or options.out):
            print(f"\nwritten to {results.save(options.out or FOLDER)}")
    return 0


def run_gpu(options: argparse.Namespace) -> int:
    """Runs the suite in a process of its own, and in a new one from the next line on if a line hangs."""
    if options.worker:
        from .devices import Gpu, StandIn
        from .run_gpu import measure

        device = StandIn() if options.rehearse else Gpu()
        effort = device.effort or EFFORTS[options.effort]
        results = measure(device, effort, options.seconds, options.only, options.out or FOLDER, options.resume)
        return 1 if results.failures else 0
    end = time.monotonic() + options.seconds
    arguments = sys.argv[1:]
    while True:
        left = end - time.monotonic()
        command = [sys.executable, "-m", "benchmarks", *arguments, "--worker", "--seconds", str(left)]
        code = subprocess.run(command, check=False).returncode
        if code != LOST or end - time.monotonic() < 1:
            return code
        arguments = [*sys.argv[1:], "--resume"]


def arguments_of(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(KNOWN)}; default: {' '.join(DEFAULT_SUITES)}")
    effort = parser.add_mutually_exclusive_group()
    for name in ("quick", "full"):
        effort.add_argument(
            f"--{name}", dest="effort", action="store_const", const=name, help=f"{EFFORTS[name].expected}"
        )
    parser.set_defaults(effort="standard")
    parser.add_argument("--threads", type=int, help="measure with this number only; default: one, then all cores")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help='lines whose names hold every word, as in LSTM "B1 "'
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    gpu = parser.add_argument_group("the gpu suite")
    gpu.add_argument("--seconds", type=float, default=1800, help="time limit for starting a line; default: %(default)s")
    gpu.add_argument("--resume", action="store_true", help="measure only lines that are not in the results file")
    gpu.add_argument("--rehearse", action="store_true", help="tiny lines on the CPU, to test the suite")
    gpu.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(command_line)
    options.what = options.what or DEFAULT_SUITES
    for what in set(options.what).difference(KNOWN):  # argparse's own choices refuse an empty list
        parser.error(f"{what!r} is not one of {', '.join(KNOWN)}")
    if "gpu" in options.what and options.what != ["gpu"]:
        parser.error("the gpu suite runs by itself")
    if options.rehearse and not options.out:
        parser.error("a rehearsal needs --out")
    return options


if __name__ == "__main__":
    sys.exit(main())
