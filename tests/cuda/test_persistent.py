"""The persistent CUDA kernel, its PTX run by the machine (ptx/): every kind of exchange, against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case, outputs_and_gradients, relative_error
from support.cuda import DTYPES_AND_KINDS, KINDS, SCHEDULES, examples, large, narrow, persistent_cases, small
from support.gpu import tf32
from support.problems import assert_equals_reference, assert_near, problem_of


@pytest.mark.parametrize(("dtype", "kind"), DTYPES_AND_KINDS)
@pytest.mark.parametrize("name", CELLS)
def test_equals_reference(machine, monkeypatch, name, dtype, kind):
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)

    @given(
        case=persistent_cases(large if kind != "one" else narrow if dtype == torch.float64 else small),
        strided=st.booleans(),
        empty_rows=st.booleans(),
        schedule=st.sampled_from(SCHEDULES),
    )
    @examples(4)
    def check(case, strided, empty_rows, schedule):
        machine.schedule(schedule)
        assert_equals_reference(name, case, dtype, strided, empty_rows)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_any_nan_may_enter(machine, monkeypatch, kind):
    """A NaN whose bits are all ones is not taken for the mark of an unwritten value: no block waits forever."""
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)
    weights = fused_rnn.GRU(3, 33).all_weights[0]
    h0 = torch.zeros(1, 2, 33)
    h0[0, 0, 7] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    output, _ = functional.gru(torch.randn(4, 2, 3), h0, weights)
    assert output[:, 0].isnan().any() and output[:, 1].isfinite().all()


@pytest.mark.parametrize(("dtype", "kind"), DTYPES_AND_KINDS)
def test_same_bits_in_every_order(machine, monkeypatch, dtype, kind):
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)
    hidden = 29 if (dtype, kind) == (torch.float64, "one") else 45
    case = Case("bits", steps=4, batch=9, input_size=3, hidden=hidden, bidirectional=True, reset=True, lengths=True)
    problem = problem_of(CELLS["lstm"], case, dtype)
    found = []
    for schedule in range(5):
        machine.schedule(schedule)
        found.append(outputs_and_gradients(problem, functional, dtype))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_warps_that_run_ahead(machine, monkeypatch, kind):
    """Wide enough that a block's warps wait for different blocks, and several of them compute cells."""
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)
    problem = problem_of(CELLS["rnn_tanh"], Case("wide", steps=5, batch=3, input_size=2, hidden=128), torch.float32)
    expected = outputs_and_gradients(problem, reference, torch.float64)
    for schedule in range(15):
        machine.schedule(schedule)
        assert_near(outputs_and_gradients(problem, functional, torch.float32), expected, torch.float32)


# Kind, and widths at which parts of the weights are parked in shared memory, forward and backward: slightly more than
# registers hold, and slightly less than fits.
PARKED = [
    (torch.float32, "rnn_tanh", "polling", 1060),
    (torch.float32, "rnn_tanh", "polling", 1530),
    (torch.float32, "lstm", "polling", 265),
    (torch.float32, "rnn_tanh", "flags", 1060),
    (torch.float32, "lstm", "flags", 377),
    (torch.float64, "lstm", "one", 32),
    (torch.float64, "lstm", "cluster", 140),
    (torch.float64, "gru", "flags", 290),
    (torch.float64, "rnn_relu", "flags", 1000),
]


@pytest.mark.parametrize(("dtype", "name", "kind", "hidden"), PARKED)
def test_parked_weights(machine, monkeypatch, dtype, name, kind, hidden):
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)
    problem = problem_of(CELLS[name], Case("parked", steps=3, batch=3, input_size=2, hidden=hidden), dtype)
    expected = outputs_and_gradients(problem, reference, torch.float64)
    assert_near(outputs_and_gradients(problem, functional, dtype), expected, dtype)


@pytest.mark.parametrize(("name", "hidden"), [("lstm", 530), ("gru", 550)])
def test_wide_in_float(machine, monkeypatch, name, hidden):
    """The widest float32 layers: two tiles of rows forward, most of K parked backward."""
    monkeypatch.setenv("FUSED_RNN_ENGINE", "polling")
    problem = problem_of(CELLS[name], Case("wide", steps=2, batch=2, input_size=2, hidden=hidden), torch.float32)
    expected = outputs_and_gradients(problem, reference, torch.float64)
    assert_near(outputs_and_gradients(problem, functional, torch.float32), expected, torch.float32)


# TF32 rounds each factor by at most 2^-11, so a product is off by 2^-10, and a result by that times the steps.
TF32_ERROR = 2**-10


# Of each kind, at least one pass is estimated to be faster with TF32.
@pytest.mark.parametrize(
    ("kind", "name", "hidden"),
    [
        ("cluster", "lstm", 45),
        ("cluster", "gru", 97),
        ("cluster", "rnn_tanh", 128),
        ("polling", "lstm", 150),
        ("polling", "gru", 610),
        ("polling", "rnn_tanh", 1030),
    ],
)
def test_tf32_where_torch_allows_it(machine, monkeypatch, kind, name, hidden):
    monkeypatch.setenv("FUSED_RNN_ENGINE", kind)
    case = Case("tf32", steps=3, batch=3, input_size=2, hidden=hidden, lengths=True)
    problem = problem_of(CELLS[name], case, torch.float32)
    expected = outputs_and_gradients(problem, reference, torch.float64)
    with tf32(True):
        found = outputs_and_gradients(problem, functional, torch.float32)
    errors = [relative_error(one, other) for one, other in zip(found, expected, strict=True)]
    assert max(errors) <= case.steps * TF32_ERROR
    assert max(errors) > TOLERANCE[torch.float32]  # TF32 was used
    with tf32(False):
        found = outputs_and_gradients(problem, functional, torch.float32)
    assert_near(found, expected, torch.float32)


def test_precision_set_in_the_newer_way(machine, monkeypatch):
    """torch then refuses to say whether TF32 is allowed: it is not used, and nothing is raised."""
    monkeypatch.setenv("FUSED_RNN_ENGINE", "cluster")
    problem = problem_of(CELLS["gru"], Case("newer", steps=2, batch=3, input_size=2, hidden=97), torch.float32)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        found = outputs_and_gradients(problem, functional, torch.float32)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert_near(found, outputs_and_gradients(problem, reference, torch.float64), torch.float32)
