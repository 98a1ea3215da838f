"""Token ids under torch.func's transforms and in second derivatives: as one-hot rows."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from fused_rnn import functional
from support.modules import F64
from support.one_hot import VOCABULARY, one_hot


def loss_of(weights, input, **options):
    output, state = functional.gru(input, None, weights, **options)
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output)).square().sum() + state.sum()


def gru_weights(**options):
    return [w.detach() for w in fused_rnn.GRU(VOCABULARY, 4, dtype=F64, **options).parameters()]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (None, 1), (0, 0)], ids=str)
def test_vmap(in_dims, ragged, no_reference):
    weights = gru_weights()
    if in_dims[0] is not None:
        weights = [torch.stack([w * (1 + i) for i in range(3)]) for w in weights]
    ids = torch.randint(0, VOCABULARY, (5, 2) if in_dims[1] is None else (3, 5, 2))
    if in_dims[1] == 1:
        ids = ids.transpose(0, 1)
    options = {"lengths": torch.tensor([5, 2])} if ragged else {}
    over = torch.vmap(lambda w, x: torch.func.grad_and_value(loss_of)(w, x, **options), in_dims)
    torch.testing.assert_close(over(weights, ids), over(weights, one_hot(ids, VOCABULARY, F64)))


def test_nested_vmap_and_packed(no_reference):
    stacked = [torch.stack([w, 2 * w]) for w in gru_weights()]
    ids = torch.randint(0, VOCABULARY, (3, 5, 2))
    over = torch.vmap(torch.vmap(torch.func.grad(loss_of), (None, 0)), (0, None))
    torch.testing.assert_close(over(stacked, ids), over(stacked, one_hot(ids, VOCABULARY, F64)))
    data, batch_sizes = torch.randint(0, VOCABULARY, (3, 6)), torch.tensor([3, 2, 1])

    def of_packed(weights, data):
        output, state = functional.gru(PackedSequence(data, batch_sizes), None, weights)
        return output.data.square().sum() + state.sum()

    over = torch.vmap(torch.func.grad(of_packed), (None, 0))
    weights = gru_weights()
    torch.testing.assert_close(over(weights, data), over(weights, one_hot(data, VOCABULARY, F64)))


def penalty(weights, input):
    weights = [w.clone().requires_grad_() for w in weights]
    gradients = torch.autograd.grad(loss_of(weights, input), weights, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradients), weights)


def jvp(weights, input):
    return torch.func.jvp(lambda w: loss_of(w, input), (weights,), (weights,))


SECOND_ORDER = {
    "double backward": penalty,
    "jvp": jvp,
    "jvp of grad": lambda weights, input: torch.func.jvp(
        torch.func.grad(lambda w: loss_of(w, input)), (weights,), (weights,)
    ),
    "grad of grad": lambda weights, input: torch.func.grad(
        lambda w: sum(g.square().sum() for g in torch.func.grad(lambda w: loss_of(w, input))(w))
    )(weights),
    "hessian": lambda weights, input: torch.func.hessian(lambda w: loss_of([*weights[:3], w], input))(weights[3]),
    "jvp of jvp": lambda weights, input: torch.func.jvp(lambda w: jvp(w, input)[1], (weights,), (weights,)),
    "jacfwd over ids": lambda weights, input: torch.vmap(
        lambda x: torch.func.jacfwd(lambda w: loss_of([*weights[:3], w], x))(weights[3])
    )(torch.stack([input, input.flip(0)])),
    "double backward per sample": lambda weights, input: torch.vmap(
        torch.func.grad(lambda w, x: sum(g.square().sum() for g in torch.func.grad(loss_of)(w, x))), (None, 0)
    )(weights, torch.stack([input, input.flip(0)])),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_derivatives_and_tangents(name):
    """Computed by one-hot rows that need no derivative."""
    weights, ids = gru_weights(), torch.randint(0, VOCABULARY, (4, 2))
    derivative = SECOND_ORDER[name]
    torch.testing.assert_close(derivative(weights, ids), derivative(weights, one_hot(ids, VOCABULARY, F64)))


def test_batched_gradients(no_reference):
    module, ids = fused_rnn.LSTM(VOCABULARY, 4, dtype=F64), torch.randint(0, VOCABULARY, (5, 2))
    grads = torch.randn(3, 5, 2, 4, dtype=F64)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(module(input)[0], list(module.parameters()), grads, is_grads_batched=True)
            for input in (ids, one_hot(ids, VOCABULARY, F64))
        )
    )
