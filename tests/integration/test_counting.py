"""Tools of torch that count operations or look for torch.nn's classes: the FLOP counter, torch.ao.quantization."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from support.modules import F64


def flops(call):
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str)
def test_flops_equal_those_of_torchs_layer(name, options):
    ours, theirs = (getattr(library, name)(3, 4, **options, dtype=F64) for library in (fused_rnn, nn))
    x = torch.randn(5, 2, 3, dtype=F64, requires_grad=True)
    own, output = flops(lambda: ours(x)[0])
    other, other_output = flops(lambda: theirs(x)[0])
    assert own == other
    backward, _ = flops(lambda: output.sum().backward())
    assert backward == 2 * own
    # torch.nn skips the gradient of an initial state that was not given.
    assert backward >= flops(lambda: other_output.sum().backward())[0] >= 0.8 * backward
    with torch.no_grad():
        assert flops(lambda: ours(x))[0] == other


def test_flops_of_projections_and_ids():
    layer = fused_rnn.LSTM(6, 4, proj_size=2)
    assert flops(lambda: layer(torch.randn(5, 3, 6)))[0] == 2 * 15 * (16 * (6 + 2) + 4 * 2)
    assert flops(lambda: layer(torch.randint(6, (5, 3))))[0] == 2 * 15 * (16 * 2 + 4 * 2)
    with torch.no_grad():
        code = fused_rnn.ops.layer.stack_code(0, 1, True, False, 0)
        weights = list(layer.parameters())
        infer = torch.ops.fused_rnn.infer
        assert flops(lambda: infer(code, torch.randn(5, 3, 6), None, None, weights))[0] == 2 * 15 * (16 * 8 + 8)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_dynamic_quantization_warns_of_skipped_layers():
    quantize = torch.ao.quantization.quantize_dynamic
    model = nn.Sequential(fused_rnn.LSTM(3, 4))
    with pytest.warns(UserWarning, match='does not know fused_rnn.LSTM, which stays as it is.*weights="int8".*restore'):
        assert type(quantize(model, {nn.LSTM})[0]) is fused_rnn.LSTM
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quantize(model, {nn.GRU})  # nobody asked for it
        quantize(fused_rnn.restore(nn.Sequential(nn.Linear(2, 2))), {nn.GRU})
    assert not hasattr(model[0], "qconfig")


def test_flops_of_a_cell_forward_and_backward():
    cell, x = fused_rnn.LSTMCell(3, 4), torch.randn(2, 3, requires_grad=True)
    forward, (h, _) = flops(lambda: cell(x))
    assert forward == 2 * 2 * 16 * (3 + 4)
    h, _ = cell(x)
    assert flops(lambda: h.sum().backward())[0] == 2 * forward


def test_a_probe_for_a_module_does_not_use_up_what_waits_for_its_import():
    script = """
import importlib.util, torch, fused_rnn
assert importlib.util.find_spec("torch.utils.flop_counter") is not None
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    fused_rnn.GRU(3, 4)(torch.ones(5, 2, 3))
assert counter.get_total_flops() == 2 * 10 * 12 * 7, counter.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
