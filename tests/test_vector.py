"""csrc/cpu/vector.h: the vectorized exp, tanh and sigmoid against float64 ones, to the last units of precision."""

import ctypes

import pytest
import torch
from compiling import FLAGS, compile_library

SOURCE = """
#include "cells/math.h"
#include "cpu/vector.h"
using namespace fused_rnn;
#define FUNCTION(name, T)                                                                          \\
  extern "C" void name##_##T(T* to, const T* from, int64_t n) {                                    \\
    for_lanes<T>(n, [&](auto lanes, int64_t j) {                                                   \\
      store_lanes(to + j, fused_rnn::name(load_lanes<decltype(lanes)>(from + j)));                 \\
    });                                                                                            \\
  }
#define FUNCTIONS(T) FUNCTION(exp, T) FUNCTION(tanh, T) FUNCTION(sigmoid, T) FUNCTION(relu, T) FUNCTION(positive, T)
FUNCTIONS(float) FUNCTIONS(double)
"""
EXACT = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "positive": lambda x: (x > 0).to(x.dtype),
}
DTYPES = {"float": torch.float32, "double": torch.float64}


@pytest.fixture(scope="module", params=FLAGS)
def library(request, tmp_path_factory):
    return compile_library(tmp_path_factory.mktemp("vector"), SOURCE, FLAGS[request.param])


def call(library, name, kind, x):
    y = torch.empty_like(x)
    function = getattr(library, f"{name}_{kind}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(y.data_ptr(), x.data_ptr(), x.numel())
    return y


def arguments(dtype):
    """Every size of number, both signs, densest where gates live."""
    spread = torch.logspace(-30, 2, 20_011, dtype=torch.float64)
    around_small = torch.linspace(-0.4, 0.4, 9_973, dtype=torch.float64)  # tanh changes its formula at 0.17
    return torch.cat([spread, -spread, around_small, torch.linspace(-60, 60, 50_021)]).to(dtype)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_close_to_exact(library, name, kind):
    x = arguments(DTYPES[kind])
    if name == "exp":
        x = x[x.abs() < (87 if kind == "float" else 700)]
    found, expected = call(library, name, kind, x), EXACT[name](x.double())
    units = (found.double() - expected).abs() / (expected.abs() * torch.finfo(x.dtype).eps)
    # Far out sigmoid ends at e^-87 (float) where it ought to go on to 0: both are nothing beside 1.
    units = units[expected.abs() > torch.finfo(x.dtype).tiny * 100]
    assert units.nan_to_num(nan=0.0).max() <= 4


@pytest.mark.parametrize("kind", DTYPES)
def test_ends(library, kind):
    """Past the range of exp, at infinity and for NaN; 67 numbers: whole vectors and a scalar rest."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([120.0, -120.0, 1e4, -1e4, inf, -inf, 0.0, -0.0, nan], dtype=DTYPES[kind]).repeat(8)[:67]
    ends = torch.isnan(x)
    for name in ("tanh", "sigmoid"):
        found, expected = call(library, name, kind, x), EXACT[name](x)
        assert torch.equal(found.isnan(), ends)
        torch.testing.assert_close(found[~ends], expected[~ends], rtol=1e-6, atol=1e-37)
    for name in ("relu", "positive"):
        torch.testing.assert_close(call(library, name, kind, x), EXACT[name](x), equal_nan=True, rtol=0, atol=0)
