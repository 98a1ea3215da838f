"""``python -m fused_rnn info`` and ``python -m fused_rnn verify``."""

from __future__ import annotations

import argparse
import sys

from . import info, verify
from .ops.cells import CELLS
from .tools.verify import INT8_TOLERANCE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fused_rnn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, instruction set, GPU: what a bug report needs")
    check = commands.add_parser("verify", help="check the installed kernels: gradcheck and a float64 reference")
    check.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    check.add_argument("--cell", choices=tuple(CELLS), nargs="+", help="only these cells")
    check.add_argument("--weights", choices=tuple(INT8_TOLERANCE), help="the errors of layers with weights of 8 bits")
    check.add_argument("--quick", action="store_true", help="leave out the finite differences")
    options = parser.parse_args(arguments)

    try:
        if options.command == "info":
            for key, value in info().items():
                print(f"{key + ':':29} {value}")
            return 0
        report = verify(options.device, options.cell, weights=options.weights, quick=options.quick)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # no such device or instruction set
        print(f"fused_rnn {options.command}: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
