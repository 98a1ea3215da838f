"""``gradient_flow``: how gradients vanish or explode on their way back through time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..nn.recurrent import Recurrent
from ..nn.runners import Frozen, Watched
from . import figure

__all__ = ["Flow", "Line", "Summary", "gradient_flow"]

# Vanishing and exploding: the gradient at the first step is less than a thousandth, or more than a thousand times, that
# at the last one.
VANISHING, EXPLODING = 1e-3, 1e3


@contextmanager
def gradient_flow(model: nn.Module, probe: str = "last", *, steps: int | None = None) -> Iterator[Flow]:
    """Watches gradients go back through time in every ``fused_rnn.LSTM / GRU / RNN`` of ``model``, itself included.

    ::

        with fused_rnn.gradient_flow(model) as flow:
            loss(model(x)).backward()
        print(flow.summary())

    For each layer, direction and step: the norm, over batch and units, of dL/dh_t, and of dL/dc_t for an LSTM. The
    backward kernel computes it along the way. Recorded by ``backward()`` (not ``torch.autograd.grad``), even after the
    ``with``, for calls made inside it. Results and gradients do not change.

    Args:
        model: its cells (``LSTMCell`` and so on) and torch.nn's layers are skipped with a warning.
        probe: "last": how far back does a loss of the last step alone reach? For each layer separately, h after each
            direction's last step gets a gradient of ones, and nothing else does. This is an extra backward pass through
            time, about a fifth of a training step, and not part of any gradient. Among rows of different lengths only
            the longest count; among rows with resets those without one in between, if there are any.
            "all": the gradients of the real loss, to which every step contributes; costs next to nothing.
        steps: an upper bound for the steps of a call. Needed under ``torch.compile``, where the memory for the norms
            has to exist beforehand and each backward pass may belong to one call of a module only. The context must be
            outside of what is compiled.

    Norms are float32 (float64 for float64 layers) roots of sums of squares: in float32 they are 0 below about 1e-22 and
    inf above 1e19. Second derivatives, ``torch.func``'s transforms, forward-mode AD and export are refused.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("fused_rnn.gradient_flow: enter it outside of what torch.compile compiles")
    if probe not in ("last", "all"):
        raise ValueError(f'fused_rnn.gradient_flow: probe must be "last" or "all", got {probe!r}')
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"fused_rnn.gradient_flow: steps must be a positive integer, got {steps!r}")
    watched = _layers_of(model)
    flow = Flow(probe)
    watching: list[tuple[Recurrent, Watched]] = []
    try:
        for name, module in watched.items():
            runner = Watched(flow._record, probe == "last", name, module, steps)
            watching.append((module, runner))
            module._runner = runner
        yield flow
    finally:
        for module, runner in watching:
            if module._runner is runner:
                del module._runner


def _layers_of(model: nn.Module) -> dict[str, nn.Module]:
    watched, passed_over = {}, []
    for name, module in model.named_modules():
        name = name.replace("_orig_mod.", "").removesuffix("_orig_mod")  # what torch.compile wraps a module in
        if isinstance(module, Recurrent):
            watched[name] = module
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            passed_over.append(f"{name or 'the model itself'} ({type(module).__name__})")
    if not watched:
        found = f"; it has {', '.join(passed_over)}" if passed_over else ""
        raise ValueError(
            "fused_rnn.gradient_flow: the model has no LSTM, GRU or RNN of this library "
            f"(fused_rnn.swap(model) replaces torch.nn's; of cells the loop over time is your own){found}"
        )
    for name, module in watched.items():
        what = f"fused_rnn.gradient_flow: {name or 'the model'} "
        if isinstance(module._runner, Frozen):
            raise RuntimeError(f"{what}is frozen and has no gradients; call fused_rnn.thaw(model) first")
        if isinstance(module._runner, Watched):
            raise RuntimeError(f"{what}is watched already, by another gradient_flow")
    if passed_over:
        warnings.warn(
            f"fused_rnn.gradient_flow passes over {', '.join(passed_over)}: only this library's LSTM, GRU and RNN show "
            "their gradients",
            stacklevel=4,
        )
    return watched


@dataclass(frozen=True)
class Line:
    """One layer and direction of :meth:`Flow.summary`."""

    name: str
    steps: int
    half_life: float
    """The half-life in steps of the exponential fitted to the norms. inf: no decay; nan: nothing to fit."""
    ratio: float
    """The norm at the first step divided by that at the last one, where the backward pass starts."""
    verdict: str
    """"vanishing", "healthy", "exploding", or "-"."""
    reason: str


