"""Whole calls in CUDA graphs, on the machine: what a captured call asked for, done again on other numbers."""

import pytest
import torch

import fused_rnn
from ptx.calls import engine
from support.modules import LAYERS, make_pair

ENGINES = ("stepwise", "one", "cluster", "polling", "flags")


def call_of(kind, dtype=torch.float32, with_options=True, **options):
    """A layer, its input, and a function of no arguments: results and gradients of all inputs and parameters.

    All of it by our operators: torch's own ones are not captured here.
    """
    torch.manual_seed(0)
    module, _ = make_pair(kind, 3, 6, dtype=dtype, **options)
    input = torch.randn(5, 2, 3, dtype=dtype).requires_grad_()
    directions = 2 if module.bidirectional else 1
    upstream = torch.randn(5, 2, directions * (module.proj_size or 6), dtype=dtype)
    masks = {"lengths": torch.tensor([5, 3]), "reset_mask": torch.rand(5, 2) < 0.3} if with_options else {}

    def run():
        output, _ = module(input, **masks)
        return [output.detach(), *torch.autograd.grad(output, [input, *module.parameters()], upstream)]

    return module, input, run


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", LAYERS)
def test_replays_equal_calls(machine, kind, name):
    if kind == "lstm_projected" and name != "stepwise":
        pytest.skip("a projection is stepwise alone")
    with engine(name):
        module, input, run = call_of(kind, bidirectional=True)
        run()
        with machine.captured() as graph:
            found = run()
        assert found[0].isnan().any()  # nothing was computed yet
        for scale in (1.0, -0.5):
            with torch.no_grad():
                input.mul_(scale)
                module.weight_hh_l0.mul_(0.9)
            graph[0]()
            torch.testing.assert_close(found, run(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(machine, dtype):
    with engine("stepwise"):
        _, input, run = call_of("lstm", dtype)
        with machine.captured() as graph:
            found = run()
        with torch.no_grad():
            input.mul_(2)
        graph[0]()
        torch.testing.assert_close(found, run(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["stepwise", "cluster"])
def test_inference_and_single_steps(machine, name):
    """The step of a decoder: a cell on the state that it left behind."""
    with engine(name), torch.no_grad():
        layer, cell = fused_rnn.GRU(3, 6), fused_rnn.LSTMCell(3, 6)
        x, h, c = torch.randn(4, 2, 3), torch.randn(2, 6), torch.randn(2, 6)
        with machine.captured() as graph:
            output, _ = layer(x)
            new = cell(x[0], (h, c))
        for _ in range(3):
            x.neg_()
            graph[0]()
            torch.testing.assert_close(output, layer(x)[0], rtol=0, atol=0)
            torch.testing.assert_close(new, cell(x[0], (h, c)), rtol=0, atol=0)
            h.copy_(new[0])
            c.copy_(new[1])


def test_the_graph_holds_the_memory_of_its_steps(machine):
    """What the call let go of is not given to others meanwhile."""
    with engine("stepwise"):
        _, input, run = call_of("lstm")
        with machine.captured() as graph:
            found = run()
        others = [torch.full((64,), 3.0) for _ in range(200)]
        graph[0]()
        assert all(bool((other == 3).all()) for other in others)
        torch.testing.assert_close(found, run(), rtol=0, atol=0)
        del input


# ---- launches of the stepwise engine ---------------------------------------------------------------------------------


def spent(machine, steps, options, with_gradients):
    """(kernels, products of matrices) of a call and its backward pass."""
    kind = "lstm_projected" if options.get("proj_size") else "lstm"
    module, _ = make_pair(kind, 3, 6, dtype=torch.float32, bidirectional=options.get("bidirectional", False))
    module.recurrent_dropout = module.zoneout = options.get("dropout", 0.0)
    input = torch.randn(steps, 2, 3)
    masks = {"reset_mask": torch.rand(steps, 2) < 0.3} if options.get("reset") else {}
    with torch.set_grad_enabled(with_gradients):
        before = machine.totals()
        output, _ = module(input, **masks)
        forward = machine.totals()
        if with_gradients:
            torch.autograd.grad(output, list(module.parameters()), torch.ones_like(output))
    after = machine.totals()
    pairs = ((before, forward), (forward, after))
    return [(end.launches - begin.launches, end.products - begin.products) for begin, end in pairs]


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"reset": True}, {"proj_size": 2}, {"dropout": 0.5}])
def test_launches_of_a_step(machine, options, with_gradients):
    """One kernel and one product for all directions; twice that with a projection."""
    with engine("stepwise"):
        few, many = (spent(machine, steps, options, with_gradients) for steps in (3, 8))
    each = 2 if "proj_size" in options else 1
    for way, (begin, end) in enumerate(zip(few, many, strict=True)):
        kernels, products = ((end[k] - begin[k]) / 5 for k in (0, 1))
        if way == 0 or with_gradients:
            assert (kernels, products) == (each, each), ("forward", "backward")[way]
    # W_ih x of all steps is one product for each direction.
    assert few[0][1] == 3 * each + (2 if options.get("bidirectional") else 1)
