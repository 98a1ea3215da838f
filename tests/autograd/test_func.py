"""torch.func's grad, vmap, jacrev and their combinations on a layer, in float64."""

import itertools

import pytest
import torch

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.autograd import functions


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
    # An ensemble whose members have different lengths.
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
    """Whatever is mapped over, each layer calls each operator once."""
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


@pytest.mark.parametrize("at", [0, 1, -1])
def test_ensembles_of_ensembles_with_an_input_for_each(layer, no_reference, at):
    """Members of one ensemble share its input; ``at``: where the ensembles lie in the weights."""
    ours, *_ = layer
    weights = {name: torch.randn(3, 2, *w.shape, dtype=torch.float64) for name, w in ours.named_parameters()}
    xs, gradients = torch.randn(3, 5, 2, 3, dtype=torch.float64), torch.func.grad(loss_of(ours), (0, 1))
    moved = {name: w.movedim(0, at) for name, w in weights.items()}
    found, of_inputs = torch.vmap(torch.vmap(gradients, (0, None)), (at, 0))(moved, xs)
    for i, j in itertools.product(range(3), range(2)):
        own = {name: g[i, j] for name, g in found.items()}
        torch.testing.assert_close(
            (own, of_inputs[i, j]), gradients({name: w[i, j] for name, w in weights.items()}, xs[i])
        )


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
