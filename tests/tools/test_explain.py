"""``explain``: which engine computes a call, of one layer and of a model."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn
from support.modules import LAYERS, every_kind, make_input, make_packed, make_pair


class OwnLSTM(nn.LSTM):
    """A user's subclass with a forward of its own."""

    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


@every_kind
def test_explain_says_fused_for_our_modules(kind):
    ours, theirs = make_pair(kind)
    inputs = [make_input(ours), make_input(ours, batch=None)]
    inputs += [make_packed([3, 5])] if kind in LAYERS else []
    for input in inputs:
        found = fused_rnn.explain(ours, input)
        assert (found.engine, found.instruction_set) == ("fused", fused_rnn.info()["CPU instruction set"])
        assert str(found) == f"fused ({found.instruction_set}): {found.reason}"
        other = fused_rnn.explain(theirs, input)
        assert (other.engine, other.instruction_set) == ("torch.nn", None)
        assert f"{type(theirs).__name__} is not one of fused_rnn's modules" in other.reason
        assert "fused_rnn.swap" in other.reason


@every_kind
def test_explain_says_none_where_a_call_computes_nothing(kind, monkeypatch):
    ours, _ = make_pair(kind)
    meta = fused_rnn.explain(ours.to("meta"), make_input(ours).to("meta"))
    assert (meta.engine, meta.instruction_set) == ("none", None)
    assert "meta" in meta.reason
    monkeypatch.setattr(fused_rnn.ops.library, "cuda_archs", list)
    with torch._subclasses.FakeTensorMode():
        on_cuda = torch.empty(make_input(ours).shape, device="cuda")
    found = fused_rnn.explain(ours, on_cuda)
    assert found.engine == "none"
    assert "built without CUDA" in found.reason


@every_kind
def test_explain_names_the_cuda_engine(kind, plans, monkeypatch):
    """For a GPU that is not there."""
    monkeypatch.delenv("FUSED_RNN_ENGINE", raising=False)
    ours, _ = make_pair(kind)
    with torch._subclasses.FakeTensorMode():
        for name, parameter in list(ours.named_parameters()):
            setattr(ours, name, torch.nn.Parameter(torch.empty(parameter.shape, device="cuda")))
        input = torch.empty(make_input(ours).shape, device="cuda")
        found, unmeasured = fused_rnn.explain(ours, input, engine="ours"), fused_rnn.explain(ours, input)
    assert (found.engine, found.instruction_set) == ("stepwise", None)
    assert "step by step" in found.reason
    assert unmeasured.engine == "torch"
    assert "no engine of ours has been measured" in unmeasured.reason


def test_explain_needs_the_input():
    with pytest.raises(TypeError, match=r"explain needs the input that forward would get"):
        fused_rnn.explain(fused_rnn.GRU(3, 4))


@pytest.mark.parametrize(
    "inputs",
    [
        (None,),
        ([[1.0]],),
        (torch.randn(5),),
        (torch.randn(5, 2, 7),),
        (torch.ones(5, 2, 3, dtype=torch.int),),
        (torch.randn(0, 2, 3),),
        (torch.randn(5, 2, 3), torch.randn(1, 3, 4)),
    ],
)
def test_explain_says_what_a_call_would_raise(inputs):
    module = fused_rnn.GRU(3, 4)
    with pytest.raises(Exception) as raised:  # of any type; only the message matters
        module(*inputs)
    found = fused_rnn.explain(module, *inputs)
    assert (found.engine, found.reason) == ("none", str(raised.value))


def test_explain_of_subclasses():
    class Inherited(fused_rnn.GRU):
        pass

    class Own(fused_rnn.GRU):
        def forward(self, input, hx=None):
            return super().forward(input * 2, hx)

    input = torch.randn(5, 2, 3)
    assert fused_rnn.explain(Inherited(3, 4), input) == fused_rnn.explain(fused_rnn.GRU(3, 4), input)
    for module in (Own(3, 4), Inherited(3, 4)):
        module.forward = module.forward  # an attribute of this instance
        found = fused_rnn.explain(module, input)
        assert found.engine == "unknown"
        assert "has a forward of its own, which may compute anything" in found.reason
    assert fused_rnn.explain(OwnLSTM(10, 7), torch.randn(5, 2, 10)).engine == "unknown"


