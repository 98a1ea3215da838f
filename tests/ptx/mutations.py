"""Changes to the kernels' PTX that must not go unnoticed: faults by name, and barriers, fences, flags and asynchronous
stores one by one. A pass of a layer runs in one order of events after another until its results change, or the machine
refuses what it does.

What PTX cannot say is left out: faults of the host's code, such as steps projected ahead that overlap.
"""

import functools
import re
from typing import Callable, NamedTuple

import torch
from common import tf32

from . import calls, listing
from .calls import Call
from .cases import BF16, F32, F64

ATTEMPTS = 5  # orders of events, each with random numbers of its own
PATIENCE = 300_000  # instructions without progress: of layers as small as these that is for ever
LSTM, GRU, TANH = 0, 1, 2


class Pass(NamedTuple):
    """What is run: one direction of a call."""

    call: Call
    direction: str  # forward, backward or tangents
    weak: bool = False
    tf32: bool = False

    def __str__(self):
        call = self.call
        return f"{call.engine} {str(call.dtype).removeprefix('torch.')} {self.direction} {call.hidden}"


class Running:
    """A pass on the machine, with what it gives when nothing is changed."""

    def __init__(self, machine, which: Pass):
        self.machine, self.which = machine, which
        self._arguments = calls.Arguments(which.call)
        machine.undo_changes()
        machine.options()
        with tf32(which.tf32):
            self._outputs, self._saved = calls.forward(torch.ops.fused_rnn_emulated, self._arguments)
        self._grads = self._arguments.gradients(self._outputs)
        machine.reset_counts()
        before = {name: machine.launches_of(name) for name in machine.names()}
        self._expected = self._compute()
        self.executed = {
            name: [s for s in listing.statements(machine, name) if s.executed]
            for name in machine.names()
            if machine.launches_of(name) > before[name]
        }
        assert (wrong := self.seen()) is None, f"{which}, unchanged: {wrong}"

    def _compute(self):
        operators = torch.ops.fused_rnn_emulated
        with tf32(self.which.tf32):
            if self.which.direction == "forward":
                return calls.forward(operators, self._arguments)[0]
            if self.which.direction == "backward":
                return calls.backward(operators, self._arguments, self._grads, self._saved)
            return calls.tangents(operators, self._arguments, self._outputs, self._grads, self._saved)

    def seen(self) -> str | None:
        """What is wrong with it now, in the first order of events that shows it."""
        machine = self.machine
        for number in range(1, ATTEMPTS + 1):
            order = machine.orders[number % len(machine.orders)].name
            machine.options(seed=number, order=order, weak=self.which.weak, patience=PATIENCE)
            if wrong := calls.differences(self.which.call.dtype, self._compute, self._expected):
                return wrong
        return None

    def seen_with(self, kernel: str, lines: dict[int, str]) -> str | None:
        self.machine.undo_changes()
        self.machine.change(kernel, lines)
        try:
            self.machine.text_of(kernel)  # raises where the change itself cannot be read
            return self.seen()
        finally:
            self.machine.undo_changes()


@functools.cache
def running(machine, which: Pass) -> Running:
    return Running(machine, which)


# ---- by name ---------------------------------------------------------------------------------------------------------


class Mutation(NamedTuple):
    name: str
    run: Pass
    at: str  # part of "file: line of source" of a statement, or of what it was inlined into
    # Pairs of a pattern and what is put in its place, of which the first that fits is taken; or of all texts, new ones.
    changes: tuple[tuple[str, str], ...] | Callable[[list[str]], list[str]]
    kernel: str = ""  # part of its name
    which: slice = slice(None)  # of the statements that fit
    innermost: bool = False  # `at` is of the statement itself


def changed_lines(mutation: Mutation, statements: list[listing.Statement]) -> dict[int, str]:
    depth = 1 if mutation.innermost else None
    fit = [s for s in statements if any(mutation.at in f"{f.file}: {f.text}" for f in s.frames[:depth])]
    if callable(mutation.changes):
        made = mutation.changes([s.text for s in fit])
        return {s.line: text for s, text in zip(fit, made, strict=True) if text != s.text}
    changed = {}
    for statement in fit:
        for pattern, to in mutation.changes:
            if re.search(pattern, statement.text):
                changed[statement.line] = re.sub(pattern, to, statement.text)
                break
    return dict(list(changed.items())[mutation.which])


