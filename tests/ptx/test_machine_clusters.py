"""Faults in clusters that the machine refuses: correct kernels, each made wrong by one fault."""

import re

import pytest

from ptx.faults import Fault, Small, in_every_order

SYNC = "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;"
# Each block writes its rank into the next one's shared memory.
TELL_NEXT = Small(
    "tell_next",
    f"""
	.shared .align 4 .b8 slot[4];
	mov.u32 %r1, slot;
	add.s32 %r2, %rank, 1;
	and.b32 %r2, %r2, 3;
	setp.ne.u32 %p1, %i, 0;
	setp.eq.u32 %p2, %rank, 0;
	@%p1 bra TOLD;
	mapa.shared::cluster.u32 %r3, %r1, %r2;
	st.shared::cluster.u32 [%r3], %rank;
TOLD:
	{SYNC}
	ld.shared.u32 %r4, [%r1];
	st.global.u32 [%own], %r4;
""",
    leaves=[rank for rank in (3, 0, 1, 2) * 2 for _ in range(32)],
    grid=8,
    cluster=4,
)
# Two threads of each of two blocks send to the other one, by st.async; an mbarrier counts the bytes.
SWAP = Small(
    "swap",
    f"""
	.shared .align 8 .b8 mbarrier[8];
	.shared .align 8 .b8 slots[16];
	mov.u32 %r1, mbarrier;
	mov.u32 %r2, slots;
	xor.b32 %r3, %rank, 1;
	setp.ne.u32 %p1, %i, 0;
	@%p1 bra READY;
	mbarrier.init.shared::cta.b64 [%r1], 1;
	fence.mbarrier_init.release.cluster;
	mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], 16;
READY:
	{SYNC}
	and.b32 %r4, %i, 1;
	mad.lo.s32 %r5, %r4, 8, %r2;
	mapa.shared::cluster.u32 %r6, %r5, %r3;
	mapa.shared::cluster.u32 %r7, %r1, %r3;
	setp.ge.u32 %p3, %i, 2;
	@%p3 bra WAIT;
	mad.lo.s32 %r8, %rank, 10, %i;
	st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r6], {{%r3, %r8}}, [%r7];
WAIT:
	mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r1], 0;
	@!%p2 bra WAIT;
	ld.shared.u32 %r9, [%r5+4];
	st.global.u32 [%own], %r9;
	{SYNC}
""",
    leaves=[10, 11] * 32 + [0, 1] * 32,
    grid=2,
    block=64,
    cluster=2,
)
# The same with itself, for which it is enough to acquire at the scope of the block.
SEND_SELF = SWAP._replace(
    name="send_self",
    body=SWAP.body.replace("xor.b32 %r3, %rank, 1;", "mov.u32 %r3, %rank;").replace("acquire.cluster.", "acquire.cta."),
    leaves=[0, 1] * 32 + [10, 11] * 32,
)
# Over and over: each goes on with what it has got. A block writes to a slot again when it has got what the other could
# only send after it had read that.
EXCHANGE = Small(
    "exchange",
    f"""
	.shared .align 8 .b8 mbarriers[16];
	.shared .align 8 .b8 slots[16];
	xor.b32 %r1, %rank, 1;
	setp.ne.u32 %p1, %i, 0;
	@%p1 bra READY;
	mov.u32 %r2, mbarriers;
	mbarrier.init.shared::cta.b64 [%r2], 1;
	mbarrier.init.shared::cta.b64 [%r2+8], 1;
	fence.mbarrier_init.release.cluster;
	mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r2], 8;
	mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r2+8], 8;
READY:
	{SYNC}
	mov.u32 %r3, 0;
	mov.u32 %r4, %rank;
LOOP:
	and.b32 %r5, %r3, 1;
	shl.b32 %r5, %r5, 3;
	mov.u32 %r6, mbarriers;
	add.s32 %r6, %r6, %r5;
	mov.u32 %r7, slots;
	add.s32 %r7, %r7, %r5; // its slot
	@%p1 bra WAIT;
	mapa.shared::cluster.u32 %r8, %r7, %r1;
	mapa.shared::cluster.u32 %r9, %r6, %r1;
	st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r8], {{%r4, %r4}}, [%r9];
WAIT:
	shr.u32 %r10, %r3, 1;
	and.b32 %r10, %r10, 1;
	mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r6], %r10;
	@!%p2 bra WAIT;
	@!%p1 mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r6], 8; // again
	ld.shared.u32 %r4, [%r7];
	add.s32 %r4, %r4, 1;
	bar.sync 0;
	add.s32 %r3, %r3, 1;
	setp.lt.u32 %p3, %r3, 6;
	@%p3 bra LOOP;
	st.global.u32 [%own], %r4;
	{SYNC}
""",
    leaves=[6] * 64 + [7] * 64,
    grid=2,
    block=64,
    cluster=2,
)
# Blocks of one thread, which take turns with one slot: what answers the store that was sent after reading comes later.
PING_PONG = Small(
    "ping_pong",
    f"""
	.shared .align 8 .b8 mbarrier[8];
	.shared .align 8 .b8 slot[8];
	mov.u32 %r1, mbarrier;
	mov.u32 %r2, slot;
	xor.b32 %r3, %rank, 1;
	mapa.shared::cluster.u32 %r4, %r2, %r3;
	mapa.shared::cluster.u32 %r5, %r1, %r3;
	mbarrier.init.shared::cta.b64 [%r1], 1;
	fence.mbarrier_init.release.cluster;
	mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], 8;
	{SYNC}
	mov.u32 %r6, 0;
	mov.u32 %r7, 0;
LOOP:
	and.b32 %r8, %r6, 1;
	setp.eq.u32 %p1, %r8, %rank;
	@!%p1 bra WAIT;
	add.s32 %r7, %r7, 1;
	st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r4], {{%r7, %r7}}, [%r5];
	bra.uni NEXT;
WAIT:
	shr.u32 %r8, %r6, 1;
	and.b32 %r8, %r8, 1;
AGAIN:
	mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r1], %r8;
	@!%p2 bra AGAIN;
	mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], 8;
	ld.shared.u32 %r7, [%r2];
NEXT:
	add.s32 %r6, %r6, 1;
	setp.lt.u32 %p3, %r6, 6;
	@%p3 bra LOOP;
	st.global.u32 [%own], %r7;
	{SYNC}
""",
    leaves=[6, 6],
    grid=2,
    block=1,
    cluster=2,
)
ARRIVE, WAIT = SYNC.split("\n\t")
TRY = "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r1]"
EXPECT = "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1]"
INIT = "mbarrier.init.shared::cta.b64 [%r1], 1;"
UNTIL = f"{TRY}, 0;\n\t@!%p2 bra WAIT;"
BARRIER_FAULTS = {
    "no wait": Fault(TELL_NEXT, WAIT, "", "nobody has written", always=False),
    "arrives twice": Fault(TELL_NEXT, ARRIVE, f"{ARRIVE}\n\t{ARRIVE}", "arrives at the cluster's barrier twice"),
    "waits without arriving": Fault(TELL_NEXT, ARRIVE, "", "waits at the cluster's barrier without having arrived"),
    "mapa to no rank": Fault(TELL_NEXT, "%r1, %r2;", "%r1, 4;", "mapa to rank 4 of 4"),
    "mapa of another's": Fault(
        TELL_NEXT, "%r1, %r2;", "%r1, %r2;\n\tmapa.shared::cluster.u32 %r3, %r3, %r2;", "not the block's own"
    ),
    "an address of no rank": Fault(
        TELL_NEXT, "[%r3], %rank", "[%r3+67108864], %rank", "shared memory of a rank that is not there"
    ),
    "past its end": Fault(TELL_NEXT, "[%r3], %rank", "[%r3+4], %rank", "outside of shared memory: byte 4 of 4"),
    "a block has left": Fault(
        TELL_NEXT, "@%p1 bra TOLD;", "@%p2 exit;\n\t@%p1 bra TOLD;", "shared memory of a block that has ended"
    ),
}
MBARRIER_FAULTS = {
    "not initialised": Fault(
        SWAP,
        INIT,
        "",
        r"no mbarrier at shared byte 0\n  at line 30 of the PTX.*mbarrier.arrive.*\n  block ., warp 0, in swap",
    ),
    "initialised twice": Fault(SWAP, INIT, f"{INIT}\n\t{INIT}", "an mbarrier is initialised again"),
    "initialised by all": Fault(SWAP, "@%p1 bra READY;", "", "an mbarrier is initialised again"),
    "initialised elsewhere": Fault(
        SWAP, INIT, f"mapa.shared::cluster.u32 %r1, %r1, %r3;\n\t{INIT}", "initialises an mbarrier of another block"
    ),
    "of no arrivals": Fault(SWAP, INIT, INIT.replace("1;", "0;"), "an mbarrier of 0"),
    "too many arrivals": Fault(SWAP, EXPECT, f"{EXPECT}, 0;\n\t{EXPECT}", "wait for it|has written", always=False),
    "one arrival too many": Fault(
        SWAP, f"{EXPECT}, 16;", f"{EXPECT}, 16;\n\t{EXPECT}, 0;", "more arrivals at an mbarrier"
    ),
    "more bytes than it counts": Fault(
        SWAP, f"{EXPECT}, 16", f"{EXPECT}, 1048576", "more bytes than an mbarrier counts"
    ),
    "more bytes than come": Fault(SWAP, f"{EXPECT}, 16", f"{EXPECT}, 24", "nothing but polling goes on, in swap"),
    "fewer bytes than come": Fault(SWAP, f"{EXPECT}, 16", f"{EXPECT}, 8", "without a wait for it|has written"),
    "another block's": Fault(SWAP, TRY, TRY.replace("%r1", "%r7"), "an mbarrier of another block"),
    "misaligned": Fault(SWAP, f"{TRY}", TRY.replace("%r1", "%r1+4"), "misaligned: address"),
    "a parity of two": Fault(SWAP, f"{TRY}, 0", f"{TRY}, 2", "a parity of 2"),
    "the phase that was": Fault(SWAP, f"{TRY}, 0", f"{TRY}, 1", "without a wait for it|has written"),
    "written to": Fault(SWAP, "WAIT:", "WAIT: st.shared.u32 [%r1+4], %i;", "a store over an mbarrier"),
    "sent to": Fault(SWAP, "st.async.weak", "mov.u32 %r6, %r7;\n\tst.async.weak", "a store over an mbarrier"),
    "read": Fault(SWAP, "ld.shared.u32 %r9, [%r5+4]", "ld.shared.u32 %r9, [%r1]", "nobody has written, byte 0"),
    "not armed again": Fault(EXCHANGE, "@!%p1 mbarrier", "// mbarrier", "nothing but polling goes on, in exchange"),
}
ASYNC_FAULTS = {
    "no wait": Fault(SWAP, UNTIL, "", "nobody has written"),
    "a barrier in place of the wait": Fault(SWAP, UNTIL, SYNC, "an asynchronous store of another block has written"),
    "a look without a wait": Fault(SWAP, "@!%p2 bra WAIT;", "", "asynchronous store|has written", always=False),
    "the block's scope": Fault(
        SWAP, TRY, TRY.replace("cluster.shared", "cta.shared"), "wait for it that acquires at the cluster's scope"
    ),
    "relaxed": Fault(SWAP, TRY, TRY.replace("acquire", "relaxed"), "without a wait for it"),
    "relaxed, of its own": Fault(
        SEND_SELF,
        TRY.replace("cluster.shared", "cta.shared"),
        TRY.replace("acquire", "relaxed"),
        "without a wait for it",
    ),
    "the mbarrier lies elsewhere": Fault(
        SWAP, "}, [%r7]", "}, [%r1]", "with an mbarrier of another block than its data"
    ),
    "no mbarrier": Fault(SWAP, "}, [%r7]", "}, [%r7+8]", "st.async with an mbarrier that is not initialised"),
    "misaligned": Fault(SWAP, "%r4, 8, %r2;", "%r4, 4, %r2;", "misaligned: address .* for 8 bytes"),
    "two to one place": Fault(
        SWAP, "%r4, 8, %r2;", "%r4, 0, %r2;", "overwrites shared byte 8, which another one of its"
    ),
    "overwritten before the wait": Fault(SWAP, "WAIT:", "WAIT: st.shared.u32 [%r5], %i;", "a race"),
    "the block has left": Fault(
        SWAP, "WAIT:", "WAIT:\n\tsetp.eq.u32 %p4, %rank, 1;\n\t@%p4 exit;\n", "block that has ended", always=False
    ),
    "one slot": Fault(EXCHANGE, "add.s32 %r7, %r7, %r5; // its slot", "", "overwrites shared byte", always=False),
    "no barrier after reading": Fault(
        EXCHANGE, "bar.sync 0;", "", "overwrites shared byte .*, which several threads just read", always=False
    ),
    "sends before it reads": Fault(
        PING_PONG,
        "AGAIN:",
        "add.s32 %r9, %r7, 2;\n"
        "\tst.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r4], {%r9, %r9}, [%r5];\n"
        "AGAIN:",
        "overwrites shared byte 8",
        always=False,
    ),
}
FAULTS = [
    pytest.param(fault, id=name)
    for faults in (BARRIER_FAULTS, MBARRIER_FAULTS, ASYNC_FAULTS)
    for name, fault in faults.items()
]


@pytest.mark.parametrize("kernel", [TELL_NEXT, SWAP, SEND_SELF, EXCHANGE, PING_PONG], ids=lambda kernel: kernel.name)
def test_right_kernels_pass(machine, kernel):
    assert set(in_every_order(machine, kernel, kernel.text())) == {""}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(machine, fault):
    found = in_every_order(machine, fault.kernel, fault.text())
    assert all(found) or (any(found) and not fault.always), found
    assert any(re.search(fault.says, message) for message in found), found
