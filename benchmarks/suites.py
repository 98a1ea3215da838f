"""The suites: fixed lists of lines. Those of features are in ``features``, ``rl`` and ``own_cells``."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import product

LAYERS = ("LSTM", "GRU", "RNN")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
MODES = ("inference", "training")  # training: forward and backward, gradients of input and weights


@dataclass(frozen=True)
class Shape:
    """T steps, B rows, H hidden units; the input is as wide as the hidden state."""

    steps: int
    batch: int
    hidden: int

    def __str__(self) -> str:
        return f"T{self.steps} B{self.batch} H{self.hidden}"


@dataclass(frozen=True)
class Work:
    """One line of the table: a layer and its input."""

    group: str
    layer: str  # one of LAYERS; RNN is the tanh one
    mode: str  # one of MODES
    shape: Shape
    dtype: str = "float32"
    num_layers: int = 1
    bidirectional: bool = False
    projected: bool = False  # h is half as wide as the cell state
    packed: bool = False  # rows of different lengths, as a PackedSequence
    carried: bool = False  # states go in and come out, as in streaming
    cell: bool = False  # LSTMCell and the like, called once for each step
    quantized: bool = False  # 8-bit layers take part, ours and the peers'
    given_input: bool = False  # training: the input needs no gradient
    device: str = "cpu"
    tf32: bool = False  # float32 products on a GPU may use TF32

    def __str__(self) -> str:
        return f"{self.group} {self.layer} {self.mode} {self.shape}"

    @property
    def single_step(self) -> bool:
        """One step of a stream, of a layer or a stack of them."""
        return self.carried and self.shape.steps == 1

    @property
    def lengths(self) -> list[int]:
        """Steps of each row: T, or if packed evenly spread from T/4 to T, shuffled."""
        steps, batch, _ = asdict(self.shape).values()
        if not self.packed:
            return [steps] * batch
        lengths = [max(1, round(steps * (1 + 3 * row / batch) / 4)) for row in range(1, batch + 1)]
        random.Random(0).shuffle(lengths)
        return lengths

    @property
    def output_width(self) -> int:
        """Of one direction."""
        return self.shape.hidden // 2 if self.projected else self.shape.hidden

    def to_json(self) -> dict:
        """Only fields that differ from their defaults."""
        usual = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    @classmethod
    def from_json(cls, found: dict) -> Work:
        return cls(**found | {"shape": Shape(**found["shape"])})


def lines(group: str, layers: Iterable[str], modes: Iterable[str], shapes: Iterable[Shape], **options) -> list[Work]:
    return [Work(group, *line, **options) for line in product(layers, modes, shapes)]


SHAPES = (
    Shape(100, 1, 128),
    Shape(100, 16, 128),
    Shape(100, 64, 256),
    Shape(100, 32, 512),
    Shape(50, 64, 1024),
    Shape(512, 8, 64),
    Shape(1000, 1, 32),
    Shape(100, 1, 512),
)
QUICK_SHAPES = (Shape(100, 1, 128), Shape(100, 16, 128), Shape(512, 8, 64))
SCALING_BASE = Shape(100, 16, 128)
SCALING = {  # the axis of a plot: the shapes along it
    "steps": [Shape(t, 16, 128) for t in (10, 30, 100, 300, 1000)],
    "batch": [Shape(100, b, 128) for b in (1, 4, 16, 64, 256)],
    "hidden": [Shape(100, 16, h) for h in (32, 64, 128, 256, 512)],
}
CELL_STEPS = [Shape(1, b, h) for b in (1, 4, 16, 32) for h in (64, 256, 1024)]
CELL_SMALL_STEPS = [Shape(1, b, h) for b in (1, 4) for h in (64, 256)]
CELL_LOOPS = [Shape(50, b, h) for b in (1, 16) for h in (64, 256)]
# The gpu suite: values of each axis with their rank. As a run may be cut short, lines are ordered by the sum of these
# ranks: first a few over the whole range, then those in between.
GPU_STEPS = 128
GPU_PRECISIONS = {"bfloat16": 0, "float32": 0, "float16": 2, "tf32": 2}
GPU_LAYERS = {"LSTM": 0, "GRU": 1, "RNN": 3}
GPU_HIDDEN = {128: 0, 512: 0, 1024: 0, 64: 1, 256: 1, 2048: 1, 768: 2, 1500: 2, 130: 3, 192: 3}
GPU_BATCH = {8: 0, 64: 0, 1: 1, 256: 1, 32: 2, 128: 3}
GPU_LONG = (Shape(1024, 1, 128), Shape(1024, 32, 512), Shape(1024, 8, 1024))
GPU_RAGGED = (Shape(128, 64, 256), Shape(128, 32, 512), Shape(128, 8, 1024))


def gpu_suite() -> list[Work]:
    """Groups are named after their precision."""
    ranked: list[tuple[int, Work]] = []

    def add(rank: int, precision: str, layers: Iterable[str], shapes: Iterable[Shape], **options) -> None:
        group = f"packed {precision}" if options.get("packed") else precision
        options |= {"device": "cuda", "tf32": precision == "tf32"}
        options["dtype"] = "float32" if options["tf32"] else precision
        for layer, shape in product(layers, shapes):
            ranked.extend((rank, work) for work in lines(group, [layer], MODES, [shape], **options))

    add(0, "bfloat16", ["LSTM"], [Shape(GPU_STEPS, 16, h) for h in (512, 1024)])
    for layer, precision, hidden, batch in product(GPU_LAYERS, GPU_PRECISIONS, GPU_HIDDEN, GPU_BATCH):
        rank = GPU_LAYERS[layer] + GPU_PRECISIONS[precision] + GPU_HIDDEN[hidden] + GPU_BATCH[batch]
        add(rank, precision, [layer], [Shape(GPU_STEPS, batch, hidden)])
    for precision in ("bfloat16", "float32"):
        add(1, precision, ["LSTM", "GRU"], GPU_LONG)
        add(1, precision, ["LSTM", "GRU"], GPU_RAGGED, packed=True)
    return [work for _, work in sorted(ranked, key=lambda pair: pair[0])]


PLAIN = "plain"
CELLS = [
    *lines("cell, one step", LAYERS, MODES, CELL_STEPS, cell=True),
    *lines("cell, loop", LAYERS, MODES, CELL_LOOPS, cell=True),
    *lines("cell, given input", LAYERS, MODES[1:], CELL_SMALL_STEPS, cell=True, given_input=True),
]
QUANTIZED_SHAPES = [*(Shape(100, 1, h) for h in (128, 256, 512, 1024)), *(Shape(100, 16, h) for h in (256, 512, 1024))]
QUANTIZED_STEPS = [Shape(1, b, h) for b in (1, 16) for h in (256, 1024)]
QUANTIZED = [
    *lines("quantized", LAYERS, MODES[:1], QUANTIZED_SHAPES, quantized=True),
    *lines("quantized cell", LAYERS, MODES[:1], QUANTIZED_STEPS, cell=True, quantized=True),
    # The prediction network of a speech transducer, which runs once for every token that it emits.
    *lines("decoder step", ["LSTM"], MODES[:1], [Shape(1, 1, 640)], num_layers=2, carried=True, quantized=True),
]
SUITES = {
    "cpu": [
        *lines(PLAIN, LAYERS, MODES, SHAPES),
        *lines("packed", ["LSTM"], MODES, SHAPES, packed=True),
        *lines("projected", ["LSTM"], MODES, SHAPES, projected=True),
        *lines("float64", ["LSTM"], MODES, SHAPES, dtype="float64"),
        *lines("bfloat16", ["LSTM"], MODES, SHAPES[:4], dtype="bfloat16"),
        *lines("2 layers, bidirectional", LAYERS, MODES, SHAPES[:2], num_layers=2, bidirectional=True),
        *lines("one step", LAYERS, MODES[:1], [Shape(1, 1, h) for h in (64, 128, 256, 512)], carried=True),
        *QUANTIZED,
        *CELLS,
        *lines("short", LAYERS, MODES, [Shape(8, 16, 128)]),
        *lines("wide", LAYERS, MODES, [Shape(20, 16, 1500)]),
        *lines("scaling", ["LSTM"], MODES[1:], dict.fromkeys(s for axis in SCALING.values() for s in axis)),
    ],
    "cells": CELLS,
    "quantized": QUANTIZED,
    "gpu": gpu_suite(),
}


LOST = 75  # exit status of a process of the gpu suite that can no longer use the GPU


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    name: str
    expected: str  # on two AVX-512 cores, for the default suites
    seconds: float  # of one line, all sides together, unless the least number of rounds takes longer
    fewest_rounds: int
    most_rounds: int = 40

    def selects(self, work: Work, threads: int, most_threads: int) -> bool:
        if self.name == "full" or work.device != "cpu":
            return True
        if self.name == "quick":
            return work.group == PLAIN and work.shape in QUICK_SHAPES
        if work.group == PLAIN or work.quantized or work.single_step:
            return True
        return threads == (1 if work.cell else most_threads)


EFFORTS = {
    effort.name: effort
    for effort in (
        Effort("quick", "about a minute", 0.2, 3),
        Effort("standard", "about 10 minutes", 0.4, 3),
        Effort("full", "about 30 minutes", 2.0, 5),
    )
}
