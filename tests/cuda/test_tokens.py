"""Token ids as input on the CUDA kernels, run by the machine."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fused_rnn
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case
from support.cuda import DTYPES_AND_KINDS, SCHEDULES, examples, narrow, persistent_cases, short, stepwise_cases
from support.one_hot import assert_equals_one_hot


def with_vocabulary(cases):
    """Vocabularies around the sizes in which ids are split, too."""
    sizes = st.integers(1, 9) | st.sampled_from([31, 33, 70])
    return st.builds(lambda case, size: Case(**case.__dict__ | {"input_size": size}), cases, sizes)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("name", [name for name in CELLS if name != "rnn_relu"])
@given(case=with_vocabulary(stepwise_cases), empty_rows=st.booleans(), schedule=st.sampled_from(SCHEDULES))
@examples(4)
def test_stepwise(machine, name, dtype, case, empty_rows, schedule):
    machine.schedule(schedule)
    assert_equals_one_hot(name, case, dtype, empty_rows, exact=False)


@pytest.mark.parametrize(("dtype", "kind"), DTYPES_AND_KINDS, ids=short)
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_persistent(machine, monkeypatch, name, dtype, kind):
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)

    @given(case=with_vocabulary(persistent_cases(narrow)), schedule=st.sampled_from(SCHEDULES))
    @examples(2)
    def check(case, schedule):
        machine.schedule(schedule)
        assert_equals_one_hot(name, case, dtype, True, exact=False)

    check()


def test_every_schedule_gives_the_same_bits(machine):
    module, results = fused_rnn.GRU(70, 9, bidirectional=True), []
    ids = torch.randint(0, 70, (11, 6))
    for schedule in SCHEDULES:
        machine.schedule(schedule)
        output, _ = module(ids)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_inference(machine):
    module, ids = fused_rnn.LSTM(7, 5, num_layers=2, bidirectional=True), torch.randint(0, 7, (6, 3))
    with torch.no_grad():
        found = module(ids)[0]
    torch.testing.assert_close(found, module(ids)[0].detach())
