"""Parsing PTX: declarations, operands, and errors with their place."""

import numpy as np
import pytest

from ptx.kernels import HEADER, apply, kernel, memory


def words(count):
    return np.arange(count, dtype=np.uint32)


# ---- errors ----------------------------------------------------------------------------------------------------------

REFUSED = [
    ("add.s31 %d0, %s0, 1;", "unknown opcode add.s31"),
    ("add.s32 %d0, %s0, %s7;", "unknown register %s7"),
    ("add.s32 %d0, %s0, %arg9;", "unknown register %arg9"),
    ("add.s32 %d0, %s0, %arg0;", "another size than %arg0"),
    ("add.s64 %d0, %arg0, %arg0;", "another size than %d0"),
    ("and.pred %d0, %d0, %d0;", "another size than %d0"),
    ("add.s32 %d0, %s0, 1, 2;", "more operands"),
    ("add.s32 %d0, %s0;", "fewer operands"),
    ("add.s32;", "fewer operands"),
    ("add.s32 _, %s0, 1;", "no register for the result"),
    ("add.s32 %d0, %s0, 08;", "not a number: 08"),
    ("neg.s32 %d0, !%s0;", "not a predicate"),
    ("@%s0 mov.u32 %d0, 1;", "not a predicate"),
    ("ld.local.u32 %d0, [%at];", "local memory"),
    ("st.local.u32 [%at], %d0;", "local memory"),
    (".local .align 4 .b8 stack[16];", "local memory"),
    (".branchtargets A, B;", "unknown directive .branchtargets"),
    ("call.uni (%d0), compute, (%s0);", "call of compute"),
    ("bra NOWHERE;", "no label NOWHERE"),
    ("HERE:\n\tHERE: mov.u32 %d0, 1;", "label HERE is there twice"),
    ("mov.u64 %at, elsewhere;", "unknown register elsewhere"),
    ("ld.global.u32 %d0, [4096];", "unknown register 4096"),
]


@pytest.mark.parametrize(("statement", "reason"), REFUSED)
def test_error_names_kernel_and_line(machine, statement, reason):
    with pytest.raises(RuntimeError) as caught:
        apply(machine, f"\n\t{statement}\n", [np.uint32], words(1))
    text = str(caught.value)
    assert text.startswith("ptx: ") and reason in text
    assert "in kernel applied" in text and " of the PTX: " in text
    assert statement.startswith("bra") or statement.splitlines()[-1].strip() in text


def test_line_of_an_error(machine):
    text = kernel("small", 0, "\t// a comment\n\tmov.u32 %tid,\n\t\t7;\n\tfrobnicate.u32 %tid;\n")
    line = text.splitlines().index("\tfrobnicate.u32 %tid;") + 1
    with pytest.raises(RuntimeError, match=f"in kernel small\n  at line {line} of the PTX: frobnicate.u32 %tid;"):
        machine.launch(text, "small")


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        (".visible .func compute() { ret; }", "not a kernel"),
        (".global .texref t;", "declaration"),
        (".global .u32 n = {1, 2};", "begins with too much"),
        (".global .u64 n = {generic(n)};", "which is no number"),
        (".frobnicate 7;", "declaration"),
        ("/* without an end", "comment"),
    ],
)
def test_declarations_that_are_refused(machine, declaration, reason):
    with pytest.raises(RuntimeError, match=reason) as caught:
        machine.launch(f"{HEADER}{declaration}\n{kernel('small', 0, '')}", "small")
    assert "of the PTX" in str(caught.value)


def test_source_line_in_an_error(machine):
    files = '\t.file\t1 "/sources/other.cu"\n\t.file\t2 "/sources//file.cu", 1700000000, 4711\n'
    section = "\t.section\t.debug_str\n\t{\n$L__info_string0:\n.b8 95,90,0\n\n\t}\n"
    location = ".loc\t2 12 3, function_name $L__info_string0, inlined_at 1 99 5"
    body = f"\t.loc\t1 7 3\n\tmov.u32 %tid, 7;\n\t{location}\n\tld.global.u32 %tid, [%at];\n\t.loc 1 8 1\n"
    text = kernel("small", 0, "\tmov.u64 %at, 0;\n" + body) + files + section
    with pytest.raises(RuntimeError, match=r"from /sources//file\.cu:12\n"):
        machine.launch(text, "small")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("trap;", "a trap"),
        (
            "{\n\t.param .b64 param0;\n\tst.param.b64 [param0+0], %arg0;\n"
            "\tcall.uni\n\t__assertfail,\n\t(\n\tparam0\n\t);\n\t}",
            "a device assertion",
        ),
    ],
)
def test_trap_is_an_error_where_it_is_executed(machine, statement, reason):
    guarded = f"setp.ge.u32 %p, %s0, 5;\n\t@%p bra AFTER;\n\t{statement}\nAFTER:\n\tmov.b32 %d0, 3;"
    declarations = "\t.reg .pred %p;\n"
    (actual,) = apply(machine, guarded, [np.uint32], words(1) + 9, declarations=declarations)
    assert actual == 3
    with pytest.raises(RuntimeError, match=reason):
        apply(machine, guarded, [np.uint32], words(1), declarations=declarations)


