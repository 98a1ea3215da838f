"""csrc/cpu/simd/more_functions.h and its scalar twins: against float64, and at the ends against torch's functions."""

import ctypes
import itertools
import math

import numpy as np
import pytest
import torch

from support.compiling import FLAGS, compile_library

SOURCE = """
#include "cells/dual.h"
#include "cpu/simd/more_functions.h"
#include "lanes.h"
using namespace fused_rnn;
using namespace fused_rnn::cpu;
#define BINARY(name, T)                                                                            \\
  namespace both { using fused_rnn::name; using fused_rnn::cpu::name; }                            \\
  extern "C" void name##_##T(T* to, const T* a, const T* b, int64_t n) {                           \\
    for_lanes<T>(n, [&](auto lanes, int64_t j) {                                                   \\
      using V = decltype(lanes);                                                                   \\
      store_lanes(to + j, both::name(load_lanes<V>(a + j), load_lanes<V>(b + j)));                 \\
    });                                                                                            \\
  }
#define FUNCTIONS(T)                                                                               \\
  UNARY(exp, T) UNARY(log, T) UNARY(log1p, T) UNARY(expm1, T) UNARY(sqrt, T) UNARY(sin, T)         \\
  UNARY(cos, T) UNARY(erf, T) UNARY(abs, T) UNARY(sign, T)                                         \\
  BINARY(pow, T) BINARY(minimum, T) BINARY(maximum, T) BINARY(less, T) BINARY(less_equal, T)       \\
  BINARY(equal, T)
FUNCTIONS(float) FUNCTIONS(double)
#define DUAL(name)                                                                                 \\
  extern "C" void name##_dual(double* to, const double* x, int64_t n) {                            \\
    for (int64_t j = 0; j < n; ++j) to[j] = fused_rnn::name(Dual<double>(x[j], 1.)).tangent;       \\
  }
#define DUAL_PAIR(name)                                                                            \\
  extern "C" void name##_dual(double* to, const double* a, const double* b, int64_t n) {           \\
    for (int64_t j = 0; j < n; ++j)                                                                \\
      to[j] = fused_rnn::name(Dual<double>(a[j], 1.), Dual<double>(b[j], -3.)).tangent;            \\
  }
DUAL(exp) DUAL(log) DUAL(log1p) DUAL(expm1) DUAL(sqrt) DUAL(sin) DUAL(cos) DUAL(erf) DUAL(abs) DUAL(sign)
DUAL(sigmoid) DUAL(tanh) DUAL(relu) DUAL_PAIR(pow) DUAL_PAIR(minimum) DUAL_PAIR(maximum)
extern "C" void select_double(double* to, const double* mask, const double* a, const double* b, int64_t n) {
  for_lanes<double>(n, [&](auto lanes, int64_t j) {
    using V = decltype(lanes);
    store_lanes(to + j, select(load_lanes<V>(mask + j), load_lanes<V>(a + j), load_lanes<V>(b + j)));
  });
}
"""
DTYPES = {"float": torch.float32, "double": torch.float64}
# The bounds that more_functions.h states, in units in the last place; the others are the math library's.
BOUNDS = {"exp": 4, "log": 4, "log1p": 4, "expm1": 4, "sqrt": 0.51}
UNARY = ["exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "erf", "abs", "sign"]
TO_TORCH = {"less": torch.lt, "less_equal": torch.le, "equal": torch.eq}
INF, NAN = math.inf, math.nan
ENDS = [0.0, 1.0, -1.0, -2.0, 0.5, 1e4, -1e4, INF, -INF, NAN, 88.5, -95.0, 3.0]


@pytest.fixture(scope="module", params=FLAGS)
def library(request, tmp_path_factory):
    return compile_library(tmp_path_factory.mktemp("vector"), SOURCE, FLAGS[request.param])


def call(library, name, kind, *given):
    result = torch.empty_like(given[0])
    function = getattr(library, f"{name}_{kind}")
    function.argtypes = [ctypes.c_void_p] * (1 + len(given)) + [ctypes.c_int64]
    function(*(t.data_ptr() for t in (result, *given)), result.numel())
    return result


def numbers(name, dtype):
    """Every exponent, both signs where the function has them, and densely where formulas change."""
    info = torch.finfo(dtype)
    lowest, highest = round(math.log2(info.tiny)) - round(-math.log2(info.eps)) + 1, round(math.log2(info.max)) - 1
    exponents = torch.arange(lowest, highest + 1, dtype=torch.float64)
    sizes = ((1 + torch.rand(40, 1, dtype=torch.float64)) * 2**exponents).flatten()
    dense = torch.cat([torch.linspace(low, high, 40_001, dtype=torch.float64) for low, high in ((-3, 3), (0.5, 2.1))])
    x = torch.cat([sizes, -sizes, dense]).to(dtype)
    if name in ("log", "sqrt"):
        return x[x > 0]
    if name == "log1p":
        return x[x > -1]
    limit = {torch.float32: 88.7, torch.float64: 709.7}[dtype]
    return x[x.abs() < limit]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_error_bound(library, name, kind):
    dtype = DTYPES[kind]
    info, x = torch.finfo(dtype), numbers(name, dtype)
    found = call(library, name, kind, x).numpy().astype(np.longdouble)
    expected = getattr(np, name)(x.numpy().astype(np.longdouble))
    # Denormals have the unit of the smallest normal number.
    digits = round(1 - math.log2(info.eps))
    least = round(math.log2(info.tiny)) + 1
    unit = np.ldexp(1.0, np.maximum(np.frexp(expected.astype(float))[1], least) - digits)
    error = np.abs(found - expected) / unit
    worst = error.argmax()
    assert error[worst] <= BOUNDS[name], f"{name}({x[worst].item()!r}) is off by {float(error[worst]):.2f} units"


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_ends(library, name, kind):
    """What torch gives, NaN and infinities included; 67 numbers: whole vectors and a scalar rest."""
    x = torch.tensor(ENDS * 6, dtype=DTYPES[kind])[:67]
    expected = getattr(torch, name)(x)
    tiny = torch.finfo(x.dtype).tiny
    torch.testing.assert_close(call(library, name, kind, x), expected, rtol=1e-6, atol=tiny, equal_nan=True)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", ["pow", "minimum", "maximum", "less", "less_equal", "equal"])
def test_pairs(library, name, kind):
    a, b = (torch.tensor(t, dtype=DTYPES[kind]) for t in zip(*itertools.product(ENDS, ENDS), strict=True))
    expected = TO_TORCH.get(name, getattr(torch, name, None))(a, b).to(a.dtype)
    torch.testing.assert_close(call(library, name, kind, a, b), expected, rtol=1e-6, atol=0, equal_nan=True)


def test_select_passes_nothing_of_the_other_side(library):
    mask, a, b = (torch.tensor(t * 7, dtype=torch.float64) for t in ([0, 1, 0, 2], [NAN, 1, INF, 3], [5, NAN, 6, INF]))
    found = call(library, "select", "double", mask, a, b)
    assert found.tolist() == [5, 1, 6, 3] * 7


@pytest.mark.parametrize("name", [*UNARY, "sigmoid", "tanh", "relu"])
def test_tangents(library, name):
    x = torch.tensor([0.3, 2.0, 0.01, -0.4, -3.0, 800.0, -800.0], dtype=torch.float64)
    if name in ("log", "log1p", "sqrt"):
        x = x[x > 0]
    expected = torch.func.jvp(getattr(torch, name), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(call(library, name, "dual", x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["pow", "minimum", "maximum"])
def test_tangents_of_pairs(library, name):
    """Equal numbers and powers of zero and with exponent zero included."""
    values = [0.0, 0.5, 2.0, 3.0] if name == "pow" else [-1.0, 0.0, 2.0]
    a, b = (torch.tensor(t, dtype=torch.float64) for t in zip(*itertools.product(values, values), strict=True))
    ones = torch.ones_like(a)
    expected = torch.func.jvp(getattr(torch, name), (a, b), (ones, -3 * ones))[1]
    torch.testing.assert_close(call(library, name, "dual", a, b), expected, rtol=1e-12, atol=0)
