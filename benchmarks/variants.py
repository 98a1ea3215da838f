"""Other calls of our layers for inference: frozen, step by step as a stream, and with 8-bit weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

import fused_rnn

from .problem import Problem, Side
from .suites import Work

# The two of fused_rnn.freeze that have 8-bit weights, with the side's name.
WEIGHTS = {"int8": "int8", "int8-weights-only": "int8 weights"}


@dataclass(frozen=True)
class Variant:
    name: str
    applies: Callable[[Work], bool]
    missing: Callable[[Work], str | None]  # why this version of the library cannot, or None
    build: Callable[[Problem], Side]


def _for_inference(work: Work) -> bool:
    return work.mode == "inference" and work.device == "cpu" and (work.quantized or not work.cell)


def _quantized(work: Work) -> bool:
    return _for_inference(work) and work.quantized


def _frozen(layer: nn.Module, **options) -> nn.Module:
    return fused_rnn.freeze(copy.deepcopy(layer).requires_grad_(False).eval(), **options)


@cache
def _refused(layer: str, weights: str) -> str | None:
    try:
        _frozen(getattr(fused_rnn, layer)(1, 1), weights=weights)
    except (TypeError, ValueError, NotImplementedError) as error:
        return f"this version's fused_rnn.freeze refuses weights={weights!r}: {error}"
    return None


def _no_stream(work: Work) -> str | None:
    return None if hasattr(fused_rnn, "Stream") else "this version has no fused_rnn.Stream"


def _streamed(problem: Problem, layer: nn.Module, quantized: bool = False) -> Side:
    """The problem's step, from its states: true of the first call alone, as a stream goes on. With its input bound, as
    that of the peers it meets."""
    stream = fused_rnn.Stream(layer, batch=problem.work.shape.batch)
    stream.state = problem.hx
    (step,) = problem.input

    def as_tensors(results: list[Tensor]) -> list[Tensor]:
        state = stream.state
        return [results[0].unsqueeze(0), *(state if isinstance(state, tuple) else (state,))]

    run = stream.bind(step)
    return Side(lambda: [run()], as_tensors, quantized)


VARIANTS = (
    Variant("frozen", _for_inference, lambda work: None, lambda p: Side(p.call(_frozen(p.ours)))),
    Variant(
        "stream",
        lambda work: _for_inference(work) and work.single_step,
        _no_stream,
        lambda p: _streamed(p, _frozen(p.ours)),
    ),
    *(
        Variant(
            name,
            _quantized,
            lambda work, weights=weights: _refused(work.layer, weights),
            lambda p, weights=weights: Side(p.call(_frozen(p.ours, weights=weights)), quantized=True),
        )
        for weights, name in WEIGHTS.items()
    ),
    Variant(
        "int8 stream",
        lambda work: _quantized(work) and work.single_step,
        lambda work: _no_stream(work) or _refused(work.layer, "int8"),
        lambda p: _streamed(p, _frozen(p.ours, weights="int8"), quantized=True),
    ),
)
