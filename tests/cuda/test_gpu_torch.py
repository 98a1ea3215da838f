"""The engine ``torch`` on a GPU, which is cuDNN there, and whole training steps in CUDA graphs."""

import pytest
import torch

import fused_rnn
from fused_rnn.ops import tables
from support.gpu import on_a_gpu
from support.modules import LAYERS, make_pair

pytestmark = [*on_a_gpu, pytest.mark.usefixtures("without_tf32")]


def results_of(module, input, create_graph=False):
    output, _ = module(input)
    return [output, *torch.autograd.grad(output.square().sum(), list(module.parameters()), create_graph=create_graph)]


def pair(kind, dtype=torch.float32, **options):
    ours, theirs = make_pair(kind, 20, 50, dtype=dtype, **options)
    return ours.cuda(), theirs.cuda(), torch.randn(30, 12, 20, dtype=dtype, device="cuda")


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_equals_torch_nn(kind, training):
    ours, theirs, input = pair(kind, num_layers=2, bidirectional=True)
    ours.train(training)  # gradients in evaluation mode too, which torch.nn refuses there
    with fused_rnn.engine("torch"):
        assert fused_rnn.explain(ours, input).engine == "torch"
        torch.testing.assert_close(results_of(ours, input), results_of(theirs, input))


@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_are_ours(kind):
    ours, _, input = pair(kind, torch.float64)

    def penalty():
        gradients = results_of(ours, input, create_graph=True)[1:]
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), list(ours.parameters()))

    with fused_rnn.engine("torch"):
        found = penalty()
    torch.testing.assert_close(found, penalty())


def test_the_default_says_that_nothing_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    tables.forget()
    ours, _, input = pair("lstm")
    with fused_rnn.engine("auto"), pytest.warns(UserWarning, match="no measurements for .*fused_rnn tune"):
        ours(input)


@pytest.mark.parametrize("engine", ["torch", "stepwise", "best"])
def test_graphed_callables(engine):
    with fused_rnn.engine(engine):
        ours, theirs, input = pair("gru")
        graphed = torch.cuda.make_graphed_callables(ours, (torch.randn_like(input),))
        for _ in range(2):
            input = -input
            torch.testing.assert_close(results_of(graphed, input), results_of(theirs, input), rtol=1e-4, atol=1e-4)


def test_compiled_with_graphs():
    ours, theirs, input = pair("lstm")
    compiled = torch.compile(ours, mode="reduce-overhead")
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(results_of(compiled, input), results_of(theirs, input), rtol=1e-4, atol=1e-4)
