"""Faults in grids that the machine refuses, in global memory as weak as PTX allows, and launches of wrong sizes."""

import ctypes
import re

import pytest

from ptx.faults import HEADER, Fault, Small, in_every_order

# ---- grids, whose blocks are all there -------------------------------------------------------------------------------

# Each block hands its number to the one before it, three times, with a barrier of the grid in between.
ROTATE = Small(
    "rotate",
    """
	mov.u32 %r1, %block;
	mov.u32 %r2, 0;
LOOP:
	add.s32 %r2, %r2, 1;
	mad.lo.s32 %r3, %r2, 6, %block;
	mul.wide.u32 %rd1, %r3, 4;
	add.s64 %rd1, %memory, %rd1;
	st.global.u32 [%rd1], %r1;
	mov.u32 %r4, 1;
	red.release.gpu.global.add.u32 [%memory], %r4;
	mul.lo.s32 %r5, %r2, 6;
AGAIN:
	ld.acquire.gpu.global.u32 %r6, [%memory];
	setp.lt.u32 %p1, %r6, %r5;
	@%p1 bra AGAIN;
	add.s32 %r7, %block, 1;
	rem.u32 %r7, %r7, 6;
	mad.lo.s32 %r7, %r2, 6, %r7;
	mul.wide.u32 %rd2, %r7, 4;
	add.s64 %rd2, %memory, %rd2;
	ld.global.u32 %r1, [%rd2];
	setp.lt.u32 %p2, %r2, 3;
	@%p2 bra LOOP;
""",
    leaves=[18, 0, 0, 0, 0, 0, *((i + t) % 6 for t in range(3) for i in range(6))],
    grid=6,
    block=1,
    cooperative=True,
)
# Block 0 leaves a number and then a flag; the other one waits for the flag, and takes the number.
PASS = Small(
    "pass",
    """
	add.s64 %rd1, %memory, 8;
	mov.u32 %r1, 1;
	mov.u32 %r2, 7;
	setp.ne.u32 %p1, %block, 0;
	@%p1 bra TAKE;
	st.global.u32 [%rd1], %r2;
	st.release.gpu.global.u32 [%memory], %r1;
	ret;
TAKE:
	ld.acquire.gpu.global.u32 %r3, [%memory];
	setp.eq.u32 %p2, %r3, 0;
	@%p2 bra TAKE;
	ld.global.u32 %r4, [%rd1];
	st.global.u32 [%own], %r4;
""",
    leaves=[1, 7, 7],
    grid=2,
    block=1,
    cooperative=True,
)
# The number is polled for, without a flag, and so may come at any time.
PASS_STRONG = PASS._replace(
    name="pass_strong",
    body=PASS.body.replace("st.global.u32 [%rd1]", "st.relaxed.gpu.global.u32 [%rd1]").replace(
        "ld.global.u32 %r4", "ld.relaxed.gpu.global.u32 %r4"
    ),
)
# Two warps of a block, through global memory; two blocks of a cluster.
IN_BLOCK = Small(
    "in_block",
    """
	setp.ge.u32 %p1, %i, 32;
	@!%p1 st.global.u32 [%own], %i;
	bar.sync 0;
	@!%p1 exit;
	ld.global.u32 %r1, [%own+-128];
	st.global.u32 [%own], %r1;
""",
    leaves=[*range(32)] * 2,
    block=64,
)
IN_CLUSTER = Small(
    "in_cluster",
    """
	setp.ne.u32 %p1, %rank, 0;
	@!%p1 st.global.u32 [%own], %i;
	barrier.cluster.arrive.release.aligned;
	barrier.cluster.wait.acquire.aligned;
	@!%p1 exit;
	ld.global.u32 %r1, [%own+-128];
	st.global.u32 [%own], %r1;
""",
    leaves=[*range(32)] * 2,
    grid=2,
    cluster=2,
)
IN_WARP = Small(
    "in_warp",
    """
	st.global.u32 [%own], %i;
	bar.warp.sync -1;
	xor.b32 %r1, %i, 1;
	mul.wide.u32 %rd1, %r1, 4;
	add.s64 %rd1, %memory, %rd1;
	ld.global.u32 %r2, [%rd1];
	bar.warp.sync -1; // before it is written again
	st.global.u32 [%own], %r2;
""",
    leaves=[i ^ 1 for i in range(32)],
)
# The barrier of cooperative groups, which count in a word that the launch brings.
GROUPS = Small(
    "groups",
    """
	mov.u32 %r1, %envreg1;
	mov.u32 %r2, %envreg2;
	mov.b64 %rd1, {%r2, %r1};
	setp.ne.s64 %p1, %rd1, 0;
	@%p1 bra THERE;
	trap;
THERE:
	st.global.u32 [%own], %block;
	mov.u32 %r3, 1;
	atom.add.release.gpu.u32 %r4, [%rd1+4], %r3;
AGAIN:
	ld.acquire.gpu.u32 %r5, [%rd1+4];
	setp.lt.u32 %p2, %r5, 6;
	@%p2 bra AGAIN;
	sub.s32 %r6, 5, %block;
	mul.wide.u32 %rd2, %r6, 4;
	add.s64 %rd2, %memory, %rd2;
	ld.global.u32 %r7, [%rd2];
	st.global.u32 [%own+24], %r7;
	setp.ge.u32 %p3, %r4, 6;
	@%p3 trap;
""",
    leaves=[*range(6), *range(5, -1, -1)],
    grid=6,
    block=1,
    cooperative=True,
)
STORE, LOAD = "st.release.gpu", "ld.acquire.gpu"
RACE = "a data race in global memory"
WEAK_FAULTS = {
    "a relaxed store of the flag": Fault(PASS, STORE, "st.relaxed.gpu", RACE),
    "a relaxed load of the flag": Fault(PASS, LOAD, "ld.relaxed.gpu", RACE),
    "a store of the block's scope": Fault(PASS, STORE, "st.release.cta", RACE),
    "a load of the block's scope": Fault(PASS, LOAD, "ld.acquire.cta", RACE),
    "of the cluster's scope": Fault(PASS, STORE, "st.release.cluster", RACE),
    "a plain flag": Fault(PASS, "st.release.gpu.global", "st.global", RACE),
    "an old number": Fault(PASS_STRONG, STORE, "st.relaxed.gpu", "a wrong result: \\[1, 0, 7\\]", always=False),
    "a relaxed count": Fault(ROTATE, "red.release", "red.relaxed", RACE),
    "no barrier of the block": Fault(IN_BLOCK, "bar.sync 0;", "", RACE),
    "no barrier of the cluster": Fault(
        IN_CLUSTER, IN_CLUSTER.body[IN_CLUSTER.body.index("barrier") : IN_CLUSTER.body.index("@!%p1 exit")], "", RACE
    ),
    "no barrier of the warp": Fault(IN_WARP, "bar.warp.sync -1;", "", RACE),
    "overwritten while it is read": Fault(
        IN_WARP, "bar.warp.sync -1; // before", "// before", "stores over what thread"
    ),
    "no barrier of cooperative groups": Fault(GROUPS, "@%p2 bra AGAIN;", "", RACE),
}
FAULTS = {
    "blocks one after the other": Fault(
        ROTATE._replace(cooperative=False), "", "", "nothing but polling goes on, in rotate"
    ),
    "no barrier of the grid": Fault(ROTATE, "@%p1 bra AGAIN;", "", "a wrong result", always=False),
    "groups that are not there": Fault(GROUPS._replace(cooperative=False), "", "", "a trap"),
    "data that never comes": Fault(
        PASS, "st.release.gpu.global.u32 [%memory], %r1;", "", "nothing but polling goes on"
    ),
}
KERNELS = {fault.kernel.name: fault.kernel for fault in WEAK_FAULTS.values()}
WEAK_SEEDS = 20


