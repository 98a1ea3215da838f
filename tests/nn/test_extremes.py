"""Infinite numbers, as torch.nn has them."""

import pytest
import torch

from support.modules import F64, every_layer, make_input, make_pair, make_states, tensors_of

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_states_give_what_torch_gives(kind, dtype, sign):
    """A gate that ought to be 0, but is a little more, would make infinity of 0 * infinity."""
    for place in range(4 if kind != "lstm_projected" else 2):
        ours, theirs = make_pair(kind, dtype=dtype)
        input, states = make_input(theirs, dtype=dtype), make_states(theirs, dtype=dtype)
        for state in tensors_of(states):
            state[0, 0, place] = sign * torch.inf
        found, expected = tensors_of(ours(input, states)), tensors_of(theirs(input, states))
        for ours_is, torchs_is in zip(found, expected, strict=True):
            torch.testing.assert_close(ours_is, torchs_is, equal_nan=True)
