"""``gradient_flow``: how gradients vanish or explode on their way back through time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from ..nn.recurrent import Recurrent
from ..nn.runners import Frozen, Watched
from ..ops.cells import BY_ID, BY_MODE, Cell
from ..own.layer import OwnLayer
from . import figure, html, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Flow", "Line", "Summary", "gradient_flow"]


@contextmanager
def gradient_flow(model: nn.Module, probe: str = "last", *, steps: int | None = None) -> Iterator[Flow]:
    """Watches gradients go back through time in every ``fused_rnn.LSTM / GRU / RNN`` of ``model``, itself included.

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

    Yields:
        :class:`fused_rnn.Flow`, which has a summary, a plot and the norms themselves.

    Example:
        >>> model = fused_rnn.GRU(10, 20)
        >>> with fused_rnn.gradient_flow(model) as flow:
        ...     model(torch.randn(50, 3, 10))[0].square().mean().backward()
        >>> flow
        Flow(probe='last', l0 of 50 steps)
        >>> flow.summary()
        Summary(l0: fading)
        >>> flow.summary().lines[0].advice
        'to reach further back, try fused_rnn.init.update_bias_(layer, 3.0), with which ...'
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("fused_rnn.gradient_flow: enter it outside of what torch.compile compiles")
    if probe not in ("last", "all"):
        raise ValueError(f'fused_rnn.gradient_flow: probe must be "last" or "all", got {probe!r}')
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"fused_rnn.gradient_flow: steps must be a positive integer, got {steps!r}")
    watched = _layers_of(model)
    cells = {name: _cell_of(module) for name, module in watched.items()}
    flow = Flow(probe, cells)
    watching: list[tuple[Recurrent | OwnLayer, Watched]] = []
    try:
        for name, module in watched.items():
            runner = Watched(flow._record, probe == "last", name, module, cells[name], steps)
            watching.append((module, runner))
            module._runner = runner
        yield flow
    finally:
        for module, runner in watching:
            if module._runner is runner:
                del module._runner


def _cell_of(module: Recurrent | OwnLayer) -> Cell:
    return module.row if isinstance(module, OwnLayer) else BY_MODE[module.mode]


def _layers_of(model: nn.Module) -> dict[str, Recurrent | OwnLayer]:
    watched: dict[str, Recurrent | OwnLayer] = {}
    passed_over = []
    for name, module in model.named_modules():
        name = name.replace("_orig_mod.", "").removesuffix("_orig_mod")  # what torch.compile wraps a module in
        if isinstance(module, (Recurrent, OwnLayer)):
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
        if isinstance(module, OwnLayer) and not module.compiled:
            raise RuntimeError(f"{what}was made with compiled=False; only the kernels tell their gradients")
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
    """"healthy", "fading", "vanishing", "exploding", or "-"; see :class:`Summary`."""
    reason: str
    advice: str = ""
    """What to try, if the verdict is not what you want; empty if there is nothing to mend."""


@dataclass(frozen=True)
class Summary:
    """What :meth:`Flow.summary` found; ``str()`` is a table that explains its verdicts and says what to try.

    The verdicts compare the gradient at the first step with that at the last one, where the backward pass starts:

    * healthy: between a thousandth and a thousand times as large.
    * fading: less than a thousandth, but a step back keeps more than half of it (the half-life is longer than one
      step). Every LSTM and GRU fresh from its constructor does so, whatever its size, since its gates are half open:
      no fault, unless what has to be learnt lies further back than the gradient reaches.
    * vanishing: less than a thousandth, and a step back leaves half of it or less.
    * exploding: more than a thousand times as large, or not finite.
    """

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        width = max(5, *(len(line.name) for line in self.lines))
        rows = [f"{'layer':{width}} {'steps':>6} {'half-life':>10} {'first/last':>10}  verdict"]
        for line in self.lines:
            why = f"{line.verdict}: {line.reason}"
            rows.append(f"{line.name:{width}} {line.steps:6} {_shown(line.half_life):>10} {line.ratio:10.2e}  {why}")
        found = dict.fromkeys(line.verdict for line in self.lines)
        rows += ["", *(f"{verdict}: {verdicts.MEANINGS[verdict]}" for verdict in found if verdict in verdicts.MEANINGS)]
        for advice in dict.fromkeys(line.advice for line in self.lines if line.advice):
            names = [line.name for line in self.lines if line.advice == advice]
            rows.append(f"{html.shortened(names)}: {advice}")
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"Summary({html.shortened([f'{line.name}: {line.verdict}' for line in self.lines])})"

    def _repr_html_(self) -> str:
        header = ("layer", "steps", "half-life", "first/last", "verdict", "reason", "try")
        rows = [
            (
                line.name,
                line.steps,
                _shown(line.half_life),
                f"{line.ratio:.2e}",
                line.verdict,
                line.reason,
                line.advice,
            )
            for line in self.lines
        ]
        return html.table(header, rows)


