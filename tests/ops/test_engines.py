"""Which engine a call on the CPU takes: contexts, the environment, and names."""

import os
import subprocess
import sys

import pytest
import torch

import fused_rnn
from fused_rnn.ops import engines, library


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No variable is set; ``environment(name=value)`` sets some."""

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        engines.read_environment()

    for name in ("FUSED_RNN_ENGINE", "FUSED_RNN_CUDA_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    engines.read_environment()
    yield set_variables
    monkeypatch.undo()
    engines.read_environment()


@pytest.fixture
def layer():
    return fused_rnn.LSTM(3, 4), torch.randn(5, 2, 3)


def test_the_default_on_the_cpu_is_ours(layer, monkeypatch):
    assert fused_rnn.explain(*layer).engine == "fused"
    monkeypatch.setattr(library, "cuda_archs", list)
    engines.read_environment()
    assert engines.hands_over is False


def test_contexts_nest_and_come_before_the_environment(layer, environment):
    environment(FUSED_RNN_ENGINE="torch")
    assert fused_rnn.explain(*layer).engine == "torch"
    with fused_rnn.engine("ours"):
        assert fused_rnn.explain(*layer).engine == "fused"
        with pytest.raises(KeyError), fused_rnn.engine("torch"):
            assert fused_rnn.explain(*layer).engine == "torch"
            raise KeyError
        assert fused_rnn.explain(*layer).engine == "fused"
        assert fused_rnn.explain(*layer, engine="torch").engine == "torch"
    assert fused_rnn.explain(*layer).engine == "torch"
    with fused_rnn.engine("auto"):
        assert fused_rnn.explain(*layer).engine == "fused"


@pytest.mark.parametrize("name", library.CUDA_ENGINES)
def test_engines_on_cuda_are_ours_on_the_cpu(layer, name, environment):
    environment(FUSED_RNN_ENGINE=name)
    assert fused_rnn.explain(*layer) == fused_rnn.explain(*layer, engine="ours")


def test_verify_checks_ours(environment, monkeypatch):
    environment(FUSED_RNN_ENGINE="torch")
    monkeypatch.setattr(fused_rnn.autograd.by_torch, "_run", None)
    assert fused_rnn.verify(cells=["gru"], quick=True, show_progress=False)


def test_former_names_work_and_warn(layer, environment):
    with pytest.warns(DeprecationWarning, match=r"use FUSED_RNN_ENGINE"):
        environment(FUSED_RNN_CUDA_ENGINE="torch")
    assert fused_rnn.explain(*layer).engine == "torch"
    with pytest.warns(DeprecationWarning, match=r"use fused_rnn\.engine"), fused_rnn.cuda_engine("ours"):
        assert fused_rnn.explain(*layer).engine == "fused"
    environment(FUSED_RNN_ENGINE="ours")  # without a warning
    assert fused_rnn.explain(*layer).engine == "fused"


def test_unknown_names_are_refused(layer, environment):
    module, input = layer
    message = "must be one of stepwise, .*best, ours, auto, torch, got 'fastest'"
    with pytest.raises(ValueError, match=message):
        fused_rnn.engine("fastest")
    with pytest.raises(ValueError, match=message):
        fused_rnn.explain(module, input, engine="fastest")
    environment(FUSED_RNN_ENGINE="fastest")
    for call in (lambda: module(input), lambda: fused_rnn.LSTMCell(3, 4)(input[0])):
        with pytest.raises(ValueError, match=message):
            call()


def test_engines_on_cuda_need_a_build_with_it(monkeypatch):
    monkeypatch.setattr(library, "cuda_archs", list)
    with pytest.raises(RuntimeError, match="built without CUDA: it has no engine 'persistent'"):
        fused_rnn.engine("persistent")
    with fused_rnn.engine("torch"):
        pass


def test_the_environment_is_read_by_a_new_process():
    program = "import fused_rnn, torch; print(fused_rnn.explain(fused_rnn.GRU(3, 4), torch.ones(5, 2, 3)).engine)"
    variables = os.environ | {"FUSED_RNN_ENGINE": "torch"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "torch\n"
