"""PyTorch Geometric: a convolution by a GRUCell, an aggregation by an LSTM."""

import pytest
import torch

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
geometric = client("torch_geometric.nn")
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])


def pair(make):
    theirs, ours = make(), make()
    ours.load_state_dict(theirs.state_dict())
    return fused_rnn.swap(ours), theirs


def test_a_gated_convolution():
    ours, theirs = pair(lambda: geometric.GatedGraphConv(5, 3))
    assert type(ours.rnn) is fused_rnn.GRUCell
    x = torch.randn(4, 3)
    expected = theirs(x, EDGES)
    torch.testing.assert_close(ours(x, EDGES), expected)
    ours.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    with pytest.warns(UserWarning, match="replaces fused_rnn.GRUCell by torch.nn.GRUCell"):
        scripted = torch.jit.script(ours)
    torch.testing.assert_close(scripted(x, EDGES), expected)


def test_aggregations():
    for make in (lambda: geometric.LSTMAggregation(3, 4), lambda: geometric.Set2Set(3, 2)):
        ours, theirs = pair(make)
        assert type(ours.lstm) is fused_rnn.LSTM
        x, index = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
        torch.testing.assert_close(ours(x, index), theirs(x, index))