@pytest.mark.parametrize("name", KERNELS)
def test_right_kernels_pass(machine, name):
    kernel = KERNELS[name]
    assert set(in_every_order(machine, kernel, kernel.text())) == {""}
    assert set(in_every_order(machine, kernel, kernel.text(), WEAK_SEEDS, weak=True)) == {""}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_seen(machine, name):
    fault = FAULTS[name]
    found = in_every_order(machine, fault.kernel, fault.text())
    assert all(found) or (any(found) and not fault.always), found
    assert any(re.search(fault.says, message) for message in found), found


@pytest.mark.parametrize("name", WEAK_FAULTS)
def test_faults_are_seen_in_weak_memory(machine, name):
    fault = WEAK_FAULTS[name]
    found = in_every_order(machine, fault.kernel, fault.text(), WEAK_SEEDS, weak=True)
    assert all(found) or (any(found) and not fault.always), found
    assert any(re.search(fault.says, message) for message in found), found


def test_loads_see_older_values(machine):
    """Many loads of the flag see old values with ``weak``, and none without."""
    before = machine.totals().stale
    in_every_order(machine, PASS, PASS.text(), WEAK_SEEDS)
    assert machine.totals().stale == before
    in_every_order(machine, PASS, PASS.text(), WEAK_SEEDS, weak=True)
    assert machine.totals().stale > before