def is_seen(machine, mutation: Mutation) -> str | None:
    """By what; every kernel that the pass launches and that it fits is changed by itself."""
    run = running(machine, mutation.run)
    found, made = None, 0
    for kernel, statements in run.executed.items():
        if mutation.kernel in kernel and (lines := changed_lines(mutation, statements)):
            made += 1
            found = run.seen_with(kernel, lines)
            if found is None:
                return None
    assert made, "there is no place for it: the kernels have changed, and it must change with them"
    return found


def small(dtype, engine, hidden=13, cell=LSTM, **options):
    return Call(dtype, cell, engine, steps=4, batch=3, hidden=hidden, bidirectional=False, **options)


def passes(call, **options):
    return Pass(call, "forward", **options), Pass(call, "backward", **options)


STEP, STEP_BACK = passes(Call(F32, LSTM))
CLIPPED = Pass(small(F32, "one", clip=0.3), "backward")
CLIPPED_STEP = Pass(Call(F32, LSTM, clip=0.3), "backward")
TOKENS = Pass(Call(F32, LSTM, tokens=True, rows="padded", input_size=9), "forward")
TOKENS_BACK = Pass(Call(F32, LSTM, tokens=True, input_size=9), "backward")
TANGENTS = Pass(Call(F64, LSTM), "tangents")
NORMS = Pass(Call(F32, LSTM, norms=True), "backward")
ONE, ONE_BACK = passes(small(F32, "one"))
ONE_BF, _ = passes(small(BF16, "one"))
CLUSTER, CLUSTER_BACK = passes(small(F32, "cluster", 37))
CLUSTER_BF, _ = passes(small(BF16, "cluster", 37))
CLUSTER_F64, _ = passes(small(F64, "cluster", 37))
POLLING = Pass(small(F32, "polling", 6), "forward", weak=True)
POLLING_BF = Pass(small(BF16, "polling", 10), "forward", weak=True)
FLAGS = Pass(small(F32, "flags", 6), "forward", weak=True)
FLAGS_F64 = Pass(small(F64, "flags", 6), "forward", weak=True)
CHUNKS = Pass(small(F32, "polling", 68), "backward")
PARKED = Pass(small(F64, "one", 32), "backward")
PREFETCHED = Pass(small(F64, "flags", 132), "backward")
TF32 = Pass(small(F32, "cluster", 45), "forward", tf32=True)

REMOVED = ((r"^.*$", ""),)
BAR, WARP_BAR = ((r"bar\.sync\s+0;", ""),), ((r"bar\.warp\.sync\s+-1;", ""),)
# Of "condition ? 0 : x", compiled in either of two ways.
NEVER_ZERO = (
    (r"@!?%\w+ bra\s+\S+;", ""),
    (r"selp\.(\w+)\s+(%\w+), (%\w+), 0\w*, %\w+;", r"mov.\1 \2, \3;"),
    (r"selp\.(\w+)\s+(%\w+), 0\w*, (%\w+), %\w+;", r"mov.\1 \2, \3;"),
)
ONE_LATER = ((r"setp\.([gl])t\.", r"setp.\1e."), (r"setp\.([gl])e\.", r"setp.\1t."))


def clipped_too_early(texts):
    """Of "d = a + b; d = clipped(d)", in this order: d = clipped(a) + b."""
    made, sums = [], {}
    for text in texts:
        if found := re.search(r"add\.f32\s+(%\w+), (%\w+), (%\w+);", text):
            sums[found[1]] = found[3]
            text = f"mov.f32 {found[1]}, {found[2]};"
        elif (found := re.search(r"selp\.f32\s+(%\w+),", text)) and found[1] in sums:
            text += f" add.f32 {found[1]}, {found[1]}, {sums[found[1]]};"
        made.append(text)
    return made


def moved_on(pattern):
    """What the pattern finds in a text is put into the next text that has it."""

    def change(texts):
        having = [k for k, text in enumerate(texts) if re.search(pattern, text)]
        parts = [re.search(pattern, texts[k])[0] for k in having]
        made = list(texts)
        for k, part in zip(having, parts[1:] + parts[:1], strict=True):
            made[k] = re.sub(pattern, lambda _, part=part: part, texts[k])
        return made

    return change


def other_half(texts):
    """Four products of TF32 are a piece of weights: two for each load."""
    own = [re.search(r"(mma\.\S+\s+\{[^}]*\}, )(\{[^}]*\})(.*)", text) for text in texts]
    products = [k for k, found in enumerate(own) if found]
    made = list(texts)
    for place, k in enumerate(products):
        other = own[products[place ^ 2]] if place ^ 2 < len(products) else own[k]
        made[k] = own[k][1] + other[2] + own[k][3]
    return made


