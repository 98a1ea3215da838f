"""Calls that reach every kernel and nearly every instruction that a layer can reach; and a report of what is left and
why.

Of the products of the persistent kernel, code is compiled for as much of K as its registers and shared memory hold; for
many a cell no layer is ever that wide where a shape is taken. That is no gap of these calls, so shares come with and
without it.
"""

import itertools
import re
from collections import Counter
from typing import NamedTuple

import torch

from fused_rnn.ops.layer import Wanted
from support.gpu import tf32

from . import building, calls, listing
from .calls import Call
from .cases import BF16, F16, F32, F64
from .mutants import Pass

LSTM, GRU, TANH, RELU = CELLS = range(4)
REPORT = building.FOLDER / "coverage.txt"
ENDS = int(Wanted.INPUT | Wanted.BIAS_IH)  # gradients that need no copies of large matrices
NARROW = 300  # widths that are cheap

# Widths at which each shape of the persistent kernel is taken, for cells of four, three and one gates; with a batch
# where it takes many rows. Products one by one read no more of a slot than the width fills: the wider, the more of the
# code.
FORWARD = {
    (F32, "one", False): ((64,), (64,), (64,)),
    (F32, "cluster", False): ((256,), (256,), (256,)),
    (F32, "polling", False): ((516, 772, 1028), (516, 772, 1028), (1284, (772, 24), (1060, 24))),
    (F32, "flags", False): ((516,), (516,), (1284,)),
    (F32, "cluster", True): ((64,), (64,), (64,)),
    (F32, "polling", True): ((37, 520, (520, 24)), (37, 520, (520, 24)), (37, 520, (520, 64))),
    (F64, "one", False): ((29,), (37,), (64,)),
    (F64, "cluster", False): ((256,), (256,), (256,)),
    (F64, "flags", False): ((516,), (516,), (1284,)),
    (BF16, "one", False): ((64,), (64,), (64,)),
    (BF16, "cluster", False): ((128, 256, 512), (128, 256, 512), (128, 256, 512)),
    (BF16, "polling", False): (
        (37, (37, 350), (29, 304), 1540),
        (37, (37, 350), (29, 304), 1540),
        (37, (37, 700), (1100, 24), 1540),
    ),
}
BACKWARD = {
    (F32, "one", False): ((64,), (64,), (64,)),
    (F32, "cluster", False): ((256,), (256,), (256,)),
    (F32, "polling", False): ((196, 1092), (260, 1444), (772, 2052)),
    (F32, "flags", False): ((324,), (420,), (1284,)),
    (F32, "cluster", True): ((88,), (88,), (88,)),
    (F32, "polling", True): ((136, 520), (184, 688), (520, 2056)),
    (F64, "one", False): ((29,), (37,), (64,)),
    (F64, "cluster", False): ((256,), (256,), (256,)),
    (F64, "flags", False): ((452,), (596,), (1796,)),
    (BF16, "one", False): ((64,), (64,), (64,)),
    (BF16, "cluster", False): ((128, 256, 512), (160, 330, 512), (512,)),
    (BF16, "polling", False): ((37, 520), (37, 688), (37, 2056)),
}

# ---- calls -----------------------------------------------------------------------------------------------------------


def stepwise():
    for dtype in (F32, F64, BF16, F16):
        for cell in CELLS:
            yield Call(dtype, cell, tangents=True, cells=True)
            yield Call(dtype, cell, rows="packed", states=False, norms=True, tangents=True)
            yield Call(dtype, cell, tokens=True, batch=40, clip=0.1, input_size=40)
            yield Call(dtype, cell, tokens=True, batch=40, rows="packed", input_size=3)
            yield Call(dtype, cell, tokens=True, batch=40, rows="padded", input_size=40)
            yield Call(dtype, cell, rows="padded", norms=True, clip=0.1, tangents=True)
            yield Call(dtype, cell, members=2, groups=3, norms=True, clip=0.1, cells=True, bias=False)
            yield Call(dtype, cell, rows="padded", groups=6, given=False, reset=False)
            yield Call(dtype, cell, masked=True, zoneout="masks", norms=True, tangents=True, cells=True)
            yield Call(dtype, cell, rows="packed", masked=True, zoneout="shares", tangents=True)
            yield from normed(dtype, cell)
        yield Call(dtype, LSTM, projected=True, tangents=True, cells=True)
        yield Call(dtype, LSTM, projected=True, rows="packed", masked=True)
        yield Call(dtype, LSTM, rows="padded", steps=40, batch=70)  # rows are summed in pieces


