"""Layers on the machine, forward and backward, against torch.nn in float64; and the sets of cases that tests run."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from . import calls

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# Relative errors of norms: some units in the last place of a format, and what a few steps make of it.
TOLERANCE = {F64: 1e-14, F32: 2e-6, BF16: 2e-2, F16: 2.5e-3}
CELLS = {
    "lstm": (0, nn.LSTM, {}),
    "gru": (1, nn.GRU, {}),
    "tanh": (2, nn.RNN, {}),
    "relu": (3, nn.RNN, {"nonlinearity": "relu"}),
}
# Kinds of exchange by dtype; doubles do not poll, since half of a double may be all ones, the mark of unwritten words.
PERSISTENT = [(dtype, way) for way in ("one", "cluster", "polling") for dtype in (F32, BF16, F16)]
PERSISTENT += [(F32, "flags"), *((F64, way) for way in ("one", "cluster", "flags"))]
ENGINES = [(dtype, "stepwise") for dtype in TOLERANCE] + PERSISTENT


class Case(NamedTuple):
    dtype: torch.dtype
    engine: str
    cell: str
    steps: int
    batch: int
    input_size: int
    hidden: int
    bidirectional: bool = False
    lengths: tuple[int, ...] | None = None
    proj_size: int = 0
    states: bool = True
    backward: bool = True
    seed: int = 0
    factor: float = 1  # of the tolerance

    def __str__(self):
        return "-".join(str(part).removeprefix("torch.") for part in self[:7])


def errors(case: Case) -> dict[str, float]:
    """The relative error of everything that the operators return."""
    generator = torch.Generator().manual_seed(case.seed)
    number, module, options = CELLS[case.cell]
    P, D = case.proj_size or case.hidden, 1 + case.bidirectional
    options = {**options, **({"proj_size": P} if case.proj_size else {})}
    has_memory = case.cell == "lstm"

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64).to(case.dtype)

    torch.manual_seed(case.seed)
    theirs = module(case.input_size, case.hidden, bidirectional=case.bidirectional, dtype=F64, **options)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.to(case.dtype).double()
    weights = [w.detach().to(case.dtype) for group in theirs.all_weights for w in group]
    x = random(case.steps, case.batch, case.input_size)
    h0 = random(D, case.batch, P) if case.states else None
    c0 = random(D, case.batch, case.hidden) if case.states and has_memory else None
    lengths = None if case.lengths is None else torch.tensor(case.lengths)

    wide = [None if t is None else t.double().requires_grad_() for t in (x, h0, c0)]
    state = None if not case.states else (wide[1], wide[2]) if has_memory else wide[1]
    if lengths is None:
        output, last = theirs(wide[0], state)
    else:
        packed = pack_padded_sequence(wide[0], lengths, enforce_sorted=False)
        output, last = theirs(packed, state)
        output = pad_packed_sequence(output, total_length=case.steps)[0]
    last = last if has_memory else (last,)

    operators = torch.ops.fused_rnn_emulated
    with calls.engine(case.engine):
        layer, masks = (number, True, case.bidirectional), (lengths, None, None)
        found = operators.layer_forward(*layer, x, h0, c0, weights, *masks, True, False, None)
        pairs = [("output", found[0], output), *((f"state {i}", found[1 + i], t) for i, t in enumerate(last))]
        if case.backward:
            grads = [random(case.steps, case.batch, D * P), random(D, case.batch, P)]
            grads += [random(D, case.batch, case.hidden)] if has_memory else []
            torch.autograd.backward([output, *last], [t.double() for t in grads])
            arguments = (x, h0, c0, weights, *masks, found[4], calls.EVERYTHING, 1, False, None)
            grads += [None] * (4 - len(grads))
            back = operators.layer_backward(*layer, *grads, *arguments)
            pairs += [("input", back[0], wide[0].grad)]
            pairs += [(f"h0, c0 {i}", back[1 + i], t.grad) for i, t in enumerate(wide[1:]) if t is not None]
            names, parameters = zip(*theirs.named_parameters(), strict=True)
            pairs += [(name, one, p.grad) for name, one, p in zip(names, back[4], parameters, strict=True)]

    def error(one, other):
        return ((one.double() - other).norm() / other.norm().clamp_min(1e-300)).item()

    return {name: error(one, other.detach()) for name, one, other in pairs}


def what_is_wrong(case: Case) -> str | None:
    """Errors above the tolerance, or the machine's error."""
    try:
        found = errors(case)
    except RuntimeError as failure:
        return str(failure).removeprefix("fused_rnn: launching a kernel: ").removeprefix("ptx: ")
    most = TOLERANCE[case.dtype] * case.factor
    wrong = {name: error for name, error in found.items() if not error <= most}
    return f"errors above {most:.1e}: {wrong}" if wrong else None


