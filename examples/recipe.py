"""Shared by the recipes: arguments, a progress bar, the comparison with torch.nn, checks of quality, figures.

A recipe builds its model from the layers of ``args.layers``, which is ``fused_rnn`` or, with ``--torch-nn``,
``torch.nn``: the code is the same for both, and :func:`ragged` does what torch.nn has no argument for.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn.tools import style

# Not examples/figures: what is published there is replaced only on purpose, by --out.
OUT = Path(tempfile.gettempdir()) / "fused_rnn_examples"
BLUE, ORANGE, GREEN, GREY, WIDTH = style.BLUE, style.ORANGE, style.GREEN, style.GREY, style.WIDTH


def arguments(doc: str, options: Mapping[str, dict] | None = None) -> argparse.Namespace:
    """Reads the command line and seeds torch. ``options``: a recipe's own, {"--name": keywords of add_argument}.

    The result also has ``layers``, the library that the recurrent layers come from.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a small version, for the tests: half a minute or so")
    add("--torch-nn", action="store_true", help="with torch.nn's layers; at the end both libraries are timed")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=found, type=torch.device, help="here: %(default)s")
    add("--seed", default=0, type=int, help="of weights and data (%(default)s)")
    add_out(parser)
    for name, option in (options or {}).items():
        add(name, **option)
    args = parser.parse_args()
    args.layers = torch.nn if args.torch_nn else fused_rnn
    torch.manual_seed(args.seed)
    return args


def add_out(parser: argparse.ArgumentParser) -> None:
    what = "folder for pictures and pages, such as examples/figures (%(default)s)"
    parser.add_argument("--out", default=str(OUT), type=_folder, help=what)


def _folder(name: str) -> Path:
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def need(library: str) -> ModuleType:
    """Imports an optional library."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        sys.exit(f"This recipe needs {library}: pip install '.[examples]' in a clone ({error})")


def progress(steps: int, what: str):
    """A tqdm bar over 1, 2 ... ``steps``; ``bar.set_postfix(loss=...)`` shows numbers. Silent without a terminal."""
    return need("tqdm").tqdm(range(1, steps + 1), desc=what, unit="step", disable=None)


def ragged(layer: nn.RNNBase, x: Tensor, lengths: Tensor, hx=None):
    """``(output, states)`` of rows of ``lengths [B]`` steps, zero-padded: the same from both libraries."""
    if isinstance(layer, (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN)):
        return layer(x, hx, lengths=lengths)
    packed = pack_padded_sequence(x, lengths.cpu(), layer.batch_first, enforce_sorted=False)
    output, states = layer(packed, hx)
    steps = x.shape[1 if layer.batch_first else 0]
    return pad_packed_sequence(output, layer.batch_first, total_length=steps)[0], states


def plain_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """A training step with Adam, for :func:`compare`."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    return step


def compare(
    args: argparse.Namespace,
    training: Callable[[ModuleType], Callable[[], object]],
    rounds: int = 15,
    what: str = "a step of training",
) -> None:
    """With ``--torch-nn``: times training steps with each library in turn, and prints the comparison.

    ``training(layers)`` builds the recipe's model from that library, and returns one training step, data included, as
    a function without arguments; or another call, which ``what`` names.
    """
    if not args.torch_nn:
        return
    libraries = {"fused_rnn": fused_rnn, "torch.nn": torch.nn}
    steps = {name: training(library) for name, library in libraries.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 2):
        for name, step in steps.items():
            seconds = _seconds(step, args.device)
            if i >= 2:  # the first ones warm up
                times[name].append(seconds)
    ours, theirs = (1000 * statistics.median(times[name]) for name in libraries)
    threads = torch.get_num_threads()
    print(
        f"{what}: fused_rnn {ours:.1f} ms, torch.nn {theirs:.1f} ms: {theirs / ours:.2f}x "
        f"(medians of {rounds}, {args.device.type}, {threads} thread{'s' * (threads > 1)})"
    )


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Prints how long the block took."""
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def check(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Prints a result of the recipe, and exits with an error if it is out of bounds."""
    bounds = [
        f"{name} {bound:g}" for name, bound in (("at least", at_least), ("at most", at_most)) if bound is not None
    ]
    print(f"{what}: {value:.4g} ({', '.join(bounds)})", flush=True)
    kept = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    if not kept:
        sys.exit(f"missed: {what} is {value:.4g}, expected {' and '.join(bounds)}")


@contextmanager
def picture(args: argparse.Namespace, name: str, width: float, height: float):
    """A matplotlib Figure of ``width`` x ``height`` inches; after the block it is saved as ``args.out / name``.

    The name's suffix, .svg or .png, is the format.
    """
    matplotlib, figures = need("matplotlib"), need("matplotlib.figure")
    with matplotlib.rc_context(style.STYLE):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        yield figure
        print(f"picture: {style.save(figure, args.out / name)}")
