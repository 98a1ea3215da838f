"""csrc/cpu/simd/functions.h: vectorized exp, tanh and sigmoid against float64, to a few eps."""

import math

import numpy as np
import pytest
import torch

from support import emulated
from support.compiling import FLAGS, Functions, compile_library

SOURCE = """
#include "cells/math.h"
#include "cpu/simd/functions.h"
#include "lanes.h"
using namespace fused_rnn;
using namespace fused_rnn::cpu;
#define FUNCTIONS(T) UNARY(exp, T) UNARY(tanh, T) UNARY(sigmoid, T) UNARY(relu, T) UNARY(positive, T)
FUNCTIONS(float) FUNCTIONS(double)
"""
EXACT = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "positive": lambda x: torch.where(x.isnan(), x, (x > 0).to(x.dtype)),
}
DTYPES = {"float": torch.float32, "double": torch.float64}
NAMES = [f"{name}_{kind}" for name in EXACT for kind in DTYPES]


@pytest.fixture(scope="module", params=[*FLAGS, "neon"])
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vector")
    if request.param == "neon":
        functions = emulated.Functions(folder, SOURCE, emulated.FLAGS["neon"], NAMES)
    else:
        functions = Functions(compile_library(folder, SOURCE, FLAGS[request.param]))
    functions.fuses = request.param not in ("baseline", "scalar")  # products and sums, rounding once
    return functions


def call(library, name, kind, x):
    y = torch.empty_like(x)
    library.apply(f"{name}_{kind}", y, x)
    return y


