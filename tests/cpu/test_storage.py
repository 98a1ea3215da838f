"""csrc/cpu/simd/storage.h against torch's own conversions of float16 and bfloat16."""

import pytest
import torch

from support import emulated
from support.compiling import FLAGS, Functions, compile_library

SOURCE = """
#include "cpu/simd/storage.h"
using namespace fused_rnn;
using namespace fused_rnn::cpu;
#define CONVERSIONS(name, S)                                                                     \\
  extern "C" void load_##name(float* to, const S* from, int64_t n) { load_row(to, from, n); }    \\
  extern "C" void store_##name(S* to, const float* from, int64_t n) { store_row(to, from, n); }  \\
  extern "C" void load_vectors_##name(float* to, const S* from, int64_t n) {                     \\
    for (int64_t i = 0; i < n; i += Vec<float>::kLanes)                                          \\
      store_vector(to + i, load_vector(from + i, n - i), n - i);                                 \\
  }                                                                                              \\
  extern "C" void store_vectors_##name(S* to, const float* from, int64_t n) {                    \\
    for (int64_t i = 0; i < n; i += Vec<float>::kLanes)                                          \\
      store_vector(to + i, load_vector(from + i, n - i), n - i);                                 \\
  }
CONVERSIONS(float16, Half)
CONVERSIONS(bfloat16, BFloat16)
"""
DTYPES = (torch.float16, torch.bfloat16)
BY = ("", "vectors_")  # numbers one by one, or whole vectors and a rest
NAMES = [f"{what}_{by}{name}" for what in ("load", "store") for by in BY for name in ("float16", "bfloat16")]
EVERY_16_BITS = torch.arange(1 << 16).to(torch.uint16)


@pytest.fixture(scope="module", params=("unoptimised", *FLAGS, "neon", "neon_bf16"))
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("storage")
    if request.param in emulated.FLAGS:
        return emulated.Functions(folder, SOURCE, emulated.FLAGS[request.param], NAMES)
    return Functions(compile_library(folder, SOURCE, FLAGS.get(request.param, "-O0")))


def convert(library, name, source, dtype):
    to = torch.empty(source.shape, dtype=dtype)
    library.apply(name, to, source)
    return to


def short(dtype):
    return str(dtype).removeprefix("torch.")


def assert_same_bits(found, expected, integers):
    """Bitwise equal, signs of zero included; any NaN equals any other."""
    assert torch.equal(found.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(found[numbers].view(integers), expected[numbers].view(integers))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_load(library, dtype, by):
    stored = EVERY_16_BITS.view(dtype)
    found = convert(library, f"load_{by}{short(dtype)}", stored, torch.float32)
    assert_same_bits(found, stored.float(), torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_of_store(library, dtype):
    stored = EVERY_16_BITS.view(dtype)
    found = convert(library, f"store_{short(dtype)}", stored.float(), dtype)
    assert_same_bits(found, stored, torch.int16)


def random_floats():
    """Random bits: every exponent, both signs, NaN and infinity."""
    seed = torch.Generator().manual_seed(0)
    return torch.randint(-(1 << 31), 1 << 31, (1 << 22,), generator=seed).to(torch.int32).view(torch.float32)


def halfway_floats(dtype):
    """Halfway points between neighbours of the 16-bit format, and the two floats next to each."""
    values = EVERY_16_BITS.view(dtype).double()
    values = values[values.isfinite()].unique()
    halfway = ((values[1:] + values[:-1]) / 2).float()
    assert torch.equal(halfway.double() * 2, values[1:] + values[:-1]), (
        "a halfway point has one bit more than the format"
    )
    infinity = torch.tensor(torch.inf)
    return torch.cat([halfway, halfway.nextafter(infinity), halfway.nextafter(-infinity)])


def edge_floats(dtype):
    """Around the largest number, where rounding goes to infinity, the smallest ones, and zero."""
    info = torch.finfo(dtype)
    spacing = info.max * info.eps / 2
    centres = [0.0, info.max, info.tiny, info.smallest_normal * info.eps, torch.finfo(torch.float32).max]
    centres += [info.max + spacing * k / 4 for k in range(8)] + [torch.finfo(torch.float32).tiny, torch.inf, torch.nan]
    bits = torch.tensor(centres, dtype=torch.float64).float().view(torch.int32).unsqueeze(1)
    positive = (bits + torch.arange(-300, 300, dtype=torch.int32)).flatten()
    floats = positive[positive >= 0].view(torch.float32)
    return torch.cat([floats, -floats])


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["random", "halfway", "edges"])
def test_store(library, dtype, which, by):
    floats = {"random": random_floats, "halfway": lambda: halfway_floats(dtype), "edges": lambda: edge_floats(dtype)}
    given = floats[which]()
    found = convert(library, f"store_{by}{short(dtype)}", given, dtype)
    assert_same_bits(found, given.to(dtype), torch.int16)
    if which == "edges":
        assert found.isinf().any() and found.isnan().any() and (found == torch.finfo(dtype).max).any()