# ---- what a GPU refuses to launch ------------------------------------------------------------------------------------


def launch(machine, declared="", directive="", declaration="", **how):
    text = f"{HEADER}.visible .entry nothing({declared}){directive}\n{{\n\t{declaration}\n\tret;\n}}\n"
    arguments = [0] * declared.count(".param")
    machine.launch(text, "nothing", **{"block": (1, 1, 1), "arguments": arguments} | how)


def parameters(count):
    return ", ".join(f".param .align 8 .b8 parameter{number}[8]" for number in range(count))


MOST_SHARED = 227 << 10
STATIC = ".shared .align 4 .b8 memory[1024];\n\tst.shared.u32 [memory], 1;"
LARGE = {"cluster": 16, "large_cluster": True}
LIMITS = [
    ({"block": (1024, 1, 1)}, {"block": (1025, 1, 1)}, "threads of a block: 1025, 1 to 1024"),
    ({"block": (32, 32, 1)}, {"block": (33, 32, 1)}, "threads of a block: 1056, 1 to 1024"),
    ({}, {"block": (0, 1, 1)}, "threads of a block: 0, 1 to 1024"),
    ({"block": (1, 1, 64)}, {"block": (1, 1, 65)}, "a block's z of 65, at most 64"),
    (
        {"directive": "\n.maxntid 96, 1, 1", "block": (96, 1, 1)},
        {"directive": "\n.maxntid 96, 1, 1", "block": (97, 1, 1)},
        "threads of a block: 97, by __launch_bounds__ at most 96",
    ),
    ({"grid": (1, 1, 1)}, {"grid": (0, 1, 1)}, "a grid of no blocks"),
    ({"grid": (1, 65535, 1)}, {"grid": (1, 65536, 1)}, "a grid's y or z of 65536, at most 65535"),
    ({"grid": (1, 1, 65535)}, {"grid": (1, 1, 65536)}, "a grid's y or z of 65536, at most 65535"),
    ({}, {"grid": (1 << 31, 1, 1)}, "a grid's x of 2147483648, at most 2147483647"),
    ({"shared_bytes": 49152}, {"shared_bytes": 49153}, "bytes of dynamic shared memory: 49153, asked for 49152"),
    (
        {"shared_bytes": 60000, "allowed_shared": 60000},
        {"shared_bytes": 60004, "allowed_shared": 60000},
        "bytes of dynamic shared memory: 60004, asked for 60000",
    ),
    (
        {"declaration": STATIC, "shared_bytes": MOST_SHARED - 1024, "allowed_shared": MOST_SHARED},
        {"declaration": STATIC, "shared_bytes": MOST_SHARED - 1020, "allowed_shared": MOST_SHARED},
        "bytes of shared memory of a block: 232452, at most 232448",
    ),
    ({"declared": parameters(512)}, {"declared": parameters(513)}, "bytes of parameters: 4104, at most 4096"),
    (
        {"grid": (8, 1, 1), "cluster": 8},
        {"grid": (9, 1, 1), "cluster": 9},
        "blocks of a cluster: 9, without having asked at most 8",
    ),
    (
        {"grid": (16, 1, 1), **LARGE},
        {"grid": (17, 1, 1), **LARGE, "cluster": 17},
        "blocks of a cluster: 17, 1 to 16",
    ),
    ({}, {"cluster": 0}, "blocks of a cluster: 0, 1 to 16"),
    (
        {"grid": (6, 1, 1), "cluster": 3},
        {"grid": (7, 1, 1), "cluster": 3},
        "a grid's x of 7, no multiple of the cluster's 3",
    ),
    ({}, {"grid": (2, 1, 1), "cluster": 2, "cooperative": True}, "a cooperative launch of clusters"),
    (
        {"grid": (132, 1, 1), "block": (256, 1, 1), "cooperative": True},
        {"grid": (133, 1, 1), "block": (256, 1, 1), "cooperative": True},
        "blocks of a cooperative launch: 133, at most 132",
    ),
    (
        {"grid": (264, 1, 1), "shared_bytes": 115712, "allowed_shared": MOST_SHARED, "cooperative": True},
        {"grid": (264, 1, 1), "shared_bytes": 115716, "allowed_shared": MOST_SHARED, "cooperative": True},
        "blocks of a cooperative launch: 264, at most 132",
    ),
]