# ---- operands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("literal", "dtype", "value"),
    [
        ("-1", np.int32, -1),
        ("0x1F", np.int32, 31),
        ("017", np.int32, 15),
        ("0b101", np.int32, 5),
        ("0", np.int32, 0),
        ("4294967295U", np.uint32, 2**32 - 1),
        ("-9223372036854775808", np.int64, -(2**63)),
        ("0f3F800000", np.float32, 1),
        ("0dBFF8000000000000", np.float64, -1.5),
        ("WARP_SZ", np.int32, 32),
    ],
)
def test_literals(machine, literal, dtype, value):
    (actual,) = apply(machine, f"mov.b{8 * np.dtype(dtype).itemsize} %d0, {literal};", [dtype], words(1))
    assert actual == value


def test_predicate_literals(machine):
    for literal, value in (("-1", True), ("1", True), ("0", False)):
        (actual,) = apply(machine, f"mov.pred %d0, {literal};", [bool], words(40))
        assert (actual == value).all()


def test_wider_registers_than_types(machine):
    # Sources count with their low bits, results are filled up (9.4.1): also in the lanes of a guard only.
    values = np.array([5, -7, 2**31, -(2**40) + 3], np.int64)
    low = values.astype(np.int32)
    (actual,) = apply(machine, "cvt.rn.f32.s32 %d0, %s0;", [np.float32], values)
    assert (actual == low.astype(np.float32)).all()
    guard = np.array([True, False, True, True])
    for opcode, expected in (("s64.s32", low.astype(np.int64)), ("s32.s32", low), ("u32.u32", low.view(np.uint32))):
        statement = f"mov.b64 %d0, 1;\n\t@%s1 cvt.{opcode} %d0, %s0;"
        (actual,) = apply(machine, statement, [np.int64], values, guard)
        assert (actual == np.where(guard, expected, 1)).all()
    pointer = "mad.wide.u32 %at, %tid, 8, %arg0;\n\t"
    for opcode, expected in (("s32", low), ("u32", low.view(np.uint32)), ("s16", low.astype(np.int16))):
        (actual,) = apply(machine, f"{pointer}ld.global.{opcode} %d0, [%at];", [np.int64], values)
        assert (actual == expected).all()
    store = "mad.wide.u32 %at, %tid, 4, %arg1;\n\tst.global.u32 [%at], %s0;\n\tmov.b32 %d0, %tid;"
    text = f"{store}\n\tld.global.u32 %d0, [%at];"
    (actual,) = apply(machine, text, [np.int32], values)
    assert (actual == low).all()


def test_scopes_have_registers_and_labels_of_their_own(machine):
    loop = """{
    .reg .pred %p;
    .reg .b32 %n;
    mov.u32 %n, 0;
LOOP:
    add.u32 %n, %n, 1;
    add.u32 %d0, %d0, STEP;
    setp.lt.u32 %p, %n, 3;
    @%p bra LOOP;
    setp.gt.u32 %p, %s0, 1;
    @%p bra.uni OUT;
    }
"""
    statement = "mov.u32 %d0, 0;\n" + loop.replace("STEP", "1") + loop.replace("STEP", "100") + "OUT:\n"
    (actual,) = apply(machine, statement, [np.uint32], words(4))
    assert actual.tolist() == [303, 303, 3, 3]


def test_addresses(machine):
    values = words(8) + 10
    base = "mov.u64 %at, %arg0;\n\t"
    for address, expected in (("[%at]", 10), ("[%at+8]", 12), ("[ %at + 0x10 ]", 14)):
        (actual,) = apply(machine, f"{base}ld.global.u32 %d0, {address};", [np.uint32], values)
        assert (actual == expected).all()
    (actual,) = apply(machine, "add.u64 %at, %arg0, 8;\n\tld.global.u32 %d0, [%at+-8];", [np.uint32], values)
    assert (actual == 10).all()
    (actual,) = apply(machine, "add.u64 %at, %arg0, 8;\n\tld.global.u32 %d0, [%at-4];", [np.uint32], values)
    assert (actual == 11).all()


