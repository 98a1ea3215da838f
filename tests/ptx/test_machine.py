"""Faults within one block that the machine refuses: each kernel is correct, and each fault makes it wrong."""

import re

import pytest
import torch

from ptx.faults import HEADER, ORDERS, Fault, Small, in_every_order, run

# ---- global memory ---------------------------------------------------------------------------------------------------

COPY = f"""{HEADER}.visible .entry copy(.param .u64 from, .param .u64 to)
{{
	.reg .b64 %rd<8>;
	ld.param.u64 %rd1, [from];
	ld.param.u64 %rd2, [to];
	ld.global.TYPE %rd3, [%rd1];
	st.global.TYPE [%rd2], %rd3;
	ret;
}}
"""
READS, WRITES = "at line 10 of the PTX:\tld.global", "at line 11 of the PTX:\tst.global"


def copy(machine, source, target, dtype="u32"):
    machine.launch(COPY.replace("TYPE", dtype), "copy", block=(1, 1, 1), arguments=[source, target])


def test_global_memory_up_to_its_ends(machine):
    numbers = torch.arange(5, dtype=torch.int32)
    copy(machine, numbers.data_ptr(), numbers.data_ptr() + 16)
    copy(machine, numbers.data_ptr() + 8, numbers.data_ptr(), "u64")
    assert numbers.tolist() == [2, 3, 2, 3, 0]


@pytest.mark.parametrize(
    ("byte", "dtype", "says"),
    [
        (-4, "u32", "outside of global memory: 4 bytes before an allocation of 20 bytes"),
        (20, "u32", "outside of global memory: 0 bytes past the end of an allocation of 20 bytes"),
        (20, "u8", "outside of global memory: 0 bytes past the end of an allocation of 20 bytes"),
        (16, "u64", "across the end of an allocation in global memory"),
        (2, "u32", "misaligned: address"),
        (4, "u64", "misaligned: address"),
        (1, "u16", "misaligned: address"),
    ],
)
def test_outside_of_a_tensor(machine, byte, dtype, says):
    numbers, other = torch.zeros(5, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=re.escape(says)) as read:
        copy(machine, numbers.data_ptr() + byte, other.data_ptr(), dtype)
    with pytest.raises(RuntimeError, match=re.escape(says)) as written:
        copy(machine, other.data_ptr(), numbers.data_ptr() + byte, dtype)
    assert READS in str(read.value) and WRITES in str(written.value)
    assert str(read.value).endswith("block 0, warp 0, in copy")


def test_no_tensor_at_all(machine):
    numbers = torch.zeros(5, dtype=torch.int32)
    gone = torch.zeros(5, dtype=torch.int32)
    copy(machine, numbers.data_ptr(), gone.data_ptr())
    address = gone.data_ptr()
    del gone
    for nowhere in (address, 0, 1 << 40):
        with pytest.raises(RuntimeError, match="outside of global memory"):
            copy(machine, numbers.data_ptr(), nowhere)
        with pytest.raises(RuntimeError, match="outside of global memory"):
            copy(machine, nowhere, numbers.data_ptr())


# ---- shared memory ---------------------------------------------------------------------------------------------------

