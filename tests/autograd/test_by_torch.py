"""The engine ``torch``: torch.nn's kernels inside of our layers and cells, and what they leave to ours."""

import weakref

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import fused_rnn
from fused_rnn.autograd import by_torch
from support.modules import (
    DEEP,
    LAYERS,
    every_kind,
    every_layer,
    input_and_states,
    layouts_of,
    make_input,
    make_packed,
    make_pair,
    make_states,
)


@pytest.fixture(autouse=True)
def ran(monkeypatch):
    """Every call of torch.nn's kernels; the engine is ``torch``."""
    calls, run = [], by_torch._run
    monkeypatch.setattr(by_torch, "_run", lambda *args: calls.append(1) or run(*args))
    with fused_rnn.engine("torch"):
        yield calls


def tensors_of(results):
    flat = []
    for result in results if isinstance(results, tuple) and not isinstance(results, PackedSequence) else (results,):
        flat += tensors_of(result) if isinstance(result, tuple) and not isinstance(result, PackedSequence) else [result]
    return [result.data if isinstance(result, PackedSequence) else result for result in flat]


def results_and_gradients(module, *args, **options):
    outputs = tensors_of(module(*args, **options))
    loss = sum((output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum() for output in outputs)
    return outputs, torch.autograd.grad(loss, list(module.parameters()))


@every_kind
def test_results_and_gradients_are_those_of_torch_nn(kind, ran):
    """In every layout; products of batch_first round in another order."""
    for ours, theirs, args in layouts_of(kind):
        for module in (ours, theirs):
            module.eval()
        before = len(ran)
        found, expected = results_and_gradients(ours, *args), results_and_gradients(theirs, *args)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            torch.testing.assert_close(tensors_of(ours(*args)), tensors_of(theirs(*args)), rtol=1e-12, atol=1e-14)
        assert len(ran) == before + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype, ran):
    ours, theirs = make_pair("lstm", dtype=dtype, **DEEP)
    input = make_input(ours, dtype=dtype)
    torch.testing.assert_close(tensors_of(ours(input)), tensors_of(theirs(input)), rtol=0, atol=0)
    assert len(ran) == 1


@every_layer
def test_dropout_is_drawn_from_the_stream_that_ours_draws_from(kind, ran):
    ours, _ = make_pair(kind, num_layers=3, dropout=0.5)
    input = make_input(ours)
    torch.manual_seed(1)
    found = tensors_of(ours(input))
    assert len(ran) == 3
    torch.manual_seed(1)
    with fused_rnn.engine("ours"):
        torch.testing.assert_close(found, tensors_of(ours(input)))
    assert len(ran) == 3


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [[2, 5, 1], torch.tensor([4, 4, 3]), torch.tensor([5, 5, 5])])
def test_lengths_are_packed(kind, batch_first, lengths, ran):
    ours, _ = make_pair(kind, batch_first=batch_first, **DEEP)
    args = input_and_states(ours, batch=3)
    found = results_and_gradients(ours, *args, lengths=lengths)
    assert len(ran) == 1
    with fused_rnn.engine("ours"):
        torch.testing.assert_close(found, results_and_gradients(ours, *args, lengths=lengths))


@pytest.mark.parametrize(
    ("options", "input"),
    [
        ({"reset_mask": torch.tensor([[True, False]] * 5)}, None),
        ({"grad_clip": 1.0}, None),
        ({"return_cells": True}, None),
        ({"lengths": [0, 5]}, None),
        ({}, torch.tensor([[1, 2], [0, 0]])),
        ({}, torch.randn(5, 0, 3)),
    ],
)
def test_what_torch_nn_cannot_do_is_ours(options, input, ran):
    ours, _ = make_pair("lstm", dtype=torch.float32)
    input = make_input(ours, dtype=torch.float32) if input is None else input
    found = tensors_of(ours(input, **options))
    assert not ran
    with fused_rnn.engine("ours"):
        torch.testing.assert_close(found, tensors_of(ours(input, **options)), rtol=0, atol=0)
    explanation = fused_rnn.explain(ours, input, **{k: v for k, v in options.items() if k in ("lengths", "reset_mask")})
    assert explanation.engine == ("fused" if options.keys().isdisjoint(("grad_clip", "return_cells")) else "torch")


