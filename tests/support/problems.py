"""Random layers and sequences, and the kernels against the reference on them."""

import math
from dataclasses import replace

import torch
from hypothesis import strategies as st

from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case, make_problem, outputs_and_gradients, relative_error

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
CLIPS = st.sampled_from([0.02, 0.3, 1.0, math.inf])

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


def clipped(cases):
    return st.builds(replace, cases, grad_clip=CLIPS)


def problem_of(cell, case, dtype, strided=False, empty_rows=False, device="cpu"):
    options = dict(case.__dict__)
    options["proj_size"] = min(case.proj_size, case.hidden - 1) if cell.projectable else 0
    options["zoneout"] = 0.0 if options["proj_size"] else case.zoneout
    if case.batch == 0:  # an empty batch cannot be packed, and has no longest row
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
    """Keeps every ReLU's argument away from 0, where a rounding that changes its sign changes all later results: inputs
    are positive, and a unit's weights are all negative or all positive."""
    problem.tensors = [t.abs() for t in problem.tensors]
    for weight in problem.tensors[1 + problem.case.states :]:
        weight[1::2] *= -1


def assert_near(found, expected, dtype):
    if dtype in SIXTEEN_BITS:  # all results as one vector, as verify does
        found, expected = ([torch.cat([t.flatten().double() for t in side])] for side in (found, expected))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        assert relative_error(one, other) <= TOLERANCE[dtype], f"result {i}"


def assert_equals_reference(name, case, dtype, strided, empty_rows, device="cpu"):
    if name == "rnn_relu" and dtype == torch.float16:
        case = Case(**{**case.__dict__, "steps": min(case.steps, 2)})  # positive sums overflow in more steps
    problem = problem_of(CELLS[name], case, dtype, strided, empty_rows, device)
    found = outputs_and_gradients(problem, functional, dtype)
    assert_near(found, outputs_and_gradients(problem, reference, torch.float64), dtype)
