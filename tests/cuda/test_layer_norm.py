"""Layer norm in the stepwise CUDA engine, its kernels' PTX run by the machine (ptx/)."""

import pytest
import torch

import fused_rnn
from fused_rnn import reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE
from ptx import calls, coverage
from support.cuda import SCHEDULES


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
def test_as_the_cpu_engine_has_it(machine, name, dtype):
    """Which the tests of nn/test_layer_norm.py compare with a loop."""
    for number, call in enumerate(coverage.normed(dtype, CELLS[name].id)):
        machine.schedule(SCHEDULES[number % len(SCHEDULES)])
        assert calls.what_is_wrong(call) is None, call


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("training", [True, False])
def test_layers(training):
    layer = fused_rnn.LSTM(3, 5, 2, bidirectional=True, layer_norm=True, zoneout=(0.3, 0.6), dtype=torch.float64)
    layer.train(training)
    x, lengths = torch.randn(4, 3, 3, dtype=torch.float64), torch.tensor([4, 2, 0])
    found = []
    for runner in (None, reference.RUNNER):
        torch.manual_seed(1)
        output, states = layer._run(x, lengths=lengths, runner=runner)
        loss = output.square().sum() + states[1].sum()
        found.append([output, *states, *torch.autograd.grad(loss, [*layer.parameters()])])
    torch.testing.assert_close(*found)
