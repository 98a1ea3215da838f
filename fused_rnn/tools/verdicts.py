"""What a gradient's way back through time is called, and what to try about it.

A gradient counts as lost once less than a thousandth is left, and as blown up once it is more than a thousand times as
large. A layer whose gradient is lost on the way to the first step either fades or vanishes. Gated layers as their
constructors make them fade: every gate is half open, so that a step back keeps a bit more than half. That is no fault
unless what has to be learnt lies further back; training, or another initialisation, opens the gates. Where a step back
leaves half or less, as in plain RNNs, little can be learnt over more than a few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..ops.cells import Cell

LOST, BLOWN_UP = 1e-3, 1e3
# In steps: a half-life up to this one is called vanishing, a longer one fading.
SHORT_HALF_LIFE = 1.0

MEANINGS = {
    "healthy": f"the first step gets between {LOST:g} and {BLOWN_UP:g} times the gradient of the last one",
    "fading": f"less than {LOST:g} reaches the first step, but a step back keeps more than half of it, as in every "
    "LSTM and GRU fresh from its constructor; a fault only if what has to be learnt lies further back",
    "vanishing": f"less than {LOST:g} reaches the first step, and a step back leaves half of it or less",
    "exploding": f"the first step gets more than {BLOWN_UP:g} times the gradient of the last one, or it is not finite",
}


def judge(norms: Sequence[float]) -> tuple[str, str]:
    """The verdict on norms by steps back, and the reason."""
    back = len(norms) - 1
    if back < 1:
        return "-", "there is no way back: one step, or no rows"
    if not all(map(math.isfinite, norms)):
        return "exploding", f"not finite {_first(norms, lambda norm: not math.isfinite(norm))} steps back"
    ratio = ratio_of(norms)
    share = f"the first step gets {ratio:.2g} of the gradient {back} steps later"
    if ratio < LOST:
        half = half_life(norms)
        gone = _first(norms, lambda norm: norm < LOST * norms[0])
        verdict = "fading" if half > SHORT_HALF_LIFE * (1 + 1e-9) else "vanishing"
        return verdict, f"{share}; it halves every {half:.3g} steps, and less than {LOST:g} is left {gone} steps back"
    if ratio > BLOWN_UP:
        return "exploding", f"{share}; it doubles every {_doubling(norms):.3g} steps"
    return "healthy", share


def advice(verdict: str, cell: Cell | None) -> str:
    """What to try for a layer of this cell; empty if there is nothing to mend."""
    if verdict == "exploding":
        return (
            "clip the gradients, with torch.nn.utils.clip_grad_norm_ before each step of the optimizer or with "
            "grad_clip= in the layer's call; if it is untrained, try fused_rnn.init.orthogonal_(layer)"
        )
    if verdict not in ("fading", "vanishing") or cell is None:
        return ""
    return f"to reach further back, try {_remedy(cell)}"


def _remedy(cell: Cell) -> str:
    if cell.layer is None:  # somebody's own, of which no gate is known
        return "larger biases of the gates that keep the state: cell.layer(..., init={'bias_ih': ...})"
    if cell.gate("forget") is not None:
        return (
            "fused_rnn.init.forget_bias_(layer, 3.0), which opens the forget gates, or chrono_(layer, longest), for "
            "time scales up to so many steps"
        )
    if cell.gate("update") is not None:
        return (
            "fused_rnn.init.update_bias_(layer, 3.0), with which the update gates keep the state, or "
            "chrono_(layer, longest), for time scales up to so many steps"
        )
    if cell.nonlinearity == "relu":
        return "fused_rnn.init.identity_(layer), or an LSTM or GRU in its place"
    return "fused_rnn.init.orthogonal_(layer), or an LSTM or GRU in its place"


# ---- norms by steps back ---------------------------------------------------------------------------------------------


def ratio_of(norms: Sequence[float]) -> float:
    """The norm at the first step divided by that at the last one."""
    return norms[-1] / norms[0] if norms and norms[0] else math.nan


def half_life(norms: Sequence[float]) -> float:
    """Of the exponential fitted to the norms, in steps; inf: no decay; nan: nothing to fit."""
    slope = _slope(norms)
    return slope if math.isnan(slope) else -1 / slope if slope < 0 else math.inf


def _doubling(norms: Sequence[float]) -> float:
    slope = _slope(norms)
    return 1 / slope if slope > 0 else math.nan


def _slope(norms: Sequence[float]) -> float:
    """The least-squares slope of log2(norm) against steps back, over norms other than 0 and infinity."""
    points = [(k, math.log2(norm)) for k, norm in enumerate(norms) if 0 < norm < math.inf]
    if len(points) < 2:
        return math.nan
    mean_k, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((k - mean_k) * (y - mean_y) for k, y in points) / sum((k - mean_k) ** 2 for k, _ in points)


def _first(norms: Sequence[float], holds: Callable[[float], bool]) -> int:
    return next(k for k, norm in enumerate(norms) if holds(norm))
