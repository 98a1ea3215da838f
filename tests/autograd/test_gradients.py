"""Finite differences, double backward and torch.func's transforms, in float64."""

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
    # Random projections of the second derivative: all its entries are checked once per cell and form, below.
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
        # One bias of one sign everywhere too: then every gate is at the same flat end.
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


# ---- torch.func ------------------------------------------------------------------------------------------------------


def loss_of(module):
    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x,))[0].square().sum()

    return loss


def test_func_grad(layer, no_reference):
    ours, theirs, x = layer
    parameters = dict(ours.named_parameters())
    found = torch.func.grad(loss_of(ours))(parameters, x)
    torch.testing.assert_close(found, torch.func.grad(loss_of(theirs))(parameters, x))


def test_per_sample_gradients(layer, no_reference):
    ours, theirs, _ = layer
    parameters = dict(ours.named_parameters())
    xs = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    found = torch.vmap(torch.func.grad(loss_of(ours)), (None, 0))(parameters, xs)
    for i, x in enumerate(xs):
        expected = torch.func.grad(loss_of(theirs))(parameters, x)
        torch.testing.assert_close({name: g[i] for name, g in found.items()}, expected)


@pytest.mark.parametrize(("in_dim", "out_dim"), [(0, 0), (1, 2), (2, 1), (3, 0), (-1, -1)])
def test_vmap_over_inputs(layer, no_reference, in_dim, out_dim):
    ours, theirs, _ = layer
    xs = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    found = torch.vmap(lambda x: ours(x)[0], in_dim, out_dim)(xs.movedim(0, in_dim))
    torch.testing.assert_close(found, torch.stack([theirs(x)[0] for x in xs]).movedim(0, out_dim))


def test_vmap_over_lengths_and_masks(layer):
    ours, *_ = layer
    xs = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    lengths = torch.randint(1, 6, (6, 2))
    masks = torch.rand(6, 5, 2) < 0.3
    weights = list(ours.parameters())
    name = type(ours).__name__.lower()

    def run(api, x, length, mask, weights=weights):
        options = {"num_layers": 2, "bidirectional": True, "lengths": length, "reset_mask": mask}
        return getattr(api, name)(x, None, weights, **options)[0]

    def expected(length=None, mask=None, x=None):
        rows = range(6)
        return torch.stack(
            [
                run(
                    reference,
                    xs[i] if x is None else x,
                    lengths[i] if length is None else length,
                    masks[i] if mask is None else mask,
                )
                for i in rows
            ]
        )

    every = torch.vmap(lambda x, n, m: run(functional, x, n, m))(xs, lengths, masks)
    torch.testing.assert_close(every, expected())
    one_mask = torch.vmap(lambda x, n: run(functional, x, n, masks[0]))(xs, lengths)
    torch.testing.assert_close(one_mask, expected(mask=masks[0]))
    only_masks = torch.vmap(lambda m: run(functional, xs[0], lengths[0], m))(masks)
    torch.testing.assert_close(only_masks, expected(length=lengths[0], x=xs[0]))
    # An ensemble whose members see sequences of other lengths.
    stacked = [torch.stack([w * (1 + 0.1 * i) for i in range(6)]) for w in weights]
    found = torch.vmap(lambda n, m, w: run(functional, xs[0], n, m, w))(lengths, masks, stacked)
    for i in range(6):
        own = [w[i] for w in stacked]
        torch.testing.assert_close(found[i], run(reference, xs[0], lengths[i], masks[i], own))


