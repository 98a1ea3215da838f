"""``gradient_flow``: what it shows is what autograd finds in a loop, and watching changes nothing."""

import copy
import gc
import io
import json
import math
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import reference
from fused_rnn.autograd import norms as norms_module
from fused_rnn.ops import library
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.layer import Wanted, weight_kinds
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.modules import DEEP, F64, LAYERS, assert_close, has_two_states, make_input, make_pair, results_of

every_kind = pytest.mark.parametrize("kind", LAYERS)
both_probes = pytest.mark.parametrize("probe", ["last", "all"])
LENGTHS, RESETS = torch.tensor([6, 2, 6, 0, 4]), torch.zeros(6, 5, dtype=torch.bool)
RESETS[[0, 3, 1, 5, 3], [0, 0, 1, 2, 4]] = True
MASKS = {
    "padded": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"reset_mask": RESETS},
    "both": {"lengths": LENGTHS, "reset_mask": RESETS},
    "some whole rows": {"lengths": LENGTHS, "reset_mask": RESETS & (torch.arange(5) != 2)},
}
AT_THE_START, BEHIND_THE_END = torch.zeros_like(RESETS), torch.zeros_like(RESETS)
AT_THE_START[[0, 1], [0, 2]] = True
BEHIND_THE_END[[5, 1], [0, 2]] = True
MASKS |= {
    "a reset that cuts off nothing": {"lengths": LENGTHS, "reset_mask": AT_THE_START},
    "a reset behind the end": {"lengths": LENGTHS.clamp(max=4), "reset_mask": BEHIND_THE_END},
}


# ---- by autograd: every state a tensor that keeps its gradient -------------------------------------------------------


class Loop:
    """A module's layers as loops over time; ``states[k][d][t]`` are h (and c) after each step."""

    def __init__(self, module, input, lengths=None, reset_mask=None, detached=False):
        steps, batch = input.shape[:2]
        lengths = torch.full((batch,), steps) if lengths is None else lengths
        self.active = (torch.arange(steps).unsqueeze(1) < lengths).unsqueeze(-1)
        self.cuts = torch.zeros_like(self.active)
        if reset_mask is not None:
            self.cuts = reset_mask.unsqueeze(-1) & self.active
        self.cell = CELLS[module.mode.lower()]
        self.states, self.h_n = [], []
        for k in range(module.num_layers):
            entering, self.output = input.detach() if detached else input, []
            self.states.append([])
            for d in range(1 + module.bidirectional):
                suffix = f"l{k}" + "_reverse" * d
                self._direction(module, entering, suffix, d)
            input = torch.cat(self.output, -1)
        self.output = input

    def _direction(self, module, input, suffix, d):
        kinds = weight_kinds(self.cell, module.bias, module.proj_size > 0)
        own = {kind: getattr(module, f"{kind.name.lower()}_{suffix}") for kind in kinds}
        batch, steps = input.shape[1], input.shape[0]
        widths = [module.proj_size or module.hidden_size, module.hidden_size][: self.cell.states]
        states = [input.new_zeros(batch, width) for width in widths]
        after = {}
        for t in reversed(range(steps)) if d else range(steps):
            if t + d < steps:
                states = [s.masked_fill(self.cuts[t + d], 0) for s in states]
            x = linear(input[t], own[Wanted.WEIGHT_IH], own.get(Wanted.BIAS_IH))
            r = linear(states[0], own[Wanted.WEIGHT_HH], own.get(Wanted.BIAS_HH))
            h, *c = reference.STEPS[self.cell.id](x, r, *states)
            after[t] = [h if Wanted.WEIGHT_HR not in own else linear(h, own[Wanted.WEIGHT_HR]), *c]
            for state in after[t]:
                state.retain_grad()
            states = [torch.where(self.active[t], new, s) for new, s in zip(after[t], states, strict=True)]
        self.states[-1].append([after[t] for t in range(steps)])
        self.h_n.append(states[0])
        self.output.append(torch.stack([after[t][0] * self.active[t] for t in range(steps)]))

    def norms(self, k):
        """[D, kStates, T] of layer k, after a backward pass."""

        def norm(state):
            return torch.zeros((), dtype=state.dtype) if state.grad is None else state.grad.norm()

        by_time = [[torch.stack([norm(s) for s in states]) for states in of_d] for of_d in self.states[k]]
        return torch.stack([torch.stack(of_d, -1) for of_d in by_time])


def loss_of(output):
    """Of every step, each with a weight of its own."""
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output).to(output)).sum()


def expected_norms(module, input, probe, lengths=None, reset_mask=None):
    loop = Loop(module, input, lengths, reset_mask, detached=probe == "last")
    if probe == "all":
        loss_of(loop.output).backward()
    else:
        steps, batch = input.shape[:2]
        longest = torch.ones(batch, dtype=torch.bool) if lengths is None else lengths == lengths.max()
        last = steps if lengths is None else int(lengths.max())
        whole = longest if reset_mask is None else longest & ~reset_mask[1:last].any(0)
        rows = whole if whole.any() else longest
        sum(h_n[rows].sum() for h_n in loop.h_n).backward()
    module.zero_grad()
    return {f"l{k}": loop.norms(k) for k in range(module.num_layers)}


