"""``engine`` on the machine: which engine runs, and for how long it is chosen."""

import threading

import pytest
import torch

import fused_rnn
from fused_rnn.ops import library, plans
from fused_rnn.ops.cells import CELLS

HOPPER = plans.Gpu(90, 132, 227 * 1024, 16)


@pytest.fixture
def on_machine(machine, plans, monkeypatch):
    monkeypatch.delenv("FUSED_RNN_ENGINE", raising=False)


def kind_of_plan(**sizes):
    """The engine of a call that does not name one."""
    return plans.cuda_plan(CELLS["lstm"].id, torch.float32, HOPPER, hidden=64, **sizes).blocks_kind


@pytest.mark.parametrize("name", library.ENGINES)
def test_every_name_means_the_same_everywhere(on_machine, monkeypatch, name):
    wanted = kind_of_plan(wanted=name)
    with fused_rnn.engine(name):
        assert kind_of_plan() == wanted
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", name)  # its former name
    assert kind_of_plan() == wanted
    monkeypatch.setenv("FUSED_RNN_CUDA_ENGINE", "flags")
    monkeypatch.setenv("FUSED_RNN_ENGINE", name)
    assert kind_of_plan() == wanted


def test_contexts_nest_and_come_before_the_environment(on_machine, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_ENGINE", "flags")
    with fused_rnn.engine("cluster"):
        with pytest.raises(KeyError), fused_rnn.engine("one"):
            assert kind_of_plan() == "one"
            raise KeyError
        assert kind_of_plan() == "cluster"
    assert kind_of_plan() == "flags"


def test_calls_run_on_the_engine(on_machine):
    """Detected by what an engine refuses; also in other threads, which compute gradients on a GPU."""
    layer, input = fused_rnn.LSTM(3, 65), torch.randn(2, 1, 3)
    loss = layer(input)[0].sum()
    refused = []

    def refuses(call):
        with pytest.raises(RuntimeError, match="'one' was asked for, but no shape"):
            call()
        refused.append(call)

    with fused_rnn.engine("one"):
        refuses(lambda: layer(input))
        thread = threading.Thread(target=refuses, args=(loss.backward,))
        thread.start()
        thread.join()
    assert len(refused) == 2
    layer(input)


def test_explain_takes_an_engine(on_machine):
    layer = fused_rnn.GRU(3, 64)
    with torch._subclasses.FakeTensorMode():  # fake tensors of a GPU
        input = torch.empty(5, 2, 3, device="cuda")
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, torch.nn.Parameter(torch.empty(parameter.shape, device="cuda")))
        assert "in a cluster of" in fused_rnn.explain(layer, input, engine="cluster").reason
        with fused_rnn.engine("cluster"):
            assert fused_rnn.explain(layer, input) == fused_rnn.explain(layer, input, engine="cluster")
            assert fused_rnn.explain(layer, input, engine="stepwise").engine == "stepwise"
        assert fused_rnn.explain(layer, input, engine="ours").engine == "stepwise"
        assert fused_rnn.explain(layer, input).engine == "torch"  # until something has been measured


def test_unknown_names_are_refused_at_once():
    names = "stepwise, persistent, one, cluster, polling, flags, best, ours, auto, torch"
    message = f"must be one of {names}, got 'fastest'"
    with pytest.raises(ValueError, match=message):
        fused_rnn.engine("fastest")
    with pytest.raises(ValueError, match=message):
        fused_rnn.explain(fused_rnn.GRU(3, 4), torch.ones(5, 2, 3), engine="fastest")


def test_without_cuda(monkeypatch):
    monkeypatch.setattr(library, "cuda_archs", list)
    with pytest.raises(RuntimeError, match="built without CUDA: it has no engine 'persistent'"):
        fused_rnn.engine("persistent")
    layer, input = fused_rnn.GRU(3, 4), torch.ones(5, 2, 3)
    assert fused_rnn.explain(layer, input, engine="persistent") == fused_rnn.explain(layer, input)
