"""The kernels against the reference on random layers and sequences; `test_isa.py` repeats it on each path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops import library
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case, make_problem, outputs_and_gradients, relative_error

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def poisoned():
    """All memory comes filled with NaN; torch's number of threads is put back."""
    before = torch.get_num_threads()
    library.fill_memory(True)
    yield
    library.fill_memory(False)
    torch.set_num_threads(before)


# Widths around those of vectors and panels, and some at which threads share the hidden units.
widths = st.integers(1, 40) | st.sampled_from([47, 48, 63, 64, 65, 97])
hidden_sizes = widths | st.sampled_from([128, 131, 200, 230])
cases = st.builds(
    Case,
    name=st.just("random"),
    steps=st.integers(1, 9),
    batch=st.integers(0, 9) | st.sampled_from([16, 25]),
    input_size=widths,
    hidden=hidden_sizes,
    num_layers=st.integers(1, 2),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    proj_size=st.just(0) | st.integers(1, 150),
    states=st.booleans(),
    lengths=st.booleans(),
    packed=st.booleans(),
    reset=st.booleans(),
)


def problem_of(cell, case, dtype, strided=False, empty_rows=False, device="cpu"):
    options = dict(case.__dict__)
    options["proj_size"] = min(case.proj_size, case.hidden - 1) if cell.projectable else 0
    if case.batch == 0:  # of an empty batch nothing is packed, and no row is the longest
        options |= {"lengths": False, "packed": False}
    problem = make_problem(cell, Case(**options), dtype, device)
    if strided:
        problem.tensors = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in problem.tensors]
    if cell.name == "rnn_relu" and dtype in SIXTEEN_BITS:
        keep_off_zero(problem)
    if empty_rows and problem.lengths is not None and not problem.case.packed:
        problem.lengths[1::3] = 0
    return problem


def keep_off_zero(problem):
    """An argument of a ReLU that is rounded across 0 changes all that is passed on. Here none can be: every second unit
    has weights that are all negative, the others have positive ones, and so is all that enters."""
    problem.tensors = [t.abs() for t in problem.tensors]
    for weight in problem.tensors[1 + problem.case.states :]:
        weight[1::2] *= -1


def assert_near(found, expected, dtype):
    if dtype in SIXTEEN_BITS:  # all together, as verify does and for its reason
        found, expected = ([torch.cat([t.flatten().double() for t in side])] for side in (found, expected))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        assert relative_error(one, other) <= TOLERANCE[dtype], f"result {i}"


def assert_equals_reference(name, case, dtype, strided, empty_rows, device="cpu"):
    if name == "rnn_relu" and dtype == torch.float16:
        case = Case(**{**case.__dict__, "steps": min(case.steps, 2)})  # sums of positive numbers grow out of its range
    problem = problem_of(CELLS[name], case, dtype, strided, empty_rows, device)
    found = outputs_and_gradients(problem, functional, dtype)
    assert_near(found, outputs_and_gradients(problem, reference, torch.float64), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@given(case=cases, strided=st.booleans(), empty_rows=st.booleans(), threads=st.sampled_from([1, 1, 2, 3]))
@settings(max_examples=20)
def test_kernels_equal_reference(name, dtype, case, strided, empty_rows, threads):
    torch.set_num_threads(threads)
    assert_equals_reference(name, case, dtype, strided, empty_rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
def test_no_inputs(name, dtype):
    """Which only the functions allow: what the weights make of nothing is zero, not what memory holds."""
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
    """vmap(grad): over weights too, members of an ensemble; over inputs alone, per-sample gradients of one layer."""
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
