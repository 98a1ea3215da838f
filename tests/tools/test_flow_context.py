"""``gradient_flow`` as a context: watching changes nothing and leaves nothing behind; under torch.compile; refusals."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.autograd import norms as norms_module
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.flow import MASKS, Tagger, both_probes, expected_norms, found_norms, loss_of
from support.modules import DEEP, F64, assert_close, every_layer, make_input, make_pair, results_of


@both_probes
@every_layer
def test_watching_changes_no_result_and_no_gradient(kind, probe):
    module, _ = make_pair(kind, **DEEP)
    input = make_input(module)
    expected = results_of(module, input, **MASKS["padded"])
    with fused_rnn.gradient_flow(module, probe):
        found = results_of(module, input, **MASKS["padded"])
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_every_layer_of_a_model_has_its_name():
    model = Tagger()
    with fused_rnn.gradient_flow(model) as flow:
        model(torch.randn(9, 2, 4))[0].sum().backward()
    lines = ["decoder.l0", "encoder.l0", "encoder.l0 reverse", "encoder.l1", "encoder.l1 reverse"]
    assert [line.name for line in flow.summary().lines] == lines
    assert [name for name, _ in flow.norms()] == ["decoder.l0", "encoder.l1", "encoder.l0"], (
        "in order of the backward pass"
    )
    assert all(name in str(flow.summary()) for name in lines)


def test_several_calls_and_backward_passes():
    module, _ = make_pair("lstm")
    inputs = [make_input(module, steps) for steps in (5, 8, 8)]
    with fused_rnn.gradient_flow(module) as flow:
        losses = [module(x)[0].sum() for x in inputs]
        (losses[0] + losses[1]).backward()
        losses[2].backward(retain_graph=True)
        losses[2].backward()
    norms = [norms for _, norms in flow.norms()]
    assert sorted(n.shape[-1] for n in norms) == [5, 8, 8, 8]
    for x in inputs:
        expected = expected_norms(module, x, "last")["l0"]
        near = [relative_error(n, expected) <= TOLERANCE[F64] for n in norms if n.shape == expected.shape]
        assert sum(near) == 1 + (x is inputs[2])
    (line,) = flow.to_dict()["lines"]
    by_distance = [norms[0].new_tensor([n[0, 0, -1 - k] for n in norms if n.shape[-1] > k]) for k in range(8)]
    assert line["h"] == pytest.approx([d.square().mean().sqrt().item() for d in by_distance])


def test_backward_after_the_context_is_seen():
    module, _ = make_pair("gru")
    with fused_rnn.gradient_flow(module) as flow:
        loss = module(make_input(module))[0].sum()
    with pytest.raises(RuntimeError, match="seen no gradient"):
        flow.summary()
    loss.backward()
    module(make_input(module))[0].sum().backward()  # this one is not watched
    assert len(flow.norms()) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients_are_unchanged(mode):
    module, _ = make_pair("gru", **DEEP)
    input = make_input(module)
    with mode():
        expected = module(input)
        with fused_rnn.gradient_flow(module) as flow:
            found = module(input)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with pytest.raises(RuntimeError, match="seen no gradient"):
        flow.norms()


def test_nothing_is_left_behind(monkeypatch):
    places = []

    def remember(layer, cells, norms, *options, run=norms_module.run_layer):
        places.append(weakref.ref(norms))
        return run(layer, cells, norms, *options)

    monkeypatch.setattr(norms_module, "run_layer", remember)
    module, _ = make_pair("lstm", **DEEP)
    before = dict(vars(module))
    with fused_rnn.gradient_flow(module) as flow:
        loss = module(make_input(module))[0].sum()
        loss.backward()
    assert vars(module) == before
    of_flow = weakref.ref(flow)
    del loss, flow
    gc.collect()
    assert len(places) == 2 and all(place() is None for place in places)
    assert of_flow() is None
    with pytest.raises(KeyError), fused_rnn.gradient_flow(module):
        raise KeyError
    assert vars(module) == before


def test_copies_are_not_watched():
    module, _ = make_pair("gru")
    attributes = set(vars(module))
    with fused_rnn.gradient_flow(module) as flow:
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert set(vars(other)) == attributes
            other(make_input(other))[0].sum().backward()
        torch.save(module.state_dict(), io.BytesIO())
    with pytest.raises(RuntimeError, match="seen no gradient"):
        flow.norms()


def test_checkpoints_and_hooks_on_saved_tensors():
    module, _ = make_pair("lstm")
    input = make_input(module).requires_grad_()
    expected = expected_norms(module, input.detach(), "all")["l0"]
    for use_reentrant in (False, True):
        with fused_rnn.gradient_flow(module, "all") as flow:
            output = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], input, use_reentrant=use_reentrant)
            loss_of(output).backward()
        assert_close(dict(flow.norms()), {"l0": expected})
    with fused_rnn.gradient_flow(module, "last") as flow, torch.autograd.graph.save_on_cpu():
        loss_of(module(input)[0]).backward()
    assert_close(dict(flow.norms()), expected_norms(module, input.detach(), "last"))


# ---- torch.compile ---------------------------------------------------------------------------------------------------


compiled_whole = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@compiled_whole
@pytest.mark.parametrize("compiled_before", [False, True])
@both_probes
@pytest.mark.parametrize("kind", ["lstm_projected", "gru"])
def test_compiled(kind, probe, compiled_before, forgetful):
    module, _ = make_pair(kind, **DEEP)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = [make_input(module, steps) for steps in (5, 8, 3)]
    if compiled_before:
        plain = results_of(compiled, inputs[0])
    with fused_rnn.gradient_flow(compiled, probe, steps=8) as flow:
        for input in inputs:
            loss_of(compiled(input)[0]).backward()
    module.zero_grad()
    found = flow.norms()
    for k, input in enumerate(inputs):
        own = dict(found[2 * k : 2 * k + 2])
        assert_close(own, expected_norms(module, input, probe))
    if compiled_before:
        assert all(torch.equal(t, plain[name]) for name, t in results_of(compiled, inputs[0]).items())


@compiled_whole
def test_compiled_masks(forgetful):
    module, _ = make_pair("lstm", bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    input = make_input(module, steps=6, batch=5)
    found = found_norms(module, input, "last", lambda x: compiled(x, **MASKS["both"]), steps=6)
    assert_close(found, expected_norms(module, input, "last", **MASKS["both"]))


@compiled_whole
def test_compiled_calls_that_cannot_be_watched(forgetful):
    module, _ = make_pair("gru")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    input = make_input(module)
    with fused_rnn.gradient_flow(module), pytest.raises(Exception, match="needs steps="):
        compiled(input)
    with fused_rnn.gradient_flow(module, steps=4), pytest.raises(Exception, match="more steps than"):
        compiled(input)
    with fused_rnn.gradient_flow(module, steps=5) as flow:
        (compiled(input)[0].sum() + compiled(input)[0].sum()).backward()
    with pytest.raises(RuntimeError, match="l0 was called 2 times before one backward pass"):
        flow.summary()

    def inside(x):
        with fused_rnn.gradient_flow(module, steps=5):
            return module(x)[0]

    with pytest.raises(Exception, match=r"outside of what torch\.compile compiles"):
        torch.compile(inside, fullgraph=True, backend="aot_eager")(input)


# ---- refusals --------------------------------------------------------------------------------------------------------


def watch(*args, **options):
    with fused_rnn.gradient_flow(*args, **options):
        pass


def test_unsupported_models_are_refused():
    layer = fused_rnn.GRU(2, 3)
    with pytest.raises(ValueError, match='probe must be "last" or "all", got \'first\''):
        watch(layer, "first")
    for steps in (0, 2.0):
        with pytest.raises(ValueError, match="steps must be"):
            watch(layer, steps=steps)
    for model in (nn.Linear(2, 3), nn.Sequential(nn.GRU(2, 3)), fused_rnn.LSTMCell(2, 3)):
        with pytest.raises(ValueError, match="no LSTM, GRU or RNN of this library"):
            watch(model)
    model = nn.ModuleDict({"layer": layer, "cell": fused_rnn.GRUCell(2, 3), "other": nn.LSTM(2, 3)})
    with pytest.warns(UserWarning, match=r"passes over cell \(GRUCell\), other \(LSTM\)") as caught:
        watch(model)
    assert caught[0].filename == __file__
    model, before = nn.ModuleDict({"layer": layer}), dict(vars(layer))
    with fused_rnn.gradient_flow(layer), pytest.raises(RuntimeError, match="layer is watched already"):
        watch(model)
    assert vars(layer) == before
    fused_rnn.freeze(layer)
    with pytest.raises(RuntimeError, match=r"the model is frozen.*thaw"):
        watch(layer)


@both_probes
def test_unsupported_derivatives_are_refused(probe):
    module, _ = make_pair("gru")
    input = make_input(module).requires_grad_()
    tangent = torch.ones_like(input)

    def loss(x):
        return module(x)[0].sum()

    with fused_rnn.gradient_flow(module, probe):
        with pytest.raises(NotImplementedError, match="create_graph=True"):
            torch.autograd.grad(loss(input), input, create_graph=True)
        for call in (
            lambda: torch.func.grad(loss)(input),
            lambda: torch.vmap(loss)(input.unsqueeze(0)),
            lambda: torch.func.jvp(loss, (input,), (tangent,)),
        ):
            with pytest.raises(NotImplementedError, match=r"does not go with torch\.func's transforms"):
                call()
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(input.detach(), tangent)
            with pytest.raises(NotImplementedError, match="does not go with forward-mode AD"):
                module(dual)
        with pytest.raises(Exception, match=r"does not go with torch\.export"):
            torch.export.export(module, (input.detach(),), strict=False)


def test_batched_gradients_are_refused():
    module, _ = make_pair("gru")
    input = make_input(module).requires_grad_()
    with fused_rnn.gradient_flow(module, "all"):
        output = module(input)[0]
        with pytest.raises(NotImplementedError, match="norms under vmap"):
            torch.autograd.grad(output, input, torch.stack([output, output]).detach(), is_grads_batched=True)
