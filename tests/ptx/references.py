"""Arithmetic opcodes defined again in Python: for each name, a function of one thread's operands.

Integers are unbounded here: only a result's low bits count. None stands for a result that PTX leaves undefined.
"""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

DTYPES = {
    **{f"{sign}{bits}": np.dtype(f"{kind}{bits // 8}") for sign, kind in ("si", "uu") for bits in (8, 16, 32, 64)},
    **{f"b{bits}": np.dtype(f"u{bits // 8}") for bits in (16, 32, 64)},
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "pred": np.dtype(bool),
}


class Reference(NamedTuple):
    function: Callable[..., Any]
    result: np.dtype
    sources: tuple[np.dtype, ...]


REFERENCES: dict[str, Reference] = {}


def define(name, function, result, *sources):
    assert name not in REFERENCES, name
    REFERENCES[name] = Reference(function, DTYPES[result], tuple(DTYPES[source] for source in sources))


# ---- integers --------------------------------------------------------------------------------------------------------


def quotient(a, b):
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a, b):
    return None if b == 0 else a - b * quotient(a, b)


def shift_right(bits):
    return lambda a, by: a >> min(by, bits)  # Python's keep the sign


def shift_left(bits):
    return lambda a, by: a << by if by < bits else 0


def arithmetic(kind, bits):
    t = f"{kind}{bits}"
    define(f"add.{t}", operator.add, t, t, t)
    define(f"sub.{t}", operator.sub, t, t, t)
    define(f"mul.lo.{t}", operator.mul, t, t, t)
    define(f"mul.hi.{t}", lambda a, b: a * b >> bits, t, t, t)
    define(f"mad.lo.{t}", lambda a, b, c: a * b + c, t, t, t, t)
    define(f"mad.hi.{t}", lambda a, b, c: (a * b >> bits) + c, t, t, t, t)
    if bits < 64:
        wide = f"{kind}{2 * bits}"
        define(f"mul.wide.{t}", operator.mul, wide, t, t)
        define(f"mad.wide.{t}", lambda a, b, c: a * b + c, wide, t, t, wide)
    define(f"div.{t}", quotient, t, t, t)
    define(f"rem.{t}", remainder, t, t, t)
    define(f"min.{t}", min, t, t, t)
    define(f"max.{t}", max, t, t, t)
    define(f"shr.{t}", shift_right(bits), t, t, "u32")
    if kind == "s":
        define(f"abs.{t}", abs, t, t)
        define(f"neg.{t}", operator.neg, t, t)


def logic(bits):
    t = f"b{bits}"
    define(f"and.{t}", operator.and_, t, t, t)
    define(f"or.{t}", operator.or_, t, t, t)
    define(f"xor.{t}", operator.xor, t, t, t)
    define(f"not.{t}", operator.invert, t, t)
    define(f"shl.{t}", shift_left(bits), t, t, "u32")
    define(f"shr.{t}", shift_right(bits), t, t, "u32")


def extract_bits(bits, is_signed):
    def function(a, first, length):
        first, length = first & 255, length & 255
        if length == 0:
            return 0
        field = (a >> min(first, bits)) & ((1 << length) - 1)  # Python's a has its sign in all bits above
        return field - (1 << length) if is_signed and field >> (length - 1) else field

    return function


def insert_bits(bits):
    def function(a, b, first, length):
        field = ((1 << (length & 255)) - 1) << (first & 255)
        return (b & ~field) | (a << (first & 255) & field)

    return function


def look_up(a, b, c, table):
    bits = range(32)
    return sum((table >> (4 * (a >> k & 1) + 2 * (b >> k & 1) + (c >> k & 1)) & 1) << k for k in bits)


