"""How fast a line could be at best on a machine: the time below which no program computes it.

A layer must do its multiplications, and at every step it must read its recurrent weights anew, from the nearest caches
that hold one core's share of them. The longer of the two is the limit: with many rows the arithmetic, with few the
reading. Exponentials, the traffic of activations, and what cores tell each other at every step are not in it, so small
layers stay far below.
"""

from __future__ import annotations

from dataclasses import dataclass

from .suites import GATES, Work

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """What a line asks of the machine."""

    operations: float  # additions and multiplications of the matrix products
    weight_bytes: float  # read over the whole call
    resident_bytes: float  # what is read again and again, together on all cores

    @property
    def intensity(self) -> float:
        """Operations for each byte of weights read."""
        return self.operations / self.weight_bytes


def cost(work: Work) -> Cost:
    gates, hidden, width = GATES[work.layer], work.shape.hidden, work.output_width
    directions = 1 + work.bidirectional
    recurrent = gates * hidden * width + (hidden * width if work.projected else 0)  # numbers in W_hh and W_hr
    entering = [hidden] + [directions * width] * (work.num_layers - 1)  # width of each layer's input
    numbers = sum(recurrent + gates * hidden * width_in for width_in in entering) * directions
    layers = work.num_layers * directions
    # Backward multiplies by each weight twice: for the gradient of what went in, and for its own.
    passes_of_products, passes_of_reading = (3, 2) if work.mode == "training" else (1, 1)

    steps = max(work.lengths)
    read = layers * recurrent * steps + (numbers - layers * recurrent)  # W_ih once: all steps in one product
    resident = numbers if steps == 1 else recurrent  # one step after the other, in calls of their own
    size = BYTES[work.dtype]
    return Cost(
        2 * numbers * sum(work.lengths) * passes_of_products,
        read * size * passes_of_reading,
        resident * size,
    )


@dataclass(frozen=True)
class Limit:
    seconds: float
    bound_by: str  # the instructions, as in "float32", or the level that most of the reading time goes to, as in "L2"


def limit(cost: Cost, operations_per_second: float, instructions: str, seconds_per_byte: dict[str, float]) -> Limit:
    """``seconds_per_byte``: for each level, its share of the bytes read times what reading one takes."""
    arithmetic = cost.operations / operations_per_second
    reading = cost.weight_bytes * sum(seconds_per_byte.values())
    if arithmetic >= reading:
        return Limit(arithmetic, instructions)
    return Limit(reading, max(seconds_per_byte, key=seconds_per_byte.__getitem__))
