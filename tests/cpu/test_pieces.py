"""A sequence cut in pieces, its state carried over: from how many rows (steps times batch) on the bits are the same.

Fewer rows are computed without packing the weights, which adds the products up in another order.
"""

import re

import pytest
import torch

import fused_rnn
from support.compiling import CSRC
from support.paths import ROOT

TUNING = (CSRC / "cpu/schedule/tuning.h").read_text()


def tuned(name):
    """A constant of tuning.h."""
    return int(re.search(rf"\b{name} = ([\d']+)[,;]", TUNING)[1].replace("'", ""))


FEW, MANY, MOST = (tuned(f"kLeastRowsToPack{weights}") for weights in ("Few", "Many", "Most"))
MANY_WEIGHTS, MOST_WEIGHTS = tuned("kManyWeightsToPack"), tuned("kMostWeightsToPackSoon")
HALF, BFLOAT16 = tuned("kLeastRowsToPackHalf"), tuned("kLeastRowsToPackBFloat16")
SPLIT_ROWS, SPLIT_BATCH, SPLIT_UNITS = map(tuned, ("kLeastSplitRows", "kLeastSplitBatch", "kLeastSplitUnits"))
ON_TILES = fused_rnn.info()["CPU instruction set for large float32 layers"] == "amx"

# dtype, units, rows from which on the bits are the same; a GRU has 3 H^2 recurrent weights.
CASES = [
    (torch.float32, 20, FEW),
    (torch.float32, 128, MANY),
    (torch.float32, 464, MOST),
    (torch.float32, 460, MANY),  # rows of weights that do not fill cache lines
    (torch.float64, 20, FEW),
    (torch.float64, 128, MANY),
    (torch.bfloat16, 128, BFLOAT16),
    (torch.float16, 128, HALF),
]


def is_same(dtype, hidden, steps, batch=1, pieces=6):
    """Whether ``pieces`` pieces of ``steps`` steps give the bits of one call."""
    torch.manual_seed(0)
    layer = fused_rnn.GRU(48, hidden, dtype=dtype)
    input = torch.randn(pieces * steps, batch, 48, dtype=dtype)
    with torch.no_grad():
        whole, _ = layer(input)
        outputs, hx = [], None
        for piece in input.split(steps):
            output, hx = layer(piece, hx)
            outputs.append(output)
    return torch.equal(torch.cat(outputs), whole)


@pytest.mark.parametrize(("dtype", "hidden", "least"), CASES)
def test_pieces_of_enough_rows_give_the_same_bits(dtype, hidden, least):
    assert (3 * hidden**2 >= MANY_WEIGHTS) == (hidden >= 128)
    assert (3 * hidden**2 >= MOST_WEIGHTS) == (hidden >= 460)
    for rows in range(least, least + 8):
        assert is_same(dtype, hidden, rows), rows
        assert is_same(dtype, hidden, (rows + 2) // 3, batch=3), rows
    if dtype.itemsize > 2:  # h rounded to 16 bits seldom shows a difference
        assert not is_same(dtype, hidden, least - 1), "then the documentation promises less than is true"


@pytest.mark.skipif(not ON_TILES, reason="this processor has no tiles for float32")
def test_pieces_of_enough_rows_give_the_same_bits_on_tiles():
    steps = SPLIT_ROWS // SPLIT_BATCH
    assert is_same(torch.float32, SPLIT_UNITS, steps, SPLIT_BATCH)
    assert not is_same(torch.float32, SPLIT_UNITS, steps - 1, SPLIT_BATCH, pieces=20)


def test_the_documentation_has_these_numbers():
    page = " ".join((ROOT / "docs/precision.md").read_text().split())
    assert f"each piece has {FEW} rows (steps times batch) or more" in page
    assert f"{MANY} where W<sub>hh</sub> has {MANY_WEIGHTS:,} weights or more, {MOST} from {MOST_WEIGHTS:,} on" in page
    assert f"{BFLOAT16} in bfloat16, {HALF} in float16" in page
    assert f"with a batch of {SPLIT_BATCH} or more and {SPLIT_UNITS} units or more, {SPLIT_ROWS}" in page
