"""What is measured: fixed, named lists of shapes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


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
    """One line of the table."""

    layer: str  # LSTM, GRU or RNN
    mode: str  # "inference" or "training": forward and backward
    shape: Shape

    def __str__(self) -> str:
        return f"{self.layer:4} {self.mode:9} {self.shape}"


LAYERS = ("LSTM", "GRU", "RNN")
MODES = ("inference", "training")

SUITES = {
    "cpu": [
        Work(layer, mode, shape)
        for layer, mode, shape in product(
            LAYERS,
            MODES,
            (
                Shape(100, 1, 128),
                Shape(100, 16, 128),
                Shape(100, 64, 256),
                Shape(100, 32, 512),
                Shape(512, 8, 64),
                Shape(1000, 1, 32),
            ),
        )
    ],
}
