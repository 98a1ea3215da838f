"""Every opcode of arithmetic on the machine, against Python: on edge values and on random ones."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch

from ptx.kernels import apply
from ptx.references import DTYPES, REFERENCES

THREADS = 500  # the last warp is not full
# Memory and barriers: what is done to them is no arithmetic.
MEMORY = {"ld", "st", "red", "atom", "mbarrier", "mapa", "fence", "membar", "barrier", "bar", "nanosleep"}
# Those with tests of their own: below, in test_warp_opcodes.py and in test_parser.py.
ELSEWHERE = {
    *("lop3.b32", "mov.globaltimer", "mov.clock64", "cvta.shared.u64", "cvta.to.shared.u64", "trap", "trap.assert"),
    *(f"mov.{way}{parts}.{t}" for way in ("pack", "unpack") for parts in (2, 4) for t in ("b32", "b64")),
    *(f"shfl.sync.{how}.b32" for how in ("idx", "bfly", "up", "down")),
    *("vote.sync.any.pred", "vote.sync.all.pred", "vote.sync.uni.pred", "vote.sync.ballot.b32", "activemask.b32"),
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
}


# ---- values ----------------------------------------------------------------------------------------------------------


def edges(dtype):
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        sizes = [0, 0.5, 1, 1.5, 2.5, 3, 127.5, 255.5, 65519, 65520, 2**31, 2**32, 2**63, 2**64, math.inf]
        sizes += [1 + 2.0**-bits for bits in (8, 9, 11, 12)] + [2.0**-24, 1.5 * 2.0**-25]  # ties of narrower formats
        sizes += [limits.smallest_subnormal, limits.tiny, limits.max]
        with np.errstate(over="ignore"):
            return np.array([sign * float(size) for size in sizes for sign in (1, -1)] + [math.nan], dtype)
    limits = np.iinfo(dtype)
    small = [0, 1, 2, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 0x1234]
    all_ = [*small, *(-size for size in small), limits.min, limits.min + 1, limits.max, limits.max - 1]
    return np.array([value for value in all_ if limits.min <= value <= limits.max], dtype)


def random_values(dtype, rng):
    """Of all sizes."""
    if dtype.kind == "b":
        return rng.random(THREADS) < 0.5
    bits = np.frombuffer(rng.bytes(THREADS * dtype.itemsize), dtype).copy()
    if dtype.kind != "f":
        return bits >> rng.integers(0, 8 * dtype.itemsize, THREADS).astype(dtype)
    exponents = rng.integers(-6, 14 if dtype.itemsize == 2 else 40, THREADS)
    ordinary = (rng.uniform(-1, 1, THREADS) * 2.0**exponents).astype(dtype)
    return np.where(rng.random(THREADS) < 0.3, bits, ordinary)


def values(dtypes, rng):
    """For each source as many as there are threads: edges with edges, edges with random values, random values."""
    columns = []
    for dtype in dtypes:
        special = edges(dtype)
        chosen = special[rng.integers(0, len(special), THREADS)]
        columns.append(np.where(rng.random(THREADS) < 0.6, chosen, random_values(dtype, rng)).astype(dtype))
    if len(dtypes) == 1:  # then all edges fit in
        columns[0][: len(special)] = special
    return columns


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def expected_of(reference, columns):
    """The results' bits, and which of them are defined."""
    numbers = [reference.function(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    defined = np.array([number is not None for number in numbers])
    filled = [0 if number is None else number for number in numbers]
    if reference.result.kind in "iu":
        size = 8 * reference.result.itemsize
        return np.array([number & ((1 << size) - 1) for number in filled], f"u{reference.result.itemsize}"), defined
    return bits(np.array(filled, reference.result)), defined


def are_equal(actual, expected, dtype):
    same = bits(actual) == expected
    if dtype.kind == "f":  # any NaN is as good
        same |= np.isnan(actual) & np.isnan(expected.view(dtype))
    return same


FAMILIES = collections.defaultdict(list)
for name_ in REFERENCES:
    first_, _, _ = name_.partition(".")
    FAMILIES[f"setp {name_.rpartition('.')[2]}" if first_ == "setp" else first_].append(name_)


@pytest.mark.parametrize("family", FAMILIES)
def test_against_python(machine, family):
    rng = np.random.default_rng(len(family))
    for name in FAMILIES[family]:
        reference = REFERENCES[name]
        columns = values(reference.sources, rng)
        operands = ", ".join(["%d0", *(f"%s{k}" for k in range(len(columns)))])
        (actual,) = apply(machine, f"{name} {operands};", [reference.result], *columns)
        expected, defined = expected_of(reference, columns)
        wrong = defined & ~are_equal(actual, expected, reference.result)
        if reference.result.kind == "f" and ".rm." in name:  # an exact difference of 0 is -0 then
            wrong &= (actual != 0) | (expected.view(reference.result) != 0)
        assert not wrong.any(), (
            f"{name}: {wrong.sum()} are wrong, first of {[column[wrong][0] for column in columns]}: "
            f"{actual[wrong][0]}, not {expected.view(reference.result)[wrong][0]}"
        )


def test_every_opcode_is_tested(machine):
    arithmetic = {name for name in machine.opcodes() if name.partition(".")[0] not in MEMORY}
    tested = set(REFERENCES) | ELSEWHERE | set(approximate_opcodes())
    assert arithmetic - tested == set(), "opcodes without a test"
    assert tested - arithmetic == set(), "tests of opcodes that are gone"


# ---- approximations --------------------------------------------------------------------------------------------------


def units(size):
    """An error of so many units in the last place of the result."""
    return lambda exact, _: size * np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def logarithm_bound(exact, argument):
    return np.where((argument > 0.5) & (argument < 2), 2.0**-22, 2 * np.spacing(np.abs(exact).astype(np.float32)))


# Name: the function, the range of its arguments, and the greatest error that PTX allows (9.7.3.13 to 9.7.3.22).
APPROXIMATIONS = {
    "rcp": (lambda a: 1 / a, (1e-30, 1e30), units(1)),
    "sqrt": (np.sqrt, (1e-30, 1e30), units(1)),
    "rsqrt": (lambda a: 1 / np.sqrt(a), (1e-30, 1e30), units(2)),
    "sin": (np.sin, (1e-3, math.pi), lambda exact, _: 2.0**-20.5),
    "cos": (np.cos, (1e-3, math.pi), lambda exact, _: 2.0**-20.5),
    "lg2": (np.log2, (1e-30, 1e30), logarithm_bound),
    "ex2": (np.exp2, (1e-3, 100), units(2)),
    "tanh": (np.tanh, (1e-3, 10), lambda exact, _: 2.0**-11 * np.abs(exact)),
}


def approximate_opcodes():
    names = [f"{name}.approx{ftz}.f32" for name in APPROXIMATIONS for ftz in ("", ".ftz")]
    names.remove("tanh.approx.ftz.f32")
    return [*names, "div.full.f32", "div.approx.f32", "rcp.approx.ftz.f64"]


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations(machine, name):
    function, (least, most), bound = APPROXIMATIONS[name]
    rng = np.random.default_rng(1)
    arguments = np.exp(rng.uniform(math.log(least), math.log(most), THREADS)).astype(np.float32)
    if name in ("sin", "cos", "ex2", "tanh"):
        arguments *= rng.choice([-1, 1], THREADS).astype(np.float32)
    exact = function(arguments.astype(np.float64))
    for opcode in [opcode for opcode in approximate_opcodes() if opcode.startswith(f"{name}.") and "f32" in opcode]:
        machine.options()
        (fine,) = apply(machine, f"{opcode} %d0, %s0;", [np.float32], arguments)
        assert (np.abs(fine - exact) <= units(2)(exact, arguments)).all(), opcode
        machine.options(rough=True)
        (rough,) = apply(machine, f"{opcode} %d0, %s0;", [np.float32], arguments)
        (again,) = apply(machine, f"{opcode} %d0, %s0;", [np.float32], arguments)
        machine.options()
        error = np.abs(rough - exact)
        allowed = bound(exact, arguments)
        assert (error <= allowed + units(1)(exact, arguments)).all(), opcode
        assert (error / allowed).max() > 0.7, opcode
        assert (rough != fine).mean() > 0.2 and (rough == again).all(), opcode


def test_approximations_at_the_edges(machine):
    tiny = 2.0**-140
    cases = [
        ("rcp.approx.f32", [0.0, -0.0, math.inf, math.nan], [math.inf, -math.inf, 0, math.nan]),
        ("rcp.approx.ftz.f32", [tiny, -tiny, 2.0**127], [math.inf, -math.inf, 0]),
        ("ex2.approx.f32", [-math.inf, math.inf, 0, 3, -149, 200], [0, math.inf, 1, 8, 2.0**-149, math.inf]),
        ("ex2.approx.ftz.f32", [-149, -126, tiny], [0, 2.0**-126, 1]),
        ("lg2.approx.f32", [0, 1, -1, 8, tiny, math.inf], [-math.inf, 0, math.nan, 3, -140, math.inf]),
        ("lg2.approx.ftz.f32", [tiny], [-math.inf]),
        ("sqrt.approx.f32", [0, -1, 4, math.inf], [0, math.nan, 2, math.inf]),
        ("tanh.approx.f32", [0, math.inf, -math.inf, math.nan], [0, 1, -1, math.nan]),
    ]
    for opcode, arguments, expected in cases:
        (actual,) = apply(machine, f"{opcode} %d0, %s0;", [np.float32], np.array(arguments, np.float32))
        np.testing.assert_array_equal(actual, np.array(expected, np.float32), opcode)


def test_approximate_quotients(machine):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, THREADS)).astype(np.float32)
    for rough, opcode in itertools.product([False, True], ["div.full.f32", "div.approx.f32"]):
        machine.options(rough=rough)
        (actual,) = apply(machine, f"{opcode} %d0, %s0, %s1;", [np.float32], a, b)
        machine.options()
        exact = a.astype(np.float64) / b
        error = np.abs(actual - exact) / units(1)(exact, a)
        assert error.max() <= (2.5 if rough else 0.5) and (error.max() > 1) == rough


