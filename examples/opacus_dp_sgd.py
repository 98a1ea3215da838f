"""The adding problem with differential privacy, by Opacus: python examples/opacus_dp_sgd.py

Opacus clips the gradient of each row, so it needs per-row gradients. In its default mode it gets them from this
library's layers, whatever those are called with. Here the whole model's are computed at once: ``vmap(grad)``
takes one kernel call forward and one backward, where Opacus' own DPLSTM loops over the steps in Python;
``grad_sample_mode="no_op"`` tells Opacus that we supply them.
"""

import argparse

import torch
from adding import Adder, Rows
from opacus import PrivacyEngine
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader


def per_row_gradients(model, x, lengths, target):
    """Sets ``grad_sample [B, ...]`` of each parameter; returns the loss."""

    def loss_of_row(weights, x, length, target):
        loss = (functional_call(model, weights, (x, length)) - target).square()
        return loss, loss

    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    grads, losses = vmap(grad(loss_of_row, has_aux=True), in_dims=(None, 0, 0, 0))(weights, x, lengths, target)
    for name, weight in model.named_parameters():
        weight.grad_sample = grads[name]
    return losses.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.7, help="on the clipped sum, in multiples of the bound")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Adder(hidden=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    engine = PrivacyEngine()
    model, optimizer, rows = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(Rows(256 * args.steps), batch_size=256),
        noise_multiplier=args.noise,
        max_grad_norm=1.0,
        grad_sample_mode="no_op",
    )
    for step, batch in enumerate(rows, 1):
        loss = per_row_gradients(model, *batch)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == args.steps:
            print(f"step {step:5}  loss {loss:.6f}  epsilon {engine.get_epsilon(delta=1e-5):.2f}", flush=True)


if __name__ == "__main__":
    main()