def test_other_devices_are_ours(ran):
    ours, _ = make_pair("gru")
    assert ours.to("meta")(make_input(ours).to("meta"))[0].device.type == "meta"
    assert not ran


def test_deterministic_algorithms_are_ours(ran):
    ours, _ = make_pair("gru")
    torch.use_deterministic_algorithms(True)
    try:
        ours(make_input(ours))
        assert "use_deterministic_algorithms is on" in fused_rnn.explain(ours, make_input(ours)).reason
    finally:
        torch.use_deterministic_algorithms(False)
    assert not ran


@every_kind
def test_higher_derivatives(kind):
    for options in ({}, DEEP) if kind in LAYERS else ({},):
        ours, _ = make_pair(kind, 2, 3, **options)
        input, states = input_and_states(ours, batch=1)
        tensors = [input, *(states if isinstance(states, tuple) else (states,))]
        tensors = [tensor.requires_grad_() for tensor in tensors]

        def run(input, *states, module=ours):
            return tuple(tensors_of(module(input, states if len(states) > 1 else states[0])))

        torch.autograd.gradcheck(run, tensors)
        torch.autograd.gradgradcheck(run, tensors)


@every_kind
def test_second_derivatives_in_float32(kind, monkeypatch):
    """By ours for oneDNN's LSTM, which has none."""
    ours, _ = make_pair(kind, dtype=torch.float32)
    input = make_input(ours, dtype=torch.float32).requires_grad_()
    called, by_ours = [], by_torch._gradients_by_ours
    monkeypatch.setattr(by_torch, "_gradients_by_ours", lambda *args: called.append(1) or by_ours(*args))

    def penalty():
        output = tensors_of(ours(input))[0]
        (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [input, *ours.parameters()], allow_unused=True)

    found = penalty()
    assert len(called) == (kind in LAYERS and "lstm" in kind)
    with fused_rnn.engine("ours"):
        torch.testing.assert_close(found, penalty())


def test_second_derivatives_of_arguments_that_depend_on_each_other():
    """The gradient of an argument leaves out what reaches it through another."""
    ours, _ = make_pair("lstm", 3, 3)
    input = make_input(ours).requires_grad_()

    def penalty():
        output, _ = ours(input, (input[:1] * 2, input[:1] * 3))
        (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), input)

    found = penalty()
    with fused_rnn.engine("ours"):
        torch.testing.assert_close(found, penalty())


def test_batched_gradients():
    ours, _ = make_pair("lstm", **DEEP)
    input = make_input(ours).requires_grad_()
    output, many = ours(input)[0], torch.randn(3, 5, 2, 8, dtype=torch.float64)
    (found,) = torch.autograd.grad(output, input, many, retain_graph=True, is_grads_batched=True)
    for grad, own in zip(many, found, strict=True):
        torch.testing.assert_close(torch.autograd.grad(output, input, grad, retain_graph=True)[0], own)


def test_transforms_forward_mode_and_subclasses_are_ours(ran):
    ours, _ = make_pair("gru")
    input = make_input(ours)

    class Own(torch.Tensor):
        pass

    torch.func.jvp(lambda x: ours(x)[0], (input,), (input,))
    torch.func.vmap(lambda x: ours(x)[0])(input[None])
    with torch.no_grad():
        ours(input.as_subclass(Own))
    assert not ran


def test_gradients_in_evaluation_mode_and_of_some_weights_alone(ran):
    ours, theirs = make_pair("lstm", **DEEP)
    input = make_input(ours)
    for module in (ours, theirs):
        module.eval().weight_hh_l0.requires_grad_(False)
        module(input)[1][1].sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=0)
    assert len(ran) == 1