# Each thread hands its number to the one opposite, in another warp.
MIRROR = Small(
    "mirror",
    """
	.shared .align 8 .b8 numbers[256];
	mov.u32 %r1, numbers;
	shl.b32 %r2, %i, 2;
	add.s32 %r3, %r1, %r2;
	sub.s32 %r4, %r1, %r2;
	setp.ge.u32 %p0, %i, 64;
	@!%p0 st.shared.u32 [%r3], %i;
	bar.sync 0;
	ld.shared.u32 %r5, [%r4+252];
	st.global.u32 [%own], %r5;
""",
    leaves=[*range(63, -1, -1)],
    block=64,
)
# The same within a warp, whose lanes need not run in step.
MIRROR_IN_WARP = Small(
    "mirror_in_warp", MIRROR.body.replace("bar.sync 0", "bar.warp.sync -1").replace("252", "124"), [*range(31, -1, -1)]
)
# One buffer, used again in the next step: a second barrier keeps the fast from overwriting what the slow read.
SHIFT = Small(
    "shift",
    """
	.shared .align 4 .b8 numbers[256];
	mov.u32 %r1, numbers;
	shl.b32 %r2, %i, 2;
	add.s32 %r3, %r1, %r2;
	add.s32 %r4, %i, 1;
	and.b32 %r4, %r4, 63;
	shl.b32 %r4, %r4, 2;
	add.s32 %r4, %r1, %r4;
	mov.u32 %r5, %i;
	mov.u32 %r6, 0;
LOOP:
	st.shared.u32 [%r3], %r5;
	bar.sync 0;
	ld.shared.u32 %r5, [%r4];
	bar.sync 0; // after reading
	add.s32 %r6, %r6, 1;
	setp.lt.s32 %p1, %r6, 3;
	@%p1 bra LOOP;
	st.global.u32 [%own], %r5;
""",
    leaves=[(i + 3) % 64 for i in range(64)],
    block=64,
)
# One thread publishes for all.
TELL_ALL = Small(
    "tell_all",
    """
	.shared .align 4 .b8 number[4];
	setp.eq.u32 %p1, %i, 7;
	@%p1 st.shared.u32 [number], %i;
	bar.sync 0;
	ld.shared.u32 %r1, [number];
	st.global.u32 [%own], %r1;
""",
    leaves=[7] * 64,
    block=64,
)
SHARED_FAULTS = {
    "no barrier": Fault(MIRROR, "bar.sync 0;", "", "a race: written by thread|nobody has written"),
    "a barrier of the warp for the block's": Fault(
        MIRROR, "bar.sync 0;", "bar.warp.sync -1;", "a race: written by thread|nobody has written"
    ),
    "no barrier of the warp": Fault(MIRROR_IN_WARP, "bar.warp.sync -1;", "", "a race: written by thread 31, read by"),
    "a barrier of half the warp": Fault(
        MIRROR_IN_WARP,
        "bar.warp.sync -1;",
        "and.b32 %r9, %i, 16;\n\tmov.u32 %r10, 65535;\n\tshl.b32 %r9, %r10, %r9;\n\tbar.warp.sync %r9;",
        "a race|nobody has written",
    ),
    "used again too early": Fault(
        SHIFT, "bar.sync 0; // after reading", "", "a race: read by thread .*, written by thread .*, shared byte"
    ),
    "several write": Fault(
        TELL_ALL, "@%p1 st", "st", r"a race: written by thread 0, written by thread 1, shared byte 0"
    ),
    "not all is written": Fault(MIRROR, "%i, 64", "%i, 60", "shared memory that nobody has written, byte 2[45]"),
    "past its end": Fault(MIRROR, "[%r4+252]", "[%r4+256]", "outside of shared memory: byte 256 of 256"),
    "before its begin": Fault(MIRROR, "[%r3], %i", "[%r3+-4], %i", "outside of shared memory: byte -4 of 256"),
    "across its end": Fault(
        MIRROR, "ld.shared.u32 %r5, [%r4+252]", "ld.shared.v2.u32 {%r5, %r6}, [%r1+256]", "outside"
    ),
    "misaligned": Fault(MIRROR, "[%r4+252]", "[%r4+250]", "misaligned: address .* for 4 bytes"),
}


# ---- barriers --------------------------------------------------------------------------------------------------------