def normed(dtype, cell):
    """With layer norm."""
    yield Call(dtype, cell, normed=True, cells=True, clip=0.1)
    yield Call(dtype, cell, normed=True, rows="packed", masked=True, zoneout="masks", bias=False)
    yield Call(dtype, cell, normed=True, rows="padded", zoneout="shares", hidden=70, tokens=True, input_size=4)


def persistent():
    for table, direction in ((FORWARD, "forward"), (BACKWARD, "backward")):
        for (dtype, engine, rounds), widths in table.items():
            for own, cell in itertools.product((BF16, F16) if dtype == BF16 else (dtype,), CELLS):
                for width in widths[min(cell, TANH)]:
                    for call in of_width(own, cell, engine, width):
                        yield Pass(call, direction, tf32=rounds)


def of_width(dtype, cell, engine, width):
    hidden, batch = width if isinstance(width, tuple) else (width, 16 if width < 100 else 8)
    is_narrow = hidden < NARROW and batch < 100
    plain = Call(
        *(dtype, cell, engine),
        steps=3,
        batch=batch,
        hidden=hidden,
        bidirectional=hidden < 100 and batch != 304,
        rows="packed",
        cells=True,
        clip=0.1,
        wanted=calls.EVERYTHING if is_narrow else ENDS,
    )
    yield plain
    if is_narrow:
        yield plain._replace(rows="lengths")
        yield plain._replace(rows="padded", bias=False, given=False, reset=False, cells=False, clip=None, steps=4)


def computation(run: Pass):
    """One direction of a call on the machine, to be run, and what the CPU's engine makes of it.

    The way back begins with what the stepwise kernels save, which costs less.
    """
    ours, theirs, call = torch.ops.fused_rnn_emulated, torch.ops.fused_rnn, run.call
    a = calls.Arguments(call)
    outputs, saved = calls.forward(theirs, a)
    if run.direction == "forward":
        return lambda: calls.forward(ours, a)[0], outputs
    grads = a.gradients(outputs)
    expected = calls.backward(theirs, a, grads, saved)
    saved = calls.forward(ours, calls.Arguments(call._replace(engine="stepwise")))[1]
    return lambda: calls.backward(ours, a, grads, saved), expected


def what_is_wrong(machine, run: Pass, number: int) -> str | None:
    """Of one direction, and then of the same where blocks wait in vain. Results that are rounded to TF32 are compared
    with the CPU's too: by as much as a few products of wide layers lose."""
    call = run.call
    factor = 1e3 if run.tf32 else 4 if call.hidden > NARROW else 1
    with tf32(run.tf32):
        machine.options(seed=number, order="block_behind")  # for which all others look many times
        wrong = calls.differences(call.dtype, *computation(run), factor)
        machine.options()
        if wrong or call.engine == "one":
            return wrong
        if call.hidden >= NARROW:  # for which it is the only call that is not packed
            call = call._replace(rows="lengths")
        compute, expected = computation(run._replace(call=call))
        for block, after in ((0, 0), (1, 1)) if call.hidden < NARROW else ((0, 0),):
            with calls.in_vain(machine.silence(block, after)):
                wrong = wrong or calls.differences(call.dtype, compute, expected, factor, or_nan=True)
        return wrong


def everything(machine) -> list[str]:
    """Runs all of it. Returns what is wrong."""
    wrong = []
    for number, run in enumerate((*stepwise(), *persistent())):
        found = what_is_wrong(machine, run, number) if isinstance(run, Pass) else calls.what_is_wrong(run)
        if found:
            wrong.append(f"{run}: {found}")
    return wrong


# ---- what is left ----------------------------------------------------------------------------------------------------

