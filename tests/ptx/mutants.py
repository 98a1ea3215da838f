"""How changes to the kernels' PTX are made and run: a pass of a layer in one order of events after another, until its
results are others than without the change, or the machine refuses what it does."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from support.gpu import tf32

from . import calls, flow, listing
from .calls import Call

ATTEMPTS = 5  # orders of events, each with random numbers of its own
PATIENCE = 300_000  # instructions without progress: of layers as small as these that is for ever
IN_VAIN = 3_000_000  # all warps look at the clock some times, and then wait for what is on its way


class Pass(NamedTuple):
    """What is run: one direction of a call."""

    call: Call
    direction: str  # forward, backward or tangents
    weak: bool = False  # memory
    tf32: bool = False
    silent: int | None = None  # a block, all of whose publications are lost
    after: int = 0  # or those from this one on
    held_up: int | None = None  # a block that goes on only where no other one can

    def __str__(self):
        call = self.call
        name = f"{call.engine} {str(call.dtype).removeprefix('torch.')} {self.direction} {call.hidden}"
        if self.held_up is not None:
            return f"{name} with block {self.held_up} held up"
        return name if self.silent is None else f"{name} without block {self.silent}"

    def fault(self, machine):
        """What makes waits be in vain; None: nothing does."""
        if self.held_up is not None:
            return machine.hold_up(self.held_up)
        return None if self.silent is None else machine.silence(self.silent, self.after)


class Running:
    """A pass on the machine, with what it gives and what it executes when nothing is changed."""

    def __init__(self, machine, which: Pass):
        self.machine, self.which = machine, which
        self._arguments = calls.Arguments(which.call)
        machine.undo_changes()
        machine.options()
        with tf32(which.tf32):
            self._outputs, self._saved = calls.forward(torch.ops.fused_rnn_emulated, self._arguments)
        self._grads = self._arguments.gradients(self._outputs)
        self._expected = self._compute()
        machine.reset_counts()
        before = {name: machine.launches_of(name) for name in machine.names()}
        self._compute_with_fault()
        launched = [name for name, launches in before.items() if machine.launches_of(name) > launches]
        self.executed = {name: [s for s in listing.statements(machine, name) if s.executed] for name in launched}
        assert (wrong := self.seen()) is None, f"{which}, unchanged: {wrong}"

    def _compute(self):
        operators = torch.ops.fused_rnn_emulated
        with tf32(self.which.tf32):
            if self.which.direction == "forward":
                return calls.forward(operators, self._arguments)[0]
            if self.which.direction == "backward":
                return calls.backward(operators, self._arguments, self._grads, self._saved)
            return calls.tangents(operators, self._arguments, self._outputs, self._grads, self._saved)

    def _compute_with_fault(self):
        fault = self.which.fault(self.machine)
        if fault is None:
            return self._compute()
        with calls.in_vain(fault):
            return self._compute()

    def seen(self) -> str | None:
        """What is wrong with it now, in the first order of events that shows it."""
        machine = self.machine
        for number in range(1, ATTEMPTS + 1):
            order = machine.orders[number % len(machine.orders)].name
            dtype, or_nan = self.which.call.dtype, self.which.fault(machine) is not None
            patience = IN_VAIN if or_nan else PATIENCE
            machine.options(seed=number, order=order, weak=self.which.weak, patience=patience)
            if wrong := calls.differences(dtype, self._compute_with_fault, self._expected, or_nan=or_nan):
                return wrong
        return None

    def seen_with(self, kernel: str, lines: dict[int, str]) -> str | None:
        self.machine.change(kernel, lines)
        try:
            self.machine.text_of(kernel)  # raises where the change itself cannot be read
            return self.seen()
        finally:
            self.machine.undo_changes()
            self.machine.options()


@functools.cache
def running(machine, which: Pass) -> Running:
    return Running(machine, which)


# ---- by name ---------------------------------------------------------------------------------------------------------

# Pairs of a pattern and what is put in its place, of which the first that fits a statement is taken; or a function of
# all statements.
Changes = tuple[tuple[str, str], ...] | Callable[[list[listing.Statement]], list[str]]


class Mutation(NamedTuple):
    name: str
    run: Pass
    at: str  # a pattern of Statement.functions
    changes: Changes
    which: flow.Which = flow.all_that_fit  # of those that it changes
    every: int = 1  # 2: every second one of them, not the first
    each: bool = False  # one at a time: each of them has to be seen


def changed_lines(mutation: Mutation, statements: list[listing.Statement]) -> dict[int, str]:
    fit = [s for s in statements if re.search(mutation.at, s.functions)]
    made = mutation.changes(fit) if callable(mutation.changes) else [changed(s.text, mutation.changes) for s in fit]
    lines = {s.line: text for s, text in zip(fit, made, strict=True) if text != s.text}
    meant = mutation.which(statements, [s for s in fit if s.line in lines])
    return {s.line: lines[s.line] for s in meant[mutation.every - 1 :: mutation.every]}


def changed(text: str, changes: tuple[tuple[str, str], ...]) -> str:
    for pattern, to in changes:
        if re.search(pattern, text):
            return re.sub(pattern, to, text)
    return text


def unseen(machine, mutation: Mutation) -> list[str]:
    """Where it is not noticed. Every kernel that the pass launches and that it fits is changed by itself."""
    run, tried, found = running(machine, mutation.run), 0, []
    for kernel, statements in run.executed.items():
        lines = changed_lines(mutation, statements)
        parts = [{line: text} for line, text in lines.items()] if mutation.each else [lines] if lines else []
        tried += len(parts)
        for part in parts:
            if run.seen_with(kernel, part) is None:
                at = next(s for s in statements if s.line in part)
                found.append(f"{at.text.strip()} of line {at.line}, at {at.functions}")
    assert tried, "there is no place for it: the kernels have changed, and it must change with them"
    return found


# ---- one by one ------------------------------------------------------------------------------------------------------


class Weakening(NamedTuple):
    opcodes: str  # a pattern of all of the opcode
    pattern: str
    to: str
    engines: str = ""  # a pattern
    weak: bool = False  # shows in passes with weak memory


class Place(NamedTuple):
    runs: tuple[Pass, ...]  # that execute it
    kernel: str
    statement: listing.Statement
    weakening: Weakening

    def __str__(self):
        frames = " < ".join(map(str, self.statement.frames[:3]))
        return f"{self.runs[0]}: {self.statement.opcode} -> '{self.weakening.to}' at {frames}"


def places(machine, runs: list[Pass], weakenings: list[Weakening]) -> list[Place]:
    found: dict[tuple, Place] = {}
    for run in runs:
        fit = [w for w in weakenings if re.search(w.engines, run.call.engine) and w.weak <= run.weak]
        for kernel, statements in running(machine, run).executed.items():
            for statement in statements:
                for weakening in fit:
                    if re.fullmatch(weakening.opcodes, statement.opcode):
                        key = (kernel, statement.line, weakening)
                        place = found.setdefault(key, Place((), kernel, statement, weakening))
                        found[key] = place._replace(runs=(*place.runs, run))
    return list(found.values())


def place_is_seen(machine, place: Place) -> str | None:
    """In one of the passes that execute it: some things matter only once blocks have given up."""
    text = re.sub(place.weakening.pattern, place.weakening.to, place.statement.text)
    assert text != place.statement.text
    seen = (running(machine, run).seen_with(place.kernel, {place.statement.line: text}) for run in place.runs)
    return next(filter(None, seen), None)
