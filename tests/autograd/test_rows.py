"""Weight gradients of each row, which the backward pass of a layer delivers beside their sums."""

import pytest
import torch

import fused_rnn
from fused_rnn.autograd import rows
from fused_rnn.ops.arguments import Runner
from support.modules import every_layer, make_input, make_pair


class ByRow:
    """Runs a module; ``delivered`` collects what each layer's backward pass delivers, the last layer first."""

    def __init__(self, module):
        self.module, self.delivered, self.are_wanted = module, [], True

    def __call__(self, input, **options):
        def run_layer(layer, cells, grad_clip=None):
            return rows.run_layer(layer, cells, grad_clip, lambda: self.are_wanted, self.delivered.append)

        return self.module._run(input, **options, runner=Runner(run_layer))


def loss_of(results):
    output, state = results
    states = state if isinstance(state, tuple) else (state,)
    return output.square().sum() + sum(s.sin().sum() for s in states)


@every_layer
@pytest.mark.parametrize("options", [{}, {"bias": False, "batch_first": True}, {"bidirectional": True}], ids=str)
def test_they_are_those_of_a_loop_over_rows(kind, options, poisoned):
    module, _ = make_pair(kind, num_layers=2, **options)
    x, batch_dim = make_input(module, batch=3), 0 if module.batch_first else 1
    lengths, resets = torch.tensor([5, 1, 3]), torch.rand(x.shape[:2]) < 0.4
    run = ByRow(module)
    loss_of(run(x, lengths=lengths, reset_mask=resets)).backward()
    found = [grad for layer in reversed(run.delivered) for grad in layer]
    weights = list(module.parameters())
    torch.testing.assert_close([grad.sum(0) for grad in found], [weight.grad for weight in weights])
    for b in range(3):
        own = {"lengths": lengths[b : b + 1], "reset_mask": resets.narrow(batch_dim, b, 1)}
        expected = torch.autograd.grad(loss_of(module(x.narrow(batch_dim, b, 1), **own)), weights)
        torch.testing.assert_close([grad[b] for grad in found], list(expected))


def test_ids():
    module = fused_rnn.LSTM(6, 4, dtype=torch.float64)
    run, ids = ByRow(module), torch.randint(6, (5, 2))
    loss_of(run(ids)).backward()
    (found,) = run.delivered
    for b in range(2):
        expected = torch.autograd.grad(loss_of(module(ids[:, b : b + 1])), list(module.parameters()))
        torch.testing.assert_close([grad[b] for grad in found], list(expected))


@pytest.mark.parametrize("batch", [0, 1])
def test_no_row_and_one(batch):
    module = fused_rnn.GRU(3, 4)
    run = ByRow(module)
    loss_of(run(torch.randn(5, batch, 3))).backward()
    (found,) = run.delivered
    for grad, weight in zip(found, module.parameters(), strict=True):
        assert grad.shape == (batch, *weight.shape)
        torch.testing.assert_close(grad.sum(0), weight.grad)


def test_frozen_weights_have_none_and_a_pass_may_want_none():
    module = fused_rnn.GRU(3, 4)
    module.weight_hh_l0.requires_grad_(False)
    run = ByRow(module)
    loss = loss_of(run(torch.randn(5, 2, 3)))
    loss.backward(retain_graph=True)
    assert [grad is None for grad in run.delivered[0]] == [False, True, False, False]
    once = module.weight_ih_l0.grad.clone()
    run.are_wanted = False
    loss.backward()
    assert len(run.delivered) == 1
    torch.testing.assert_close(module.weight_ih_l0.grad, 2 * once)


def test_they_have_no_gradients_themselves():
    run = ByRow(fused_rnn.GRU(3, 4))
    with pytest.raises(NotImplementedError, match="create_graph=True is refused"):
        torch.autograd.grad(loss_of(run(torch.randn(5, 2, 3))), run.module.weight_ih_l0, create_graph=True)
