"""Calls of the operators with all their options, on the machine and on the CPU engine."""

import os
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor

from fused_rnn.ops import layer_norm
from fused_rnn.ops.cells import BY_ID
from fused_rnn.ops.layer import Wanted, weight_kinds
from fused_rnn.tools.verify import TOLERANCE, relative_error

EVERYTHING = 127  # bits of what layer_backward is asked for
WAIT_S = "2e-6"  # of waits that will be in vain; the machine's clock counts instructions as nanoseconds


class Call(NamedTuple):
    dtype: torch.dtype
    cell: int
    engine: str = "stepwise"
    steps: int = 4
    batch: int = 6
    input_size: int = 3
    hidden: int = 5
    members: int | None = None
    bidirectional: bool = True
    bias: bool = True
    projected: bool = False
    states: bool = True
    rows: str = "lengths"  # or "padded", or "packed"
    reset: bool = True
    tokens: bool = False
    cells: bool = False
    norms: bool = False
    clip: float | None = None
    masked: bool = False  # h before W_hh
    zoneout: str | None = None  # or "masks", or "shares"
    normed: bool = False  # with layer norm
    groups: int = 1
    wanted: int = EVERYTHING
    given: bool = True  # gradients of the output and of all cells; those of the last states always are
    tangents: bool = False  # and the operators for second derivatives


