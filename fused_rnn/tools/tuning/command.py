"""The command ``tune``."""

from __future__ import annotations

import argparse
import shutil

from ...ops import tables
from .. import terminal
from . import report, sizes
from .run import tune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    effort = parser.add_mutually_exclusive_group()
    for name in ("quick", "full"):
        minutes = sizes.SECONDS[name] // 60
        effort.add_argument(f"--{name}", action="store_const", dest="effort", const=name, help=f"{minutes} minutes")
    parser.add_argument("--seconds", type=float, metavar="N", help="at most so many, instead")
    parser.add_argument(
        "--like", metavar="FILE or SHAPES", help="only such layers: a state dict, or 'lstm T100 B16 I128 H256 L2'"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--show", action="store_true", help="print the table in use instead")
    instead.add_argument("--clear", action="store_true", help="delete the table instead")
    instead.add_argument("--export", metavar="FILE", help="copy the table to share it instead")


def run(options: argparse.Namespace) -> int:
    name = tables.device_name(options.device)
    path = tables.path_of(name)
    if options.clear:
        path.unlink(missing_ok=True)
        print(f"no table of {name} any more")
        return 0
    if options.show or options.export:
        table = tables.find(name)
        if table is None:
            raise ValueError(f"there is no table of {name} in {path.parent}")
        if options.export:
            shutil.copyfile(path if path.exists() else tables.SHIPPED / path.name, options.export)
            print(options.export)
        else:
            print("\n".join(report.lines_of(table)))
        return 0
    jobs = sizes.like(options.like) if options.like else None
    tuned = tune(options.device, jobs, effort=options.effort or "default", seconds=options.seconds)
    for line in str(tuned).splitlines():
        print(terminal.red(line) if "below 1" in line or "not taken" in line else line)
    print(f"written to {path}")
    return 0
