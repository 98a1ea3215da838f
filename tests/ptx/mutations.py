"""Changes to the kernels' PTX that must not go unnoticed: faults by name; and barriers, fences, flags and asynchronous
stores one by one, with those that cannot matter and why.

What PTX cannot say is left out: faults of the host's code, such as steps projected ahead that overlap, or rows of a
packed step that are mixed up.
"""

import itertools
import re
from typing import NamedTuple

from .calls import Call
from .cases import BF16, F32, F64
from .flow import both, decided_by, last_before, stores_of_zero
from .mutants import Mutation, Pass, Place, Weakening

LSTM, GRU = 0, 1


def small(dtype, engine, hidden=13, rows="padded", reset=False, **options):
    """By itself without lengths and resets, which keep numbers from being looked at."""
    sizes = {"steps": 4, "batch": 3, "hidden": hidden, "bidirectional": False}
    return Call(dtype, LSTM, engine, rows=rows, reset=reset, **sizes, **options)


def passes(dtype, engine, forward=13, backward=13, weak=False, silent=None, after=0, held_up=None, **options):
    return [
        Pass(small(dtype, engine, hidden, **options), direction, weak, silent=silent, after=after, held_up=held_up)
        for hidden, direction in ((forward, "forward"), (backward, "backward"))
    ]


STEP, STEP_BACK = Pass(Call(F32, LSTM), "forward"), Pass(Call(F32, LSTM), "backward")
GRU_STEP, GRU_STEP_BACK = Pass(Call(F32, GRU), "forward"), Pass(Call(F32, GRU), "backward")
CLIPPED_STEP, CLIPPED = Pass(Call(F32, LSTM, clip=0.3), "backward"), Pass(small(F32, "one", clip=0.3), "backward")
IDS = Pass(Call(F32, LSTM, tokens=True, rows="padded", input_size=9), "forward")
IDS_BACK = Pass(Call(F32, LSTM, tokens=True, input_size=9), "backward")
TANGENTS = Pass(Call(F64, LSTM), "tangents")
NORMS, NORMS_F64 = (Pass(Call(dtype, LSTM, norms=True), "backward") for dtype in (F32, F64))
UNEVEN, UNEVEN_BACK = passes(F32, "one", rows="lengths", reset=True)
# Every way of exchange; widths that two blocks or three are needed for.
ONE, ONE_BACK = passes(F32, "one")
ONE_BF, ONE_BF_BACK = passes(BF16, "one")
CLUSTER, CLUSTER_BACK = passes(F32, "cluster", 37, 37)
CLUSTER_BF, CLUSTER_BF_BACK = passes(BF16, "cluster", 70, 70)
CLUSTER_F64, CLUSTER_F64_BACK = passes(F64, "cluster", 37, 37)
POLLING, POLLING_BACK = passes(F32, "polling", 6, 18, weak=True)
FLAGS, FLAGS_BACK = passes(F32, "flags", 6, 18, weak=True)
FLAGS_F64, FLAGS_F64_BACK = passes(F64, "flags", 6, 18, weak=True)
# Some of whose blocks wait in vain.
VAIN, VAIN_BACK = passes(F32, "cluster", 37, 37, silent=1, after=3)
HELD_UP, HELD_UP_BACK = passes(F32, "cluster", 37, 37, held_up=1)
VAIN_POLLING, VAIN_POLLING_BACK = passes(F32, "polling", 6, 18, weak=True, silent=1, after=1)
VAIN_FLAGS, VAIN_FLAGS_BACK = passes(F32, "flags", 6, 18, weak=True, silent=1, after=1)
TF32 = Pass(small(F32, "cluster", 45), "forward", tf32=True)
# So wide that warps have several chunks, some of them parked.
CHUNKS = Pass(small(F32, "polling", 264), "backward")
PARKED = Pass(small(F64, "one", 32), "backward")
FETCHED = Pass(small(F64, "flags", 132), "backward")


# ---- by name ---------------------------------------------------------------------------------------------------------