def test_reciprocal_of_the_upper_half(machine):
    a = np.random.default_rng(3).standard_normal(THREADS)
    a[:3] = [0.0, math.inf, 2.0**-1040]
    (actual,) = apply(machine, "rcp.approx.ftz.f64 %d0, %s0;", [np.float64], a)
    assert actual[:3].tolist() == [math.inf, 0, math.inf]
    assert (bits(actual) & 0xFFFFFFFF == 0).all()
    assert np.abs(actual[3:] * a[3:] - 1).max() < 2.0**-18


# ---- opcodes of other shapes -----------------------------------------------------------------------------------------


def test_lookup_of_three(machine):
    rng = np.random.default_rng(4)
    a, b, c = (random_values(DTYPES["b32"], rng) for _ in range(3))
    for table in (0x00, 0x01, 0x80, 0x96, 0xCA, 0xE8, 0xFF, 0x1B):
        (actual,) = apply(machine, f"lop3.b32 %d0, %s0, %s1, %s2, {table};", [np.uint32], a, b, c)
        rows = [(k & 4, k & 2, k & 1) for k in range(8) if table >> k & 1]
        expected = np.zeros_like(a)
        for row in rows:
            expected |= np.bitwise_and.reduce([x if wanted else ~x for x, wanted in zip((a, b, c), row, strict=True)])
        assert (actual == expected).all(), table