# Patterns of a statement's text and functions, and why a block of statements with one such is left; the first counts.
CHUNKS = "chunks of K that no layer fills where this shape is taken, or only wider ones do"
BEYOND_32_BITS = "division of numbers beyond 32 bits"
NOT_OF_THE_CELL = "projections and tangents, which this cell or kernel does not have"
REASONS = [
    (r"call |trap|exit;", "", "assertions that do not hold"),
    (r"(div|rem)\.[su]64", "", BEYOND_32_BITS),
    (r"", r"\bWarpWeights::(WarpWeights|multiply_numbers|multiply_pieces)\b", CHUNKS),
    (r"", r"\bclear_unit<", "lengths and padding, where a call is packed"),
    (r"", r"\bWaiter::|\b(Cluster|Flags)::wait<|::drain_after_timeout\b", "waits in vain where another one was before"),
    (r"", r"\bis_missing<|\bkeep_polling\b", "what was there at the first look"),
    (r"", r"\bCluster::(Cluster|outlet|publish)\b", "more blocks in a cluster than these widths need"),
    (r"", r"\bclipped<", "clipping, where a call has none"),
    (r"", r"\b(kept_share|keep_former|split|store_masked_h|set_h)<", "dropout in the loop, where a call has none"),
    (r"", r"\bis_reset\b|\bis_cut\b|\brare < \w+Cell::advance\b", "resets, where a call has none"),
    (r"", r"\bis_active\b|\bActiveSteps::|Cell::store\b", "lengths and padding, where a call is packed"),
    (r"", r"\brow_of\b|\bTraversal::|::pace\b", "rows that are not packed, where a call's are"),
    (r"", r"\bprojected\b|\badded_dh<|\btangent_backward<", NOT_OF_THE_CELL),
    (r"", r"::clear_rest\b", "zeros behind what is published, where there are few"),
    (r"", r"^(exp|tanh|sigmoid)\b", "special cases of a function"),
    (r"", r"\bpick<", "the second direction, where a call has one"),
    (r"", r"\b(look_up|sum_by_token|sum_rows|gather|copy|transpose)<", "loops unrolled for more rows than these"),
]
OUT_OF_REACH = {CHUNKS, BEYOND_32_BITS, NOT_OF_THE_CELL}
UNKNOWN = "unknown"


class Left(NamedTuple):
    kernel: str
    statement: listing.Statement
    why: str


def blocks(machine, kernel) -> list[list[listing.Statement]]:
    """Statements that are executed one after the other: between labels and branches."""
    text, found = machine.text_of(kernel), [[]]
    after = 0
    for statement in listing.statements(machine, kernel):
        labelled = any(line.startswith("$L") for line in text[after : statement.line - 1])
        if found[-1] and (labelled or re.search(r"\bbra\b|\bret\b", found[-1][-1].opcode)):
            found.append([])
        found[-1].append(statement)
        after = statement.line
    return found


def reason(block: list[listing.Statement]) -> str:
    for text, functions, why in REASONS:
        if any(re.search(text, s.text) and re.search(functions, s.functions) for s in block):
            return why
    return UNKNOWN


class Coverage(NamedTuple):
    sizes: Counter  # statements by group of kernels
    executed: Counter
    left: list[Left]  # of kernels that were launched
    not_launched: list[str]

    def share(self) -> float:
        return self.executed.total() / self.sizes.total()

    def share_of_reachable(self) -> float:
        """Without what no layer reaches, or only much wider ones."""
        missing = sum(left.why not in OUT_OF_REACH for left in self.left)
        return self.executed.total() / (self.executed.total() + missing)


def group_of(kernel: str) -> str:
    if found := re.search(
        r"(Forward|Backward)CellI.*?(OneBlock|Cluster|Polling|Flags)E.*?(Scalars|Tf32|Tensor)", kernel
    ):
        return f"persistent {found[1].lower()}, {found[2]}, {found[3]}"
    return re.search(r"\d+([a-z_]{4,})(I|E|P)", kernel[kernel.find("_cu_") + 12 :])[1]


def measure(machine) -> Coverage:
    sizes, executed, left, not_launched = Counter(), Counter(), [], []
    for kernel in machine.names():
        if machine.launches_of(kernel) == 0:
            not_launched.append(kernel)
            sizes[group_of(kernel)] += len(listing.statements(machine, kernel))
            continue
        for block in blocks(machine, kernel):
            sizes[group_of(kernel)] += len(block)
            executed[group_of(kernel)] += sum(s.executed > 0 for s in block)
            rest = [s for s in block if not s.executed]
            why = reason(rest) if rest else ""
            left += [Left(kernel, s, why) for s in rest]
    return Coverage(sizes, executed, left, not_launched)


def report(found: Coverage) -> str:
    lines = [f"{found.share():.1%} of all statements were executed, {found.share_of_reachable():.1%} of those in reach"]
    lines += ["", "by group of kernels"]
    lines += [f"{found.executed[g] / n:7.1%} of {n:6} {g}" for g, n in sorted(found.sizes.items())]
    lines += ["", "kernels that were not launched"]
    lines += found.not_launched
    lines += ["", "left in the others, by reason"]
    by_reason = Counter(left.why for left in found.left)
    lines += [f"{n:7} {why}" for why, n in by_reason.most_common()]
    for why in by_reason:
        lines += ["", f"{why}, by source line"]
        left = (left.statement for left in found.left if left.why == why)
        places = Counter(frame.source() for statement in left for frame in statement.frames[:1])
        lines += [f"{n:7} {place}" for place, n in places.most_common(25)]
    return "\n".join(lines) + "\n"
