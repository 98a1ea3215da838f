"""``install``: torch.nn's names stand for ours, in all that reads them, until they do not."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import fused_rnn

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
STOCK = {name: getattr(nn, name) for name in NAMES}
PLACES = (nn, nn.modules, nn.modules.rnn)


def bound():
    return {(place.__name__, name): getattr(place, name) for place in PLACES for name in NAMES}


@pytest.fixture(autouse=True)
def undone():
    before = bound()
    yield
    assert bound() == before


def test_names_stand_for_ours_and_then_for_torchs_again():
    before = bound()
    with fused_rnn.install() as installed:
        assert all(getattr(place, name) is getattr(fused_rnn, name) for place in PLACES for name in NAMES)
        assert repr(installed) == "fused_rnn is installed"
    assert bound() == before
    fused_rnn.uninstall()
    assert bound() == before


def test_it_is_undone_once_however_often_it_was_done():
    fused_rnn.install()
    with fused_rnn.install():
        pass
    assert nn.LSTM is fused_rnn.LSTM, "the inner one did not install"
    fused_rnn.install()
    fused_rnn.uninstall()
    assert nn.LSTM is STOCK["LSTM"]


def test_a_name_that_was_bound_to_something_else_comes_back():
    class Own(nn.LSTM):
        pass

    nn.LSTM = Own
    try:
        with fused_rnn.install():
            assert nn.LSTM is fused_rnn.LSTM
        assert nn.LSTM is Own
    finally:
        nn.LSTM = STOCK["LSTM"]


def test_an_exception_uninstalls():
    with pytest.raises(ZeroDivisionError), fused_rnn.install():
        1 / 0  # noqa: B018
    assert nn.LSTM is STOCK["LSTM"]


def test_threads_leave_it_as_it_was():
    def work():
        for _ in range(200):
            fused_rnn.install()
            fused_rnn.uninstall()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.LSTM is STOCK["LSTM"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_built_and_derived_meanwhile_is_ours_and_stays(name):
    with fused_rnn.install():
        layer = getattr(nn, name)(3, 4)

        class Derived(getattr(nn, name)):
            def __init__(self):
                super().__init__(3, hidden_size=4)

            def forward(self, input):
                return super().forward(2 * input)

        derived = Derived()
    assert type(layer) is getattr(fused_rnn, name)
    assert isinstance(derived, STOCK[name])
    derived.load_state_dict(layer.state_dict())
    input = torch.randn(5, 2, 3) if hasattr(layer, "mode") else torch.randn(2, 3)
    torch.testing.assert_close(derived(input), layer(2 * input))


def test_pickles_and_copies():
    stock = STOCK["LSTM"](3, 4)
    earlier = pickle.dumps(stock)
    with fused_rnn.install():
        ours = pickle.loads(earlier)
        assert type(ours) is fused_rnn.LSTM
        later = pickle.dumps(stock)
        assert type(copy.deepcopy(stock)) is STOCK["LSTM"]
    assert type(pickle.loads(later)) is STOCK["LSTM"]
    assert type(pickle.loads(pickle.dumps(stock))) is STOCK["LSTM"]
    input = torch.randn(5, 2, 3)
    for layer in (ours, pickle.loads(later)):
        torch.testing.assert_close(layer(input)[0], stock(input)[0])


def test_swap_and_restore_meanwhile():
    model = nn.Sequential(nn.GRU(3, 4))
    with fused_rnn.install():
        assert type(fused_rnn.swap(model)[0]) is fused_rnn.GRU
        assert type(fused_rnn.restore(model)[0]) is STOCK["GRU"]


def test_scripts_meanwhile():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 4)

        def forward(self, x):
            return self.rnn(x)[0]

    stock, input = Net(), torch.randn(5, 2, 3)
    with fused_rnn.install():
        ours = Net()
        expected = ours(input)
        assert isinstance(ours.rnn, fused_rnn.LSTM)
        with pytest.warns(UserWarning, match="replaces fused_rnn.LSTM by torch.nn.LSTM"):
            scripted = torch.jit.script(ours)
        torch.testing.assert_close(scripted(input), expected)
        torch.testing.assert_close(torch.jit.script(stock)(input), stock(input))
