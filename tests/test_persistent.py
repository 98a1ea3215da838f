"""The persistent CUDA kernel, run by the emulator: every kind of exchange, against the reference."""

import emulating
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import SIXTEEN_BITS, assert_near, problem_of
from test_stepwise import emulator  # noqa: F401

from fused_rnn import functional, reference
from fused_rnn._cells import CELLS
from fused_rnn.verification import TOLERANCE, Case, outputs_and_gradients

KINDS = ("one", "cluster", "polling", "flags")
DTYPES = [dtype for dtype in TOLERANCE if dtype != torch.float64]
SCHEDULES = range(10)

# Around what a block, a chunk of 32 and a publication of 4 units hold; one block has room for 64 units.
small = st.integers(1, 9) | st.sampled_from([31, 32, 33, 37, 64])
large = small | st.sampled_from([65, 97, 128])


def cases(hidden):
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_equals_reference(emulator, monkeypatch, name, dtype, kind):  # noqa: F811
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", kind)

    @given(
        case=cases(small if kind == "one" else large),
        strided=st.booleans(),
        empty_rows=st.booleans(),
        schedule=st.sampled_from(SCHEDULES),
    )
    @settings(max_examples=6)
    def check(case, strided, empty_rows, schedule):
        if name == "rnn_relu" and dtype in SIXTEEN_BITS:
            case = Case(**{**case.__dict__, "steps": min(case.steps, 2)})  # few arguments that may change their sign
        emulator.emulator_schedule(schedule)
        problem = problem_of(CELLS[name], case, dtype, strided, empty_rows)
        found = outputs_and_gradients(problem, functional, dtype)
        assert_near(found, outputs_and_gradients(problem, reference, torch.float64), dtype)

    check()
