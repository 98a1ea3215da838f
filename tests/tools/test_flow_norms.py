"""``gradient_flow``: its norms are those that autograd finds in a loop over time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn.ops import library
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.flow import MASKS, RESETS, both_probes, expected_norms, found_norms, loss_of
from support.modules import DEEP, F64, assert_close, every_layer, make_input, make_pair


@both_probes
@pytest.mark.parametrize("masks", MASKS)
@every_layer
def test_norms_are_those_of_a_loop(kind, masks, probe):
    module, _ = make_pair(kind, **DEEP)
    input = make_input(module, steps=6, batch=5)
    found = found_norms(module, input, probe, lambda x: module(x, **MASKS[masks]))
    assert_close(found, expected_norms(module, input, probe, **MASKS[masks]))
    assert all((norms[..., :2] > 0).any() for norms in found.values())


@both_probes
@every_layer
def test_packed_input(kind, probe):
    module, _ = make_pair(kind, bidirectional=True, bias=False)
    input, lengths = make_input(module, steps=6, batch=4), torch.tensor([2, 6, 1, 6])
    resets = {"reset_mask": RESETS[:, :4]}
    for masks in ({}, resets):
        packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
        with fused_rnn.gradient_flow(module, probe) as flow:
            output = nn.utils.rnn.pad_packed_sequence(module(packed, **masks)[0])[0]
            loss_of(output).backward()
        module.zero_grad()
        assert_close(dict(flow.norms()), expected_norms(module, input, probe, lengths, **masks))


@every_layer
@given(
    steps=st.integers(1, 7),
    batch=st.integers(0, 4),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    probe=st.sampled_from(["last", "all"]),
    ragged=st.booleans(),
    resets=st.booleans(),
)
@settings(max_examples=40)
def test_random_layers(kind, steps, batch, num_layers, bidirectional, probe, ragged, resets):
    module, _ = make_pair(kind, 2, 3, num_layers=num_layers, bidirectional=bidirectional)
    input = make_input(module, steps, batch)
    masks = {"lengths": torch.randint(0, steps + 1, (batch,))} if ragged and batch else {}
    if resets:
        masks["reset_mask"] = torch.rand(steps, batch) < 0.3
    found = found_norms(module, input, probe, lambda x: module(x, **masks))
    assert_close(found, expected_norms(module, input, probe, **masks))


@both_probes
@pytest.mark.parametrize("dtype", [dtype for dtype in TOLERANCE if dtype != F64])
@every_layer
def test_narrow_dtypes(kind, dtype, probe):
    module, _ = make_pair(kind, dtype=dtype, **DEEP)
    input = make_input(module, dtype=dtype)
    found = found_norms(module, input, probe)
    wide = copy.deepcopy(module).double()
    expected = expected_norms(wide, input.double(), probe)
    for name, norms in found.items():
        assert norms.dtype == torch.float32
        assert relative_error(norms, expected[name]) <= TOLERANCE[dtype], name


def test_autocast():
    module = fused_rnn.LSTM(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (norms,) = found_norms(module, torch.randn(5, 2, 3), "last").values()
    assert norms.dtype == torch.float32 and (norms > 0).all()


@pytest.mark.parametrize("threads", [1, 3])
@both_probes
def test_nothing_is_read_before_it_is_written(probe, threads):
    before = torch.get_num_threads()
    module, _ = make_pair("lstm_projected", **DEEP)
    input = make_input(module, steps=6, batch=5)
    expected = expected_norms(module, input, probe, **MASKS["both"])
    torch.set_num_threads(threads)
    library.fill_memory(True)
    try:
        assert_close(found_norms(module, input, probe, lambda x: module(x, **MASKS["both"])), expected)
    finally:
        torch.set_num_threads(before)
        library.fill_memory(False)
