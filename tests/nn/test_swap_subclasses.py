"""``swap`` and ``restore`` of subclasses and parametrized layers, and their warnings."""

import abc
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fused_rnn
from support.modules import F64


class Named(abc.ABC, nn.RNNBase):
    """Packages put bases of their own before torch.nn's."""

    @abc.abstractmethod
    def role(self):
        """What the layer is for."""


class Encoder(Named, nn.LSTM):
    """An encoder."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls = 0

    def __call__(self, *args, **options):
        self.calls += 1
        return super().__call__(*args, **options)

    def role(self):
        return "encoder"


class Counter(nn.GRUCell):
    pass


class ChecksItself(nn.LSTM):
    def check_forward_args(self, *args):
        pass


class Doubles(nn.GRU):
    """Its forward is its own, and goes on by super()."""

    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class NamesItsBase(nn.GRU):
    def forward(self, input, hx=None):
        return nn.GRU.forward(self, 2 * input, hx)


class NamesItsBaseToo(nn.GRU):
    def forward(self, input, hx=None):
        assert super().extra_repr()
        return nn.GRU.forward(self, 2 * input, hx)


class GoesItsOwnWay(nn.GRU):
    def forward(self, input, hx=None):
        return input, hx


@pytest.fixture
def input():
    return torch.randn(5, 2, 3, dtype=F64)


def output_of(module, input):
    result = module(input if isinstance(module, nn.RNNBase) else input[0])
    return result[0] if isinstance(result, tuple) else result


def weight_norm(module, name="weight_hh_l0"):
    return parametrizations.weight_norm(module, name)


@pytest.mark.parametrize(
    ("make", "ours"),
    [
        (lambda: Encoder(3, 4, 2, bidirectional=True, dtype=F64), fused_rnn.LSTM),
        (lambda: Counter(3, 4, dtype=F64), fused_rnn.GRUCell),
        (lambda: Doubles(3, 4, dtype=F64), fused_rnn.GRU),
        (lambda: weight_norm(Doubles(3, 4, dtype=F64)), fused_rnn.GRU),
        (lambda: weight_norm(nn.GRU(3, 4, dtype=F64)), fused_rnn.GRU),
        (lambda: weight_norm(Encoder(3, 4, dtype=F64)), fused_rnn.LSTM),
        (lambda: weight_norm(nn.RNNCell(3, 4, dtype=F64), "weight_ih"), fused_rnn.RNNCell),
    ],
)
def test_swapped_subclasses_keep_their_own_attributes(make, ours, input, no_reference):
    module = make()
    former, expected = type(module), output_of(module, input)
    fused_rnn.swap(module)
    assert isinstance(module, ours)
    assert isinstance(module, former.__base__ if parametrize.is_parametrized(module) else former)
    assert type(module).__name__ == former.__name__
    assert type(module).__module__ == former.__module__
    torch.testing.assert_close(output_of(module, input), expected)
    explained = fused_rnn.explain(module, input if isinstance(module, nn.RNNBase) else input[0])
    assert explained.engine == ("unknown" if isinstance(module, Doubles) else "fused")  # it knows no other forward
    fused_rnn.restore(module)
    assert type(module) is former
    torch.testing.assert_close(output_of(module, input), expected)


def test_a_swapped_subclass_has_its_methods_and_ours(input):
    module = fused_rnn.swap(Encoder(3, 4, dtype=F64))
    lengths = [5, 2]
    packed = nn.utils.rnn.pack_padded_sequence(input, lengths, enforce_sorted=False)
    torch.testing.assert_close(module(input, lengths=lengths)[1], module(packed)[1])
    assert (module.role(), module.calls) == ("encoder", 2)
    assert "Encoder[fused_rnn](3, 4)" in repr(module)


def test_swapping_a_class_twice_gives_the_same_class():
    first, second = (fused_rnn.swap(Encoder(3, 4)) for _ in range(2))
    assert type(first) is type(second)


def test_a_forward_that_goes_on_by_super_reaches_our_operator(input, monkeypatch):
    module, calls = fused_rnn.swap(Doubles(3, 4, dtype=F64)), []
    run = type(module)._run
    monkeypatch.setattr(type(module), "_run", lambda self, *args: calls.append(args[0]) or run(self, *args))
    module(input)
    assert torch.equal(calls[0], 2 * input)


def test_script_takes_the_class_before_the_swap(input):
    model = nn.Sequential(Counter(3, 4, dtype=F64))
    expected = model(input[0])
    with pytest.warns(UserWarning, match=r"replaces Counter\[fused_rnn\] by torch.nn.GRUCell"):
        scripted = torch.jit.script(fused_rnn.swap(model))
    torch.testing.assert_close(scripted(input[0]), expected)
    assert type(model[0]) is Counter
    assert getattr(scripted, "0").original_name == "Counter"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_exporters_see_the_forward_of_a_swapped_subclass(input):
    model, theirs = (nn.Sequential(Doubles(3, 4, dtype=F64)) for _ in range(2))
    model.load_state_dict(theirs.state_dict())
    fused_rnn.swap(model)
    expected = theirs(input)
    torch.testing.assert_close(torch.jit.trace(model, input)(input), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(input), expected)
    with pytest.raises(NotImplementedError, match=r"torch.fx cannot see into the forward of Doubles\[fused_rnn\]"):
        torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_swapped_subclass_is_copied_and_pickled(again, input):
    module = fused_rnn.swap(Encoder(3, 4, dtype=F64))
    expected = module(input)[0]
    twin = again(module)
    assert type(twin) is type(module)
    assert twin.calls == 1
    torch.testing.assert_close(twin(input)[0], expected)
    fused_rnn.freeze(module)
    with torch.no_grad():
        torch.testing.assert_close(again(module)(input)[0], expected)


def test_a_parametrized_layer_is_copied_and_may_change_while_swapped(input):
    module = fused_rnn.swap(weight_norm(nn.GRU(3, 4, dtype=F64)))
    twin = copy.deepcopy(module)
    expected = module(input)[0]
    torch.testing.assert_close(twin(input)[0], expected)

    weight_norm(module, "weight_ih_l0")
    fused_rnn.restore(module)
    assert not isinstance(module, fused_rnn.GRU)
    assert set(module.parametrizations) == {"weight_hh_l0", "weight_ih_l0"}
    torch.testing.assert_close(module(input)[0], expected)

    for name in ("weight_hh_l0", "weight_ih_l0"):
        parametrize.remove_parametrizations(fused_rnn.swap(module), name)
    assert type(module) is fused_rnn.GRU
    torch.testing.assert_close(module(input)[0], expected)
    assert type(fused_rnn.restore(module)) is nn.GRU


def test_a_layer_of_ours_that_is_parametrized_restores(input):
    module = weight_norm(fused_rnn.GRU(3, 4, dtype=F64))
    expected = module(input)[0]
    fused_rnn.restore(module)
    assert not isinstance(module, fused_rnn.GRU)
    torch.testing.assert_close(module(input)[0], expected)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is nn.GRU


def test_a_parametrized_layer_trains_as_before(input):
    ours, theirs = (weight_norm(nn.LSTM(3, 4, dtype=F64)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fused_rnn.swap(ours)
    for module in (ours, theirs):
        module(input)[0].square().sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


# ---- skipped layers, warnings ----------------------------------------------------------------------------------------


def hooked():
    module = nn.LSTM(3, 4)
    module.forward = module.forward
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: NamesItsBase(3, 4), r"NamesItsBase\): its forward is not torch.nn.GRU's, nor calls it by super"),
        (lambda: NamesItsBaseToo(3, 4), r"NamesItsBaseToo\): its forward is not torch.nn.GRU's"),
        (lambda: GoesItsOwnWay(3, 4), r"GoesItsOwnWay\): its forward is not torch.nn.GRU's, nor calls it by super"),
        (lambda: ChecksItself(3, 4), r"ChecksItself\): it has a check_forward_args of its own"),
        (hooked, r"LSTM\): its forward was replaced"),
        (lambda: torch.jit.script(nn.GRU(3, 4)), r"GRU\): it is compiled by TorchScript"),
    ],
)
def test_skipped_layers_are_named_with_the_reason(make, reason):
    model = nn.ModuleList([make(), nn.RNN(3, 4)])
    former, lines = type(model[0]), []
    with pytest.warns(UserWarning, match=r"passed over 0 \(" + reason) as caught:
        assert fused_rnn.swap(model, report=lines.append) is model
    assert caught[0].filename == __file__
    assert type(model[0]) is former
    assert type(model[1]) is fused_rnn.RNN
    assert lines[0].startswith("passed over 0 (")
    assert lines[1] == "swapped 1 (RNN)"


def test_a_class_that_python_cannot_combine_is_skipped():
    class Meta(type):
        def mro(cls):
            if len(cls.__bases__) > 1:
                raise TypeError("one base only")
            return super().mro()

    class Single(nn.LSTM, metaclass=Meta):
        pass

    with pytest.warns(UserWarning, match="Python makes no common class of it and ours: one base only"):
        fused_rnn.swap(Single(3, 4))


def test_a_swap_that_changes_nothing_warns():
    with pytest.warns(UserWarning, match="changed nothing: Linear has no recurrent layer"):
        fused_rnn.swap(nn.Linear(3, 4))
    fused_rnn.swap(fused_rnn.LSTM(3, 4))  # already ours: no warning