@pytest.mark.parametrize("inputs_too", [False, True])
def test_vmap_over_weights(layer, no_reference, inputs_too):
    ours, theirs, _ = layer
    members = [type(ours)(3, 4, 2, bidirectional=True, dtype=torch.float64) for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(members)
    xs = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    x, dim = (xs, 0) if inputs_too else (xs[0], None)
    outputs = torch.vmap(
        lambda p, x: torch.func.functional_call(ours, p, (x,))[0],
        (0, dim),
    )(parameters, x)
    gradients = torch.vmap(torch.func.grad(loss_of(ours)), (0, dim))(parameters, x)
    for i, member in enumerate(members):
        theirs.load_state_dict(member.state_dict())
        own_x = xs[i] if inputs_too else xs[0]
        torch.testing.assert_close(outputs[i], theirs(own_x)[0])
        expected = torch.func.grad(loss_of(theirs))(dict(theirs.named_parameters()), own_x)
        torch.testing.assert_close({name: g[i] for name, g in gradients.items()}, expected)


@pytest.mark.parametrize("over", ["inputs", "weights", "both", "samples"])
def test_calls_of_the_operators(layer, over, monkeypatch):
    """Whatever is mapped over, each layer is one call forward and one back."""
    ours, *_ = layer
    calls = []
    for name in ("layer_forward", "layer_backward"):
        function = getattr(functions, name)
        monkeypatch.setattr(functions, name, lambda *a, f=function, n=name: (calls.append(n), f(*a))[1])
    weights = {name: w.detach() for name, w in ours.named_parameters()}
    stacked = {name: torch.stack([w, -w, 2 * w]) for name, w in weights.items()}
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    xs = torch.stack([x, 2 * x, -x])
    loss = loss_of(ours)
    runs = {
        "inputs": lambda: torch.func.grad(lambda xs: torch.vmap(loss, (None, 0))(weights, xs).sum())(xs),
        "weights": lambda: torch.func.grad(lambda w: torch.vmap(loss, (0, None))(w, x).sum())(stacked),
        "both": lambda: torch.func.grad(lambda w: torch.vmap(loss, (0, 0))(w, xs).sum())(stacked),
        "samples": lambda: torch.vmap(torch.func.grad(loss), (None, 0))(weights, xs),
    }
    runs[over]()
    assert calls == ["layer_forward"] * 2 + ["layer_backward"] * 2


@pytest.mark.parametrize("members_first", [False, True])
def test_nested_vmap(layer, no_reference, members_first):
    """Per-sample gradients of every member of an ensemble, in either order of nesting."""
    ours, theirs, _ = layer
    members = [type(ours)(3, 4, 2, bidirectional=True, dtype=torch.float64) for _ in range(2)]
    parameters, _ = torch.func.stack_module_state(members)
    xs = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    dims = ((0, None), (None, 0)) if members_first else ((None, 0), (0, None))
    found = torch.vmap(torch.vmap(torch.func.grad(loss_of(ours)), dims[1]), dims[0])(parameters, xs)
    for i, member in enumerate(members):
        theirs.load_state_dict(member.state_dict())
        for j, x in enumerate(xs):
            expected = torch.func.grad(loss_of(theirs))(dict(theirs.named_parameters()), x)
            own = {name: g[i, j] if members_first else g[j, i] for name, g in found.items()}
            torch.testing.assert_close(own, expected)


def test_vmap_over_packed_data(layer, no_reference):
    ours, theirs, _ = layer
    batch_sizes = torch.tensor([3, 3, 2, 1, 1])
    datas = torch.randn(6, 10, 3, dtype=torch.float64)

    def run(module, data):
        return module(torch.nn.utils.rnn.PackedSequence(data, batch_sizes))[0].data

    found = torch.vmap(lambda data: run(ours, data))(datas)
    torch.testing.assert_close(found, torch.stack([run(theirs, data) for data in datas]))


def test_jacobians_and_hessians_in_reverse(layer):
    ours, theirs, x = layer
    torch.testing.assert_close(
        torch.func.jacrev(lambda x: ours(x)[0])(x),
        torch.autograd.functional.jacobian(lambda x: theirs(x)[0], x),
    )
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: ours(x)[0].sum()))(x)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda x: theirs(x)[0].sum(), x))


def test_gradient_of_per_sample_gradients(layer):
    """The derivative of a penalty on per-sample gradient norms: double backward of a vmapped backward."""
    ours, theirs, _ = layer
    parameters = dict(ours.named_parameters())
    xs = torch.randn(4, 5, 2, 3, dtype=torch.float64)

    def penalty(parameters):
        gradients = torch.vmap(torch.func.grad(loss_of(ours)), (None, 0))(parameters, xs)
        return sum(g.square().sum() for g in gradients.values())

    def expected(parameters):
        gradients = [torch.func.grad(loss_of(theirs))(parameters, x) for x in xs]
        return sum(g.square().sum() for own in gradients for g in own.values())

    torch.testing.assert_close(torch.func.grad(penalty)(parameters), torch.func.grad(expected)(parameters))