def test_special_registers(machine):
    names = ["%tid.x", "%tid.y", "%ntid.x", "%ntid.y", "%ctaid.x", "%nctaid.x", "%laneid", "%warpid"]
    body = "\tmad.lo.u32 %n, %y, 20, %tid;\n\tmad.lo.u32 %n, %c, 40, %n;\n\tmad.wide.u32 %at, %n, 32, %arg0;\n"
    for k, name in enumerate(names):
        body += f"\tmov.u32 %n, {name};\n\tst.global.u32 [%at+{4 * k}], %n;\n"
    body = "\tmov.u32 %y, %tid.y;\n\tmov.u32 %c, %ctaid.x;\n" + body
    out = memory(np.zeros((3, 2, 20, 8), np.uint32))
    text = kernel("special", 1, body, "\t.reg .b32 %n, %y, %c;\n")
    machine.launch(text, "special", grid=(3, 1, 1), block=(20, 2, 1), arguments=[out.data_ptr()])
    c, y, x = np.indices((3, 2, 20))
    number = 20 * y + x
    expected = np.stack([x, y, 0 * x + 20, 0 * x + 2, c, 0 * x + 3, number % 32, number // 32], -1)
    assert (out.numpy().view(np.uint32).reshape(expected.shape) == expected).all()


@pytest.mark.parametrize("clock", ["%globaltimer", "%clock64"])
def test_time_goes_by(machine, clock):
    statement = f"mov.u64 %d0, {clock};\n\tadd.u32 %tid, %tid, 0;\n\tmov.u64 %d1, {clock};"
    first, second = apply(machine, statement, [np.uint64, np.uint64], words(1))
    assert second == first + 2


# ---- variables -------------------------------------------------------------------------------------------------------


def addresses_of(machine, names, outside="", inside="", shared_bytes=0):
    """Of shared variables: byte offsets, the first of which is the block's first byte."""
    body = "".join(f"\tmov.u32 %n, {name};\n\tst.global.u32 [%arg0+{4 * k}], %n;\n" for k, name in enumerate(names))
    text = kernel("variables", 1, body, f"\t.reg .b32 %n;\n{inside}")
    text = HEADER + outside + text.removeprefix(HEADER)
    out = memory(np.zeros(len(names), np.uint32))
    machine.launch(text, "variables", block=(1, 1, 1), arguments=[out.data_ptr()], shared_bytes=shared_bytes)
    return (out.numpy().view(np.uint32) - 1024).tolist()


def test_shared_variables(machine):
    dynamic = ".extern .shared .align 16 .b8 dynamic[];\n"
    outside = ".shared .align 4 .b8 unused[512];\n.shared .align 8 .f64 outside[2][3];\n" + dynamic
    inside = "\t.shared .align 2 .b8 inside[6];\n\t.shared .u32 one;\n"
    names = ["inside", "outside", "one", "dynamic", "inside"]
    assert addresses_of(machine, names, outside, inside) == [0, 8, 56, 128, 0]
    assert addresses_of(machine, ["dynamic"], dynamic) == [0]


def test_static_shared_memory_holds_what_is_stored(machine):
    statement = "mov.u64 %at, one;\n\tst.shared.u32 [one], %s0;\n\tld.shared.u32 %d0, [%at];"
    (actual,) = apply(machine, statement, [np.uint32], words(1) + 5, declarations="\t.shared .align 4 .b8 one[4];\n")
    assert actual == 5


def test_global_variables(machine):
    outside = (
        ".visible .global .align 4 .u32 numbers[4] = {1, 0xFF, -1};\n"
        ".const .align 8 .f64 half = 0d3FE0000000000000;\n.global .align 1 .b8 $str$1[2] = {65};\n"
    )
    body = "\tmov.u64 %at, numbers;\n\tcvta.global.u64 %at, %at;\n"
    for k in range(4):
        body += f"\tld.global.u32 %n, [%at+{4 * k}];\n\tst.global.u32 [%arg0+{4 * k}], %n;\n"
    body += "\tld.global.u8 %byte, [$str$1];\n\tst.global.u8 [%arg0+16], %byte;\n"
    out = memory(np.zeros(5, np.uint32))
    text = HEADER + outside + kernel("variables", 1, body, "\t.reg .b32 %n;\n").removeprefix(HEADER)
    machine.launch(text, "variables", block=(1, 1, 1), arguments=[out.data_ptr()])
    assert out.numpy().view(np.uint32).tolist() == [1, 255, 2**32 - 1, 0, 65]


def test_parameters_lie_where_their_alignment_says(machine):
    text = f"""{HEADER}.entry parameters(
    .param .u8 a,
    .param .u64 .ptr .global .align 16 out,
    .param .align 4 .b8 bytes[6],
    .param .u16 b
)
.maxntid 64, 1, 1
.minnctapersm 2
{{
    .reg .b64 %at, %base;
    .reg .b16 %h<3>;
    ld.param.u64 %at, [out];
    ld.param.u8 %h0, [a];
    ld.param.u16 %h1, [b];
    mov.b64 %base, bytes;
    ld.param.u16 %h2, [%base+4];
    st.global.v4.u16 [%at], {{%h0, %h1, %h2, %h2}};
    ret;
}}
"""
    out = memory(np.zeros(4, np.uint16))
    machine.launch(text, "parameters", arguments=[7, out.data_ptr(), 0x665544332211, 300])
    assert out.numpy().view(np.uint16).tolist() == [7, 300, 0x6655, 0x6655]


def test_module_of_several_kernels(machine):
    first, second = kernel("first", 0, "\ttrap;\n"), kernel("second", 0, "")
    machine.launch(first + second.removeprefix(HEADER), "second")
    with pytest.raises(RuntimeError, match="no kernel is called third"):
        machine.launch(first, "third")
