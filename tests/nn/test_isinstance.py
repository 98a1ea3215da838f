"""Our classes are subclasses of torch.nn's, also under torch.compile, where torch's own behave as before."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn

# torch.compile instantiates autograd functions itself, against torch's own advice.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # torch.export copies a structure that torch deprecates.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
LAYERS = NAMES[:3]


@pytest.fixture(autouse=True)
def forgetful():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
def test_ours_is_a_subclass_and_prints_as_ours(name):
    ours, theirs = getattr(fused_rnn, name), getattr(nn, name)
    layer = ours(3, 4)
    assert issubclass(ours, theirs)
    assert isinstance(layer, theirs)
    assert isinstance(pickle.loads(pickle.dumps(layer)), theirs)
    assert isinstance(copy.deepcopy(layer), theirs)
    assert repr(layer) == f"fused_rnn.{name}(3, 4)"
    assert repr(theirs(3, 4)) == f"{name}(3, 4)"


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("normed", [False, True])
def test_isinstance_in_a_compiled_function(name, normed):
    layer = getattr(fused_rnn, name)(3, 4)
    if normed:
        parametrizations.weight_norm(layer, "weight_hh_l0")

    def call(x):
        assert isinstance(layer, getattr(nn, name))
        return layer(x)[0] if isinstance(layer, getattr(nn, name)) else x

    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("installed", [False, True])
def test_dynamo_still_refuses_torchs_layers_and_runs_them_eagerly(name, installed):
    stock = getattr(nn, name)(3, 4)
    ours, x = getattr(fused_rnn, name)(3, 4), torch.randn(50, 2, 3)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    if installed:
        fused_rnn.install()
    try:
        for fullgraph in (True, False):
            torch.compile(ours, fullgraph=fullgraph, backend="aot_eager")(x)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
            torch.compile(stock, fullgraph=True, backend=count)(x)
        torch._dynamo.reset()
        found = torch.compile(nn.Sequential(nn.Linear(3, 3), stock), backend=count)(x)
        assert found[0].shape == (50, 2, 4)
    finally:
        fused_rnn.uninstall()
    assert all(len(graph.graph.nodes) < 10 for graph in graphs), "the time loop was unrolled"
    assert torch._dynamo.config.allow_rnn is False


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_torchs_layers_still_script_and_export():
    fused_rnn.LSTM(3, 4)
    model, x = nn.Sequential(nn.LSTM(3, 4)), torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.jit.script(model)(x)[0], model(x)[0])
    for strict in (False, True):
        torch.testing.assert_close(torch.export.export(model, (x,), strict=strict).module()(x)[0], model(x)[0])


@pytest.mark.parametrize("first", ["import torch._dynamo", "layer = fused_rnn.GRU(3, 4)"])
def test_dynamo_may_be_imported_before_or_after_the_first_layer(first):
    script = f"""
import sys, torch, fused_rnn
assert "torch._dynamo" not in sys.modules
{first}
layer = fused_rnn.GRU(3, 4)
assert torch.compile(layer, fullgraph=True, backend="eager")(torch.ones(5, 2, 3))[0].shape == (5, 2, 4)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("change", ["swap", "__class__"])
def test_a_layer_that_became_ours_compiles(change):
    layer, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    expected = layer(x)[0]
    if change == "swap":
        fused_rnn.swap(layer)
    else:
        layer.__class__ = fused_rnn.LSTM
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0], expected)
    fused_rnn.restore(layer)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