@pytest.mark.parametrize(("most", "more", "says"), LIMITS)
def test_launches_that_a_gpu_refuses(machine, most, more, says):
    launch(machine, **most)
    with pytest.raises(RuntimeError, match=re.escape(f"ptx: {says}") + ".*, of nothing"):
        launch(machine, **more)


class Dim3(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in "xyz"]


def test_host_code_is_told(machine):
    """By the return codes of the CUDA runtime."""
    runtime, host = machine.library, ctypes.create_string_buffer(1)
    name = next(name for name in machine.names() if "store_numbers" in name).encode()
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    runtime.__getattr__("__cudaRegisterFunction")(None, host, None, name, *[None] * 6)

    def launch(threads, shared):
        sizes = (Dim3(1, 1, 1), Dim3(threads, 1, 1), None, ctypes.c_size_t(shared), None)
        error = runtime.__getattr__("__cudaLaunchKernel")(host, *sizes)
        return error, runtime.cudaGetErrorString(error).decode().partition(", of")[0]

    invalid_value, invalid_configuration, not_supported, dynamic_shared = 1, 9, 801, 8
    assert launch(1025, 0) == (invalid_configuration, "threads of a block: 1025, 1 to 1024")
    asked = "bytes of dynamic shared memory: {}, asked for {}"
    assert launch(32, 49153) == (invalid_configuration, asked.format(49153, 49152))
    assert runtime.cudaFuncSetAttribute(host, dynamic_shared, 60000) == 0
    assert launch(32, 60001) == (invalid_configuration, asked.format(60001, 60000))
    assert runtime.cudaFuncSetAttribute(host, dynamic_shared, MOST_SHARED + 1) == invalid_value
    assert runtime.cudaFuncSetAttribute(host, 9, 0) == not_supported
    blocks = ctypes.c_int()
    ask = runtime.cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
    assert ask(ctypes.byref(blocks), host, 128, ctypes.c_size_t(0), 0) == 0 and blocks.value == 2
    assert ask(ctypes.byref(blocks), host, 128, ctypes.c_size_t(MOST_SHARED), 0) == 0 and blocks.value == 1