# ---- sets ------------------------------------------------------------------------------------------------------------


def one_block(dtype, engine, hidden, most=None):
    """A width that fits one block."""
    return (most or 13) if engine == "one" and dtype == F64 else hidden


def matrix():
    """Every cell, dtype and engine; odd widths, both directions, lengths, projections."""
    for dtype, engine in ENGINES:
        for cell in CELLS:
            for bidirectional, lengths in ((False, None), (True, (4, 1, 3))):
                hidden = one_block(dtype, engine, 19)
                yield Case(dtype, engine, cell, 4, 3, 5, hidden, bidirectional=bidirectional, lengths=lengths)
    for dtype in TOLERANCE:
        yield Case(dtype, "stepwise", "lstm", 4, 3, 5, 19, bidirectional=True, proj_size=6)


def sizes():
    """Sizes around those of a publication, a chunk, a warp and a block."""
    for dtype, engine in PERSISTENT:
        for hidden in (1, 3, 4, 5, 31, 32, 33, 37, 64, 97, 130):
            if engine == "one" and hidden > (32 if dtype == F64 else 64):
                continue
            for batch in (1, 8, 9, 17) if hidden in (5, 33) else (8, 9):
                yield Case(dtype, engine, "lstm" if hidden % 2 else "gru", 3, batch, 4, hidden)


def orders(seed):
    """Cases for one order of lanes, warps and blocks."""
    for dtype, engine in PERSISTENT:
        cell = "lstm" if seed % 2 else "gru"
        yield Case(dtype, engine, cell, 4, 5, 3, 21 if engine != "one" else 13, seed=seed)


def weak(seed):
    """Cases for one choice of the values that loads from global memory see."""
    for dtype, engine in PERSISTENT:
        if engine in ("polling", "flags"):
            yield Case(dtype, engine, "lstm" if seed % 2 else "gru", 5, 5, 3, 21, seed=seed)


# Parked weights, many blocks, more columns than one tile.
WIDE = [
    *(Case(F32, "polling", cell, 3, 3, 4, hidden, factor=4) for cell, hidden in (("tanh", 1060), ("lstm", 265))),
    Case(F32, "flags", "lstm", 3, 3, 4, 377, factor=4),
    Case(F64, "cluster", "lstm", 3, 3, 4, 140, factor=4),
    Case(F64, "flags", "gru", 3, 3, 4, 290, factor=4),
    Case(BF16, "cluster", "lstm", 3, 3, 4, 512, factor=4),
    Case(F16, "cluster", "lstm", 3, 3, 4, 300, factor=4),
    Case(BF16, "polling", "lstm", 3, 3, 4, 1024, factor=4),
    Case(F16, "polling", "gru", 3, 3, 4, 700, factor=4),
    Case(BF16, "polling", "tanh", 3, 3, 4, 1500, factor=4),
    Case(BF16, "polling", "lstm", 3, 300, 4, 256, factor=2),
    Case(F16, "polling", "lstm", 3, 40, 4, 1024, factor=2),
]

# With TF32 allowed, float32 products round their factors to 11 bits.
TF32 = [
    Case(F32, engine, cell, 3, 5, 4, hidden, factor=2e3)
    for engine, cell, hidden in (
        *(("cluster", "lstm", 45), ("cluster", "gru", 97), ("cluster", "tanh", 128)),
        *(("polling", "lstm", 150), ("polling", "gru", 45), ("polling", "relu", 300), ("polling", "gru", 610)),
    )
]


def rough():
    """Cases with approximations as inaccurate as PTX allows."""
    for dtype, engine in ENGINES:
        for cell in ("lstm", "gru"):
            yield Case(dtype, engine, cell, 20, 3, 5, one_block(dtype, engine, 29))