def every_size(dtype):
    """Random numbers and both ends of every exponent, denormals and both signs included; densest around 0."""
    info = torch.finfo(dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    mantissa_bits = round(-math.log2(info.eps))
    exponents = torch.arange(torch.tensor(torch.inf, dtype=dtype).view(bits) >> mantissa_bits, dtype=bits)
    mantissas = torch.randint(1 << mantissa_bits, (30,), dtype=bits)
    mantissas = torch.cat([mantissas, torch.tensor([0, 1, (1 << mantissa_bits) - 1], dtype=bits)])
    sizes = ((exponents.unsqueeze(1) << mantissa_bits) + mantissas).flatten().view(dtype)
    dense = [torch.linspace(-end, end, 50_021) for end in (0.4, 1.1, 12, 100)]  # where formulas change, among others
    dense = torch.cat(dense).to(dtype)
    return torch.cat([sizes, -sizes, dense])


def exactly(name, x):
    """In double, or for double in long double; where that is double too, its error is one eps."""
    if x.dtype == torch.float32:
        return EXACT[name](x.double()).numpy()
    wide = x.numpy().astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        return {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[name](wide)


def units_in_the_last_place(numbers, info):
    """Denormals have the unit of the smallest normal number."""
    digits = round(1 - math.log2(info.eps))
    return np.ldexp(1.0, np.maximum(np.frexp(numbers)[1], round(math.log2(info.tiny)) + 1) - digits)


def bound_of(name, kind, fuses):
    """What functions.h states, in units in the last place."""
    if kind == "double":
        return 8  # 4 eps
    return {"exp": 2, "tanh": 1, "sigmoid": 1 if fuses else 1.2}[name]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid"])
def test_error_bound(library, name, kind):
    """Also of the tiny numbers around tanh 0."""
    x = every_size(DTYPES[kind])
    if name == "exp":
        x = x[x.abs() < (87 if kind == "float" else 707)]
    found, expected = call(library, name, kind, x).numpy(), exactly(name, x)
    info = torch.finfo(x.dtype)
    error = np.abs(found - expected)
    in_units = np.asarray(error / units_in_the_last_place(np.asarray(expected, dtype=float), info), dtype=float)
    if name == "sigmoid":  # 0 where it would be below the normal numbers, or nearly so
        far = x.numpy() < (-87.3 if kind == "float" else -708)
        assert (found[far] == 0).all() and error[far].max() <= 2 * info.tiny
        in_units[far] = 0
    worst, bound = in_units.argmax(), bound_of(name, kind, library.fuses)
    assert in_units[worst] <= bound, f"{name}({x[worst].item()!r}) is off by {in_units[worst]:.2f} units"


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(("name", "low", "high"), [("sigmoid", 0, 1), ("tanh", -1, 1)])
def test_range_and_monotony(library, name, low, high, kind):
    """1 - y * y and y * (1 - y) are never negative; results never decrease."""
    dtype = DTYPES[kind]
    some = torch.linspace(-25, 25, 200_003, dtype=torch.float64).to(dtype)
    far = torch.logspace(1, 38, 1_003, dtype=torch.float64).to(dtype)
    # Runs of neighbouring numbers, where the functions are steep and where they flatten.
    near = [
        torch.tensor(x, dtype=dtype).nextafter(torch.tensor(torch.inf)) * (1 + torch.finfo(dtype).eps * n)
        for x in (1e-3, 0.17, 1.0, 3.7, 8.5, 15.0, 17.5, 18.5)
        for n in [torch.arange(5_000, dtype=torch.float64).to(dtype)]
    ]
    for x in (some, *near, torch.cat([-far.flip(0), far])):
        for ordered in (x, -x.flip(0)):
            y = call(library, name, kind, ordered)
            assert y.min() >= low and y.max() <= high
            fall = ((y[:-1] - y[1:]) / (y[:-1].abs() * torch.finfo(dtype).eps).clamp(min=torch.finfo(dtype).tiny)).max()
            assert fall <= 2, f"{name} falls by {fall:.1f} eps"


def test_every_exponent_is_tried():
    for dtype, exponents in ((torch.float32, 255), (torch.float64, 2047)):
        x = every_size(dtype)
        assert x.isfinite().all() and (x == 0).any()
        exponent = x[x >= torch.finfo(dtype).tiny].frexp().exponent
        assert exponent.unique().numel() == exponents - 1, "those of normal numbers"
        assert ((x > 0) & (x < torch.finfo(dtype).tiny)).sum() > 30 <= ((x < 0) & (x > -torch.finfo(dtype).tiny)).sum()


@pytest.mark.parametrize("kind", DTYPES)
def test_ends(library, kind):
    """Past the range of exp, at infinity and for NaN; 67 numbers: whole vectors and a scalar rest."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([120.0, -120.0, 1e4, -1e4, inf, -inf, 0.0, -0.0, nan], dtype=DTYPES[kind]).repeat(8)[:67]
    ends = torch.isnan(x)
    for name in ("tanh", "sigmoid"):
        found, expected = call(library, name, kind, x), EXACT[name](x)
        assert torch.equal(found.isnan(), ends)
        assert torch.equal(found[~ends], expected[~ends])
    for name in ("relu", "positive"):
        torch.testing.assert_close(call(library, name, kind, x), EXACT[name](x), equal_nan=True, rtol=0, atol=0)


# ---- short functions, for bfloat16 only ------------------------------------------------------------------------------

SHORT = 2.0**-13


@pytest.fixture(scope="module", params=["native", "neon_bf16"])
def short_library(request, tmp_path_factory):
    """The same on every instruction set, but for the estimates of AVX-512 and NEON."""
    folder = tmp_path_factory.mktemp("short")
    if request.param == "neon_bf16":
        return emulated.Functions(folder, SOURCE, emulated.FLAGS["neon_bf16"], NAMES)
    flags = f"{FLAGS.get('native', FLAGS['baseline'])} -DFUSED_RNN_BFLOAT16_PRODUCTS=1"
    return Functions(compile_library(folder, SOURCE, flags))


def test_error_bound_of_short_functions(short_library):
    x = every_size(torch.float32)
    info = torch.finfo(torch.float32)
    for name, bound in {
        "exp": lambda y: y * SHORT,
        "tanh": lambda y: abs(y) * SHORT,
        "sigmoid": lambda y: np.minimum(y, 1 - y) * SHORT + 4 * info.eps * y,
    }.items():
        some = x[x.abs() < 87]
        found, expected = call(short_library, name, "float", some).numpy(), exactly(name, some)
        excess = np.abs(found - expected) - bound(expected) - info.tiny
        worst = excess.argmax()
        assert excess[worst] <= 0, f"{name}({some[worst].item()!r}) = {found[worst]}, should be {expected[worst]}"


@pytest.mark.parametrize(("name", "low"), [("sigmoid", 0), ("tanh", -1)])
def test_ends_of_short_functions(short_library, name, low):
    inf, nan = float("inf"), float("nan")
    y = call(short_library, name, "float", torch.tensor([inf, 1e4, 50.0, -50.0, -1e4, -inf, nan, 0.0] * 5))
    assert y[6].isnan()
    torch.testing.assert_close(y[:3], torch.ones(3), rtol=SHORT, atol=0)
    torch.testing.assert_close(y[3:6], torch.full((3,), float(low)), rtol=SHORT, atol=1e-20)
    dense = call(short_library, name, "float", torch.linspace(-60, 60, 100_003))
    assert dense.min() >= low and dense.max() <= 1