# fmt: off
NAMED = (
    # ---- step by step ----
    Mutation("a reset forgets the memory", STEP, "state[1] = cut ? T(0)", NEVER_ZERO, "forward_step"),
    Mutation("a reset forgets the memory's tangent", TANGENTS, "state[1] = cut ? T(0)", NEVER_ZERO, "tangent_step"),
    Mutation("gradients flow through a reset", STEP_BACK, "cut ? T(0) : dr_j", NEVER_ZERO),
    Mutation("a tangent of gradients flows through a reset", TANGENTS, "if (!g.added_h || p.is_cut(g, step, b))", NEVER_ZERO, innermost=True),
    Mutation("padding is masked one step late", STEP_BACK, "is_active(g, m, t, b)", ONE_LATER, "gather"),
    Mutation("a row takes part one step too long", STEP, "is_active(layer, m, pick(step.time, d), b)", ONE_LATER, "forward_step"),
    Mutation("gradients are not clipped", CLIPPED_STEP, "if (!(g.grad_clip > 0)) return dh;", ((r"@%\w+ bra", "bra"),)),
    Mutation("an id is that of the next row", TOKENS, "const int64_t id = f.tokens", ((r"ld\.global\.u64\s+(%\w+), \[(%\w+)\];", r"{ .reg .b64 %other; xor.b64 %other, \2, 8; ld.global.u64 \1, [%other]; }"),)),
    Mutation("the id before padding is passed over", TOKENS_BACK, "!is_active(g, m, t, b)", ((r"setp\.gt\.s64\s+(%\w+), (%\w+), (%\w+);", r"{ .reg .b64 %next; add.s64 %next, \3, 1; setp.gt.s64 \1, \2, %next; }"),), "sum_by_token"),
    Mutation("norms without their barrier", NORMS, "__syncthreads();", BAR, "norms"),
    # ---- cells whose state is in registers ----
    Mutation("a reset forgets the memory of units in registers", ONE, "entered_[i] = cut_ ? T(0) : state_[i];", NEVER_ZERO),
    Mutation("gradients of units in registers are not clipped", CLIPPED, "if (!(g.grad_clip > 0)) return dh;", ((r"@%\w+ bra", "bra"),)),
    Mutation("gradients are clipped before the output's has joined them", CLIPPED, "dnext[0] = clipped(g, dh_", clipped_too_early),
    Mutation("padding keeps what was computed before it", ONE, "const auto put = [&]", NEVER_ZERO),
    Mutation("a unit in registers takes part one step too long", ONE, "return now.exists && now.time < length;", ONE_LATER),
    # ---- a block, a warp ----
    Mutation("one: barriers are left out", ONE, "", BAR),
    Mutation("one: barriers are left out, 16 bits", ONE_BF, "", BAR),
    Mutation("one: slots are not zeros in the beginning", ONE, "for (unsigned i = threadIdx.x; i < 2 * bytes_ / 4", ((r"st\.shared.*;", ""),)),
    Mutation("sums are read before all warps have written theirs", FLAGS, "persistent.cuh: __syncthreads();", BAR),
    Mutation("sums of the next step overwrite those of this one", POLLING, "sums + slot % 2 * kSumCount", ((r"and\.b32\s+(%\w+), %\w+, (1|\d{3,});", r"mov.b32 \1, 0;"),), innermost=True),
    Mutation("a publication has one lane's number four times", ONE, "__shfl_sync(~0u, bits.word[w]", ((r"(shfl\.sync\.idx\.b32\s+\S+ \S+ )%\w+", r"\g<1>0"),)),
    Mutation("sums of columns come from the wrong lane", ONE, "odd ? even_sum : odd_sum, 1)", moved_on(r"shfl\.sync\.bfly\.b32\s+\S+ (%\w+)")),
    Mutation("a chunk is shown over one that is still read", CHUNKS, "if (chunk > 0) __syncwarp();", WARP_BAR),
    Mutation("a chunk is read before all lanes have shown it", CHUNKS, "warp_weights.cuh: __syncwarp();", WARP_BAR),
    Mutation("polling: the warp's barriers are left out", POLLING, "", WARP_BAR),
    Mutation("flags: the warp's barriers are left out", FLAGS_F64, "", WARP_BAR),
    Mutation("the next chunk's numbers are those of this one", PREFETCHED, "fetch(link, from + kStage * kStride, own)", ((r"ld\.relaxed.*;", ""),)),
    Mutation("parked weights are taken for their neighbours", PARKED, "parked_[(chunk - kHeld) * kPacksOfChunk", moved_on(r"\{[^}]*\}")),
    # ---- order between blocks, through global memory ----
    Mutation("flags: acquire becomes relaxed", FLAGS, "", ((r"ld\.acquire\.gpu", "ld.relaxed.gpu"),)),
    Mutation("flags: release becomes relaxed", FLAGS, "", ((r"st\.release\.gpu", "st.relaxed.gpu"),)),
    Mutation("flags: acquire becomes relaxed, double", FLAGS_F64, "", ((r"ld\.acquire\.gpu", "ld.relaxed.gpu"),)),
    Mutation("flags: barriers are left out", FLAGS, "", BAR),
    Mutation("a flag is raised before the block is done", FLAGS, "link.arrive(", BAR),
    Mutation("a block looks before all flags are up", FLAGS, "link.wait(slot)", BAR),
    Mutation("polling: numbers are loaded plainly", POLLING, "", ((r"ld\.relaxed\.gpu\.global", "ld.global"),)),
    Mutation("polling: numbers are stored plainly", POLLING, "", ((r"st\.relaxed\.gpu\.global", "st.global"),)),
    Mutation("polling: what is not there yet is taken for a number", POLLING, "while (loaded.word[0] == ~0u", ((r", -1;", ", 2131702838;"),)),
    Mutation("polling: what nobody publishes is not cleared", POLLING, "link.template clear", ((r"st\.relaxed.*;", ""),)),
    # ---- clusters ----
    Mutation("cluster: nobody waits before the first store", CLUSTER, "cluster_wait();", ((r"barrier\.cluster\.wait\S*", ""),)),
    Mutation("cluster: no barrier at the beginning", CLUSTER, "link.begin();", ((r"barrier\.cluster\.\S*", ""),)),
    Mutation("cluster: bytes arrive before they are expected", CLUSTER, "link.begin();", ((r"barrier\.cluster\.arrive\S*", ""), (r"barrier\.cluster\.wait\S*", "bar.sync 0;"))),
    Mutation("cluster: the next bytes are never expected", CLUSTER, "if (threadIdx.x == 0) mbarrier_arrive_and_expect", ((r"mbarrier\.arrive.*;", ""),)),
    Mutation("cluster: fewer bytes are expected", CLUSTER, "if (threadIdx.x == 0) mbarrier_arrive_and_expect", ((r"(mbarrier\.arrive\S+ _, \S+) %\w+;", r"\1 16;"),)),
    Mutation("cluster: a wait that is always over", CLUSTER, "", ((r"(selp\.u32 %\w+, )1, 0, p;", r"\g<1>1, 1, p;"),)),
    Mutation("cluster: waits are for the other phase", CLUSTER, "mbarrier_wait(", ((r"(mbarrier\.try_wait\S+ p, \S+) (%\w+);", r"{ .reg .b32 %other; xor.b32 %other, \2, 1; \1 %other; }"),)),
    Mutation("cluster: waits acquire at the block's scope", CLUSTER, "", ((r"acquire\.cluster\.shared", "acquire.cta.shared"),)),
    Mutation("cluster: barriers of the block are left out", CLUSTER, "", BAR),
    Mutation("cluster: barriers of the block are left out, 16 bits", CLUSTER_BF, "", BAR),
    Mutation("cluster: half the bytes are stored", CLUSTER, "", ((r"v4\.b32 (.*)\{(\S+, \S+), \S+, \S+\}", r"v2.b32 \1{\2}"),)),
    Mutation("cluster: a double is sent by half", CLUSTER_F64, "", ((r"st\.async.*;", ""),), which=slice(1, None, 2)),
    # ---- products ----
    Mutation("bfloat16 taken for float16", CLUSTER_BF, "", ((r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32"),)),
    Mutation("rows of a tile change places", CLUSTER_BF, "", ((r"(mma\.\S+\s+\{[^}]*\}, \{)(%\w+), (%\w+), (%\w+), (%\w+)", r"\1\3, \2, \5, \4"),)),
    Mutation("TF32 takes the weights of the other half of a chunk", TF32, "multiply_tf32(d, a, b)", other_half),
    Mutation("TF32 multiplies in another order than it loads", TF32, "multiply_tf32(d, a, b)", ((r"(mma.*\{)(%\w+), (%\w+)(\},? *\{[^}]*\};)", r"\1\3, \2\4"),)),
)
# fmt: on
