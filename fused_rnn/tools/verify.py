"""A self-test of the installed kernels: ``python -m fused_rnn verify``.

Every cell, in every dtype and with every option, against the plain PyTorch reference computed in float64; and, in
float64, gradcheck and gradgradcheck against finite differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .. import functional, reference
from ..autograd.operators import OPERATORS
from ..nn.freeze import FORMATS
from ..nn.runners import Frozen
from ..ops import arguments, engines
from ..ops.arguments import Runner
from ..ops.cells import CELLS, Cell
from ..ops.checks import check_device
from ..ops.layer import Wanted, weight_kinds
from ..own.cell import OwnCell
from .progress import progress

# Largest ||error|| / ||reference|| of any output or gradient; in 16 bits, of all of them together. The sequences are
# short, so only rounding remains: float64 and float32 accumulate a few hundred products; the 16-bit formats round h,
# saved values and gradients once a step to 8 (bfloat16) or 11 (float16) bits. The worst cases there are 1 - y * y with
# a rounded y close to 1, and a ReLU whose rounded argument changes sign; torch.nn has both too.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 8e-2,
    torch.float16: 1e-2,
}


# Of the outputs of layers with weights of 8 bits, which keep 7 bits of the largest weight of each row; those of "int8"
# keep as many of the largest number of each row of the input and of h.
INT8_TOLERANCE = {"int8": 2e-2, "int8-weights-only": 1.5e-2}

_RUNNERS = {functional: OPERATORS, reference: reference.RUNNER}


@dataclass(frozen=True)
class Case:
    """A layer and a sequence to run it on."""

    name: str
    steps: int = 7
    batch: int = 5
    input_size: int = 6
    hidden: int = 9
    num_layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    batch_first: bool = False
    proj_size: int = 0
    states: bool = True
    lengths: bool = False
    packed: bool = False
    reset: bool = False
    saturate: float = 0.0  # biases alternate between plus and minus this
    grad_clip: float | None = None
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    training: bool = True  # else zoneout is by expectation

    def is_of(self, cell: Cell) -> bool:
        """Whether the cell has what this takes."""
        return (cell.projectable or not self.proj_size) and (cell.recurrent or not self.recurrent_dropout)


CASES = (
    Case("plain"),
    Case("one step", steps=1),
    Case("one row", batch=1),
    Case("one unit", hidden=1, input_size=1),
    Case("wider", steps=4, batch=9, input_size=33, hidden=70),
    Case("no bias, no state", bias=False, states=False),
    Case("bidirectional", bidirectional=True),
    Case("two layers", num_layers=2, bidirectional=True, batch_first=True),
    Case("lengths", lengths=True, bidirectional=True),
    Case("packed", packed=True, bidirectional=True, num_layers=2),
    Case("reset mask", reset=True, bidirectional=True),
    Case("lengths and reset", lengths=True, reset=True, bidirectional=True, num_layers=2),
    Case("saturated", saturate=120.0),
    Case("projection", proj_size=4, num_layers=2, bidirectional=True, lengths=True, reset=True),
    Case("clipped gradients", grad_clip=0.5, bidirectional=True, lengths=True, reset=True),
    Case("dropout and zoneout", recurrent_dropout=0.5, zoneout=0.25, bidirectional=True, lengths=True, reset=True),
    Case("zoneout in evaluation", zoneout=0.25, training=False, bidirectional=True, packed=True),
)


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    cell: str
    dtype: str
    check: str
    error: float
    """||error|| / ||reference||, worst of all outputs and gradients (16 bits: of all together); gradcheck: 0 or inf."""
    limit: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN


@dataclass
class Report:
    """What :func:`verify` found; ``str()`` is a table, ``bool()`` whether everything passed."""

    results: list[Result] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"Report({self._counts()})"

    def _counts(self) -> str:
        failed = sum(not r.passed for r in self.results)
        return f"{len(self.results) - failed} checks passed, {failed} failed"

    def __str__(self) -> str:
        rows = [f"{'cell':9} {'dtype':9} {'check':28} {'worst error':>11} {'limit':>8}"]
        for r in self.results:
            verdict = "ok" if r.passed else f"FAILED {r.detail}"
            rows.append(f"{r.cell:9} {r.dtype:9} {r.check:28} {r.error:11.1e} {r.limit:8.0e}  {verdict}")
        rows.append(self._counts())
        return "\n".join(rows)


def verify(
    device: str | OwnCell = "cpu",
    cells: Sequence[str | OwnCell] | None = None,
    *,
    weights: str | None = None,
    quick: bool = False,
    show_progress: bool = True,
) -> Report:
    """Checks the installed kernels against the float64 reference and against finite differences.

    Args:
        device: where to run, "cpu" or "cuda"; or a cell made by :func:`fused_rnn.cell`, for that alone on the CPU.
        cells: names among "lstm", "gru", "rnn_tanh", "rnn_relu", or cells made by :func:`fused_rnn.cell`, which are
            compared with their Python function; None for all that have names.
        weights: "int8" or "int8-weights-only": only the errors of layers that ``freeze`` has quantized so.
        quick: leave out the finite differences.
        show_progress: draw a progress bar when stderr is a terminal.

    Returns:
        :class:`fused_rnn.Report`, which is true if every check passed; print it for a table.

    Example:
        >>> bool(fused_rnn.verify(cells=["gru"], quick=True))
        True
    """
    if isinstance(device, OwnCell):
        device, cells = "cpu", [device, *(cells or ())]
    unknown = {name for name in cells or () if not isinstance(name, OwnCell)} - set(CELLS)
    if unknown:
        raise ValueError(f"unknown cell {', '.join(sorted(unknown))}; known: {', '.join(CELLS)}")
    if weights is not None and weights not in INT8_TOLERANCE:
        raise ValueError(f"weights must be None or one of {', '.join(INT8_TOLERANCE)}, got {weights!r}")
    if torch.device(device).type == "cuda" and torch.version.cuda is None:
        raise RuntimeError(f"this torch ({torch.__version__}) has no CUDA; install a build of torch that has")
    check_device(torch.device(device))
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU to verify on")
    checks = [
        (cell, dtype, case)
        for cell in (cell.row if isinstance(cell, OwnCell) else CELLS[cell] for cell in cells or CELLS)
        for dtype in TOLERANCE
        for case in CASES
        if case.is_of(cell)
    ]
    # Shrunk for finite differences, the wider case equals the plain one.
    without = ("wider", "clipped gradients")  # and clipped gradients are not derivatives
    gradient_checks = [c for c in checks if c[1] == torch.float64 and c[2].name not in without and not quick]
    work = [(_compare, check) for check in checks] + [(_finite_differences, check) for check in gradient_checks]
    if weights is not None:
        if torch.device(device).type != "cpu":
            raise ValueError("int8 weights are of layers on the CPU")
        plain = [check for check in checks if not (check[2].grad_clip or check[2].zoneout)]
        quantized = [check for check in plain if check[1] == torch.float32]
        work = [(partial(_compare_quantized, weights), check) for check in quantized]
    total = len(work)
    report = Report()
    # Leaves the caller's random state and grad mode alone.
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), engines.ours_on(torch.device(device).type):
        for run, (cell, dtype, case) in progress(
            work, total, lambda w: f"{w[1][0].name} {_short(w[1][1])} {w[1][2].name}", show_progress
        ):
            report.results.append(run(cell, dtype, case, device))
    return report


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- one case --------------------------------------------------------------------------------------------------------


@dataclass
class Problem:
    """Random tensors for a case, and how to call a function of ``functional`` or ``reference`` with them."""

    case: Case
    cell: Cell
    tensors: list[Tensor]  # input, then states, then weights
    lengths: Tensor | None
    reset_mask: Tensor | None

    def call(self, api, tensors: Sequence[Tensor], runner: Runner | None = None) -> list[Tensor]:
        """All outputs of ``api``, a module with functions lstm, gru and rnn, or of ``runner`` in its place."""
        case, cell = self.case, self.cell
        states = cell.states if case.states else 0
        input, given, weights = tensors[0], tuple(tensors[1 : 1 + states]), list(tensors[1 + states :])
        hx = None if not given else given if cell.states > 1 else given[0]
        options = {
            "num_layers": case.num_layers,
            "bidirectional": case.bidirectional,
            "batch_first": case.batch_first,
            "reset_mask": self.reset_mask,
            "grad_clip": case.grad_clip,
        }
        if case.recurrent_dropout or case.zoneout:
            loop = ("recurrent_dropout", "zoneout", "training")
            options |= {name: getattr(case, name) for name in loop}
            torch.manual_seed(0)  # every call draws the same masks
        if case.packed:
            input = pack_padded_sequence(input, self.lengths.cpu(), case.batch_first, enforce_sorted=False)
        else:
            options["lengths"] = self.lengths
        if cell.layer is None or runner is not None:  # not in `functional`
            output, *state = arguments.run_cell(runner or _RUNNERS[api], cell, input, hx, weights, **options)
            state = tuple(state[: cell.states])
        else:
            if cell.nonlinearity is not None:
                options["nonlinearity"] = cell.nonlinearity
            output, state = getattr(api, cell.layer.lower())(input, hx, weights, **options)
        output = output.data if isinstance(output, PackedSequence) else output
        return [output, *(state if isinstance(state, tuple) else (state,))]


def make_problem(cell: Cell, case: Case, dtype: torch.dtype, device: str) -> Problem:
    """Deterministic, and scaled to keep activations from saturating."""
    seed = torch.Generator().manual_seed(0)
    directions = 1 + case.bidirectional
    width = case.proj_size or case.hidden

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(*shape, generator=seed, dtype=torch.float64) * scale
        return numbers.to(device=device, dtype=dtype)

    time_and_batch = (case.batch, case.steps) if case.batch_first else (case.steps, case.batch)
    tensors = [random(*time_and_batch, case.input_size)]
    if case.states:
        shape = (case.num_layers * directions, case.batch)
        widths = [width, *[case.hidden] * (cell.states - 1)]
        states = [random(*shape, w, scale=0.5) for w in widths]
        # A state of somebody's own cell may have to be positive.
        tensors += states if cell.layer is not None else [state.abs() + 0.5 for state in states]
    gate_rows = cell.gates * case.hidden
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(gate_rows)[:gate_rows]
    for k in range(case.num_layers):
        entering = case.input_size if k == 0 else width * directions
        shapes = {
            Wanted.WEIGHT_IH: (gate_rows, entering),
            Wanted.WEIGHT_HH: (gate_rows, width),
            Wanted.BIAS_IH: (gate_rows,),
            Wanted.BIAS_HH: (gate_rows,),
            Wanted.PARAMETERS: (cell.params, case.hidden),
            Wanted.WEIGHT_HR: (case.proj_size, case.hidden),
        }
        for kind in weight_kinds(cell, case.bias, case.proj_size > 0) * directions:
            is_bias = len(shapes[kind]) == 1
            weight = random(*shapes[kind], scale=0.3 if is_bias else 0.8 * shapes[kind][-1] ** -0.5)
            if kind is Wanted.BIAS_IH:
                weight += (case.saturate * signs).to(weight)
            tensors.append(weight)
    lengths = reset_mask = None
    if case.lengths or case.packed:
        lengths = torch.randint(1, case.steps + 1, (case.batch,), generator=seed)
        lengths[0] = case.steps  # a packed sequence is as long as its longest row
        lengths = lengths.to(device)
    if case.reset:
        reset_mask = (torch.rand(*time_and_batch, generator=seed) < 0.3).to(device)
    return Problem(case, cell, tensors, lengths, reset_mask)


def outputs_and_gradients(problem: Problem, api, dtype: torch.dtype) -> list[Tensor]:
    """All outputs of ``api`` in ``dtype``, then the gradients of every tensor for fixed random output gradients."""
    tensors = [t.detach().to(dtype).requires_grad_() for t in problem.tensors]
    outputs = problem.call(api, tensors)
    seed = torch.Generator().manual_seed(1)
    grads = []
    for output in outputs:
        numbers = torch.randn(output.shape, generator=seed, dtype=torch.float64)
        grads.append(numbers.to(device=output.device, dtype=problem.tensors[0].dtype).to(dtype))
    return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, tensors, grads))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||, or the difference itself where ``found``'s dtype can only hold zeros."""
    difference = (found.double() - expected.double()).norm().item()
    size = expected.double().norm().item()
    return difference / size if size > torch.finfo(found.dtype).tiny else difference