@contextmanager
def variable(name: str, value: str):
    """Of the environment."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def engine(name: str):
    return variable("FUSED_RNN_ENGINE", name)


@contextmanager
def in_vain(fault):
    """While the machine has this fault, ``silence`` or ``hold_up``, waits soon give up. Nobody is told of it later."""
    try:
        with variable("FUSED_RNN_CUDA_WAIT_S", WAIT_S), fault:
            yield
    finally:  # the next call would be
        with suppress(RuntimeError):
            forward(torch.ops.fused_rnn_emulated, Arguments(Call(torch.float32, 2, steps=1, batch=1, hidden=1)))


class Arguments:
    """Random ones, the same for every engine."""

    def __init__(self, call: Call):
        self.call, self.cell = call, BY_ID[call.cell]
        self.generator = torch.Generator().manual_seed(0)
        self.members = () if call.members is None else (call.members,)
        self.directions = 1 + call.bidirectional
        self.width = call.hidden - 1 if call.projected else call.hidden
        self.layer = (call.cell, call.bias, call.bidirectional)
        kinds = weight_kinds(self.cell, call.bias, call.projected)
        self.weights = [self.random(*self._shape(kind)) for kind in kinds * self.directions]
        self._make_rows()
        self.h0 = self.random(self.directions, self.batch, self.width) if call.states else None
        self.c0 = None
        if call.states and self.cell.states > 1:
            self.c0 = self.random(self.directions, self.batch, call.hidden)
        names = layer_norm.names(self.cell, call.bias) * self.directions if call.normed else []
        self.norms = [1 + self.random(layer_norm.size(name, self.cell, call.hidden)) for name in names]
        self.inputs = (self.input, self.h0, self.c0, self.weights, *self.masks)
        self.has_cells = call.cells and self.cell.states > 1
        factor = self.random(self.directions, self.batch, self.width) if call.masked else None
        kept, shares = None, (0.25, 0.6) if call.zoneout == "shares" else (None, None)
        if call.zoneout == "masks":
            shape = (*self.members, *self.rows, self.directions * self.cell.states * call.hidden)
            kept = torch.rand(shape, generator=self.generator) < 0.4
        self.options = (factor, kept, *shares)  # of the loop

    def random(self, *shape: int) -> Tensor:
        numbers = torch.randn(*self.members, *shape, generator=self.generator, dtype=torch.float64)
        return (numbers * 0.6).to(self.call.dtype)

    def _shape(self, kind: Wanted) -> tuple[int, ...]:
        gates = self.cell.gates * self.call.hidden
        return {
            Wanted.WEIGHT_IH: (gates, self.call.input_size),
            Wanted.WEIGHT_HH: (gates, self.width),
            Wanted.BIAS_IH: (gates,),
            Wanted.BIAS_HH: (gates,),
            Wanted.WEIGHT_HR: (self.width, self.call.hidden),
        }[kind]

    def _make_rows(self):
        call = self.call
        lengths = torch.randint(0, call.steps + 1, (call.batch,), generator=self.generator)
        lengths[0] = call.steps
        reset = torch.rand(call.steps, call.batch, generator=self.generator) < 0.4
        self.batch, self.rows = call.batch, (call.steps, call.batch)
        batch_sizes = None
        if call.rows == "packed":
            batch_sizes = (lengths[:, None].clamp(1) > torch.arange(call.steps)).sum(0)
            self.rows = (int(batch_sizes.sum()),)
        self.input = self.random(*self.rows, call.input_size)
        if call.tokens:
            shape = (*self.members, *self.rows)
            self.input = torch.randint(0, call.input_size, shape, generator=self.generator)
        if call.rows == "lengths":  # padding may hold anything
            past_end = torch.arange(call.steps)[:, None] >= lengths
            self.input[past_end.expand(self.input.shape[: len(self.members) + 2])] = -1 if call.tokens else torch.nan
        self.masks = (lengths if call.rows == "lengths" else None, batch_sizes, reset if call.reset else None)

    def gradients(self, outputs) -> list[Tensor | None]:
        grads = [self.random(*o.shape[len(self.members) :]) if o.shape != (0,) else None for o in outputs]
        if not self.call.given:
            grads[0] = grads[3] = None
        return grads


def forward(operators, a: Arguments) -> tuple[list[Tensor], Tensor]:
    """Outputs, and the rows that are saved for the way back, which differ between engines."""
    with engine(a.call.engine):
        if a.call.normed:
            normed = (*a.inputs[:4], a.norms, *a.masks, True, a.has_cells)
            *outputs, saved = operators.normed_forward(*a.layer, *normed, *a.options)
        else:
            *outputs, saved = operators.layer_forward(*a.layer, *a.inputs, True, a.has_cells, a.call.clip, *a.options)
    return outputs, saved


def backward(operators, a: Arguments, grads, saved) -> list[Tensor]:
    wanted = a.call.wanted & ~Wanted.INPUT if a.call.tokens else a.call.wanted
    options = (saved, wanted, a.call.groups, a.call.norms, a.call.clip)
    with engine(a.call.engine):
        if a.call.normed:
            inputs = (*a.inputs[:4], a.norms, *a.masks, saved, wanted, a.call.clip)
            *to_states, to_weights, to_norms = operators.normed_backward(*a.layer, *grads, *inputs, *a.options)
            return [*to_states, *to_weights, *to_norms]
        *to_states, to_weights = operators.layer_backward(*a.layer, *grads, *a.inputs, *options, *a.options)
    return [*to_states, *to_weights]


def tangents(operators, a: Arguments, outputs, grads, saved) -> list[Tensor]:
    """Tangents of the outputs and of the gradients along a random direction."""
    a.generator.manual_seed(1)
    gates, H = a.directions * a.cell.gates * a.call.hidden, a.directions * a.call.hidden
    x, r, added = a.random(*a.rows, gates), a.random(*a.rows, gates), a.random(*a.rows, a.directions * a.width)
    h, wide = (a.random(*added.shape[len(a.members) :]), a.random(*a.rows, H)) if a.call.projected else (None, None)
    states = [None if t is None else a.random(*t.shape[len(a.members) :]) for t in (a.h0, a.c0)]
    *changes, saved_change = operators.layer_tangent(
        *a.layer, a.input, *states, *a.inputs[3:], saved, x, r, h, a.has_cells, *a.options
    )
    trace = operators.layer_trace(*a.layer, *grads, *a.inputs, saved, *a.options)
    grad_changes = a.gradients(outputs)
    *to_states, to_weights = operators.layer_backward_tangent(
        *a.layer, *grad_changes, *a.inputs, saved, saved_change, trace[2], added, wide, a.call.wanted, *a.options
    )
    return [*changes, *trace, *to_states, *to_weights]


def run(operators, call: Call) -> list[Tensor]:
    a = Arguments(call)
    outputs, saved = forward(operators, a)
    grads = a.gradients(outputs)
    found = outputs + backward(operators, a, grads, saved)
    return found + tangents(operators, a, outputs, grads, saved) if call.tangents else found


def what_is_wrong(call: Call) -> str | None:
    """Where the machine's results differ from the CPU engine's, or the machine's error."""
    return differences(call.dtype, lambda: run(torch.ops.fused_rnn_emulated, call), run(torch.ops.fused_rnn, call))


def differences(
    dtype: torch.dtype, compute, expected: list[Tensor], factor: float = 1, or_nan: bool = False
) -> str | None:
    """``factor`` scales the tolerance. ``or_nan``: results may be NaN instead."""
    try:
        found = compute()
    except RuntimeError as failure:
        return str(failure).removeprefix("fused_rnn: launching a kernel: ").removeprefix("ptx: ")
    assert [t.shape for t in found] == [t.shape for t in expected]
    if or_nan:
        if not any(one.isnan().any() for one in found):
            return "nothing is NaN"
        found = [torch.where(one.isnan(), other, one) for one, other in zip(found, expected, strict=True)]
    if dtype.itemsize == 2:  # rounded equally often, but in other places
        found, expected = ([torch.cat([t.flatten() for t in side])] for side in (found, expected))
    errors = [relative_error(one, other) for one, other in zip(found, expected, strict=True)]
    most = factor * TOLERANCE[dtype]
    wrong = {number: error for number, error in enumerate(errors) if not error <= most}
    return f"errors above {most:.1e}: {wrong}" if wrong else None
