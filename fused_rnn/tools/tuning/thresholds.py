"""The CPU's thresholds that are worth measuring where they are used: from which size on one way beats another.

None may make results depend on the number of threads: each of these chooses between ways that give the same bits, or
looks at sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...ops import tables
from ...ops.measured import Sizes
from .measuring import Announce, Clock, module_of

NEVER, ALWAYS = 1 << 40, 0
ROUNDS = 7
LEAST_SECONDS = 0.002
MARGIN = 1.05  # by how much a way has to be faster to count as such


@dataclass(frozen=True)
class Question:
    """From which rung of a ladder on the way above a threshold is faster than the one below."""

    threshold: str
    rungs: Sequence[int]
    sizes: Callable[[int], Sizes]
    above: int = ALWAYS
    """The threshold's value for which all rungs go the way above it, and ``below`` for the other way."""
    below: int = NEVER
    least_threads: int = 1
    value: Callable[[int], int] = int
    """The threshold that begins at a rung."""


def _step(dtype: str, width: int) -> Callable[[int], Sizes]:
    return lambda rows: Sizes("lstm", dtype, False, 1, rows, width, width)


def _sequence(cell: str, width: int) -> Callable[[int], Sizes]:
    def sizes(rows_of_thread: int) -> Sizes:
        return Sizes(cell, "float32", False, 50, rows_of_thread * torch.get_num_threads(), width, width)

    return sizes


def _work(width: int) -> int:
    """Multiply-adds of 8 steps of a GRU."""
    return 8 * 3 * width * 2 * width


QUESTIONS = (
    Question("least_rows_to_pack_few", (2, 3, 4, 5, 6, 8, 10, 12, 16), _step("float32", 64)),
    Question("least_rows_to_pack_many", (4, 6, 8, 10, 12, 16, 20, 24), _step("float32", 256)),
    Question("least_rows_to_pack_most", (8, 12, 16, 20, 24, 32, 40, 48), _step("float32", 512)),
    Question("least_rows_to_pack_half", (1, 2, 3, 4, 6, 8), _step("float16", 256)),
    Question("least_rows_to_pack_bfloat16", (1, 2, 3, 4, 6, 8), _step("bfloat16", 256)),
    Question(
        "least_work_for_threads",
        (24, 32, 48, 64, 96, 128, 192),
        lambda width: Sizes("gru", "float32", False, 8, 1, width, width),
        least_threads=2,
        value=_work,
    ),
    # Shares of the units below, runs of rows above.
    Question("rows_to_share_some", (1, 2, 3, 4, 6), _sequence("rnn_tanh", 192), least_threads=2),
    Question("rows_to_share_many", (1, 2, 3, 4, 6, 8), _sequence("lstm", 256), least_threads=2),
)


def measure(clock: Clock, announce: Announce) -> dict[str, int]:
    """The thresholds that differ from the shipped ones, by name."""
    shipped, found = tables.shipped_thresholds(), {}
    try:
        for question in QUESTIONS:
            if torch.get_num_threads() < question.least_threads:
                continue
            announce(question.threshold)
            value = _moved(question, shipped[question.threshold], partial(_verdict, clock, question))
            if value != shipped[question.threshold]:
                found[question.threshold] = value
    finally:
        tables.set_thresholds(shipped)
    return found


def _moved(question: Question, shipped: int, verdict: Callable[[int], int]) -> int:
    """The shipped threshold, moved rung by rung as long as the rung that changes sides is clearly faster for it."""
    values = [question.value(rung) for rung in question.rungs]
    first = place = next((k for k, value in enumerate(values) if value >= shipped), len(values))
    while place > 0 and verdict(question.rungs[place - 1]) > 0:
        place -= 1
    if place < first:
        return values[place]
    while place < len(values) and verdict(question.rungs[place]) < 0:
        place += 1
    if place == first:
        return shipped
    return values[place] if place < len(values) else values[-1] + 1


def _verdict(clock: Clock, question: Question, rung: int) -> int:
    """Which way is faster by more than noise: 1 above, -1 below, 0 neither."""
    sizes = question.sizes(rung)
    ours, _ = module_of(sizes, sizes.dtype, "cpu")
    input = torch.randn(sizes.steps, sizes.batch, sizes.input_size).to(getattr(torch, sizes.dtype))
    shipped = tables.shipped_thresholds()

    def run(value: int, calls: int) -> float:
        tables.set_thresholds(shipped | {question.threshold: value})
        with torch.no_grad():
            return clock.seconds(f"{question.threshold} {rung} {value}", lambda: ours(input), calls)

    run(question.above, 2)
    calls = max(1, int(LEAST_SECONDS / max(run(question.below, 2), 1e-9)))
    pairs = [(run(question.below, calls), run(question.above, calls)) for _ in range(ROUNDS)]
    below, above = (min(times) for times in zip(*pairs, strict=True))
    return (above * MARGIN < below) - (below * MARGIN < above)