def test_autocast(ran):
    ours, _ = make_pair("lstm", dtype=torch.float32)
    input = make_input(ours, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = ours(input)
        output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert ours.weight_hh_l0.grad.dtype == torch.float32
    assert len(ran) == 1


@pytest.mark.parametrize("retain_graph", [True, False])
def test_memory_goes_with_the_backward_pass(retain_graph):
    ours, _ = make_pair("gru")
    input = make_input(ours)
    kept = weakref.ref(input)
    output, _ = ours(input)
    del input
    output.sum().backward(retain_graph=retain_graph)
    assert (kept() is not None) == retain_graph
    if retain_graph:
        output.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


def test_hooks_on_saved_tensors_and_checkpoints():
    ours, theirs = make_pair("lstm", **DEEP)
    input = make_input(ours)
    expected = results_and_gradients(theirs, input)
    with torch.autograd.graph.save_on_cpu():
        found = results_and_gradients(ours, input)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    output, _ = torch.utils.checkpoint.checkpoint(ours, input, use_reentrant=False)
    own, _ = theirs(input)
    wanted = [torch.autograd.grad(o.sum(), list(m.parameters())) for o, m in ((output, ours), (own, theirs))]
    torch.testing.assert_close(*wanted, rtol=0, atol=0)


def test_a_weight_changed_before_the_backward_pass_raises():
    ours, _ = make_pair("gru")
    output, _ = ours(make_input(ours))
    with torch.no_grad():
        ours.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_layer
def test_results_changed_in_place(kind, dtype):
    """Gradients, or an error, as of torch.nn: its kernels read some results again."""
    modules = make_pair(kind, dtype=dtype, num_layers=2)
    input, found = make_input(modules[0], dtype=dtype), []
    for module in modules:
        output, _ = module(input)
        output.mul_(2)
        try:
            found.append(torch.autograd.grad(output.sum(), list(module.parameters())))
        except RuntimeError as error:
            found.append(str(error).split(",")[0])
    if isinstance(found[0], str):
        assert found[0] == found[1]
    else:
        torch.testing.assert_close(*found, rtol=0, atol=0)


@every_layer
def test_errors_are_those_of_every_other_call(kind):
    ours, theirs = make_pair(kind)
    for input, hx in ((torch.randn(5, 2, 7).double(), None), (make_input(ours), make_states(ours, batch=3))):
        with pytest.raises(RuntimeError) as expected:
            theirs(input, hx)
        with pytest.raises(RuntimeError) as found:
            ours(input, hx)
        assert str(found.value) == str(expected.value)


def test_frozen_and_watched_layers_are_ours(ran):
    ours, _ = make_pair("lstm", dtype=torch.float32)
    input = make_input(ours, dtype=torch.float32)
    with fused_rnn.gradient_flow(ours):
        ours(input)[0].sum().backward()
        assert "gradient_flow watches" in fused_rnn.explain(ours, input).reason
    fused_rnn.freeze(ours)
    with torch.no_grad():
        ours(input)
        assert "weights are frozen" in fused_rnn.explain(ours, input).reason
    assert not ran


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_captured_calls_are_ours(ran, forgetful):
    ours, _ = make_pair("gru", dtype=torch.float32)
    input = make_input(ours, dtype=torch.float32)
    expected = ours(input)
    assert ran.pop()
    for captured in (
        torch.compile(ours, fullgraph=True, backend="aot_eager"),
        torch.export.export(ours, (input,)).module(),
        torch.jit.trace(ours, input, check_trace=False),
    ):
        torch.testing.assert_close(tensors_of(captured(input)), tensors_of(expected))
    assert not ran


def test_packed_input_of_one_sequence(ran):
    ours, theirs = make_pair("lstm")
    packed = make_packed([3, 5])
    found, expected = (pad_packed_sequence(module(packed)[0])[0] for module in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(ran) == 1
    assert fused_rnn.explain(ours, packed).engine == "torch"
