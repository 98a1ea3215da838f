"""grad_clip: the kernels' gradients equal the reference's with the same clip; unsupported uses are refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.autograd import plain
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case, outputs_and_gradients
from support.compiled import Compiled
from support.modules import DEEP, F64, LAYERS, make_input, make_pair, make_states, tensors_of
from support.problems import assert_equals_reference, assert_near, clipped, problem_of
from support.problems import cases as all_cases

LIMIT = 0.1


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@given(case=clipped(all_cases), strided=st.booleans(), empty_rows=st.booleans(), threads=st.sampled_from([1, 1, 2, 3]))
@settings(max_examples=20)
def test_equals_reference(name, dtype, case, strided, empty_rows, threads):
    torch.set_num_threads(threads)
    assert_equals_reference(name, case, dtype, strided, empty_rows)


@pytest.mark.parametrize("name", CELLS)
def test_the_reference_clips_as_hooks_on_every_step_do(name):
    """Single steps chained by hand, with a hook that clips the gradient of each h."""
    problem = problem_of(CELLS[name], Case("steps", steps=6, batch=3), F64)
    cell = getattr(functional, f"{name}_cell")

    def gradients(run):
        tensors = [t.clone().requires_grad_() for t in problem.tensors]
        outputs = run(tensors)
        ones = [torch.linspace(-1, 1, o.numel(), dtype=F64).view_as(o) for o in outputs]
        return torch.autograd.grad(outputs, tensors, ones)

    def by_steps(tensors):
        count = CELLS[name].states
        x, states, weights = tensors[0], [s[0] for s in tensors[1 : 1 + count]], tensors[1 + count :]
        output = []
        for x_t in x:
            new = cell(x_t, tuple(states) if count > 1 else states[0], *weights)
            states = list(new) if count > 1 else [new]
            states[0].register_hook(lambda grad: grad.clamp(-LIMIT, LIMIT))
            output.append(states[0])
        return [torch.stack(output), *(s.unsqueeze(0) for s in states)]

    problem.case = replace(problem.case, grad_clip=LIMIT)
    expected = gradients(by_steps)
    for api in (reference, functional):
        torch.testing.assert_close(gradients(lambda tensors, api=api: problem.call(api, tensors)), expected)
    problem.case = replace(problem.case, grad_clip=None)
    unclipped = gradients(lambda tensors: problem.call(functional, tensors))
    assert any((one - other).abs().max() > 0.1 for one, other in zip(unclipped, expected, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_modules_take_grad_clip(kind, no_reference):
    module, _ = make_pair(kind, **DEEP)
    weights, input, states = list(module.parameters()), make_input(module), make_states(module)
    options = {"nonlinearity": module.nonlinearity} if isinstance(module, fused_rnn.RNN) else {}
    function = getattr(functional, type(module).__name__.lower())
    by_module = module(input, states, grad_clip=LIMIT)
    by_function = function(input, states, weights, **DEEP, **options, grad_clip=LIMIT)
    results = []
    for outputs in (by_module, by_function, module(input, states)):
        results.append(torch.autograd.grad(sum(o.sum() for o in tensors_of(outputs)), weights))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not torch.allclose(results[0][0], results[2][0])
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(module(input, grad_clip=LIMIT)), tensors_of(module(input)))
    fused_rnn.freeze(module)
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(module(input, grad_clip=LIMIT)), tensors_of(module(input)))


def test_nan_is_not_clipped(no_reference):
    """NaN must reach the user."""
    rnn, x = fused_rnn.RNN(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    output, _ = rnn(x, grad_clip=LIMIT)
    (grad,) = torch.autograd.grad(output, x, torch.full_like(output, torch.nan))
    assert grad.isnan().all()


def test_norms_are_those_of_clipped_gradients(no_reference):
    h0, weights = torch.zeros(1, 2, 4, dtype=F64), [torch.randn(*shape, dtype=F64) for shape in ((4, 3), (4, 4))]
    gru = (CELLS["rnn_tanh"].id, False, False)
    layer = (torch.randn(5, 2, 3, dtype=F64), h0, None, weights, None, None, None)
    operators = torch.ops.fused_rnn
    saved = operators.layer_forward(*gru, *layer, True, False)[4]
    grad = torch.full((5, 2, 4), 100.0, dtype=F64)
    norms = operators.layer_backward(*gru, grad, None, None, None, *layer, saved, 0, 1, True, LIMIT)[3]
    assert (norms <= LIMIT * math.sqrt(8) + 1e-12).all() and norms[0, 0, -1] > LIMIT * math.sqrt(8) - 1e-12


def test_gradient_flow_shows_clipped_gradients():
    """Probe "all" shows the loss's gradients, which are clipped; "last" those of a probe, which are not."""
    rnn, x = fused_rnn.RNN(3, 4, dtype=F64), torch.randn(5, 2, 3, dtype=F64)
    norms = {}
    for probe in ("all", "last"):
        for clip in (None, LIMIT):
            with fused_rnn.gradient_flow(rnn, probe) as flow:
                (100 * rnn(x, grad_clip=clip)[0].sum()).backward()
            norms[probe, clip] = str(flow.to_dict())
    assert norms["all", None] != norms["all", LIMIT] and norms["last", None] == norms["last", LIMIT]