@every_kind
def test_explain_of_parametrized_layers(kind):
    ours, theirs = make_pair(kind, dtype=torch.float32)
    input, plain = make_input(ours), fused_rnn.explain(ours, make_input(ours))
    name = "weight_hh_l0" if kind in LAYERS else "weight_hh"
    for module in (ours, theirs):
        parametrizations.weight_norm(module, name)
    assert fused_rnn.explain(ours, input) == plain
    assert fused_rnn.explain(theirs, input).engine == "torch.nn"


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.ReLU())])
def test_explain_of_modules_without_recurrent_layers(module):
    found = fused_rnn.explain(module, torch.randn(5, 2, 3))
    assert (found.engine, found.reason) == (
        "unknown",
        f"{type(module).__name__} is no recurrent layer or cell, and has none",
    )


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.encoder = fused_rnn.LSTM(3, 4, 2, dropout=0.5)
        self.stack = fused_rnn.Stack("gru", 4, [4, 4], skip="residual")
        self.cell = fused_rnn.GRUCell(4, 4)
        self.decoder = nn.GRU(4, 4)
        self.spare = fused_rnn.RNN(3, 4)

    def forward(self, input):
        output, _ = self.encoder(input=self.norm(input.transpose(1, 2)).transpose(1, 2), lengths=[5, 4])
        output, _ = self.stack(output)
        h = None
        for step in output:
            h = self.cell(step, h)
        return self.decoder(h.unsqueeze(0))


