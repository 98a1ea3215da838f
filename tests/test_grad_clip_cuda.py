"""grad_clip on the CUDA kernels, run by the machine, against the reference."""

import pytest
import test_persistent
import test_stepwise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import assert_equals_reference
from test_grad_clip import clipped

from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE

SCHEDULES = range(10)


def short(parameter):
    return str(parameter).removeprefix("torch.")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("name", CELLS)
@given(case=clipped(test_stepwise.cases), empty_rows=st.booleans(), schedule=st.sampled_from(SCHEDULES))
@settings(max_examples=10)
def test_step_by_step(machine, name, dtype, case, empty_rows, schedule):
    machine.schedule(schedule)
    assert_equals_reference(name, case, dtype, False, empty_rows)


@pytest.mark.parametrize(("dtype", "kind"), test_persistent.CASES, ids=short)
@pytest.mark.parametrize("name", CELLS)
def test_in_one_launch(machine, monkeypatch, name, dtype, kind):
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", kind)

    @given(case=clipped(test_persistent.cases(test_persistent.narrow)), schedule=st.sampled_from(SCHEDULES))
    @settings(max_examples=4)
    def check(case, schedule):
        machine.schedule(schedule)
        assert_equals_reference(name, case, dtype, False, True)

    check()
