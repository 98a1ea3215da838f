"""Random layers for the CUDA engines: sizes around those of their blocks."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

from fused_rnn.tools.verify import Case
from support.problems import SIXTEEN_BITS

SCHEDULES = range(10)  # the machine's orders of events


THOROUGH = max(1, settings.default.max_examples // 200)  # as it is when tests are collected


def examples(count):
    """The machine is slow: ``count`` examples of a test, and ten times as many with --hypothesis-profile=thorough."""
    return settings(max_examples=count * THOROUGH)


def short(parameter):
    return str(parameter).removeprefix("torch.")


# ---- stepwise --------------------------------------------------------------------------------------------------------

# Around the widths of warps and blocks, and odd ones.
widths = st.integers(1, 9) | st.sampled_from([31, 33, 64, 65, 130])
stepwise_cases = st.builds(
    Case,
    name=st.just("random"),
    steps=st.integers(1, 6),
    batch=st.integers(0, 6),
    input_size=widths,
    hidden=widths,
    num_layers=st.integers(1, 2),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    proj_size=st.just(0) | st.integers(1, 40),
    states=st.booleans(),
    lengths=st.booleans(),
    packed=st.booleans(),
    reset=st.booleans(),
    recurrent_dropout=st.sampled_from([0.0, 0.5]),
    zoneout=st.sampled_from([0.0, 0.25]),
    training=st.booleans(),
)

# ---- persistent ------------------------------------------------------------------------------------------------------

KINDS = ("one", "cluster", "polling", "flags")
DTYPES_AND_KINDS = [(torch.float32, kind) for kind in KINDS]
# Every GPU that has the 16-bit formats can poll. Polling marks unwritten words with all ones, which half of a double
# may be.
DTYPES_AND_KINDS += [(dtype, kind) for dtype in SIXTEEN_BITS for kind in KINDS[:3]]
DTYPES_AND_KINDS += [(torch.float64, kind) for kind in KINDS if kind != "polling"]

# Around a block's units, a chunk of 32 and a publication of 4. One block has room for 64 units, 32 in double.
narrow = st.integers(1, 9) | st.sampled_from([31, 32])
small = narrow | st.sampled_from([33, 37, 64])
large = small | st.sampled_from([65, 97, 128])


def persistent_cases(hidden):
    return st.builds(
        Case,
        name=st.just("random"),
        steps=st.integers(1, 6),
        batch=st.integers(1, 11),
        input_size=st.integers(1, 5),
        hidden=hidden,
        bias=st.booleans(),
        bidirectional=st.booleans(),
        states=st.booleans(),
        lengths=st.booleans(),
        packed=st.booleans(),
        reset=st.booleans(),
    )