class Flow:
    """What :func:`gradient_flow` recorded. Several backward passes and calls are combined, step by step, by the root
    mean square of those that reach that far."""

    def __init__(self, probe: str, cells: dict[str, Cell] | None = None):
        self.probe = probe
        self._cells = cells or {}  # of the watched modules, by name
        self._records: list[tuple[tuple[str, int], Tensor]] = []  # ((module, layer), [D, kStates, T])

    def _record(self, key: tuple[str, int], norms: Tensor) -> None:
        self._records.append((key, norms))

    def summary(self) -> Summary:
        """Half-life, ratio and verdict of each layer and direction, from the gradient of h and c together."""
        return Summary(tuple(self._line(name, _together(states)) for name, states in self._curves().items()))

    def __repr__(self) -> str:
        if not self._records:
            return f"Flow(probe={self.probe!r}, no gradient so far)"
        steps = {name: len(states[0]) for name, states in self._curves().items()}
        return f"Flow(probe={self.probe!r}, {html.shortened([f'{name} of {n} steps' for name, n in steps.items()])})"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_() if self._records else escape(repr(self))

    @overload
    def plot(self, path: None = None) -> Figure: ...

    @overload
    def plot(self, path: str | Path) -> Path: ...

    def plot(self, path: str | Path | None = None) -> Figure | Path:
        """Plots the norms of h and c together against time, a line for each layer and direction.

        Args:
            path: the file to write, in the format of its suffix; None: nothing is written.

        Returns:
            The path, or the matplotlib figure if there is none.
        """
        made, (axes,) = figure.figure(7, 4)
        curves = self._curves()
        for (name, states), style in zip(curves.items(), figure.styles(), strict=False):
            norms = [norm if 0 < norm < math.inf else math.nan for norm in _together(states)]
            axes.plot(range(len(norms)), norms, label=name, **style, marker="o" if len(norms) == 1 else None)
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("steps before the last one that the direction takes")
        of = "the last step's h" if self.probe == "last" else "the loss"
        axes.set_ylabel(f"norm of the gradient of the state,\nfrom {of}")
        made.legend(loc="outside right upper", frameon=False)
        return made if path is None else figure.save(made, path)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: norms by steps back from the last step; None for non-finite numbers."""
        lines = []
        for name, states in self._curves().items():
            line = self._line(name, _together(states))
            cell = self._cell(name)
            names = (cell and cell.state_names) or ("h", "c")
            norms = {state: [_finite(n) for n in curve] for state, curve in zip(names, states, strict=False)}
            numbers = {"half_life": _finite(line.half_life), "ratio": _finite(line.ratio)}
            told = {"verdict": line.verdict, "reason": line.reason, "advice": line.advice}
            lines.append({"name": name, **norms, **numbers, **told})
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
        verdict, reason = "-", "the loss adds to the gradient as it goes back; gradient_flow(probe='last') can tell"
        if self.probe == "last":
            verdict, reason = verdicts.judge(norms)
        advice = verdicts.advice(verdict, self._cell(name))
        return Line(name, len(norms), verdicts.half_life(norms), verdicts.ratio_of(norms), verdict, reason, advice)

    def __getstate__(self) -> dict[str, Any]:
        named = {module: (cell.id, cell.name, cell.state_names) for module, cell in self._cells.items()}
        return self.__dict__ | {"_cells": named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """An own cell need not be defined where its flow is loaded."""
        self.__dict__ |= state
        self._cells = {
            module: BY_ID.get(id) or Cell(name, state_names=state_names, id=id)
            for module, (id, name, state_names) in state.get("_cells", {}).items()
        }

    def _cell(self, name: str) -> Cell | None:
        """The cell of a line's layer."""
        return next((cell for module, cell in self._cells.items() if _is_part_of(module, name)), None)


def _shown(half_life: float) -> str:
    return "-" if math.isnan(half_life) else f"{half_life:.3g}"


def _is_part_of(module: str, label: str) -> bool:
    """Whether this is the label of one of the module's layers."""
    return label.removesuffix(" reverse").rpartition(".")[0] == module


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