# Warps wait for each other at different places, which a barrier does not mind.
TWO_PLACES = Small(
    "two_places",
    """
	.shared .align 4 .b8 number[4];
	and.b32 %r1, %i, 32;
	setp.ne.u32 %p1, %r1, 0;
	@%p1 bra SECOND;
	setp.eq.u32 %p2, %i, 0;
	mov.u32 %r2, 5;
	@%p2 st.shared.u32 [number], %r2;
	bar.sync 0;
	bra.uni END;
SECOND:
	bar.sync 0;
END:
	ld.shared.u32 %r3, [number];
	st.global.u32 [%own], %r3;
""",
    leaves=[5] * 64,
    block=64,
)
# Barriers do not wait for warps that have ended.
ONE_ENDS = Small(
    "one_ends",
    """
	setp.ge.u32 %p1, %i, 64;
	@%p1 exit;
	bar.sync 0;
	mov.u32 %r1, 1;
	st.global.u32 [%own], %r1;
""",
    leaves=[1] * 64 + [0] * 32,
    block=96,
)
BLOCK_AND_CLUSTER = Small(
    "block_and_cluster",
    """
	setp.ge.u32 %p1, %i, 32;
	@%p1 bra AFTER;
	mov.u32 %r1, 1;
AFTER:
	bar.sync 0;
	barrier.cluster.arrive.release.aligned;
	barrier.cluster.wait.acquire.aligned;
	st.global.u32 [%own], %i;
""",
    leaves=[*range(64)],
    block=64,
)
POLL = Small(
    "poll",
    """
	mov.u32 %r1, 1;
	setp.ne.u32 %p1, %block, 0;
	@!%p1 st.release.gpu.global.u32 [%memory], %r1;
LOOP:
	ld.acquire.gpu.global.u32 %r2, [%memory];
	setp.eq.u32 %p2, %r2, 0;
	@%p2 bra LOOP;
""",
    leaves=[1],
    grid=2,
    block=1,
)
REQUIRE = Small(
    "require",
    """
	setp.lt.u32 %p1, %i, 32;
	@%p1 bra $HOLDS;
	{
	.param .b64 param0;
	.param .b64 param1;
	.param .b32 param2;
	.param .b64 param3;
	.param .b64 param4;
	st.param.b64 [param0+0], %memory;
	call.uni __assertfail, (param0, param1, param2, param3, param4);
	}
$HOLDS:
	st.global.u32 [%own], %i;
""",
    leaves=[*range(32)],
)
BARRIER_FAULTS = {
    "lanes at two barriers": Fault(
        TWO_PLACES, "%i, 32;", "%i, 1;", "lanes of a warp wait for each other at different places.*at line \\d+"
    ),
    "some lanes of a warp": Fault(
        TWO_PLACES, "SECOND:\n\tbar.sync 0;", "SECOND:\n\tsetp.gt.u32 %p3, %i, 40;\n\t@%p3 bar.sync 0;", "not uniform"
    ),
    "a warp elsewhere": Fault(
        BLOCK_AND_CLUSTER,
        "AFTER:\n\tbar.sync 0;",
        "bar.sync 0;\nAFTER:",
        "everybody waits, in block_and_cluster\n"
        r"  block 0, warp 0 at a barrier, line \d+\n  block 0, warp 1 at the cluster's barrier, line \d+",
    ),
    "one that never ends": Fault(ONE_ENDS, "exit", "bra LOOP;\nLOOP: @%p1 bra LOOP", "nothing but polling goes on, in"),
    "a flag that never comes": Fault(POLL, "@!%p1 st.release", "// st", "nothing but polling goes on, in poll"),
    "an assertion": Fault(REQUIRE, "%i, 32", "%i, 31", "a device assertion\n  at line .*, warp 0, in require"),
    "a trap": Fault(POLL, "LOOP:", "LOOP: trap;", "a trap"),
}


# ---- divergence -------------------------------------------------------------------------------------------------

