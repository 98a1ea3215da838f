"""The kernels against the reference on random layers and sequences; `cpu/test_isa.py` runs it on every ISA."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case, outputs_and_gradients
from support.problems import assert_equals_reference, assert_near, cases, problem_of, widths

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@given(case=cases, strided=st.booleans(), empty_rows=st.booleans(), threads=st.sampled_from([1, 1, 2, 3]))
@settings(max_examples=20)
def test_kernels_equal_reference(name, dtype, case, strided, empty_rows, threads):
    torch.set_num_threads(threads)
    assert_equals_reference(name, case, dtype, strided, empty_rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
def test_input_size_zero(name, dtype):
    """input_size 0, which only the functional API allows: W_ih x is zero, not uninitialised memory."""
    for steps, batch in ((1, 1), (2, 1), (5, 3)):
        case = Case("no inputs", steps=steps, batch=batch, input_size=1, hidden=20)
        problem = problem_of(CELLS[name], case, dtype)
        states = CELLS[name].states
        problem.tensors[0] = problem.tensors[0][..., :0]
        problem.tensors[1 + states] = problem.tensors[1 + states][:, :0]
        found = outputs_and_gradients(problem, functional, dtype)
        assert_near(found, outputs_and_gradients(problem, reference, torch.float64), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
@given(
    count=st.integers(1, 4),
    steps=st.integers(1, 5),
    batch=st.integers(1, 5),
    input_size=widths,
    hidden=widths | st.just(130),
    ragged=st.booleans(),
    ensemble=st.booleans(),
    threads=st.sampled_from([1, 3]),
)
@settings(max_examples=8)
def test_members_and_weight_groups(name, dtype, count, steps, batch, input_size, hidden, ragged, ensemble, threads):
    """vmap(grad) over weights and inputs (an ensemble), and over inputs alone (per-sample gradients)."""
    torch.set_num_threads(threads)
    case = Case("random", steps, batch, input_size, hidden, states=False, lengths=ragged)
    problems = [problem_of(CELLS[name], case, dtype) for _ in range(count)]
    inputs = torch.stack([p.tensors[0] * (1 + i) / 2 for i, p in enumerate(problems)])
    weights = tuple(problems[0].tensors[1:])
    if ensemble:
        weights = tuple(torch.stack([w * (2 + i) / 3 for i in range(count)]) for w in weights)

    def loss(weights, input, api):
        output, *_ = problems[0].call(api, [input, *weights])
        return (output * torch.linspace(-1, 1, output.numel()).view_as(output).to(output)).sum()

    gradients = grad(loss, argnums=(0, 1))
    found = vmap(lambda w, x: gradients(w, x, functional), (0 if ensemble else None, 0))(weights, inputs)
    for i in range(count):
        own = tuple((w[i] if ensemble else w).double() for w in weights)
        expected = gradients(own, inputs[i].double(), reference)
        assert_near([w[i] for w in found[0]] + [found[1][i]], [*expected[0], expected[1]], dtype)


def test_verify():
    report = fused_rnn.verify(quick=True, show_progress=False)
    assert report.passed, str(report)
