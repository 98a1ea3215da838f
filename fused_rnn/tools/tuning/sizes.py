"""The calls that are measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch

from ...ops.cells import CELLS
from ...ops.measured import Sizes

SECONDS = {"quick": 120, "default": 480, "full": 1800}  # at most

_SHAPE = re.compile(r"(?:T(?P<steps>\d+))?B(?P<batch>\d+)(?:I(?P<input>\d+))?H(?P<hidden>\d+)(?:L(?P<layers>\d+))?")
_BY_GATES = {CELLS[name].gates: name for name in ("rnn_tanh", "gru", "lstm")}


def standard(device: str, effort: str) -> list[Sizes]:
    """The most telling ones first, as a run may end early; a class of sizes is a factor of two wide."""
    cells = ("lstm", "gru") if effort == "quick" else ("lstm", "gru", "rnn_tanh")
    dtypes = ("float32",) if effort == "quick" or device == "cpu" else ("bfloat16", "float32", "float16")
    hidden = (64, 256, 1024) if effort != "full" else (32, 64, 128, 256, 512, 1024)
    batches = (16, 1) if effort == "quick" else (16, 1, 64) if effort != "full" else (16, 1, 64, 4, 256)
    sequences = [
        Sizes(cell, dtype, training, 100, batch, width, width)
        for dtype, batch, width, cell, training in product(dtypes, batches, hidden, cells, (False, True))
    ]
    steps = [
        Sizes(cell, dtype, False, 1, batch, width, width)
        for dtype, batch, width, cell in product(dtypes, batches[:2], hidden, cells)
    ]
    deep = [size._replace(layers=2) for size in sequences if effort == "full" and size.batch in (16, 64)]
    both = [size._replace(directions=2) for size in sequences if effort != "quick" and size.batch == 16]
    return [*sequences, *steps, *both, *deep]


def like(text: str) -> list[Sizes]:
    """The sizes of a file with a state dict, or of shapes such as ``"lstm T100 B16 I128 H256 L2"``.

    Raises ValueError for what is neither.
    """
    found = list(_of_state_dict(text) if Path(text).suffix in (".pt", ".pth", ".bin") else _of_shapes(text))
    if not found:
        raise ValueError(f"no recurrent layer in {text!r}: neither a state dict nor like 'lstm T100 B16 I128 H256 L2'")
    return found


def _of_shapes(text: str) -> Iterator[Sizes]:
    words = text.replace(",", " ").split()
    cells = [word for word in words if word in CELLS] or ["lstm"]
    numbers = "".join(word for word in words if word[:1] in "TBIHL" and word[1:].isdigit())
    match = _SHAPE.fullmatch(numbers)
    if match is None or any(word not in CELLS and not re.fullmatch(r"[TBIHL]\d+", word) for word in words):
        return
    sizes = {name: int(number) for name, number in match.groupdict().items() if number}
    width = sizes["hidden"]
    for cell, training in product(cells, (False, True)):
        yield Sizes(
            cell,
            "float32",
            training,
            sizes.get("steps", 100),
            sizes["batch"],
            sizes.get("input", width),
            width,
            sizes.get("layers", 1),
        )


def _of_state_dict(path: str) -> Iterator[Sizes]:
    """Of every layer in it, with 1 and 16 rows of 100 steps: it has no sequences."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    for name, weight_hh in state.items():
        prefix, key, end = name.rpartition("weight_hh_l0")
        if not key or end:
            continue
        weight_ih = state[f"{prefix}weight_ih_l0"]
        gates = _BY_GATES.get(weight_ih.shape[0] // weight_hh.shape[1])
        if gates is None:
            continue
        layers = sum(re.fullmatch(re.escape(prefix) + r"weight_hh_l\d+", other) is not None for other in state)
        directions = 1 + (f"{prefix}weight_hh_l0_reverse" in state)
        dtype = str(weight_hh.dtype).removeprefix("torch.")
        for batch, training in product((1, 16), (False, True)):
            yield Sizes(gates, dtype, training, 100, batch, weight_ih.shape[1], weight_hh.shape[1], layers, directions)