@pytest.mark.parametrize("operator", ["", ".and", ".or", ".xor"])
@pytest.mark.parametrize("negated", ["", "!"])
def test_second_predicate_of_a_comparison(machine, operator, negated):
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 3, (2, THREADS)).astype(np.int32)
    c = rng.random(THREADS) < 0.5
    third = f", {negated}%s2" if operator else ""
    statement = f"setp.lt{operator}.s32 %d0|%d1, %s0, %s1{third};"
    actual = apply(machine, statement, [bool, bool], a, b, c)
    for result, compared in zip(actual, (a < b, a >= b), strict=True):
        other = ~c if negated else c
        combined = {"": compared, ".and": compared & other, ".or": compared | other, ".xor": compared ^ other}
        assert (result == combined[operator]).all()
    (only_second,) = apply(machine, statement.replace("%d0|%d1", "_|%d0"), [bool], a, b, c)
    assert (only_second == actual[1]).all()


PARTS = [("b32", 2, "u2"), ("b32", 4, "u1"), ("b64", 2, "u4"), ("b64", 4, "u2")]


@pytest.mark.parametrize(("whole", "count", "part"), PARTS)
def test_parts_of_registers(machine, whole, count, part):
    values = random_values(DTYPES[whole], np.random.default_rng(6))
    parts = values.view(part).reshape(THREADS, count)
    names = [f"%d{k}" for k in range(count)]
    unpacked = apply(machine, f"mov.{whole} {{{', '.join(names)}}}, %s0;", [part] * count, values)
    assert (np.stack(unpacked, 1) == parts).all()
    (last,) = apply(machine, f"mov.{whole} {{{'_, ' * (count - 1)}%d0}}, %s0;", [part], values)
    assert (last == parts[:, -1]).all()
    columns = [np.ascontiguousarray(parts[:, k]) for k in range(count)]
    sources = ", ".join(f"%s{k}" for k in range(count))
    (packed,) = apply(machine, f"mov.{whole} %d0, {{{sources}}};", [values.dtype], *columns)
    assert (packed == values).all()
    (packed,) = apply(machine, f"mov.{whole} %d0, {{%s0{', 0x12' * (count - 1)}}};", [values.dtype], columns[0])
    assert (bits(packed).view(part).reshape(THREADS, count)[:, 1:] == 0x12).all()


