"""Forward-mode AD, and second derivatives by the compiled operators, against the formula in plain PyTorch.

Finite differences of both are in test_gradients.py.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.autograd import functions
from fused_rnn.ops import plain
from fused_rnn.ops.calls import layer_of
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case, make_problem, relative_error

SIZES = {
    "small": {"steps": 4, "batch": 3, "input_size": 2, "hidden": 5},
    "one": {"steps": 1, "batch": 1, "input_size": 1, "hidden": 1},
    "tails": {"steps": 5, "batch": 21, "input_size": 7, "hidden": 35},
    "many units": {"steps": 3, "batch": 1, "input_size": 3, "hidden": 300},
    "many rows": {"steps": 70, "batch": 9, "input_size": 3, "hidden": 17},  # more than one round of the walk back
    "no rows": {"steps": 2, "batch": 0, "input_size": 3, "hidden": 4},
}
FORMS = {
    "padded": {},
    "bidirectional": {"bidirectional": True, "bias": False, "states": False},
    "lengths and resets": {"lengths": True, "reset": True, "bidirectional": True},
    "packed": {"packed": True, "reset": True},
}


def problem_of(cell, form, size, dtype=torch.float64):
    if form in ("lengths and resets", "packed") and size == "no rows":
        pytest.skip("no row is as long as the sequence")
    hidden = SIZES[size]["hidden"]
    proj_size = hidden // 2 if CELLS[cell].projectable and form != "padded" else 0
    return make_problem(CELLS[cell], Case(form, **SIZES[size], **FORMS[form], proj_size=proj_size), dtype, "cpu")


def call(problem, api, tensors):
    """Builds the PackedSequence from its data: torch's packing has no forward-mode AD."""
    if not problem.case.packed:
        return tuple(problem.call(api, tensors))
    packed = pack_padded_sequence(problem.tensors[0].double(), problem.lengths, enforce_sorted=False)
    data = tensors[0].flatten(0, 1)[: len(packed.data)]
    options = {"reset_mask": problem.reset_mask}
    if problem.cell.name.startswith("rnn_"):
        options["nonlinearity"] = problem.cell.name.removeprefix("rnn_")
    states = problem.cell.states
    hx = tensors[1] if states == 1 else tensors[1 : 1 + states]
    function = getattr(api, problem.cell.name.split("_")[0])
    output, state = function(packed._replace(data=data), hx, list(tensors[1 + states :]), **options)
    return (output.data, *(state if isinstance(state, tuple) else (state,)))


def derivatives(problem, api, tensors, changes, vectors, vector_changes):
    """Tangents, along ``changes``, of the outputs and of the gradients for ``vectors``; then the gradients of
    <changes, gradients>."""

    def run(*tensors):
        return call(problem, api, tensors)

    def gradients(vectors, *tensors):
        return torch.func.vjp(run, *tensors)[1](vectors)

    outputs, of_outputs = torch.func.jvp(run, tensors, changes)
    _, of_gradients = torch.func.jvp(gradients, (vectors, *tensors), (vector_changes, *changes))
    leaves = [t.clone().requires_grad_() for t in (*tensors, *vectors)]
    own, own_vectors = leaves[: len(tensors)], leaves[len(tensors) :]
    first = torch.autograd.grad(run(*own), own, own_vectors, create_graph=True, materialize_grads=True)
    reached = [(f, c) for f, c in zip(first, changes, strict=True) if f.requires_grad]
    second = torch.autograd.grad([f for f, _ in reached], leaves, [c for _, c in reached], materialize_grads=True)
    return [*outputs, *of_outputs, *of_gradients, *second]


def compare(problem, dtype, tolerance, monkeypatch):
    tensors = tuple(problem.tensors)
    outputs = call(problem, reference, [t.double() for t in tensors])
    changes, vectors, vector_changes = (
        tuple(torch.randn_like(t, dtype=dtype) for t in group) for group in (tensors, outputs, outputs)
    )
    given = (tensors, changes, vectors, vector_changes)
    expected = derivatives(problem, reference, *(tuple(t.double() for t in group) for group in given))
    with monkeypatch.context() as patch:

        def refuse(*args, **options):
            raise AssertionError("the formula in plain PyTorch was used where the operators serve")

        patch.setattr(reference, "run_layer", refuse)
        found = derivatives(problem, functional, *given)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) <= tolerance


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_operators_equal_the_formula(cell, form, size, monkeypatch):
    compare(problem_of(cell, form, size), torch.float64, 1e-10, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", [name for name in CELLS if name != "rnn_relu"])  # its slope jumps at 0
def test_operators_in_other_dtypes(cell, dtype, monkeypatch):
    problem = problem_of(cell, "lengths and resets", "small", dtype)
    compare(problem, dtype, TOLERANCE[dtype], monkeypatch)


def test_padding_may_hold_anything():
    lstm = fused_rnn.LSTM(2, 3, proj_size=2, dtype=torch.float64)
    x, lengths = torch.randn(4, 3, 2, dtype=torch.float64), torch.tensor([4, 0, 2])
    with_nan = x.clone()
    with_nan[2:, 1:] = torch.nan
    results = []
    for input in (x, with_nan):
        own = input.requires_grad_()
        (grad,) = torch.autograd.grad(lstm(own, lengths=lengths)[0].square().sum(), own, create_graph=True)
        change = torch.where(own.isnan(), own.detach(), 1)
        _, tangent = torch.func.jvp(lambda x: lstm(x, lengths=lengths)[0], (own.detach(),), (change,))
        results.append([*torch.autograd.grad(grad.square().sum(), [own, *lstm.parameters()]), tangent])
    torch.testing.assert_close(*results, rtol=0, atol=0)


# ---- torch.func and forward_ad ---------------------------------------------------------------------------------------


def along(run, x, change):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(x, change))).tangent


