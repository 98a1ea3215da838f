"""The persistent CUDA kernel, run by the emulator: every kind of exchange, against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import SIXTEEN_BITS, assert_equals_reference, assert_near, problem_of

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn._cells import CELLS
from fused_rnn.verification import Case, outputs_and_gradients

KINDS = ("one", "cluster", "polling", "flags")
CASES = [(torch.float32, kind) for kind in KINDS]
CASES += [(dtype, kind) for dtype in SIXTEEN_BITS for kind in KINDS[:3]]  # their GPUs can all poll
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


@pytest.mark.parametrize(("dtype", "kind"), CASES)
@pytest.mark.parametrize("name", CELLS)
def test_equals_reference(emulator, monkeypatch, name, dtype, kind):
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", kind)

    @given(
        case=cases(small if kind == "one" else large),
        strided=st.booleans(),
        empty_rows=st.booleans(),
        schedule=st.sampled_from(SCHEDULES),
    )
    @settings(max_examples=6)
    def check(case, strided, empty_rows, schedule):
        emulator.emulator_schedule(schedule)
        assert_equals_reference(name, case, dtype, strided, empty_rows)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_any_nan_may_enter(emulator, monkeypatch, kind):
    """A NaN of all ones is no mark of something not yet written: nobody waits for it forever."""
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", kind)
    weights = fused_rnn.GRU(3, 33).all_weights[0]
    h0 = torch.zeros(1, 2, 33)
    h0[0, 0, 7] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    output, _ = functional.gru(torch.randn(4, 2, 3), h0, weights)
    assert output[:, 0].isnan().any() and output[:, 1].isfinite().all()


@pytest.mark.parametrize(("dtype", "kind"), CASES)
def test_same_bits_in_every_order(emulator, monkeypatch, dtype, kind):
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", kind)
    case = Case("bits", steps=4, batch=9, input_size=3, hidden=45, bidirectional=True, reset=True, lengths=True)
    problem = problem_of(CELLS["lstm"], case, dtype)
    found = []
    for schedule in range(5):
        emulator.emulator_schedule(schedule)
        found.append(outputs_and_gradients(problem, functional, dtype))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_warps_that_run_ahead(emulator, monkeypatch, kind):
    """Wide enough that warps of a block wait for different blocks, and several of them have cells."""
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", kind)
    problem = problem_of(CELLS["rnn_tanh"], Case("wide", steps=5, batch=3, input_size=2, hidden=128), torch.float32)
    expected = outputs_and_gradients(problem, reference, torch.float64)
    for schedule in range(15):
        emulator.emulator_schedule(schedule)
        assert_near(outputs_and_gradients(problem, functional, torch.float32), expected, torch.float32)
