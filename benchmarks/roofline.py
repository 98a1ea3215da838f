"""Roofline model: a lower bound of the time of a line on a machine.

A layer must do its multiplications, and at every step read its recurrent weights from the nearest caches that hold one
core's share of them. The longer of the two is the limit: arithmetic with many rows, reading with few. Exponentials,
activation traffic and synchronization between cores are not included, so small layers stay far below the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from .suites import GATES, Work

# Products of bfloat16 that stand for one of float32 on matrix tiles: each factor is the sum of three bfloat16, and the
# three smallest of the nine products are left out.
TILE_PRODUCTS = 6
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """Operations and memory traffic of a line."""

    operations: float  # additions and multiplications of the matrix products
    weight_bytes: float  # read over the whole call
    resident_bytes: float  # the working set, on all cores together

    @property
    def intensity(self) -> float:
        """Operations per byte of weights read."""
        return self.operations / self.weight_bytes


def cost(work: Work) -> Cost:
    gates, hidden, width = GATES[work.layer], work.shape.hidden, work.output_width
    directions = 1 + work.bidirectional
    recurrent = gates * hidden * width + (hidden * width if work.projected else 0)  # numbers in W_hh and W_hr
    entering = [hidden] + [directions * width] * (work.num_layers - 1)  # width of each layer's input
    numbers = sum(recurrent + gates * hidden * width_in for width_in in entering) * directions
    layers = work.num_layers * directions
    # The backward pass has two products for each weight: the gradients of the input and of the weight.
    passes_of_products, passes_of_reading = (3, 2) if work.mode == "training" else (1, 1)

    steps = max(work.lengths)
    read = layers * recurrent * steps + (numbers - layers * recurrent)  # W_ih once: all steps in one product
    resident = numbers if steps == 1 else recurrent  # single steps in separate calls
    size = BYTES[work.dtype]
    return Cost(
        2 * numbers * sum(work.lengths) * passes_of_products,
        read * size * passes_of_reading,
        resident * size,
    )


@dataclass(frozen=True)
class Limit:
    seconds: float
    bound_by: str  # the instructions, such as "float32", or the level that takes most of the reading time, such as "L2"


def limit(cost: Cost, operations_per_second: float, instructions: str, seconds_per_byte: dict[str, float]) -> Limit:
    """``seconds_per_byte``: for each level, its share of the bytes read times its seconds per byte."""
    arithmetic = cost.operations / operations_per_second
    reading = cost.weight_bytes * sum(seconds_per_byte.values())
    if arithmetic >= reading:
        return Limit(arithmetic, instructions)
    return Limit(reading, max(seconds_per_byte, key=seconds_per_byte.__getitem__))