def test_only_lanes_whose_predicate_is_true(machine):
    a = np.arange(THREADS, dtype=np.int32)
    guard = np.random.default_rng(7).random(THREADS) < 0.5
    for sign in ("", "!"):
        statement = f"mov.s32 %d0, -1;\n\t@{sign}%s1 add.s32 %d0, %s0, 7;"
        (actual,) = apply(machine, statement, [np.int32], a, guard)
        assert (actual == np.where(guard ^ bool(sign), a + 7, -1)).all()
    statement = "setp.eq.s32 %d0, %s0, %s0;\n\t@%s1 setp.ne.s32 %d0, %s0, %s0;"
    (actual,) = apply(machine, statement, [bool], a, guard)
    assert (actual == ~guard).all()


def test_values_of_the_whole_half_format(machine):
    half = np.arange(65536, dtype=np.uint16).view(np.float16)
    for part in half.reshape(64, 1024):
        (wide,) = apply(machine, "cvt.f32.f16 %d0, %s0;", [np.float32], part)
        np.testing.assert_array_equal(wide, part.astype(np.float32))
        (back,) = apply(machine, "cvt.rn.f16.f32 %d0, %s0;", [np.float16], wide)
        np.testing.assert_array_equal(back, part)


def test_conversions_agree_with_torch(machine):
    rng = np.random.default_rng(8)
    values = np.concatenate([random_values(DTYPES["f32"], rng), edges(DTYPES["f32"])])
    for opcode, dtype in (("cvt.rn.f16.f32", torch.float16), ("cvt.rn.bf16.f32", torch.bfloat16)):
        (actual,) = apply(machine, f"{opcode} %d0, %s0;", [np.int16], values)
        expected = torch.from_numpy(values).to(dtype)
        assert torch.equal(torch.nan_to_num(torch.from_numpy(actual).view(dtype), 77), torch.nan_to_num(expected, 77))
