"""Nested transforms of torch.func, every pair and some triples, against torch.nn or the reference.

In nested derivatives a layer meets active levels, finished ones, and both at once.
"""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import fused_rnn
from fused_rnn import reference


def squares(f):
    return lambda x: f(x).square().sum()


def pull_back(f):
    """Called after its level has ended, perhaps inside of another one."""

    def pulled(x):
        output, pull = vjp(f, x)
        return pull(output.sin())[0]

    return pulled


TRANSFORMS = {
    "grad": lambda f: grad(squares(f)),
    "vjp": pull_back,
    "jvp": lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacrev": lambda f: jacrev(squares(f)),
    "jacfwd": lambda f: jacfwd(squares(f)),
    "vmap": lambda f: lambda x: vmap(f)(torch.stack([x, 2 * x])).sum(0),
}
THREES = [
    ("grad", "vjp", "jacfwd"),
    ("jacrev", "vjp", "jacrev"),
    ("vjp", "vjp", "vjp"),
    ("jvp", "jvp", "jvp"),
    ("vmap", "jvp", "vmap"),
    ("jvp", "vmap", "grad"),
    ("grad", "vmap", "jvp"),
    ("jacfwd", "jacrev", "jacfwd"),
]


def results(call, parameters, x, names):
    for name in names:
        call = TRANSFORMS[name](call)
    output = call(x)
    if not output.requires_grad:
        return [output]
    return [output.detach(), *torch.autograd.grad(squares(lambda x: x)(output), parameters, materialize_grads=True)]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("names", [*itertools.product(TRANSFORMS, repeat=2), *THREES], ids="-".join)
def test_one_in_another(names, frozen):
    kind = ("LSTM", "GRU", "RNN")[len("".join(names)) % 3]
    ours, theirs = (getattr(where, kind)(2, 3, 2, bidirectional=True, dtype=torch.float64) for where in (fused_rnn, nn))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    parameters = [p.requires_grad_(not frozen) for p in ours.parameters()]
    theirs.requires_grad_(not frozen)
    try:
        expected = results(lambda x: theirs(x)[0], list(theirs.parameters()), x, names)
    except RuntimeError:  # torch.nn under vmap
        twin, options = getattr(reference, kind.lower()), {"num_layers": 2, "bidirectional": True}
        expected = results(lambda x: twin(x, None, parameters, **options)[0], parameters, x, names)
    torch.testing.assert_close(results(lambda x: ours(x)[0], parameters, x, names), expected)


# ---- mixed with plain autograd and forward_ad ------------------------------------------------------------------------


def tangent_of_gradient(run, x, change):
    """Without create_graph, which forward mode does not need."""
    with forward_ad.dual_level():
        own = forward_ad.make_dual(x.clone().requires_grad_(), change)
        (gradient,) = torch.autograd.grad(run(own).square().sum(), own)
        return forward_ad.unpack_dual(gradient).tangent


def tangent_of_second_gradient(run, x, change, create_graph=False):
    with forward_ad.dual_level():
        own = forward_ad.make_dual(x.clone().requires_grad_(), change)
        (first,) = torch.autograd.grad(run(own).square().sum(), own, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), own, create_graph=create_graph)
        return forward_ad.unpack_dual(second).tangent


def level_inside_forward_ad(run, x, change):
    with forward_ad.dual_level():
        own = forward_ad.make_dual(x, change)
        return forward_ad.unpack_dual(grad(squares(grad(squares(run))))(own)).tangent


def autograd_inside_a_level(run, x, _):
    def twice(x):
        (first,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        return second.sin().sum()

    return grad(twice)(x)


def pulled_back_in_two_directions(run, x, change):
    output, pull = vjp(run, x)

    def inner(a):
        return jvp(lambda b: pull(output * a * b)[0], (change.mean(),), (change.max(),))[1]

    return jvp(inner, (change.sum(),), (change.min(),))[1]


MIXTURES = (
    tangent_of_gradient,
    tangent_of_second_gradient,
    partial(tangent_of_second_gradient, create_graph=True),
    level_inside_forward_ad,
    autograd_inside_a_level,
    pulled_back_in_two_directions,
)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_mixed_with_plain_autograd(kind, mixture):
    ours, theirs = (getattr(where, kind)(2, 3, 2, dtype=torch.float64) for where in (fused_rnn, nn))
    theirs.load_state_dict(ours.state_dict())
    x, change = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    found, expected = (mixture(lambda x, m=module: m(x)[0], x, change) for module in (ours, theirs))
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_autocast_leaves_derivatives_alone(kind):
    """Saved tensors have their dtype already: the second derivative is the same inside and outside of autocast."""
    layer = getattr(fused_rnn, kind)(2, 3)
    x, change = torch.randn(2, 3, 2, 2)
    results = []
    for enabled in (False, True):
        own = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(layer(own)[0].square().sum(), own, create_graph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(torch.autograd.grad(first, own, change)[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        _, tangent = jvp(lambda x: layer(x)[0], (x,), (change,))
    expected = jvp(lambda x: layer(x)[0], (x,), (change,))[1]
    torch.testing.assert_close(tangent.float(), expected, rtol=0.05, atol=0.05)
