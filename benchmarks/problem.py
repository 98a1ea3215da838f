"""The modules and tensors of one line, and the calls that are timed on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn.tools.verify import relative_error

from .suites import Work

# Largest ||difference|| / ||torch.nn's|| of an output or a gradient. Long sums are taken in different orders; in 16
# bits every step rounds h, and torch.nn rounds other intermediate values than we do.
LARGEST_DIFFERENCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
LARGEST_DIFFERENCE_TF32 = 2e-2  # it has float16's mantissa
LARGEST_DIFFERENCE_QUANTIZED = 1e-1  # a sanity check; the error itself is printed beside the time


def _identity(results: list[Tensor]) -> list[Tensor]:
    return results


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what is timed, how to convert its results to tensors, and whether weights are 8-bit."""

    run: Callable[[], list]
    as_tensors: Callable[[list], list[Tensor]] = field(default=_identity)
    quantized: bool = False


@dataclass(frozen=True)
class Problem:
    work: Work
    ours: nn.Module
    theirs: nn.Module
    input: Tensor | PackedSequence
    hx: Tensor | tuple[Tensor, Tensor] | None
    grad: Tensor  # of the output

    @property
    def weights(self) -> list[Tensor]:
        """In torch's order."""
        return [weight.detach() for weight in self.theirs.parameters()]

    @property
    def states(self) -> tuple[Tensor, ...]:
        return () if self.hx is None else self.hx if isinstance(self.hx, tuple) else (self.hx,)

    def sides(self) -> dict[str, Side]:
        """This library's layer and torch.nn's; see ``variants`` and peers/ for the others."""
        return {"ours": Side(self.call(self.ours)), "torch.nn": Side(self.call(self.theirs))}

    def exact_output(self) -> Tensor:
        """In float64."""
        states = tuple(state.double() for state in self.states)
        hx = states if isinstance(self.hx, tuple) else states[0] if states else None
        exact, input = copy.deepcopy(self.theirs).double(), self.input.double()
        with torch.inference_mode():
            return loop(exact, input)[0] if self.work.cell else exact(input, hx)[0]

    def call(self, module: nn.Module) -> Callable[[], list[Tensor]]:
        if self.work.cell:
            return training_of_cell(module, self) if self.work.mode == "training" else inference_of_cell(module, self)
        return training(module, self) if self.work.mode == "training" else inference(module, self)


def build(work: Work) -> Problem:
    """Deterministic: the same data for the same work."""
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, work.dtype), "device": work.device}
    steps, batch, hidden = work.shape.steps, work.shape.batch, work.shape.hidden
    constructor = {"num_layers": work.num_layers, "bidirectional": work.bidirectional}
    if work.projected:
        constructor["proj_size"] = work.output_width
    if work.cell:
        constructor = {}
    name = f"{work.layer}Cell" if work.cell else work.layer
    theirs = getattr(nn, name)(hidden, hidden, **constructor, **options)
    ours = getattr(fused_rnn, name)(hidden, hidden, **constructor, **options)
    ours.load_state_dict(theirs.state_dict())

    input = torch.randn(steps, batch, hidden, **options)
    if work.packed:
        input = pack_padded_sequence(input, torch.tensor(work.lengths), enforce_sorted=False)
    hx = None
    if work.carried:
        states = [torch.randn(work.num_layers * (1 + work.bidirectional), batch, hidden, **options) for _ in range(2)]
        hx = tuple(states) if work.layer == "LSTM" else states[0]
    rows = (sum(work.lengths),) if work.packed else (steps, batch)
    grad = torch.randn(*rows, work.output_width * (1 + work.bidirectional), **options)
    return Problem(work, ours, theirs, input, hx, grad)


def calls_of(work: Work) -> AbstractContextManager:
    """Around all calls of a line: a program enters inference mode once for many of them."""
    return torch.inference_mode(work.mode == "inference")


def inference(module: nn.Module, problem: Problem) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        output, states = module(problem.input, problem.hx)
        if problem.hx is None:
            return [_data(output)]
        return [output, *(states if isinstance(states, tuple) else (states,))]

    return run


def training(module: nn.Module, problem: Problem) -> Callable[[], list[Tensor]]:
    leaf = _data(problem.input).clone().requires_grad_()
    input = PackedSequence(leaf, *problem.input[1:]) if problem.work.packed else leaf

    def run() -> list[Tensor]:
        output = _data(module(input, problem.hx)[0])
        return [output, *torch.autograd.grad(output, [leaf, *module.parameters()], problem.grad)]

    return run


def loop(cell: nn.Module, input: Tensor) -> list[Tensor]:
    """h after each step."""
    state, outputs = None, []
    for step in input.unbind(0):
        state = cell(step, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return outputs


def inference_of_cell(cell: nn.Module, problem: Problem) -> Callable[[], list[Tensor]]:
    return lambda: loop(cell, problem.input)


def training_of_cell(cell: nn.Module, problem: Problem) -> Callable[[], list[Tensor]]:
    input, grads = problem.input.clone(), list(problem.grad.unbind(0))
    leaves = [*cell.parameters()] if problem.work.given_input else [input.requires_grad_(), *cell.parameters()]

    def run() -> list[Tensor]:
        outputs = loop(cell, input)
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    return run


def _data(sequence: Tensor | PackedSequence) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def check(
    what: object, sides: dict[str, Side], reference: str = "torch.nn", limit: float | None = None
) -> dict[str, list[Tensor]]:
    """Runs every side once and returns the results; raises if they differ from the reference's by more than ``limit``.

    The default limit depends on the dtype, and on whether a side is quantized.
    """
    found = {name: side.as_tensors(side.run()) for name, side in sides.items()}
    expected = found[reference]
    for name, side in sides.items():
        worst = max(relative_error(a, b) for a, b in zip(found[name], expected, strict=True))
        usual = LARGEST_DIFFERENCE_QUANTIZED if side.quantized else LARGEST_DIFFERENCE[expected[0].dtype]
        if not worst <= (limit or usual):
            raise AssertionError(
                f"{what}: {name} differs from {reference} by {worst:.1e}, more than {limit or usual:.0e}; "
                "nothing was measured"
            )
    return found