def found_norms(module, input, probe, call=None, loss=loss_of, **options):
    with fused_rnn.gradient_flow(module, probe, **options) as flow:
        loss((call or module)(input)[0]).backward()
    module.zero_grad()
    return dict(flow.norms())


@both_probes
@pytest.mark.parametrize("masks", MASKS)
@every_kind
def test_norms_are_those_of_a_loop(kind, masks, probe):
    module, _ = make_pair(kind, **DEEP)
    input = make_input(module, steps=6, batch=5)
    found = found_norms(module, input, probe, lambda x: module(x, **MASKS[masks]))
    assert_close(found, expected_norms(module, input, probe, **MASKS[masks]))
    assert all((norms[..., :2] > 0).any() for norms in found.values())


@both_probes
@every_kind
def test_packed_input(kind, probe):
    module, _ = make_pair(kind, bidirectional=True, bias=False)
    input, lengths = make_input(module, steps=6, batch=4), torch.tensor([2, 6, 1, 6])
    resets = {"reset_mask": RESETS[:, :4]}
    for masks in ({}, resets):
        packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
        with fused_rnn.gradient_flow(module, probe) as flow:
            output = nn.utils.rnn.pad_packed_sequence(module(packed, **masks)[0])[0]
            loss_of(output).backward()
        module.zero_grad()
        assert_close(dict(flow.norms()), expected_norms(module, input, probe, lengths, **masks))


@every_kind
@given(
    steps=st.integers(1, 7),
    batch=st.integers(0, 4),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    probe=st.sampled_from(["last", "all"]),
    ragged=st.booleans(),
    resets=st.booleans(),
)
@settings(max_examples=40)
def test_random_layers(kind, steps, batch, num_layers, bidirectional, probe, ragged, resets):
    module, _ = make_pair(kind, 2, 3, num_layers=num_layers, bidirectional=bidirectional)
    input = make_input(module, steps, batch)
    masks = {"lengths": torch.randint(0, steps + 1, (batch,))} if ragged and batch else {}
    if resets:
        masks["reset_mask"] = torch.rand(steps, batch) < 0.3
    found = found_norms(module, input, probe, lambda x: module(x, **masks))
    assert_close(found, expected_norms(module, input, probe, **masks))


@both_probes
@pytest.mark.parametrize("dtype", [dtype for dtype in TOLERANCE if dtype != F64])
@every_kind
def test_narrow_dtypes(kind, dtype, probe):
    module, _ = make_pair(kind, dtype=dtype, **DEEP)
    input = make_input(module, dtype=dtype)
    found = found_norms(module, input, probe)
    wide = copy.deepcopy(module).double()
    expected = expected_norms(wide, input.double(), probe)
    for name, norms in found.items():
        assert norms.dtype == torch.float32
        assert relative_error(norms, expected[name]) <= TOLERANCE[dtype], name


def test_autocast():
    module = fused_rnn.LSTM(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (norms,) = found_norms(module, torch.randn(5, 2, 3), "last").values()
    assert norms.dtype == torch.float32 and (norms > 0).all()


@pytest.mark.parametrize("threads", [1, 3])
@both_probes
def test_nothing_is_read_before_it_is_written(probe, threads):
    before = torch.get_num_threads()
    module, _ = make_pair("lstm_projected", **DEEP)
    input = make_input(module, steps=6, batch=5)
    expected = expected_norms(module, input, probe, **MASKS["both"])
    torch.set_num_threads(threads)
    library.fill_memory(True)
    try:
        assert_close(found_norms(module, input, probe, lambda x: module(x, **MASKS["both"])), expected)
    finally:
        torch.set_num_threads(before)
        library.fill_memory(False)


# ---- what a context is -----------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 3)
        self.encoder = fused_rnn.LSTM(3, 5, 2, bidirectional=True)
        self.decoder = fused_rnn.GRU(10, 5)

    def forward(self, x):
        return self.decoder(self.encoder(self.enter(x))[0])


@both_probes
@every_kind
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
    assert [name for name, _ in flow.norms()] == ["decoder.l0", "encoder.l1", "encoder.l0"], "as they came"
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


def test_backward_after_the_context_counts():
    module, _ = make_pair("gru")
    with fused_rnn.gradient_flow(module) as flow:
        loss = module(make_input(module))[0].sum()
    with pytest.raises(RuntimeError, match="seen no gradient"):
        flow.summary()
    loss.backward()
    module(make_input(module))[0].sum().backward()  # this one is not watched
    assert len(flow.norms()) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients_are_as_always(mode):
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
    with fused_rnn.gradient_flow(module) as flow:
        loss = module(make_input(module))[0].sum()
        loss.backward()
    assert "_runner" not in module.__dict__
    of_flow = weakref.ref(flow)
    del loss, flow
    gc.collect()
    assert len(places) == 2 and all(place() is None for place in places)
    assert of_flow() is None
    with pytest.raises(KeyError), fused_rnn.gradient_flow(module):
        raise KeyError
    assert "_runner" not in module.__dict__


def test_copies_are_not_watched():
    module, _ = make_pair("gru")
    with fused_rnn.gradient_flow(module):
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert "_runner" not in vars(other)
        torch.save(module.state_dict(), io.BytesIO())


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


@pytest.fixture
def forgetful():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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


def test_what_cannot_be_watched():
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
    model = nn.ModuleDict({"layer": layer})
    with fused_rnn.gradient_flow(layer), pytest.raises(RuntimeError, match="layer is watched already"):
        watch(model)
    assert "_runner" not in vars(layer)
    fused_rnn.freeze(layer)
    with pytest.raises(RuntimeError, match=r"the model is frozen.*thaw"):
        watch(layer)


@both_probes
def test_derivatives_that_would_say_nothing(probe):
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


# ---- what it says ----------------------------------------------------------------------------------------------------


def relu_chain(factor, steps=20, hidden=3):
    """A ReLU network that never meets its flat side: a step back multiplies a gradient by ``factor``."""
    module = fused_rnn.RNN(1, hidden, nonlinearity="relu", bias=False, dtype=F64)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1e-200)  # not even where h grows as fast as the gradient
        module.weight_hh_l0.copy_(factor * torch.eye(hidden))
    with fused_rnn.gradient_flow(module) as flow:
        module(torch.ones(steps, 1, 1, dtype=F64))[0].sum().backward()
    return flow