def permute(a, b, selectors):
    pool = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    result = []
    for k in range(4):
        selector = selectors >> 4 * k & 15
        byte = pool[selector & 7]
        result.append((255 if byte & 128 else 0) if selector & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def bit_fields():
    for bits in (32, 64):
        b, u, s = f"b{bits}", f"u{bits}", f"s{bits}"
        define(f"popc.{b}", int.bit_count, "u32", b)
        define(f"clz.{b}", lambda a, bits=bits: bits - a.bit_length(), "u32", b)
        define(f"brev.{b}", lambda a, bits=bits: int(f"{a:0{bits}b}"[::-1], 2), b, b)
        define(f"bfe.{u}", extract_bits(bits, is_signed=False), u, u, "u32", "u32")
        define(f"bfe.{s}", extract_bits(bits, is_signed=True), s, s, "u32", "u32")
        define(f"bfi.{b}", insert_bits(bits), b, b, b, "u32", "u32")
    define("prmt.b32", permute, "b32", "b32", "b32", "b32")
    three = ("b32", "b32", "u32")
    define("shf.l.wrap.b32", lambda a, b, c: (b << 32 | a) << (c & 31) >> 32, "b32", *three)
    define("shf.r.wrap.b32", lambda a, b, c: (b << 32 | a) >> (c & 31), "b32", *three)
    define("shf.l.clamp.b32", lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32, "b32", *three)
    define("shf.r.clamp.b32", lambda a, b, c: (b << 32 | a) >> min(c, 32), "b32", *three)


# ---- floating point --------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    precision: int  # bits of the significand
    least: int  # exponent of the smallest subnormal number
    most: int  # every finite number is less than 2 to the power of this


FORMATS = {"f32": Format(24, -149, 128), "f64": Format(53, -1074, 1024)}


def rounded(exact, form, mode):
    """The Fraction as a number of the format; zeros lose their sign."""
    size = abs(exact)
    if not size:
        return 0.0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - form.precision + 1, form.least)
    half = Fraction(1, 2)
    count, rest = divmod(size / unit, 1)
    nearest = rest > half or (rest == half and count % 2)
    away = {"rn": nearest, "rz": False, "rm": rest and exact < 0, "rp": rest and exact > 0}[mode]
    size = (count + bool(away)) * unit
    if size >= Fraction(2) ** form.most:
        to_infinity = {"rn": True, "rz": False, "rm": exact < 0, "rp": exact > 0}[mode]
        size = math.inf if to_infinity else Fraction(2) ** form.most - Fraction(2) ** (form.most - form.precision)
    return -float(size) if exact < 0 else float(size)


def square_root(x):
    """Of a Fraction: exact, or so near that it is rounded alike."""
    scaled = x.numerator * x.denominator << 400
    root = math.isqrt(scaled)
    return Fraction(2 * root + (root * root != scaled), 2 * x.denominator << 200)


def ieee(function, *numbers):
    """What is not a rounded fraction: infinities, NaNs and signs of zeros, as double arithmetic has them."""
    with np.errstate(all="ignore"):
        return float(function(*(np.float64(number) for number in numbers)))


def ieee_fma(a, b, c):
    return c if math.isfinite(a) and math.isfinite(b) and not math.isfinite(c) else a * b + c


# Of Fractions, and of numpy's numbers.
ROUNDED = {
    "add": (operator.add, operator.add, 2),
    "sub": (operator.sub, operator.sub, 2),
    "mul": (operator.mul, operator.mul, 2),
    "div": (operator.truediv, operator.truediv, 2),
    "rcp": (lambda a: 1 / a, lambda a: 1 / a, 1),
    "sqrt": (square_root, np.sqrt, 1),
    "fma": (lambda a, b, c: a * b + c, ieee_fma, 3),
}


def rounding_function(operation, t, mode):
    of_fractions, of_numbers, _ = ROUNDED[operation]

    def function(*numbers):
        if all(map(math.isfinite, numbers)):
            try:
                exact = of_fractions(*map(Fraction, numbers))
            except (ZeroDivisionError, ValueError):  # or the root of a negative number
                return ieee(of_numbers, *numbers)
            if exact:
                return rounded(exact, FORMATS[t], mode)
        return ieee(of_numbers, *numbers)

    return function


def smaller(a, b):
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return min((a, b), key=lambda x: (x, math.copysign(1, x)))


def larger(a, b):
    return -smaller(-a, -b)


def unless_nan(function):
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else function(a, b)


def floats(t):
    for operation, (_, _, sources) in ROUNDED.items():
        for mode in ("rn", "rz", "rm", "rp"):
            define(f"{operation}.{mode}.{t}", rounding_function(operation, t, mode), t, *[t] * sources)
    for operation in ("add", "sub", "mul"):
        define(f"{operation}.{t}", rounding_function(operation, t, "rn"), t, t, t)
    define(f"abs.{t}", abs, t, t)
    define(f"neg.{t}", operator.neg, t, t)
    define(f"min.{t}", smaller, t, t, t)
    define(f"max.{t}", larger, t, t, t)
    define(f"copysign.{t}", lambda a, b: math.copysign(b, a), t, t, t)


# ---- comparisons and selections --------------------------------------------------------------------------------------

COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
COMBINATIONS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def is_unordered(a, b):
    return math.isnan(a) or math.isnan(b)


def comparison(name, function, t):
    define(f"setp.{name}.{t}", function, "pred", t, t)
    for word, combine in COMBINATIONS.items():
        define(f"setp.{name}.{word}.{t}", lambda a, b, c, f=combine: f(function(a, b), c), "pred", t, t, "pred")