def _compare(cell: Cell, dtype: torch.dtype, case: Case, device: str) -> Result:
    problem = make_problem(cell, case, dtype, device)
    found = outputs_and_gradients(problem, functional, dtype)
    expected = outputs_and_gradients(problem, reference, torch.float64)
    if dtype in (torch.bfloat16, torch.float16):
        # All together: a single ReLU argument that rounds across zero can change all of a small gradient.
        error = relative_error(*(torch.cat([r.flatten().double() for r in side]) for side in (found, expected)))
        return Result(cell.name, _short(dtype), case.name, error, TOLERANCE[dtype])
    errors = [relative_error(f, e) for f, e in zip(found, expected, strict=True)]
    # max() would ignore a NaN
    worst = next((i for i, error in enumerate(errors) if error != error), errors.index(max(errors)))
    outputs = 1 + cell.states
    what = f"output {worst}" if worst < outputs else f"gradient {worst - outputs}"
    return Result(cell.name, _short(dtype), case.name, errors[worst], TOLERANCE[dtype], f"in {what}")


def _compare_quantized(weights: str, cell: Cell, dtype: torch.dtype, case: Case, device: str) -> Result:
    """A layer with weights of 8 bits against its float twin."""
    problem = make_problem(cell, case, dtype, device)
    with torch.no_grad():
        found = problem.call(functional, problem.tensors, runner=_frozen(problem, weights))
        expected = problem.call(functional, problem.tensors)
    error = relative_error(*(torch.cat([r.flatten().double() for r in side]) for side in (found, expected)))
    return Result(cell.name, weights, case.name, error, INT8_TOLERANCE[weights])


def _frozen(problem: Problem, weights: str) -> Frozen:
    case, states = problem.case, problem.cell.states if problem.case.states else 0
    return Frozen(
        problem.cell, case.bias, case.bidirectional, case.num_layers, problem.tensors[1 + states :], FORMATS[weights]
    )


def _finite_differences(cell: Cell, dtype: torch.dtype, case: Case, device: str) -> Result:
    case = replace(
        case,
        steps=min(case.steps, 3),
        batch=min(case.batch, 2),
        input_size=min(case.input_size, 2),
        hidden=min(case.hidden, 3),
        proj_size=min(case.proj_size, 2),
    )
    problem = make_problem(cell, case, dtype, device)
    tensors = [t.requires_grad_() for t in problem.tensors]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(problem.call(functional, tensors))

    error, detail = 0.0, ""
    try:
        torch.autograd.gradcheck(run, tensors)
        torch.autograd.gradgradcheck(run, tensors, fast_mode=True)
    except Exception as failure:  # any failure is a finding
        error, detail = float("inf"), str(failure).strip().splitlines()[0]
    return Result(cell.name, _short(dtype), f"gradcheck {case.name}", error, 0.0, detail)