def test_explain_has_a_line_for_each_layer_of_a_model():
    model, input = Mixed(), torch.randn(5, 2, 3)
    before, state = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    found = fused_rnn.explain(model, input)
    after = torch.get_rng_state()
    layers = dict(found.layers)
    assert list(layers) == ["encoder", "stack.layers.0", "stack.layers.1", "cell", "decoder", "spare"]
    engines = [explanation.engine for explanation in layers.values()]
    assert engines == ["fused", "fused", "fused", "fused", "torch.nn", "none"]
    assert layers["encoder"] == fused_rnn.explain(model.encoder, input, lengths=[5, 4])
    assert layers["cell"] == fused_rnn.explain(model.cell, torch.randn(2, 4))
    assert "did not call" in layers["spare"].reason
    assert str(found).splitlines() == [f"{name}: {explanation}" for name, explanation in layers.items()]
    # The model is unchanged: its mode, statistics and hooks, and the random state.
    assert model.training and model.norm.training and model.encoder.training
    assert torch.equal(after, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model.encoder._forward_pre_hooks


def test_explain_of_a_sequential_and_of_a_stack():
    class Output(nn.Module):
        def forward(self, results):
            return results[0]

    input = torch.randn(5, 2, 3)
    layer = fused_rnn.freeze(fused_rnn.LSTM(3, 3))
    found = fused_rnn.explain(nn.Sequential(nn.Linear(3, 3), layer, Output()), input)
    with torch.no_grad():
        assert found.layers == (("1", fused_rnn.explain(layer, input)),)
    assert "fused" in str(found) and "frozen" in str(found)
    stack = fused_rnn.Stack("lstm", 3, [3, 3], batch_first=True)
    names = [name for name, _ in fused_rnn.explain(stack, input, lengths=torch.tensor([2, 1, 0, 2, 2])).layers]
    assert names == ["layers.0", "layers.1"]


def test_explain_of_a_model_that_fails():
    found = dict(fused_rnn.explain(Mixed(), torch.randn(5, 3, 3)).layers)
    assert found["encoder"].engine == "none" and "lengths must have one entry" in found["encoder"].reason
    assert found["decoder"].engine == "none"
    assert "raised before it was called: lengths must have one entry" in found["decoder"].reason


def test_explain_does_not_mention_second_derivatives():
    assert "plain PyTorch" not in str(fused_rnn.explain(fused_rnn.GRU(3, 4), torch.randn(5, 2, 3)))


def explained(module, input, threads):
    """(threads, directions, count, what) in the reason that explain gives."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        reason = fused_rnn.explain(module, input).reason
    finally:
        torch.set_num_threads(before)
    pattern = r"on (\d+) threads?: (\d+) directions? x (\d+) (runs? of batch rows|shares of the hidden units), which"
    counts = re.search(pattern, reason)
    assert counts, reason
    return (*map(int, counts.groups()[:3]), counts[4])


def test_explain_says_how_a_call_is_spread():
    both, one = fused_rnn.LSTM(200, 200, bidirectional=True), fused_rnn.GRU(200, 200, batch_first=True)
    many = torch.ones(64, 64, 200)
    assert explained(both, many, 4) == (4, 2, 2, "runs of batch rows")
    assert explained(one, many, 2) == (2, 1, 2, "runs of batch rows")
    assert explained(one, many, 1) == (1, 1, 1, "run of batch rows")
    assert explained(one, many[:1], 2) == (2, 1, 2, "shares of the hidden units")
    assert explained(fused_rnn.GRUCell(3, 4), torch.ones(2, 3), 4) == (1, 1, 1, "run of batch rows")


def test_explain_takes_the_arguments_of_forward():
    module, input = fused_rnn.LSTM(3, 4), torch.ones(5, 1, 3)
    states = torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)
    mask = torch.zeros(5, 1, dtype=torch.bool)
    assert fused_rnn.explain(module, input, states, lengths=[5], reset_mask=mask) == fused_rnn.explain(module, input)


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, "int8", "int8-weights-only"])
def test_explain_of_a_stream(weights):
    layer = fused_rnn.LSTM(6, 8, num_layers=2)
    by_stream = fused_rnn.explain(fused_rnn.Stream(layer, batch=3))
    assert "The weights are float32, packed once by the stream" in by_stream.reason
    fused_rnn.freeze(layer, weights=weights)
    stream = fused_rnn.Stream(layer, batch=3)
    found = fused_rnn.explain(stream)
    with torch.no_grad():
        of_layer = fused_rnn.explain(layer, torch.randn(1, 3, 6))
    assert (found.engine, found.instruction_set) == (of_layer.engine, of_layer.instruction_set)
    assert f"The weights are {weights or 'float32'}, packed once by fused_rnn.freeze" in found.reason
    assert "past torch's dispatcher" in found.reason
    with torch.no_grad():
        layer.bias_hh_l1.add_(1)
    found = fused_rnn.explain(stream)
    assert found.engine == "none" and "was changed in place; a step raises" in found.reason
    with pytest.raises(RuntimeError, match="was changed in place"):
        stream.step(torch.randn(3, 6))


def test_explain_of_a_stream_has_a_line_for_each_layer_of_a_stack():
    stack = fused_rnn.Stack("gru", 6, [8, 5], dtype=torch.bfloat16)
    found = fused_rnn.explain(fused_rnn.Stream(stack))
    assert [name for name, _ in found.layers] == ["layers.0", "layers.1"]
    with torch.no_grad():
        of_stack = fused_rnn.explain(fused_rnn.freeze(stack), torch.randn(1, 1, 6, dtype=torch.bfloat16))
    for (_, own), (_, other) in zip(found.layers, of_stack.layers, strict=True):
        assert own.instruction_set == other.instruction_set and "The weights are bfloat16" in own.reason


def test_explain_of_a_stream_takes_no_input():
    stream = fused_rnn.Stream(fused_rnn.RNN(3, 4))
    for inputs, masks in (([torch.randn(1, 3)], {}), ([], {"lengths": torch.tensor([1])})):
        with pytest.raises(TypeError, match="explain of a Stream takes no input"):
            fused_rnn.explain(stream, *inputs, **masks)
