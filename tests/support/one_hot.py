"""Ids in place of input, against one-hot rows."""

import torch

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from support.problems import assert_near, problem_of

VOCABULARY = 7


def one_hot(ids, size, dtype):
    """Zeros for what is no id: padding."""
    return (ids.unsqueeze(-1) == torch.arange(size)).to(dtype)


def ids_of(problem, garbage=False):
    """For the rows of a problem; behind the ends of rows there may be anything."""
    case, seed = problem.case, torch.Generator().manual_seed(1)
    ids = torch.randint(0, case.input_size, problem.tensors[0].shape[:2], generator=seed)
    if garbage and problem.lengths is not None and not case.packed:
        time_major = ids.T if case.batch_first else ids
        time_major[torch.arange(case.steps).unsqueeze(1) >= problem.lengths] = -(1 << 40)
    return ids


def outputs_and_gradients(problem, api, input):
    leaves = [t.detach().requires_grad_() for t in problem.tensors[1:]]
    dtype = problem.tensors[1].dtype
    outputs = problem.call(api, [input, *leaves])
    grads = [torch.linspace(-1, 1, o.numel(), dtype=torch.float64).view_as(o).to(dtype) for o in outputs]
    return [o.detach() for o in outputs], list(torch.autograd.grad(outputs, leaves, grads))


# There x and h may enter one sum together (forward.h), which a look-up joins at its end: another rounding.
ON_TILES = (torch.float32, torch.bfloat16) if fused_rnn.info()["CPU instruction set for bfloat16"] == "amx" else ()


def assert_equals_one_hot(name, case, dtype, empty_rows, exact=None):
    exact = dtype not in ON_TILES if exact is None else exact
    problem = problem_of(CELLS[name], case, dtype, empty_rows=empty_rows)
    ids, size = ids_of(problem, garbage=True), case.input_size
    outputs, gradients = outputs_and_gradients(problem, functional, ids)
    expected, expected_gradients = outputs_and_gradients(problem, functional, one_hot(ids, size, dtype))
    for one, other in zip(outputs, expected, strict=True):
        assert one.dtype == dtype and (not exact or torch.equal(one, other))
    assert_near(gradients, expected_gradients, dtype)
    problem.tensors = [t.double() for t in problem.tensors]
    by_formula = outputs_and_gradients(problem, reference, ids)
    assert_near(outputs + gradients, by_formula[0] + by_formula[1], dtype)
