"""``gate_statistics``: how open the gates are, how often they saturate, and how large the state grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .. import reference
from ..autograd import functions
from ..nn.recurrent import Recurrent
from ..ops.arguments import Runner
from ..ops.cells import BY_ID
from ..ops.layer import Layer, Wanted
from . import html

__all__ = ["Gate", "GateStatistics", "gate_statistics"]


@dataclass(frozen=True)
class Gate:
    """One gate of one layer and direction, over all steps, rows and units."""

    name: str
    mean: float
    low: float
    """The share of its values within the margin of the lower end: 0 for a sigmoid, -1 for a tanh; for a relu the share
    of exact zeros, dead units."""
    high: float
    """The same for the upper end, 1; a relu has none."""


@dataclass(frozen=True)
class GateStatistics:
    """What :func:`gate_statistics` found; ``str()`` is a table."""

    margin: float
    gates: tuple[Gate, ...]
    state_norms: dict[str, list[float]]
    """By layer and direction, [T]: the norm of c (of h if there is no c) after each step, averaged over the rows that
    are still active; nan where none is."""

    def __str__(self) -> str:
        width = max(4, *(len(gate.name) for gate in self.gates))
        rows = [f"{'gate':{width}} {'mean':>7} {'at low end':>11} {'at high end':>11}"]
        rows += [f"{g.name:{width}} {g.mean:7.3f} {g.low:11.1%} {g.high:11.1%}" for g in self.gates]
        for name, norms in self.state_norms.items():
            rows.append(
                f"norm of the state, {name}: {norms[0]:.3g} at step 0, {norms[-1]:.3g} at step {len(norms) - 1}"
            )
        return "\n".join(rows)

    def __repr__(self) -> str:
        means = [f"{gate.name} {gate.mean:.3g}" for gate in self.gates]
        return f"GateStatistics(means: {html.shortened(means)})"

    def _repr_html_(self) -> str:
        rows = [(gate.name, f"{gate.mean:.3f}", f"{gate.low:.1%}", f"{gate.high:.1%}") for gate in self.gates]
        return html.table(("gate", "mean", "at low end", "at high end"), rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; None for non-finite numbers."""

        def finite(number: Any) -> Any:
            return number if isinstance(number, str) or math.isfinite(number) else None

        gates = [{key: finite(value) for key, value in asdict(gate).items()} for gate in self.gates]
        norms = {name: [finite(norm) for norm in norms] for name, norms in self.state_norms.items()}
        return {"margin": self.margin, "gates": gates, "state_norms": norms}


def gate_statistics(
    module: nn.Module,
    input: Tensor | PackedSequence,
    hx: Tensor | tuple[Tensor, Tensor] | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    margin: float = 0.05,
) -> GateStatistics:
    """Mean and saturation of each gate, and the norm of the state over time, in ``module(input, hx, ...)``.

    Costs a forward pass without gradients and, since kernels do not return their gates, the products with W_ih and W_hh
    of all steps once more, with memory for all gates of a layer. Training is not slowed down.

    Args:
        module: a ``fused_rnn.LSTM``, ``GRU`` or ``RNN``.
        input: as of :meth:`fused_rnn.LSTM.forward`.
        hx: likewise.
        lengths: likewise. Steps beyond a row's end do not count.
        reset_mask: likewise.
        margin: how close to an end of its range a gate counts as saturated, as a fraction of the range.

    Returns:
        :class:`fused_rnn.GateStatistics`; print it for a table.

    Example:
        >>> lstm = fused_rnn.init.forget_bias_(fused_rnn.LSTM(10, 20), 8.0)
        >>> found = fused_rnn.gate_statistics(lstm, torch.randn(5, 3, 10))
        >>> [gate.name for gate in found.gates if gate.high > 0.9]  # open nearly always
        ['l0 forget']
    """
    if not isinstance(module, Recurrent):
        raise TypeError(
            f"fused_rnn.gate_statistics takes an LSTM, GRU or RNN of this library, got {type(module).__name__}"
        )
    if not 0 < margin < 0.5:
        raise ValueError(f"fused_rnn.gate_statistics: margin must lie between 0 and 0.5, got {margin}")
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("a PackedSequence has its lengths already, so lengths must be None")
        input, lengths = pad_packed_sequence(input, module.batch_first)
    if module.layer_norm:
        raise NotImplementedError("fused_rnn.gate_statistics does not know layer_norm")
    if module.heads > 1:
        raise NotImplementedError(f"fused_rnn.gate_statistics does not know heads={module.heads}")
    gates: list[Gate] = []
    state_norms: dict[str, list[float]] = {}

    def run_layer(layer: Layer, cells: bool) -> Any:
        results = functions.run_layer(layer, BY_ID[layer.cell].states > 1)
        k = len(state_norms) // (1 + layer.bidirectional)
        for d in range(1 + layer.bidirectional):
            name = f"l{k}{' reverse' * d}"
            own_gates, state_norms[name] = _of_direction(layer, d, results, margin)
            gates.extend(Gate(f"{name} {gate}", *numbers) for gate, numbers in own_gates.items())
        return results

    with torch.no_grad():
        module._run(input, hx, lengths, reset_mask, runner=Runner(run_layer))
    return GateStatistics(margin, tuple(gates), state_norms)


