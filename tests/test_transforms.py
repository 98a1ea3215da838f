"""torch.func's transforms, one in another: each pair, and some in threes, give what torch.nn or the formula gives.

Where one takes a derivative of another's, the layer meets levels that are active, that are over, and both at once.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import fused_rnn
from fused_rnn import reference


def squares(f):
    return lambda x: f(x).square().sum()


def pull_back(f):
    """Called when its level is over, perhaps inside of another's."""

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
