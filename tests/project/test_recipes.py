"""The examples for other libraries, where installed: the extra ``recipes`` has them all."""

import importlib
import re

import pytest
import torch
from torch import nn

from fused_rnn.autograd import functions
from support.paths import EXAMPLES
from support.processes import run_python


def losses_of(example: str, *options: str) -> list[float]:
    """Losses that the example prints, in another process: these libraries keep global state, and warn a lot."""
    return [float(loss) for loss in re.findall(r"loss (\d\.\d{6})", run_python(EXAMPLES / example, *options))]


@pytest.mark.parametrize(("library", "example"), [("lightning", "lightning_module"), ("accelerate", "accelerate_loop")])
def test_libraries_train_like_the_plain_loop(library, example):
    pytest.importorskip(library, reason=f"{library} is not installed")
    steps = ("--steps", "5")  # few enough that the plain loop's last loss is that of one step
    (expected,) = losses_of("train_ddp.py", *steps)
    assert losses_of(f"{example}.py", *steps) == pytest.approx([expected], rel=1e-5)


@pytest.fixture
def opacus_example(monkeypatch):
    pytest.importorskip("opacus", reason="opacus is not installed")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("opacus_dp_sgd")


def test_opacus_gets_the_gradients_of_a_loop_over_rows(opacus_example, monkeypatch):
    model = opacus_example.Adder(hidden=8)
    x, lengths, target = next(iter(torch.utils.data.DataLoader(opacus_example.Rows(6), batch_size=6)))
    losses, grads = [], []
    for i in range(6):
        row = slice(i, i + 1)
        losses.append(nn.functional.mse_loss(model(x[row], lengths[row]), target[row]))
        grads.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    calls = []

    def watch(*args, forward=functions.layer_forward):
        calls.append(args)
        return forward(*args)

    monkeypatch.setattr(functions, "layer_forward", watch)
    loss = opacus_example.per_row_gradients(model, x, lengths, target)
    assert len(calls) == 1
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    for parameter, expected in zip(model.parameters(), zip(*grads, strict=True), strict=True):
        torch.testing.assert_close(parameter.grad_sample, torch.stack(expected))


def test_opacus_trains(opacus_example):
    assert losses_of("opacus_dp_sgd.py", "--steps", "500")[-1] < 0.5 * 0.167