# 1 + 2 + ... + i, in a loop that takes each lane another time; then of its neighbour.
TRIANGLE = Small(
    "triangle",
    """
	mov.u32 %r1, 0;
	mov.u32 %r2, %i;
LOOP:
	setp.eq.u32 %p1, %r2, 0;
	@%p1 bra DONE;
	add.s32 %r1, %r1, %r2;
	sub.s32 %r2, %r2, 1;
	bra.uni LOOP;
DONE:
	shfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, -1;
	st.global.u32 [%own], %r3;
""",
    leaves=[(i ^ 1) * ((i ^ 1) + 1) // 2 for i in range(32)],
)
# Each half of the warp by itself, then both together.
HALVES = Small(
    "halves",
    """
	setp.ge.u32 %p1, %i, 16;
	@%p1 bra UPPER;
	shfl.sync.idx.b32 %r1|%p2, %i, 3, 31, 65535;
	bra.uni BOTH;
UPPER:
	shfl.sync.idx.b32 %r1|%p2, %i, 20, 31, -65536;
BOTH:
	bar.warp.sync -1;
	shfl.sync.bfly.b32 %r2|%p3, %r1, 16, 31, -1;
	st.global.u32 [%own], %r2;
""",
    leaves=[20] * 16 + [3] * 16,
)
# At one place, with the masks of two groups.
TILES = Small(
    "tiles",
    """
	and.b32 %r1, %i, 16;
	mov.u32 %r2, 65535;
	shl.b32 %r2, %r2, %r1;
	shfl.sync.idx.b32 %r3|%p2, %i, 5, 4127, %r2;
	st.global.u32 [%own], %r3;
""",
    leaves=[5] * 16 + [21] * 16,
)
LEAVE = Small(
    "leave",
    """
	setp.ge.u32 %p1, %i, 20;
	@%p1 exit;
	xor.b32 %r1, %i, 1;
	shfl.sync.bfly.b32 %r2|%p2, %i, 1, 31, -1;
	bar.warp.sync -1;
	st.global.u32 [%own], %r2;
""",
    leaves=[i ^ 1 for i in range(20)] + [0] * 12,
)
LANE_FAULTS = {
    "a shuffle in the loop": Fault(
        TRIANGLE,
        "sub.s32 %r2, %r2, 1;",
        "sub.s32 %r2, %r2, 1;\n\tshfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, -1;",
        "lanes of a warp wait for each other at different places",
    ),
    "others' lanes in the mask": Fault(
        HALVES, "-65536", "-1", "lanes of a warp wait for each other at different places"
    ),
    "from another group": Fault(HALVES, "%i, 20, 31", "%i, 3, 31", "a shuffle from lane 3, which takes no part"),
    "not in its mask": Fault(HALVES, "65535", "65534", "a lane that its own member mask leaves out"),
    "masks that differ": Fault(TILES, "%r2, %r1;", "%r2, %i;", "lanes that name different member masks|leaves out"),
    "from a lane that has left": Fault(LEAVE, "%i, 20", "%i, 19", "a shuffle from lane 19, which takes no part"),
}


FAULTS = SHARED_FAULTS | BARRIER_FAULTS | LANE_FAULTS
KERNELS = {fault.kernel.name: fault.kernel for fault in FAULTS.values()}


@pytest.mark.parametrize("name", KERNELS)
def test_right_kernels_pass(machine, name):
    assert set(in_every_order(machine, KERNELS[name], KERNELS[name].text())) == {""}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_seen(machine, name):
    fault = FAULTS[name]
    found = in_every_order(machine, fault.kernel, fault.text())
    assert all(found)
    assert any(re.search(fault.says, message, re.DOTALL) for message in found), found
    assert all(f"in {fault.kernel.name}" in message for message in found if message.startswith("ptx: "))


LINES = {  # the text of the line, of the PTX, that errors name
    "no barrier": "ld.shared.u32 %r5, [%r4+252];",
    "before its begin": "@!%p0 st.shared.u32 [%r3+-4], %i;",
    "used again too early": "st.shared.u32 [%r3], %r5;",
    "an assertion": "call.uni __assertfail, (param0, param1, param2, param3, param4);",
    "from another group": "shfl.sync.idx.b32 %r1|%p2, %i, 3, 31, -65536;",
}


@pytest.mark.parametrize("name", LINES)
def test_errors_name_the_line(machine, name):
    kernel, text = FAULTS[name].kernel, FAULTS[name].text()
    number = text[: text.index(LINES[name])].count("\n") + 1
    for said in in_every_order(machine, kernel, text):
        assert f"\n  at line {number} of the PTX:\t{LINES[name]}\n  block 0, warp " in said


def test_errors_name_the_source(machine):
    text = SHARED_FAULTS["no barrier"].text().replace("\tld.shared", "\t.loc 3 41 5\n\tld.shared")
    text += '\t.file 3 "mirror.cuh"\n'
    assert "\n  from mirror.cuh:41\n" in run(machine, MIRROR, text, order="in_turn")


def test_orders_are_all(machine):
    assert {order.name for order in machine.orders} == set(ORDERS)