# ---- transforms ------------------------------------------------------------------------------------------------------


def loss_of(weights, input, api=functional, hx=None):
    output, state = api.gru(input, hx, weights, grad_clip=LIMIT)
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() + state.sum()


@pytest.mark.parametrize("ensemble", [False, True])
def test_vmap_of_gradients(ensemble, no_reference, monkeypatch):
    """Per-sample gradients and ensemble members: each as if alone."""
    weights = [w.detach() for w in fused_rnn.GRU(3, 4, dtype=F64).parameters()]
    inputs = torch.randn(6, 5, 2, 3, dtype=F64)
    stacked = [torch.stack([w * (1 + i) / 3 for i in range(6)]) for w in weights] if ensemble else weights
    found = torch.vmap(torch.func.grad(loss_of, (0, 1)), (0 if ensemble else None, 0))(stacked, inputs)
    for i, x in enumerate(inputs):
        own = [(w[i] if ensemble else w).clone().requires_grad_() for w in stacked]
        x = x.clone().requires_grad_()
        expected = torch.autograd.grad(loss_of(own, x), [*own, x])
        torch.testing.assert_close([*(w[i] for w in found[0]), found[1][i]], list(expected))


def test_batched_gradients(no_reference):
    gru, x = fused_rnn.GRU(3, 4, dtype=F64), torch.randn(5, 2, 3, dtype=F64, requires_grad=True)
    output, _ = gru(x, grad_clip=LIMIT)
    grads = torch.randn(7, *output.shape, dtype=F64)
    found = torch.autograd.grad(output, [x, *gru.parameters()], grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        expected = torch.autograd.grad(output, [x, *gru.parameters()], grad, retain_graph=True)
        torch.testing.assert_close([f[i] for f in found], list(expected))


DERIVATIVES = "grad_clip goes with first derivatives in reverse mode only"


def penalty(x, weights):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(weights, x), x, create_graph=True)
    return gradient.square().sum().backward()


def dual_numbers(x, weights):
    with forward_ad.dual_level():
        return loss_of(weights, forward_ad.make_dual(x, x))