def _of_direction(layer: Layer, d: int, results: Any, margin: float) -> tuple[dict[str, Any], list[float]]:
    """(mean, low, high) of each gate by name, and the state's norms [T]."""
    cell, directions, _, _, _, (steps, _) = layer.sizes
    count = len(layer.weights) // directions
    own = dict(zip(layer.weight_kinds, layer.weights[d * count : (d + 1) * count], strict=False))
    weights = {kind: weight.float() if weight.element_size() < 4 else weight for kind, weight in own.items()}
    output, all_cells = (t.chunk(directions, -1)[d] if t.dim() == 3 else t for t in (results[0], results[3]))
    dtype = weights[Wanted.WEIGHT_IH].dtype
    step = torch.arange(steps, device=layer.input.device).unsqueeze(-1)
    lengths = torch.full_like(step[:1], steps) if layer.lengths is None else layer.lengths
    active = (step < lengths).expand(output.shape[:2])  # [T, B]
    h = _h_before(layer, d, output, step, lengths).to(dtype)
    if layer.h_factor is not None:
        h = h * layer.h_factor[d]
    x = linear(layer.with_numbers().input.to(dtype), weights[Wanted.WEIGHT_IH], weights.get(Wanted.BIAS_IH))
    found = {}
    values = reference.GATES[layer.cell](x, linear(h, weights[Wanted.WEIGHT_HH], weights.get(Wanted.BIAS_HH)))
    for (name, low, high), gate in zip(cell.named_gates, values, strict=True):
        of_rows = gate[active]
        near = margin * (high - low) if math.isfinite(high) else 0.0
        shares = [of_rows <= low + near, of_rows >= high - near]
        found[name] = tuple(t.double().mean().item() for t in (of_rows, *shares))
    norms = (all_cells if cell.states > 1 else output).double().norm(dim=-1) * active
    return found, (norms.sum(-1) / active.sum(-1)).tolist()


def _h_before(layer: Layer, d: int, output: Tensor, step: Tensor, lengths: Tensor) -> Tensor:
    """[T, B, P]: the h that enters each step of direction ``d``."""
    h0 = torch.zeros_like(output[0]) if layer.h0 is None else layer.h0[d]
    if d == 0:
        before, cuts = torch.cat([h0.unsqueeze(0), output[:-1]]), layer.reset_mask
    else:
        before, cuts = torch.cat([output[1:], h0.unsqueeze(0)]), None
        before = torch.where((step == lengths - 1).unsqueeze(-1), h0, before)  # each row starts at its own end
        if layer.reset_mask is not None:
            # The mask of step t + 1 applies first; beyond the row's end it does not apply.
            later = torch.cat([layer.reset_mask[1:], torch.zeros_like(layer.reset_mask[:1])])
            cuts = later & (step + 1 < lengths)
    return before if cuts is None else before.masked_fill(cuts.unsqueeze(-1), 0)
