"""What is installed, whether it computes what it should, and what a model runs on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import __version__, info, verify
from .ops.cells import CELLS
from .tools import model_file, terminal
from .tools.tuning import command
from .tools.verify import INT8_TOLERANCE


def main(arguments: list[str] | None = None) -> int:
    """The console script ``fused-rnn`` and ``python -m fused_rnn``; returns the exit status."""
    options = (parser := _parser()).parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return options.run(options)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # no such device, instruction set, file or model
        print(f"fused_rnn {options.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    script = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(
        prog=script if script == "fused-rnn" else "python -m fused_rnn", description=__doc__
    )
    parser.add_argument("--version", action="version", version=f"fused_rnn {__version__}, torch {torch.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    shows = commands.add_parser("info", help="versions, instruction sets, GPU: what a bug report needs")
    shows.set_defaults(run=_info)

    checks = commands.add_parser("verify", help="check the installed kernels: gradcheck and a float64 reference")
    checks.set_defaults(run=_verify)
    checks.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    checks.add_argument("--cell", choices=tuple(CELLS), nargs="+", help="only these cells")
    checks.add_argument("--weights", choices=tuple(INT8_TOLERANCE), help="the errors of layers with weights of 8 bits")
    checks.add_argument("--quick", action="store_true", help="leave out the finite differences")

    tunes = commands.add_parser("tune", help="measure engines on this machine, for the engine 'auto' to choose by")
    command.add_arguments(tunes)

    explains = commands.add_parser("explain", help="which engine runs the layers of a model, and why")
    explains.set_defaults(run=_explain)
    explains.add_argument(
        "model",
        metavar="FILE.py:FUNCTION",
        help="a function without arguments that returns a model, or (model, example input)",
    )
    explains.add_argument("--steps", type=int, default=100, help="of the example, if there is none (%(default)s)")
    explains.add_argument("--batch", type=int, default=1, help="of the example, if there is none (%(default)s)")
    return parser


def _info(options: argparse.Namespace) -> int:
    found = info()
    width = max(map(len, found)) + 1
    for key, value in found.items():
        print(f"{terminal.bold(f'{key}:'.ljust(width))} {value}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.device, options.cell, weights=options.weights, quick=options.quick)
    for line in str(report).splitlines():
        print(terminal.red(line) if "FAILED" in line else line)
    return 0 if report.passed else 1


def _explain(options: argparse.Namespace) -> int:
    layers = model_file.explain_model(options.model, options.steps, options.batch)
    width = max(len(name) for name, _ in layers)
    for name, found in layers:
        isa = f" ({found.instruction_set})" if found.instruction_set else ""
        print(f"{terminal.bold(name.ljust(width))}  {found.engine}{isa}")
        print(terminal.wrapped(found.reason, indent=width + 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