def comparisons():
    for bits in (16, 32, 64):
        for name, function in COMPARISONS.items():
            for kind in "bsu" if name in ("eq", "ne") else "su":
                comparison(name, function, f"{kind}{bits}")
        for name, function in UNSIGNED.items():
            comparison(name, function, f"u{bits}")
    for t in ("f32", "f64"):
        for name, function in COMPARISONS.items():
            comparison(name, lambda a, b, f=function: not is_unordered(a, b) and f(a, b), t)
            comparison(f"{name}u", lambda a, b, f=function: is_unordered(a, b) or f(a, b), t)
        comparison("num", lambda a, b: not is_unordered(a, b), t)
        comparison("nan", is_unordered, t)
    for t in [f"{kind}{bits}" for kind in "bsu" for bits in (16, 32, 64)] + ["f32", "f64"]:
        define(f"selp.{t}", lambda a, b, first: a if first else b, t, t, t, "pred")
        define(f"mov.{t}", lambda a: a, t, t)
    define("mov.pred", lambda a: a, "pred", "pred")
    define("not.pred", operator.not_, "pred", "pred")
    for word, combine in COMBINATIONS.items():
        define(f"{word}.pred", combine, "pred", "pred", "pred")


# ---- conversions -----------------------------------------------------------------------------------------------------

INTEGERS = [f"{kind}{bits}" for kind in "su" for bits in (8, 16, 32, 64)]
WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def clamp_to(t):
    limits = np.iinfo(DTYPES[t])
    return lambda a: min(max(a, int(limits.min)), int(limits.max))


def to_integer(source, t, round_to_whole):
    clamp, limits = clamp_to(t), np.iinfo(DTYPES[t])
    # 9.7.9.21: of a NaN, 0; where one of the types has 64 bits, only the uppermost bit.
    of_nan = 1 << (limits.bits - 1) if "64" in source + t else 0

    def function(a):
        if math.isnan(a):
            return of_nan
        return clamp(round_to_whole(a)) if math.isfinite(a) else int(limits.max if a > 0 else limits.min)

    return function


def to_whole(round_to_whole):
    return lambda a: math.copysign(round_to_whole(a), a) if math.isfinite(a) else a


def saturate(a):
    return 0.0 if math.isnan(a) or a <= 0 else min(a, 1.0)


def bits_of(a):
    return int(np.float32(a).view(np.uint32))


def half_bits(a):
    with np.errstate(over="ignore"):
        return 0x7FFF if math.isnan(a) else int(np.float32(a).astype(np.float16).view(np.uint16))


def bfloat16_bits(a):
    bits = bits_of(a)
    return 0x7FFF if math.isnan(a) else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def tf32_bits(a):  # ties away from zero
    return 0x7FFFFFFF if math.isnan(a) else (bits_of(a) + 0x1000) & ~0x1FFF


def conversions():
    for source in INTEGERS:
        for t in INTEGERS:
            define(f"cvt.{t}.{source}", lambda a: a, t, source)
            define(f"cvt.sat.{t}.{source}", clamp_to(t), t, source)
        for t, form in FORMATS.items():
            define(f"cvt.rn.{t}.{source}", lambda a, form=form: rounded(Fraction(a), form, "rn"), t, source)
            for name, function in WHOLE.items():
                define(f"cvt.{name}.{source}.{t}", to_integer(t, source, function), source, t)
    for t in FORMATS:
        for name, function in WHOLE.items():
            define(f"cvt.{name}.{t}.{t}", to_whole(function), t, t)
        define(f"cvt.sat.{t}.{t}", saturate, t, t)
    for mode in ("rn", "rz", "rm", "rp"):
        define(f"cvt.{mode}.f32.f64", narrow(mode), "f32", "f64")
    define("cvt.f64.f32", lambda a: a, "f64", "f32")
    define("cvt.f32.f16", lambda a: a, "f32", "f16")
    define("cvt.f32.bf16", lambda a: float(np.uint32(a << 16).view(np.float32)), "f32", "b16")
    define("cvt.rn.f16.f32", half_bits, "b16", "f32")
    define("cvt.rn.bf16.f32", bfloat16_bits, "b16", "f32")
    define("cvt.rna.tf32.f32", tf32_bits, "b32", "f32")
    define("cvt.rn.f16x2.f32", lambda a, b: half_bits(a) << 16 | half_bits(b), "b32", "f32", "f32")
    define("cvt.rn.bf16x2.f32", lambda a, b: bfloat16_bits(a) << 16 | bfloat16_bits(b), "b32", "f32", "f32")


def narrow(mode):
    return lambda a: rounded(Fraction(a), FORMATS["f32"], mode) or a * 0.0 if math.isfinite(a) else a


for kind_, bits_ in ((kind, bits) for kind in "su" for bits in (16, 32, 64)):
    arithmetic(kind_, bits_)
for bits_ in (16, 32, 64):
    logic(bits_)
bit_fields()
for type_ in FORMATS:
    floats(type_)
comparisons()
conversions()
define("min.NaN.f32", unless_nan(smaller), "f32", "f32", "f32")
define("max.NaN.f32", unless_nan(larger), "f32", "f32", "f32")
for space_ in ("global", "const"):
    define(f"cvta.{space_}.u64", lambda a: a, "u64", "u64")
    define(f"cvta.to.{space_}.u64", lambda a: a, "u64", "u64")
