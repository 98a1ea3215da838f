"""PFRL runs a layer as recurrent if it is an instance of torch.nn's."""

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
recurrent, pfrl_nn = client("pfrl.utils.recurrent"), client("pfrl.nn")


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_sequential_finds_its_layers_recurrent(name):
    def make():
        return pfrl_nn.RecurrentSequential(nn.Linear(3, 3), getattr(nn, name)(3, 4), nn.ReLU(), nn.Linear(4, 2))

    theirs, ours = make(), fused_rnn.swap(make())
    ours.load_state_dict(theirs.state_dict())
    assert ours.recurrent_children == (ours[1],)
    assert type(ours[1]) is getattr(fused_rnn, name)
    packed = nn.utils.rnn.pack_sequence([torch.randn(steps, 3) for steps in (5, 3, 1)])
    (found, states), (expected, their_states) = ours(packed, None), theirs(packed, None)
    torch.testing.assert_close(found.data, expected.data)
    torch.testing.assert_close(states, their_states)
    # The next call, in which the second row begins anew.
    masked = [recurrent.mask_recurrent_state_at(state, 1) for state in (states, their_states)]
    torch.testing.assert_close(ours(packed, masked[0])[1], theirs(packed, masked[1])[1])