def gradient_of_tangent(run, x, change):
    own = x.clone().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(own, change))).tangent
    return torch.autograd.grad(tangent.square().sum(), own)[0]


def loss(run):
    return lambda x: run(x).square().sum()


TRANSFORMS = {
    "forward_ad": along,
    "no_grad": torch.no_grad()(along),
    "gradient of forward_ad": gradient_of_tangent,
    "jvp": lambda run, x, change: torch.func.jvp(run, (x,), (change,))[1],
    "jacfwd": lambda run, x, _: torch.func.jacfwd(run)(x),
    "hessian": lambda run, x, _: torch.func.hessian(loss(run))(x),
    "jacfwd of jacfwd": lambda run, x, _: torch.func.jacfwd(torch.func.jacfwd(loss(run)))(x),
    "jacrev of jacfwd": lambda run, x, _: torch.func.jacrev(torch.func.jacfwd(loss(run)))(x),
    "jvp of grad": lambda run, x, change: torch.func.jvp(torch.func.grad(loss(run)), (x,), (change,))[1],
    "grad of jvp": lambda run, x, change: torch.func.grad(lambda x: torch.func.jvp(loss(run), (x,), (change,))[1])(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(layer, transform):
    ours, theirs, x = layer
    change = torch.randn_like(x)
    found, expected = (TRANSFORMS[transform](lambda x, m=module: m(x)[0], x, change) for module in (ours, theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's, of its own graph
def test_linearize(layer):
    ours, theirs, x = layer
    change = torch.randn_like(x)
    ours.requires_grad_(False)
    output, push = torch.func.linearize(lambda x: ours(x)[0], x)
    torch.testing.assert_close(output, theirs(x)[0])
    torch.testing.assert_close(push(change), along(lambda x: theirs(x)[0], x, change))


@pytest.mark.parametrize("inside", [False, True])
def test_with_vmap(layer, inside):
    """jvp of vmap and vmap of jvp, over inputs and over weights."""
    ours, theirs, _ = layer
    xs, changes = torch.randn(2, 3, 5, 2, 3, dtype=torch.float64)
    weights = {name: torch.stack([p, 2 * p, -p]).detach() for name, p in ours.named_parameters()}

    def run(x, own):
        return torch.func.functional_call(ours, own, (x,))[0]

    for dims, own in (((0, None), dict(ours.named_parameters())), ((0, 0), weights)):
        if inside:
            tangents = torch.vmap(
                lambda x, change, own: torch.func.jvp(lambda x: run(x, own), (x,), (change,))[1], (0, *dims)
            )(xs, changes, own)
        else:
            mapped = torch.vmap(run, dims)
            tangents = torch.func.jvp(lambda xs, own=own, mapped=mapped: mapped(xs, own), (xs,), (changes,))[1]
        for i, tangent in enumerate(tangents):
            chosen = {name: w if dims[1] is None else w[i] for name, w in own.items()}
            call = lambda x, chosen=chosen: torch.func.functional_call(theirs, chosen, (x,))[0]  # noqa: E731
            torch.testing.assert_close(tangent, along(call, xs[i], changes[i]))


def test_tangent_of_per_sample_gradients(layer):
    ours, theirs, _ = layer
    xs, changes = torch.randn(2, 3, 5, 2, 3, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        parameters = dict(module.named_parameters())
        gradient = torch.func.grad(lambda own, x, m=module: torch.func.functional_call(m, own, (x,))[0].square().sum())
        if module is ours:
            mapped = torch.vmap(gradient, (None, 0))
            results.append(torch.func.jvp(lambda xs: mapped(parameters, xs), (xs,), (changes,))[1])  # noqa: B023
        else:
            singly = [
                torch.func.jvp(lambda x: gradient(parameters, x), (x,), (change,))[1]  # noqa: B023
                for x, change in zip(xs, changes, strict=True)
            ]
            results.append({name: torch.stack([s[name] for s in singly]) for name in parameters})
    torch.testing.assert_close(*results)


# ---- uses of second derivatives --------------------------------------------------------------------------------------


def gradient_penalty(module, x):
    own = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(own)[0].square().sum(), own, create_graph=True)
    return torch.autograd.grad((gradient.norm() - 1).square(), [own, *module.parameters()])


def hessian_vector_product(module, x):
    """In all weights and states, by double backward."""
    weights = list(module.parameters())
    first = torch.autograd.grad(module(x)[0].square().sum(), weights, create_graph=True)
    return torch.autograd.grad(first, weights, [w.detach().sin() for w in weights])


def learn_to_learn(module, x, steps=2):
    """MAML: the gradient, with respect to the first weights, of the loss after some steps of gradient descent."""
    first = dict(module.named_parameters())
    weights = first

    def loss(weights):
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    for _ in range(steps):
        gradients = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
        weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    return torch.autograd.grad(loss(weights), list(first.values()))


def learn_to_learn_by_transforms(module, x):
    def loss(weights):
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    def after_a_step(weights):
        gradients = torch.func.grad(loss)(weights)
        return loss({name: weights[name] - 0.1 * gradients[name] for name in weights})

    return list(torch.func.grad(after_a_step)(dict(module.named_parameters())).values())


USES = (gradient_penalty, hessian_vector_product, learn_to_learn, learn_to_learn_by_transforms)


@pytest.mark.parametrize("use", USES)
def test_uses_of_second_derivatives(layer, use, request):
    ours, theirs, x = layer
    if "learn" not in use.__name__:  # those may be, or are, differentiated for the third time
        request.getfixturevalue("no_reference")
    torch.testing.assert_close(use(ours, x), use(theirs, x))


# ---- the operators ---------------------------------------------------------------------------------------------------


def calls_of(cell, members):
    """The arguments of the three operators, as the library passes them."""
    problem = problem_of(cell, "lengths and resets", "small")
    layers = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(plain, "states_of", lambda *args: None)  # layer_forward, not infer
        patch.setattr(functions, "layer_forward", lambda *args: layers.append(layer_of(args[2:])) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            problem.call(functional, problem.tensors)
    layer = layers[0]
    if members:
        stack = lambda t: None if t is None else torch.stack([t, t])  # noqa: E731
        layer = layer._replace(h0=stack(layer.h0), c0=stack(layer.c0), weights=tuple(map(stack, layer.weights)))
    with torch.no_grad():
        output, _, _, _, saved = layer.forward(True, False)
        grads = (output, None, None, None)
        x, r, states, traced, _ = layer.trace(grads, saved)
    arguments = (*layer[:3], *layer._tensors)
    wide = None if traced.shape == (0,) else states[..., : states.shape[-1] // CELLS[cell].states].contiguous()
    yield "layer_tangent", (*arguments, saved, x, r if r.numel() else x, None, False)
    yield "layer_trace", (*layer[:3], *grads, *layer._tensors, saved)
    yield "layer_backward_tangent", (*layer[:3], *grads, *layer._tensors, saved, saved, states, output, wide, 127)


@pytest.mark.parametrize("members", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_operators_check(cell, members):
    for name, arguments in calls_of(cell, members):
        operator = getattr(torch.ops.fused_rnn, name).default
        torch.library.opcheck(operator, arguments, test_utils=["test_schema", "test_faketensor"])
        arguments = [
            a.clone().requires_grad_() if i == 3 + 4 * (name != "layer_tangent") else a for i, a in enumerate(arguments)
        ]
        with pytest.raises(NotImplementedError, match="no gradient"):
            operator(*arguments)


@pytest.mark.parametrize("what", ["saved", "x", "h"])
def test_operators_refuse_what_does_not_fit(what):
    (_, arguments), *_ = calls_of("gru", False)
    at = {"saved": -5, "x": -4, "h": -2}[what]
    arguments = list(arguments)
    arguments[at] = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=what):
        torch.ops.fused_rnn.layer_tangent(*arguments)


# ---- the CUDA kernels; last, since the machine stays until the end of this file --------------------------------------


@pytest.mark.parametrize("size", ["small", "tails"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_cuda_kernels_equal_the_formula(machine, cell, form, size, monkeypatch):
    machine.schedule(len(form + cell))
    compare(problem_of(cell, form, size), torch.float64, 1e-10, monkeypatch)


def test_a_forced_engine_computes_first_derivatives(machine, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_ENGINE", "one")
    compare(problem_of("gru", "lengths and resets", "small"), torch.float64, 1e-10, monkeypatch)