BAR = ((r"bar\.sync\s+0;", ""),)
NO_VOTE = ((r"bar\.red\.and\.pred\s+(%\w+), 0, (%\w+);", r"mov.pred \1, \2;"),)
WARP_BAR = ((r"bar\.warp\.sync\s+-1;", ""),)
PLAIN_LOADS = ((r"ld\.relaxed\.gpu\.global", "ld.global"),)
PLAIN_STORES = ((r"st\.relaxed\.gpu\.global", "st.global"),)
ACQUIRE = ((r"ld\.acquire\.gpu", "ld.relaxed.gpu"),)
RELEASE = ((r"st\.release\.gpu", "st.relaxed.gpu"),)
NO_LOAD, NO_STORE = ((r"ld\.\w+.*;", ""),), ((r"st\.\w+.*;", ""),)
ALWAYS_BRANCHES = ((r"@%\w+ bra", "bra"),)
# Of "condition ? clipped : dh", compiled in either of two ways.
NEVER_CLIPPED = (*ALWAYS_BRANCHES, (r"selp\.(\w+)\s+(%\w+), %\w+, (%\w+), %\w+;", r"mov.\1 \2, \3;"))
# Of "condition ? 0 : x", compiled in either of two ways.
NEVER_ZERO = (
    (r"@!?%\w+ bra\s+\S+;", ""),
    (r"selp\.(\w+)\s+(%\w+), (%\w+), 0\w*, %\w+;", r"mov.\1 \2, \3;"),
    (r"selp\.(\w+)\s+(%\w+), 0\w*, (%\w+), %\w+;", r"mov.\1 \2, \3;"),
)
ONE_LATER = ((r"setp\.([gl])t\.", r"setp.\1e."), (r"setp\.([gl])e\.", r"setp.\1t."))  # where a time meets a length
OTHER_ID = (
    (
        r"ld\.global\.u64\s+(%\w+), \[(%\w+)\];",
        r"{ .reg .b64 %other; xor.b64 %other, \2, 8; ld.global.u64 \1, [%other]; }",
    ),
)
NEXT_TIME = (
    (r"setp\.gt\.s64\s+(%\w+, %\w+), (%\w+);", r"{ .reg .b64 %next; add.s64 %next, \2, 1; setp.gt.s64 \1, %next; }"),
)
LANE_0 = ((r"(shfl\.sync\.idx\.b32\s+\S+ \S+ )[^,]+", r"\g<1>0"),)
OTHER_LANE = ((r"(shfl\.sync\.bfly\.b32\s+\S+ \S+ )1,", r"\g<1>4,"),)
NO_CLUSTER_BARRIER = ((r"barrier\.cluster\.\S*", ""),)
BLOCK_BARRIER = ((r"barrier\.cluster\.arrive\S*", ""), (r"barrier\.cluster\.wait\S*", "bar.sync 0;"))
EXPECTS_NOTHING = ((r"mbarrier\.arrive.*;", ""),)
EXPECTS_LESS = ((r"(mbarrier\.arrive\S+ _, \S+) %\w+;", r"\1 16;"),)
ALWAYS_COMPLETE = ((r"(selp\.u32 %\w+, )1, 0, p;", r"\g<1>1, 1, p;"),)
OTHER_PHASE = (
    (r"(@!?wide mbarrier\.try_wait\S+ p, \S+) (%\w+);", r"{ .reg .b32 %other; xor.b32 %other, \2, 1; \1 %other; }"),
)
BLOCK_SCOPE = ((r"acquire\.cluster\.shared", "acquire.cta.shared"),)
STAYS_FOR_NOTHING = ((r", 100000;", ", 0;"),)
HALF = (r"v4\.b32 (.*)\{(\S+, \S+), \S+, \S+\}", r"v2.b32 \1{\2}")  # of what is stored
OTHER_WORD = ((", -1;", ", 2131702838;"),)
OTHER_FORMAT = ((r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32"),)
OTHER_ROWS = ((r"(mma\.\S+\s+\{[^}]*\}, \{)(%\w+), (%\w+), (%\w+), (%\w+)", r"\1\3, \2, \5, \4"),)
OTHER_K = ((r"(mma.*\{)(%\w+), (%\w+)(\},? *\{[^}]*\};)", r"\1\3, \2\4"),)


def clipped_too_early(statements):
    """Of "d = a + b; d = clipped(d)": d = clipped(a) + b. The output's gradient is what is added last."""
    texts = [s.text for s in statements]
    runs = itertools.groupby(range(len(texts)), lambda k: statements[k].functions.startswith("clipped"))
    for is_clip, run in runs:
        if not is_clip:
            added = max(k for k in run if "add.f32" in texts[k])
            continue
        clip = max(k for k in run if "selp.f32" in texts[k])
        result, (to, a, b) = re.findall(r"%\w+", texts[clip])[0], re.findall(r"%\w+", texts[added])
        texts[added], texts[clip] = f"mov.f32 {to}, {a};", f"{texts[clip]} add.f32 {result}, {result}, {b};"
    return texts


def in_first_buffer(statements):
    """Nearer to the beginning of shared memory, by as much as the first of them is away from it."""
    texts = [s.text for s in statements]
    offsets = [int(found[1]) for text in texts if (found := re.search(r"\.shared\S*\s.*\[%\w+\+(\d+)\]", text))]
    return [re.sub(r"(\[%\w+\+)(\d+)\]", lambda m: f"{m[1]}{int(m[2]) - min(offsets)}]", text) for text in texts]


def parts_moved_on(statements):
    """What one stores, the one before it stores in its place."""
    texts = [s.text for s in statements]
    stores = [k for k, text in enumerate(texts) if re.search(r"st\.shared", text)]
    numbers = [re.search(r"\{.*\}", texts[k])[0] for k in stores]
    for k, other in zip(stores, numbers[1:] + numbers[:1], strict=True):
        texts[k] = re.sub(r"\{.*\}", other, texts[k])
    return texts


def other_half(statements):
    """Four products of TF32 are a piece of weights: two for each load."""
    texts = [s.text for s in statements]
    found = {k: re.search(r"(mma\.\S+\s+\{[^}]*\}, )(\{[^}]*\})(.*)", text) for k, text in enumerate(texts)}
    products = [k for k, match in found.items() if match]
    for place, k in enumerate(products):
        texts[k] = found[k][1] + found[products[place ^ 2]][2] + found[k][3]
    return texts


NO_NAN = ((r", 0f7FFFFFFF;", ", 0f00000000;"),)
AT_RESET, OF_UNIT_AT_RESET = decided_by(r"\bPlace::is_cut\b"), decided_by(r"\bis_reset\b")
MEMORY_AT_RESET = both(AT_RESET, last_before(r"^Lstm::(forward|tangent)<"))  # which comes after all sums
# The second buffer of sums is that of steps of odd parity.
SECOND_BUFFER = r"^Persistent::(put_sums<Persistent::multiply<1>|finish_step<false, Constant<1>)"
AFTER_TIMEOUT = r"\bPersistent::drain_after_timeout\b"
BEGIN_WAIT = r"^cluster_wait < Cluster::begin_run<"
END_RUN = r"\bCluster::end_run\b"
EXPECT = r"^mbarrier_arrive_and_expect < Cluster::wait<"
BEFORE_SHARE = r"^__syncwarp < WarpWeights::multiply_numbers::"
# The first chunks are fetched by multiply_numbers itself, which fetches others while it goes over the chunks.
NEXT_CHUNK = r"< WarpWeights::fetch < WarpWeights::multiply_numbers::lambda"
NAMED = [
    # step by step
    Mutation("a reset forgets the memory", STEP, r"^forward_step<", NEVER_ZERO, MEMORY_AT_RESET),
    Mutation("a reset forgets the memory's tangent", TANGENTS, r"^tangent_step<", NEVER_ZERO, MEMORY_AT_RESET),
    Mutation("gradients of an LSTM flow through a reset", STEP_BACK, r"^backward_step<", NEVER_ZERO, AT_RESET),
    # One of an LSTM's would not be seen: its forget gate multiplies the memory, which is zero after a reset.
    Mutation("a reset forgets a sum, or the state", GRU_STEP, r"^forward_step<", NEVER_ZERO, AT_RESET, each=True),
    Mutation("gradients flow through a reset", GRU_STEP_BACK, r"^backward_step<", NEVER_ZERO, AT_RESET, each=True),
    Mutation("a tangent of gradients flows through a reset", TANGENTS, r"^added_dh<", NEVER_ZERO, AT_RESET),
    Mutation("padding is masked one step late", STEP_BACK, r"^is_active < gather<", ONE_LATER),
    Mutation("a row takes part one step too long", STEP, r"^is_active < Place::Place < forward_step<", ONE_LATER),
    Mutation("gradients are not clipped", CLIPPED_STEP, r"^clipped<\w+> < whole_dh<", NEVER_CLIPPED),
    Mutation("an id is that of another row", IDS, r"^look_up<", OTHER_ID),
    Mutation("the id before padding is passed over", IDS_BACK, r"^is_active < sum_by_token<", NEXT_TIME),
    Mutation("norms without their barrier", NORMS, r"^norms<", BAR),
    # cells whose state is in registers
    Mutation(
        "a reset forgets the state of a unit in registers",
        *(UNEVEN, r"^ForwardCell::advance", ALWAYS_BRANCHES, OF_UNIT_AT_RESET),
    ),
    Mutation(
        "gradients flow through a reset of such a unit",
        *(UNEVEN_BACK, r"^BackwardCell::advance", ALWAYS_BRANCHES, OF_UNIT_AT_RESET),
    ),
    Mutation(
        "gradients of units in registers are not clipped",
        *(CLIPPED, r"^BackwardCell::advance", ALWAYS_BRANCHES, last_before(r"^clipped<")),
    ),
    Mutation(
        "gradients are clipped before the output's joins",
        *(CLIPPED, r"^(clipped<\w+> < )?BackwardCell::advance", clipped_too_early),
    ),
    Mutation("padding is not cleared", UNEVEN, r"< ForwardCell::store <", NO_STORE, stores_of_zero),
    Mutation("a unit in registers takes part one step too long", UNEVEN, r"^ActiveSteps::is_active", ONE_LATER),
    # a block, a warp
    Mutation("one: barriers are left out", ONE, "", BAR),
    Mutation("one: barriers are left out, 16 bits", ONE_BF, "", BAR),
    Mutation("one: slots are not zeros in the beginning", ONE, r"^clear_slots<", NO_STORE),
    Mutation("sums are read before all warps have written theirs", FLAGS, r"^Persistent::finish_step<", BAR),
    Mutation("sums of the next step overwrite those of this one", POLLING, SECOND_BUFFER, in_first_buffer),
    Mutation("a publication has a unit four times", ONE, r"< gather_quad<", LANE_0),
    Mutation("sums come from another row's lanes", ONE, r"< Scalars::finish <", OTHER_LANE),
    Mutation("a chunk is shown over one that is still read", CHUNKS, BEFORE_SHARE, WARP_BAR),
    Mutation("a chunk is read before all lanes have shown it", CHUNKS, r"^__syncwarp < WarpWeights::share", WARP_BAR),
    Mutation("polling: the warp's barriers are left out", POLLING, "", WARP_BAR),
    Mutation("flags: the warp's barriers are left out", FLAGS_F64, "", WARP_BAR),
    Mutation("the next chunk's numbers are an older one's", FETCHED, NEXT_CHUNK, NO_LOAD),
    Mutation("parked weights are taken for their neighbours", PARKED, r"^WarpWeights::WarpWeights", parts_moved_on),
    # order between blocks, through global memory
    Mutation("flags: acquire becomes relaxed", FLAGS, "", ACQUIRE),
    Mutation("flags: release becomes relaxed", FLAGS, "", RELEASE),
    Mutation("flags: acquire becomes relaxed, double", FLAGS_F64, "", ACQUIRE),
    Mutation("flags: barriers are left out", FLAGS, "", BAR),
    Mutation("a flag is raised before the block is done", FLAGS, r"^Flags::arrive", BAR),
    Mutation("a block looks before all flags are up", FLAGS, r"^Flags::wait<", NO_VOTE),
    Mutation("polling: numbers are loaded plainly", POLLING, "", PLAIN_LOADS),
    Mutation("polling: numbers are stored plainly", POLLING, "", PLAIN_STORES),
    Mutation("what is not there yet is taken for a number", POLLING, r"^Polling::is_missing<", OTHER_WORD),
    Mutation("polling: what nobody publishes is not cleared", POLLING, r"< Polling::clear<", NO_STORE),
    # clusters
    Mutation("cluster: nobody waits before the first store", CLUSTER, BEGIN_WAIT, NO_CLUSTER_BARRIER),
    Mutation("cluster: no barrier at the beginning", CLUSTER, "", NO_CLUSTER_BARRIER),
    Mutation("cluster: bytes arrive before they are expected", CLUSTER, "", BLOCK_BARRIER),
    Mutation("cluster: the next bytes are never expected", CLUSTER, EXPECT, EXPECTS_NOTHING),
    Mutation("cluster: fewer bytes are expected", CLUSTER, EXPECT, EXPECTS_LESS),
    Mutation("cluster: a wait that is always over", CLUSTER, "", ALWAYS_COMPLETE),
    Mutation("cluster: waits are for the other phase", CLUSTER, "", OTHER_PHASE),
    Mutation("cluster: waits acquire at the block's scope", CLUSTER, "", BLOCK_SCOPE),
    Mutation("cluster: barriers of the block are left out", CLUSTER, "", BAR),
    Mutation("cluster: barriers of the block are left out, 16 bits", CLUSTER_BF, "", BAR),
    Mutation("cluster: half the bytes are stored", CLUSTER, r"^store_async<", (HALF,)),
    Mutation("cluster: a double is sent by half", CLUSTER_F64, r"^store_async<", NO_STORE, every=2),
    # blocks that wait in vain
    Mutation("cluster: sums are zeros where nothing came", VAIN, AFTER_TIMEOUT, NO_NAN),
    Mutation("flags: sums are zeros where nothing came", VAIN_FLAGS, AFTER_TIMEOUT, NO_NAN),
    Mutation("cluster: a block leaves before others have stored to it", HELD_UP, END_RUN, NO_CLUSTER_BARRIER),
    Mutation("cluster: a block leaves before what is on its way has come", HELD_UP, END_RUN, STAYS_FOR_NOTHING),
    # products
    Mutation("bfloat16 taken for float16", CLUSTER_BF, "", OTHER_FORMAT),
    Mutation("rows of a tile change places", CLUSTER_BF, "", OTHER_ROWS),
    Mutation("TF32 takes the weights of the other half of a chunk", TF32, "", other_half),
    Mutation("TF32 multiplies in another order than it loads", TF32, "", OTHER_K),
]


# ---- one by one ------------------------------------------------------------------------------------------------------

BY_ONE = [
    *(ONE, ONE_BACK, ONE_BF, ONE_BF_BACK, *passes(F64, "one")),
    *(CLUSTER, CLUSTER_BACK, CLUSTER_BF, CLUSTER_BF_BACK, CLUSTER_F64, CLUSTER_F64_BACK),
    *passes(F32, "cluster", 210, 210),  # more blocks: each lane sends to several
    *(POLLING, POLLING_BACK, *passes(BF16, "polling", 10, 18, weak=True), CHUNKS),
    *(FLAGS, FLAGS_BACK, FLAGS_F64, FLAGS_F64_BACK),
    *(NORMS, NORMS_F64),
    *(HELD_UP, HELD_UP_BACK, *passes(BF16, "cluster", 70, 70, held_up=0), *passes(F64, "cluster", 37, 37, held_up=0)),
    *(VAIN, VAIN_BACK, *passes(BF16, "cluster", 70, 70, silent=0, after=3)),
    *passes(F64, "cluster", 37, 37, silent=0, after=3),
    *(VAIN_POLLING, VAIN_POLLING_BACK, *passes(BF16, "polling", 10, 18, weak=True, silent=1, after=1)),
    *(VAIN_FLAGS, VAIN_FLAGS_BACK, *passes(F64, "flags", 6, 18, weak=True, silent=1, after=1)),
]
REMOVED = r"^.*$", ""
WEAKENINGS = [
    Weakening(r"bar\.sync|bar\.warp\.sync|barrier\.cluster\..*|fence\..*", *REMOVED),
    Weakening(r"bar\.red\.and\.pred", *NO_VOTE[0]),
    Weakening(r"mbarrier\.arrive\..*|st\.async\..*", *REMOVED),
    Weakening(r"st\.async\..*v4\.b32", *HALF),
    Weakening(r"mbarrier\.try_wait\..*acquire\.cluster.*", *BLOCK_SCOPE[0]),
    Weakening(r"ld\.acquire\..*", *ACQUIRE[0], weak=True),
    Weakening(r"st\.release\..*", *RELEASE[0], weak=True),
    # Where what is polled for are the numbers themselves. Otherwise flags order them.
    Weakening(r"ld\.relaxed\..*", *PLAIN_LOADS[0], engines="polling", weak=True),
    Weakening(r"st\.relaxed\..*", *PLAIN_STORES[0], engines="polling", weak=True),
]


class Harmless(NamedTuple):
    opcode: str  # how it begins
    at: str  # a pattern of Statement.functions
    runs: str  # how the pass begins; a pattern
    why: str

    def fits(self, place: Place) -> bool:
        return (
            place.statement.opcode.startswith(self.opcode)
            and re.search(self.at, place.statement.functions) is not None
            and re.match(self.runs, str(place.runs[0])) is not None
        )


HARMLESS = [
    Harmless(
        *("fence.mbarrier_init", "^mbarrier_init < Cluster::begin_run<", "cluster"),
        "The cluster's barrier that follows releases too: who has waited for it finds the mbarriers initialised.",
    ),
    Harmless(
        *("bar.sync", "^Flags::arrive < Persistent::run", r"flags \w+ backward"),
        "Before its first step the way back shows zeros, and the ring is zeros: nobody can tell which they are.",
    ),
    Harmless(
        *("st.release", "< Flags::arrive < Persistent::run", r"flags \w+ backward"),
        "As with the barrier before it: what it releases are zeros over zeros.",
    ),
]
