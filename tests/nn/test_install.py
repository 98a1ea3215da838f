"""``install``: torch.nn's names mean this library's classes until it is undone."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.nn import dynamo

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


def test_names_are_replaced_and_restored():
    before = bound()
    with fused_rnn.install() as installed:
        assert all(getattr(place, name) is getattr(fused_rnn, name) for place in PLACES for name in NAMES)
        assert repr(installed) == "fused_rnn is installed"
    assert bound() == before
    fused_rnn.uninstall()
    assert bound() == before


def test_nested_installs_are_undone_once():
    fused_rnn.install()
    with fused_rnn.install():
        pass
    assert nn.LSTM is fused_rnn.LSTM, "the inner one did not install"
    fused_rnn.install()
    fused_rnn.uninstall()
    assert nn.LSTM is STOCK["LSTM"]


def test_a_name_bound_to_another_class_is_restored():
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


def test_threads_may_install_concurrently():
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


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_compiling_leaves_the_names_alone(monkeypatch):
    """Other threads may be building layers."""
    monkeypatch.setattr(dynamo, "stock_names", lambda: pytest.fail("the names were torch's for a while"))
    with fused_rnn.install():
        model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4))
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_subclasses_made_meanwhile_stay_ours(name):
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


def test_swap_and_restore_while_installed():
    model = nn.Sequential(nn.GRU(3, 4))
    with fused_rnn.install():
        assert type(fused_rnn.swap(model)[0]) is fused_rnn.GRU
        assert type(fused_rnn.restore(model)[0]) is STOCK["GRU"]


def test_script_while_installed():
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