REFUSED = {
    "double backward": penalty,
    "forward mode": dual_numbers,
    "jvp": lambda x, weights: torch.func.jvp(lambda x: loss_of(weights, x), (x,), (x,)),
    "jvp of jvp": lambda x, weights: torch.func.jvp(
        lambda x: torch.func.jvp(lambda x: loss_of(weights, x), (x,), (x,))[1], (x,), (x,)
    ),
    "jacfwd": lambda x, weights: torch.func.jacfwd(lambda x: loss_of(weights, x))(x),
    "hessian": lambda x, weights: torch.func.hessian(lambda x: loss_of(weights, x))(x),
    "linearize": lambda x, weights: torch.func.linearize(lambda x: loss_of(weights, x), x),
    "grad of grad": lambda x, weights: torch.func.grad(
        lambda x: torch.func.grad(lambda x: loss_of(weights, x))(x).sum()
    )(x),
    "jvp of grad": lambda x, weights: torch.func.jvp(torch.func.grad(lambda x: loss_of(weights, x)), (x,), (x,)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, no_reference):
    weights = [w.detach() for w in fused_rnn.GRU(3, 4, dtype=F64).parameters()]
    with pytest.raises((NotImplementedError, RuntimeError), match=DERIVATIVES):
        REFUSED[name](torch.randn(5, 2, 3, dtype=F64), weights)


def test_create_graph_alone_is_allowed(no_reference):
    """Only a backward pass through that graph is refused."""
    weights = [w.detach() for w in fused_rnn.GRU(3, 4, dtype=F64).parameters()]
    x = torch.randn(5, 2, 3, dtype=F64, requires_grad=True)
    results = [torch.autograd.grad(loss_of(weights, x), x, create_graph=graph)[0] for graph in (False, True)]
    torch.testing.assert_close(*results)


# ---- compile, export -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile instantiates them
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_compiled(kind, forgetful, no_reference):
    module, x = getattr(fused_rnn, kind)(3, 4, **DEEP), torch.randn(5, 2, 3)

    def run(x, clip):
        return module(x, grad_clip=clip)[0]

    compiled = Compiled(run)
    for clip in (0.01, 0.02, 0.03, None):
        found, expected = (
            torch.autograd.grad(call(x, clip).sum(), list(module.parameters())) for call in (compiled, run)
        )
        torch.testing.assert_close(found, expected)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="grad_clip must be a number above 0"):
        compiled(x, -1.0)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_model_keeps_grad_clip(strict, no_reference, tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.LSTM(3, 4, **DEEP)

        def forward(self, x):
            return self.rnn(x, grad_clip=0.01)[0]

    model, x = Model(), torch.randn(5, 2, 3)
    torch.export.save(torch.export.export(model, (x,), strict=strict), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    found, expected = (torch.autograd.grad(m(x).sum(), list(m.parameters())) for m in (loaded, model))
    torch.testing.assert_close(found, expected)


# ---- bad values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (0, ValueError, "got 0"),
        (0.0, ValueError, "got 0"),
        (-0.5, ValueError, "got -0.5"),
        (math.nan, ValueError, "got nan"),
        (True, TypeError, "got bool"),
        (torch.tensor(1.0), TypeError, "got Tensor"),
        ("1", TypeError, "got str"),
    ],
)
def test_bad_values(value, error, got, mode):
    gru, x = fused_rnn.GRU(3, 4), torch.randn(5, 2, 3)
    weights = list(gru.parameters())
    for call in (gru, lambda x, **options: functional.gru(x, None, weights, **options)):
        with mode(), pytest.raises(error, match=f"grad_clip must be a number above 0, or None, {got}"):
            call(x, grad_clip=value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_operators_refuse_bad_values(value):
    rnn = (CELLS["rnn_tanh"].id, False, False)
    layer = (torch.randn(5, 2, 3), None, None, [torch.randn(4, 3), torch.randn(4, 4)], None, None, None)
    operators = torch.ops.fused_rnn
    with pytest.raises(RuntimeError, match="grad_clip must be above 0, got"):
        operators.layer_forward(*rnn, *layer, True, False, value)
    output, *_, saved = operators.layer_forward(*rnn, *layer, True, False)
    with pytest.raises(RuntimeError, match="grad_clip must be above 0, got"):
        operators.layer_backward(*rnn, output, None, None, None, *layer, saved, 127, 1, False, value)


def test_the_raw_operator_has_the_same_gradient():
    layer, _ = make_pair("gru")
    weights, input = list(layer.parameters()), make_input(layer)
    arguments = (CELLS["gru"].id, True, False, input, None, None, weights, None, None, None, True, False, LIMIT)
    found = torch.autograd.grad(torch.ops.fused_rnn.layer_forward(*arguments)[0].sum(), weights)
    expected = torch.autograd.grad(layer(input, grad_clip=LIMIT)[0].sum(), weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_no_argument_is_passed_without_grad_clip(monkeypatch):
    """grad_clip costs nothing when it is off."""
    seen = []

    def watch(*args, backward=plain._layer_backward):
        seen.append(next((argument for argument in args if isinstance(argument, float)), None))
        return backward(*args)

    monkeypatch.setattr(plain, "_layer_backward", watch)
    gru = fused_rnn.GRU(3, 4)
    gru(torch.randn(5, 2, 3))[0].sum().backward()
    gru(torch.randn(5, 2, 3), grad_clip=1)[0].sum().backward()
    assert seen == [None, 1.0]


def test_same_bits_for_any_number_of_threads():
    problem = problem_of(CELLS["lstm"], Case("threads", steps=9, batch=8, hidden=200, grad_clip=0.05), torch.float32)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(outputs_and_gradients(problem, functional, torch.float32))
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert_near(results[0], outputs_and_gradients(problem, reference, F64), torch.float32)
