"""Token ids as input, compared with one-hot rows."""

import torch

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from support.problems import assert_near, problem_of

VOCABULARY = 7


def one_hot(ids, size, dtype):
    """Padding, which is no id, becomes zeros."""
    return (ids.unsqueeze(-1) == torch.arange(size)).to(dtype)


def ids_of(problem, garbage=False):
    """Random ids for a problem's rows; ``garbage``: invalid ids as padding."""
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


# On tiles, W_ih x and W_hh h may be accumulated into one sum (forward.h); a looked-up column is added at its end, and
# so rounds differently.
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
