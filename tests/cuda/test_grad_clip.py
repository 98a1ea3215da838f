"""grad_clip on the CUDA kernels, run by the machine, against the reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE
from support.cuda import DTYPES_AND_KINDS, SCHEDULES, examples, narrow, persistent_cases, short, stepwise_cases
from support.problems import assert_equals_reference, clipped


@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("name", CELLS)
@given(case=clipped(stepwise_cases), empty_rows=st.booleans(), schedule=st.sampled_from(SCHEDULES))
@examples(4)
def test_stepwise(machine, name, dtype, case, empty_rows, schedule):
    machine.schedule(schedule)
    assert_equals_reference(name, case, dtype, False, empty_rows)


@pytest.mark.parametrize(("dtype", "kind"), DTYPES_AND_KINDS, ids=short)
@pytest.mark.parametrize("name", CELLS)
def test_persistent(machine, monkeypatch, name, dtype, kind):
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)

    @given(case=clipped(persistent_cases(narrow)), schedule=st.sampled_from(SCHEDULES))
    @examples(2)
    def check(case, schedule):
        machine.schedule(schedule)
        assert_equals_reference(name, case, dtype, False, True)

    check()
