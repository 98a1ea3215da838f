"""Finite differences, double backward and batched gradients, in float64."""

import itertools

import pytest
import torch

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.autograd import functions
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import Case, make_problem, outputs_and_gradients, relative_error
from support.differences import FORMS, TINY


def every_option():
    """Cell x direction x layers x bias x form x projection."""
    for cell, form in itertools.product(CELLS, FORMS):
        for bidirectional, layers, bias in itertools.product((False, True), (1, 2), (True, False)):
            for proj_size in (0, 2) if CELLS[cell].projectable else (0,):
                case = Case(
                    form,
                    **TINY,
                    **FORMS[form],
                    bidirectional=bidirectional,
                    num_layers=layers,
                    bias=bias,
                    proj_size=proj_size,
                    states=bias,
                )
                options = (f"{1 + bidirectional}way", f"{layers}layers", "bias" if bias else "plain", f"p{proj_size}")
                yield pytest.param(cell, case, id="-".join((cell, form, *options)))


@pytest.mark.parametrize(("cell", "case"), list(every_option()))
def test_finite_differences(cell, case):
    problem = make_problem(CELLS[cell], case, torch.float64, "cpu")
    tensors = [t.requires_grad_() for t in problem.tensors]

    def run(*tensors):
        return tuple(problem.call(functional, tensors))

    along = not case.packed  # torch's packing has no forward-mode AD
    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=along)
    # Random projections of the second derivative; the test below checks all of its entries.
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True, check_fwd_over_rev=along)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_entry_of_the_second_derivative(cell, form):
    sizes = {"steps": 2, "batch": 2, "input_size": 1, "hidden": 2}
    proj_size = int(CELLS[cell].projectable)
    case = Case(form, **sizes, **FORMS[form], bidirectional=True, proj_size=proj_size)
    problem = make_problem(CELLS[cell], case, torch.float64, "cpu")
    tensors = [t.requires_grad_() for t in problem.tensors]
    assert torch.autograd.gradgradcheck(lambda *tensors: tuple(problem.call(functional, tensors)), tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates_give_finite_gradients(cell, dtype):
    for sign in (120.0, -120.0):
        case = Case("saturated", saturate=sign)
        problem = make_problem(CELLS[cell], case, dtype, "cpu")
        # Also with all biases of one sign, so that every gate saturates on the same side.
        for tensors in (problem.tensors, [t + sign * (t.dim() == 1) for t in problem.tensors]):
            problem.tensors = tensors
            found = outputs_and_gradients(problem, functional, dtype)
            expected = outputs_and_gradients(problem, reference, torch.float64)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.isfinite().all()
                assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates_give_finite_gradients_in_16_bits(cell, dtype):
    for sign in (120.0, -120.0):
        problem = make_problem(CELLS[cell], Case("saturated", saturate=sign), dtype, "cpu")
        found = outputs_and_gradients(problem, functional, dtype)
        expected = outputs_and_gradients(problem, reference, torch.float64)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.isfinite().all()
            assert relative_error(ours, theirs) <= fused_rnn.tools.verify.TOLERANCE[dtype]


# ---- double backward, batched gradients ------------------------------------------------------------------------------


def gradient_penalty(module, x):
    (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    return gradient.square().sum()


def test_double_backward_under_hooks_on_saved_tensors(layer):
    ours, theirs, x = layer
    results = []
    for module in (ours, theirs):
        own = x.clone().requires_grad_()
        with torch.autograd.graph.save_on_cpu():
            gradient_penalty(module, own).backward()
        results.append([own.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*results)


def test_double_backward_under_checkpoint(layer):
    ours, theirs, x = layer
    results = []
    for module in (ours, theirs):
        own = x.clone().requires_grad_()
        penalty = torch.utils.checkpoint.checkpoint(
            lambda x, module=module: gradient_penalty(module, x), own, use_reentrant=False
        )
        results.append(torch.autograd.grad(penalty, [own, *module.parameters()]))
    torch.testing.assert_close(*results)


def test_batched_gradients(layer, no_reference):
    """is_grads_batched uses a vmap of its own, and so does the vectorized jacobian."""
    ours, theirs, x = layer
    grads = torch.randn(7, 5, 2, 8, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        own = x.clone().requires_grad_()
        wanted = [own, *module.parameters()]
        results.append(torch.autograd.grad(module(own)[0], wanted, grads, is_grads_batched=True))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(lambda x: ours(x)[0], x, vectorize=True),
        torch.autograd.functional.jacobian(lambda x: theirs(x)[0], x),
    )


def test_batched_second_derivatives(layer):
    ours, theirs, x = layer
    hessian = torch.autograd.functional.hessian
    torch.testing.assert_close(
        hessian(lambda x: ours(x)[0].square().sum(), x, vectorize=True),
        hessian(lambda x: theirs(x)[0].square().sum(), x),
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_vmap_saves_only_what_is_needed(layer, monkeypatch, frozen):
    ours, _, x = layer
    ours.requires_grad_(not frozen)
    saves = []

    def watch(save, *args, forward=functions.layer_forward):
        saves.append(save)
        return forward(save, *args)

    monkeypatch.setattr(functions, "layer_forward", watch)
    torch.vmap(lambda x: ours(x)[0])(torch.stack([x, x]))
    torch.vmap(torch.vmap(lambda x: ours(x)[0]))(torch.stack([x, x]).unsqueeze(0))
    assert saves == [not frozen] * 4  # two layers, twice
    torch.func.grad(lambda x: ours(x)[0].sum())(x)
    assert saves[4:] == [True] * 2


def test_the_functional_api_refuses_weights_with_a_member_dimension():
    gru = fused_rnn.GRU(3, 4)
    stacked = [torch.stack([p] * 3) for p in gru.parameters()]
    with pytest.raises(RuntimeError, match=r"weights\[0\] \(weight_ih\) must be 2-D, got \[3, 12, 3\]"):
        functional.gru(torch.randn(5, 2, 3), None, stacked)
