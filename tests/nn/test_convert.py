"""``swap`` and ``restore``: layers change their class and nothing else."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn
from support.modules import F64, KINDS, assert_close, every_kind, make_input


class OwnLSTM(nn.LSTM):
    """A user's subclass with a forward of its own, which names torch.nn's."""

    def forward(self, input, hx=None):
        return nn.LSTM.forward(self, input * 2, hx)


class Tagger(nn.Module):
    """A realistic model: encoder, cell in a loop, a submodule used twice, a layer that cannot be swapped."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(6, 5, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True)
        self.shared = nn.RNN(10, 10, batch_first=True)
        self.blocks = nn.ModuleList([self.shared, nn.Tanh(), self.shared])
        self.own = OwnLSTM(10, 7, batch_first=True)
        self.normed = parametrizations.weight_norm(nn.GRU(7, 7, batch_first=True), "weight_hh_l0")
        self.cell = nn.GRUCell(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, words):
        x = self.encoder(self.embedding(words))[0]
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        x = self.normed(self.own(x)[0])[0]
        state = x.new_zeros(x.shape[0], 4)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


WARNING = "passed over own"


@pytest.fixture
def model():
    return Tagger().double()


def swap(model):
    with pytest.warns(UserWarning, match=WARNING):
        return fused_rnn.swap(model)


def train(model, swap_at=None, restore_at=None, steps=8):
    """Losses and final parameters of a run that may swap and restore midway, under the same Adam."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(11, (4, 6), generator=draw)
    labels = torch.randint(3, (4,), generator=draw)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    torch.manual_seed(2)  # for dropout
    for step in range(steps):
        if step == swap_at:
            swap(model)
        if step == restore_at:
            fused_rnn.restore(model)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(words), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), **model.state_dict()}


@pytest.mark.parametrize(("swap_at", "restore_at"), [(0, None), (4, None), (3, 6)])
def test_training_continues_unchanged_after_swap(model, swap_at, restore_at):
    swapped = Tagger().double()
    swapped.load_state_dict(model.state_dict())
    expected = train(model)
    assert expected["losses"][-1] < expected["losses"][0]
    # Adam normalises gradients, so the rounding of a tiny one shows in full.
    assert_close(train(swapped, swap_at, restore_at), expected, tolerance=1e-8)
    assert type(swapped.encoder) is (fused_rnn.LSTM if restore_at is None else nn.LSTM)


def test_swap_changes_classes_and_nothing_else(model):
    before = {name: parameter for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    assert swap(model) is model
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(module is modules[name] for name, module in model.named_modules())
    assert type(model.encoder) is fused_rnn.LSTM
    assert type(model.shared) is fused_rnn.RNN
    assert model.blocks[0] is model.blocks[2] is model.shared
    assert type(model.cell) is fused_rnn.GRUCell
    assert type(model.own) is OwnLSTM
    assert isinstance(model.normed, fused_rnn.GRU)
    assert isinstance(model.encoder, nn.LSTM)

    assert fused_rnn.restore(model) is model
    assert type(model.encoder) is nn.LSTM
    assert type(model.shared) is nn.RNN
    assert type(model.cell) is nn.GRUCell
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_swap_warns_of_skipped_layers(model):
    with pytest.warns(UserWarning, match=WARNING) as caught:
        fused_rnn.swap(model)
    message = str(caught[0].message)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    reason = "its forward is not torch.nn.LSTM's, nor calls it by super().forward"
    assert message == f"fused_rnn.swap passed over own (OwnLSTM): {reason}"
    with pytest.warns(UserWarning, match=r"the model itself \(OwnLSTM\)"):
        fused_rnn.swap(OwnLSTM(3, 4))


def test_swap_and_restore_are_idempotent(model):
    classes = {name: type(module) for name, module in swap(model).named_modules()}
    assert {name: type(module) for name, module in swap(model).named_modules()} == classes
    assert fused_rnn.restore(fused_rnn.restore(model)) is model
    assert type(model.encoder) is nn.LSTM


@every_kind
def test_a_layer_itself_is_swapped(kind):
    our_class, torch_class, options = KINDS[kind]
    module, twin = (torch_class(3, 4, **options, dtype=F64) for _ in range(2))
    twin.load_state_dict(module.state_dict())
    input = make_input(module)
    assert fused_rnn.swap(module) is module
    assert type(module) is our_class
    assert repr(module) == f"fused_rnn.{twin!r}"
    outputs = [tensor for tensor in (module(input)[0], twin(input)[0])]
    assert torch.allclose(*outputs, rtol=0, atol=1e-14)
    assert fused_rnn.restore(module) is module
    assert type(module) is torch_class
    assert torch.equal(module(input)[0], twin(input)[0])


def test_restore_converts_our_layers_but_not_subclasses():
    class OwnGRU(fused_rnn.GRU):
        pass

    model = nn.Sequential(fused_rnn.GRU(3, 4), OwnGRU(3, 4), fused_rnn.RNN(3, 4, nonlinearity="relu"))
    fused_rnn.restore(model)
    assert [type(module) for module in model] == [nn.GRU, OwnGRU, nn.RNN]
    assert model[2](torch.ones(2, 1, 3))[0].min() >= 0
    fused_rnn.swap(model)
    assert type(model[1]) is OwnGRU


def test_hooks_survive_swap_and_restore():
    module = nn.GRU(3, 4, num_layers=2)
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append("forward pre"))
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module.weight_hh_l1.register_post_accumulate_grad_hook(lambda *_: calls.append("accumulated"))
    module.register_state_dict_post_hook(lambda *_: calls.append("state dict"))
    seen = []
    for change in (lambda m: m, fused_rnn.swap, fused_rnn.restore):
        calls.clear()
        change(module)(torch.ones(5, 2, 3, requires_grad=True))[0].sum().backward()
        module.state_dict()
        seen.append(sorted(calls))
    assert seen[0] == sorted({"forward pre", "forward", "backward", "accumulated", "state dict"})
    assert seen[1] == seen[2] == seen[0]


def test_layers_pickled_by_old_versions_of_torch_swap():
    module = nn.RNN(3, 4, nonlinearity="relu", dtype=F64)
    input = make_input(module)
    expected = module(input)[0]
    del module.nonlinearity
    assert torch.allclose(fused_rnn.swap(module)(input)[0], expected, rtol=0, atol=1e-14)


def test_swapped_layers_may_be_parametrized_afterwards():
    ours, theirs = (nn.GRU(3, 4, dtype=F64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fused_rnn.swap(ours)
    for module in (ours, theirs):
        parametrizations.weight_norm(module, "weight_hh_l0")
    input = make_input(theirs)
    assert torch.allclose(ours(input)[0], theirs(input)[0], rtol=0, atol=1e-14)
    assert isinstance(ours, fused_rnn.GRU)
