"""pytorch-forecasting's LSTM and GRU: subclasses whose own forward calls torch.nn's for rows of any length, 0 too."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
rnn = client("pytorch_forecasting.models.nn.rnn")
NAMES = ("LSTM", "GRU")


@pytest.fixture(params=NAMES)
def pair(request):
    theirs, ours = (getattr(rnn, request.param)(3, 4, 2, batch_first=True) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    lines = []
    fused_rnn.swap(nn.Sequential(ours), report=lines.append)
    assert lines == [f"swapped 0 ({request.param})"]
    return ours, theirs


def test_they_become_ours_and_keep_what_is_theirs(pair, no_reference):
    ours, theirs = pair
    assert isinstance(ours, (getattr(fused_rnn, type(theirs).__name__), type(theirs)))
    assert isinstance(ours, fused_rnn.LSTM if isinstance(theirs, nn.LSTM) else fused_rnn.GRU)
    x, lengths = torch.randn(3, 5, 3), torch.tensor([5, 0, 2])
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 1], batch_first=True)
    for given, options in (((x,), {}), ((packed,), {}), ((x,), {"lengths": lengths, "enforce_sorted": False})):
        found, expected = ours(*given, **options), theirs(*given, **options)
        torch.testing.assert_close(found, expected)
    _, state = found
    torch.testing.assert_close(ours.repeat_interleave(state, 2), theirs.repeat_interleave(state, 2))
    torch.testing.assert_close(ours.init_hidden_state(x), theirs.init_hidden_state(x))
    none_at_all = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(ours(x, lengths=none_at_all), theirs(x, lengths=none_at_all))


def test_the_operator_runs(pair, monkeypatch):
    ours, _ = pair
    calls = []
    run = type(ours)._run
    monkeypatch.setattr(type(ours), "_run", lambda self, *args: calls.append(1) or run(self, *args))
    ours(torch.randn(3, 5, 3), lengths=torch.tensor([5, 3, 2]))
    assert calls == [1]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_the_way_back(pair, again):
    ours, theirs = pair
    x = torch.randn(3, 5, 3)
    twin = again(ours)
    assert type(twin) is type(ours)
    torch.testing.assert_close(twin(x), theirs(x))
    assert type(fused_rnn.restore(twin)) is type(theirs)
    torch.testing.assert_close(twin(x), theirs(x))


def test_traces(pair):
    ours, theirs = pair
    x, y = torch.randn(3, 5, 3), torch.randn(2, 7, 3)
    trace = torch.jit.trace(ours, x)
    assert "fused_rnn::layer_forward" in str(trace.inlined_graph)
    torch.testing.assert_close(trace(y), theirs(y))


def test_a_deepar_model():
    """Its network, built from sizes alone."""
    models = client("pytorch_forecasting")
    sizes = {"cell_type": "LSTM", "hidden_size": 4, "rnn_layers": 2, "target": "y", "x_reals": ["y", "z"]}
    sizes |= {"time_varying_reals_encoder": ["y", "z"], "time_varying_reals_decoder": ["z"]}
    model = models.DeepAR(**sizes).eval()
    given = {"encoder_cont": torch.randn(2, 6, 2), "encoder_lengths": torch.tensor([6, 4])}
    given["encoder_cat"] = torch.zeros(2, 6, 0, dtype=torch.int64)
    expected = model.encode(given)
    fused_rnn.swap(model)
    assert isinstance(model.rnn, fused_rnn.LSTM)
    torch.testing.assert_close(model.encode(given), expected)