def test_gradient_of_an_ensemble_of_gradients(layer):
    ours, theirs, x = layer
    members = [type(ours)(3, 4, 2, bidirectional=True, dtype=torch.float64) for _ in range(2)]
    stacked, _ = torch.func.stack_module_state(members)

    def penalty(stacked, x):
        gradients = torch.vmap(torch.func.grad(loss_of(ours)), (0, None))(stacked, x)
        return sum(g.square().sum() for g in gradients.values())

    found = torch.func.grad(penalty)(stacked, x)
    for i, member in enumerate(members):
        parameters = dict(member.named_parameters())
        expected = torch.func.grad(
            lambda p: sum(g.square().sum() for g in torch.func.grad(loss_of(theirs))(p, x).values())
        )(parameters)
        torch.testing.assert_close({name: g[i] for name, g in found.items()}, expected)


def test_third_derivative():
    gru = fused_rnn.GRU(2, 3, dtype=torch.float64)
    twin = torch.nn.GRU(2, 3, dtype=torch.float64)
    twin.load_state_dict(gru.state_dict())
    x = torch.randn(3, 1, 2, dtype=torch.float64)

    def third(module):
        y = torch.autograd.functional.hessian(lambda x: module(x)[0].sum(), x, create_graph=True)
        return torch.autograd.grad(y.square().sum(), list(module.parameters()))

    torch.testing.assert_close(third(gru), third(twin))


# ---- the raw operators -----------------------------------------------------------------------------------------------


def operator_arguments(cell, requires_grad, **options):
    # Short: what is traced holds the double backward, unrolled in time.
    case = Case("", steps=2, bidirectional=True, **options)
    problem = make_problem(CELLS[cell], case, torch.float32, "cpu")
    tensors = [t.requires_grad_(requires_grad) for t in problem.tensors]
    states = CELLS[cell].states
    h0, c0 = (*tensors[1 : 1 + states], None)[:2]
    input, batch_sizes, lengths = tensors[0], None, problem.lengths
    if case.packed:
        packed = torch.nn.utils.rnn.pack_padded_sequence(input.detach(), lengths, enforce_sorted=False)
        input, batch_sizes, lengths = packed.data.requires_grad_(requires_grad), packed.batch_sizes, None
    shared = (CELLS[cell].id, case.bias, True)
    return shared, (input, h0, c0, tensors[1 + states :], lengths, batch_sizes, problem.reset_mask)


OPTIONS = [{}, {"lengths": True, "reset": True}, {"packed": True}]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_forward(cell, options, requires_grad):
    shared, tensors = operator_arguments(cell, requires_grad, **options)
    two_states = CELLS[cell].states > 1
    arguments = (*shared, *tensors, requires_grad, two_states and not requires_grad)
    torch.library.opcheck(torch.ops.fused_rnn.layer_forward.default, arguments)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_backward(cell, options, requires_grad):
    shared, tensors = operator_arguments(cell, requires_grad, **options)
    with torch.no_grad():
        output, h_n, c_n, _, saved = torch.ops.fused_rnn.layer_forward(*shared, *tensors, True, False)
    grads = [torch.randn_like(output).requires_grad_(requires_grad), torch.randn_like(h_n)]
    grads += [torch.randn_like(c_n) if c_n.numel() else None, None]
    groups = 1 if options.get("packed") or requires_grad else 5
    arguments = (*shared, *grads, *tensors, saved, 127, groups, not requires_grad)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if options.get("packed") and requires_grad:
        checks.pop()  # the double backward reads batch_sizes, which a trace with unknown values cannot
    torch.library.opcheck(torch.ops.fused_rnn.layer_backward.default, arguments, test_utils=checks)


def test_raw_operator_refuses_tangents():
    shared, (x, *tensors) = operator_arguments("lstm", False)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="no forward-mode AD"):
            torch.ops.fused_rnn.layer_forward(*shared, dual, *tensors, False, False)


def test_raw_operator_says_that_nothing_was_saved():
    shared, tensors = operator_arguments("gru", True)
    output = torch.ops.fused_rnn.layer_forward(*shared, *tensors, False, False)[0]
    with pytest.raises(RuntimeError, match="save=True"):
        output.sum().backward()


# ---- ways through autograd -------------------------------------------------------------------------------------------


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
    """is_grads_batched has a vmap of its own, which the vectorized jacobian uses too."""
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


def test_function_twins_refuse_weights_with_a_member_dimension():
    gru = fused_rnn.GRU(3, 4)
    stacked = [torch.stack([p] * 3) for p in gru.parameters()]
    with pytest.raises(ValueError, match=r"weights\[0\] \(weight_ih\) must be 2-D, got \[3, 12, 3\]"):
        functional.gru(torch.randn(5, 2, 3), None, stacked)