@pytest.mark.parametrize(
    ("factor", "verdict", "half_life", "says"),
    [
        (0.5, "vanishing", 1.0, "halves every 1 steps"),
        (0.99, "healthy", math.log(0.5) / math.log(0.99), "gets 0.83 of the gradient 19 steps later"),
        (1.0, "healthy", math.inf, "gets 1 of"),
        (2.0, "exploding", math.inf, "doubles every 1 steps"),
    ],
)
def test_verdicts(factor, verdict, half_life, says):
    (line,) = relu_chain(factor).summary().lines
    assert (line.name, line.steps, line.verdict) == ("l0", 20, verdict)
    assert line.half_life == pytest.approx(half_life)
    assert line.ratio == pytest.approx(factor**19)
    assert says in line.reason and says in str(relu_chain(factor).summary())


def test_verdicts_at_the_ends():
    assert relu_chain(2.0, steps=1).summary().lines[0].verdict == "-"
    (line,) = relu_chain(0.0).summary().lines
    assert (line.verdict, line.ratio) == ("vanishing", 0)
    (line,) = relu_chain(1e20, steps=20).summary().lines
    assert line.verdict == "exploding" and "not finite" in line.reason
    module = fused_rnn.GRU(2, 3)
    with fused_rnn.gradient_flow(module) as flow:
        module(torch.randn(4, 0, 2))[0].sum().backward()
    assert flow.summary().lines[0].verdict == "-"
    with fused_rnn.gradient_flow(module, "all") as flow:
        module(torch.randn(4, 2, 2))[0].sum().backward()
    (line,) = flow.summary().lines
    assert line.verdict == "-" and "probe='last'" in line.reason


def test_both_states_count_together():
    module, _ = make_pair("lstm", bidirectional=True)
    assert has_two_states(module)
    with fused_rnn.gradient_flow(module) as flow:
        module(make_input(module, steps=7))[0].sum().backward()
    ((_, norms),) = flow.norms()
    for d, line in enumerate(flow.to_dict()["lines"]):
        h, c = norms[d] if d else norms[d].flip(-1)
        assert line["h"] == pytest.approx(h.tolist()) and line["c"] == pytest.approx(c.tolist())
        whole = (h.square() + c.square()).sqrt()
        assert line["ratio"] == pytest.approx((whole[-1] / whole[0]).item())


def test_dictionaries_and_plots(tmp_path):
    model = Tagger()
    with fused_rnn.gradient_flow(model) as flow:
        model(torch.randn(9, 2, 4))[0].sum().backward()
    told = json.loads(json.dumps(flow.to_dict(), allow_nan=False))
    assert told["probe"] == "last" and [len(line["h"]) for line in told["lines"]] == [9] * 5
    assert "c" not in told["lines"][0] and len(told["lines"][1]["c"]) == 9
    json.dumps(relu_chain(1e20).to_dict(), allow_nan=False)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for flow_of, name in ((flow, "a.svg"), (flow, "b.svg"), (relu_chain(0.0), "c.png"), (relu_chain(1.0, 1), "d.png")):
        assert flow_of.plot(tmp_path / name).stat().st_size > 1000
    svg = (tmp_path / "a.svg").read_text()
    assert all(line["name"] in svg for line in told["lines"])
    assert svg == (tmp_path / "b.svg").read_text()