@dataclass(frozen=True)
class Summary:
    """What :meth:`Flow.summary` found; ``str()`` is a table."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        width = max(5, *(len(line.name) for line in self.lines))
        rows = [f"{'layer':{width}} {'steps':>6} {'half-life':>10} {'first/last':>10}  verdict"]
        for line in self.lines:
            half_life = "-" if math.isnan(line.half_life) else f"{line.half_life:.3g}"
            why = f"{line.verdict}: {line.reason}"
            rows.append(f"{line.name:{width}} {line.steps:6} {half_life:>10} {line.ratio:10.2e}  {why}")
        return "\n".join(rows)


class Flow:
    """What :func:`gradient_flow` recorded. Several backward passes and calls are combined, step by step, by the root
    mean square of those that reach that far."""

    def __init__(self, probe: str):
        self.probe = probe
        self._records: list[tuple[tuple[str, int], Tensor]] = []  # ((module, layer), [D, kStates, T])

    def _record(self, key: tuple[str, int], norms: Tensor) -> None:
        self._records.append((key, norms))

    def summary(self) -> Summary:
        """Half-life, ratio and verdict of each layer and direction, from the gradient of h and c together."""
        return Summary(tuple(self._line(name, _together(states)) for name, states in self._curves().items()))

    def plot(self, path: str | Path) -> Path:
        """Plots the norms of h and c together against time, a line for each layer and direction."""
        made, (axes,) = figure.figure(7, 4)
        curves = self._curves()
        for (name, states), style in zip(curves.items(), figure.styles(), strict=False):
            norms = [norm if 0 < norm < math.inf else math.nan for norm in _together(states)]
            axes.plot(range(len(norms)), norms, label=name, **style, marker="o" if len(norms) == 1 else None)
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("steps before the last one that the direction takes")
        of = "the last step's h" if self.probe == "last" else "the loss"
        axes.set_ylabel(f"norm of the gradient of the state, from {of}")
        made.legend(loc="outside right upper", frameon=False)
        return figure.save(made, path)

    def to_dict(self) -> dict:
        """Everything, for JSON: norms by steps back from the last step; None for non-finite numbers."""
        lines = []
        for name, states in self._curves().items():
            line = self._line(name, _together(states))
            norms = {state: [_finite(n) for n in curve] for state, curve in zip("hc", states, strict=False)}
            numbers = {"half_life": _finite(line.half_life), "ratio": _finite(line.ratio)}
            lines.append({"name": name, **norms, **numbers, "verdict": line.verdict, "reason": line.reason})
        return {"probe": self.probe, "lines": lines}

    def norms(self) -> list[tuple[str, Tensor]]:
        """Each backward pass of each call separately, in order: ``(layer, norms [D, kStates, T])``."""
        if not self._records:
            raise RuntimeError(
                "fused_rnn.gradient_flow has seen no gradient: call backward() for a call that was made within it"
            )
        return [(_label(*key), _valid(key, norms)) for key, norms in self._records]

    def _curves(self) -> dict[str, list[list[float]]]:
        """The norms of h (and c) by layer and direction, by steps back."""
        found: dict[str, list[Tensor]] = {}
        for name, norms in self.norms():
            for d, states in enumerate(norms.double().cpu()):
                found.setdefault(name + " reverse" * d, []).append(_from_the_end(states if d else states.flip(-1)))
        return {name: _mean(calls) for name, calls in sorted(found.items())}

    def _line(self, name: str, norms: Sequence[float]) -> Line:
        half_life = _half_life(norms)
        ratio = norms[-1] / norms[0] if norms and norms[0] else math.nan
        verdict, reason = "-", "the loss adds to the gradient as it goes back; gradient_flow(probe='last') can tell"
        if self.probe == "last":
            verdict, reason = _judge(norms, ratio, half_life)
        return Line(name, len(norms), half_life, ratio, verdict, reason)


def _judge(norms: Sequence[float], ratio: float, half_life: float) -> tuple[str, str]:
    back = len(norms) - 1
    if back < 1:
        return "-", "there is no way back: one step, or no rows"
    if not all(map(math.isfinite, norms)):
        return "exploding", f"not finite {next(k for k, n in enumerate(norms) if not math.isfinite(n))} steps back"
    share = f"the first step gets {ratio:.2g} of the gradient {back} steps later"
    if ratio < VANISHING:
        return "vanishing", f"{share}; it halves every {half_life:.3g} steps"
    if ratio > EXPLODING:
        return "exploding", f"{share}; it doubles every {_doubling(norms):.3g} steps"
    return "healthy", share


def _half_life(norms: Sequence[float]) -> float:
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


def _label(name: str, layer: int) -> str:
    return f"{name}.l{layer}" if name else f"l{layer}"


def _valid(key: tuple[str, int], norms: Tensor) -> Tensor:
    """Without the columns beyond the last step, which hold minus the number of calls."""
    calls = -norms.min().item() if norms.numel() else 0
    if calls > 1:
        raise RuntimeError(
            f"fused_rnn.gradient_flow: {_label(*key)} was called {calls:.0f} times before one backward pass; under "
            "torch.compile their gradients cannot be told apart"
        )
    return norms[..., : norms.shape[-1] - int((norms[0, 0] < 0).sum())]


def _from_the_end(states: Tensor) -> Tensor:
    """[kStates, K] by steps back, from the first step with a non-zero gradient."""
    met = (states != 0).any(0).nonzero()
    return states[:, int(met[0]) :] if len(met) else states[:, :0]


def _mean(calls: list[Tensor]) -> list[list[float]]:
    most = max(call.shape[-1] for call in calls)
    squares, count = torch.zeros(calls[0].shape[0], most, dtype=torch.float64), torch.zeros(most, dtype=torch.float64)
    for call in calls:
        squares[:, : call.shape[-1]] += call.square()
        count[: call.shape[-1]] += 1
    return (squares / count).sqrt().tolist()


def _together(states: list[list[float]]) -> list[float]:
    return [math.hypot(*norms) for norms in zip(*states, strict=True)]


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
