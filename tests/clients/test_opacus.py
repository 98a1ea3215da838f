"""Opacus: what its validator says of our layers, and the gradients of each row that its default mode is given."""

import copy

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
opacus = client("opacus")
layers = client("opacus.layers")
grad_sample = client("opacus.grad_sample")
Validator = client("opacus.validators").ModuleValidator
F64 = torch.float64
NAMES = ("LSTM", "GRU", "RNN")
STEPS, ROWS = 5, 4


class Net(nn.Module):
    """Uses all that a layer returns, so that gradients come by every way."""

    def __init__(self, kind, **options):
        super().__init__()
        self.enter = nn.Linear(3, 3, dtype=F64)
        self.rnn = kind(3, 4, batch_first=True, **options)
        self.to(F64)
        directions = 1 + self.rnn.bidirectional
        self.head = nn.Linear(8 * directions, 2, dtype=F64)

    def forward(self, x, **options):
        output, state = self.rnn(self.enter(x), **options)
        states = state if isinstance(state, tuple) else (state,)
        last = sum(s[-(1 + self.rnn.bidirectional) :].transpose(0, 1).flatten(1) for s in states)
        return self.head(torch.cat((output.sum(1), last), 1))


def data():
    return torch.randn(ROWS, STEPS, 3, dtype=F64), torch.randn(ROWS, 2, dtype=F64)


def by_hooks(model, x, y, reduction="mean", calls=1, **options):
    hooked = grad_sample.GradSampleModule(model, loss_reduction=reduction)
    for _ in range(calls):
        loss = (hooked(x, **options) - y).square().sum(1)
        (loss.mean() if reduction == "mean" else loss.sum()).backward()
    found = {name: parameter.grad_sample for name, parameter in model.named_parameters() if parameter.requires_grad}
    hooked.remove_hooks()
    return found


def one_by_one(model, x, y, of_row=lambda i: {}):
    grads = []
    for i in range(len(x)):
        loss = (model(x[i : i + 1], **of_row(i)) - y[i : i + 1]).square().sum()
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    by_parameter = map(torch.stack, zip(*grads, strict=True))
    return dict(zip(dict(model.named_parameters()), by_parameter, strict=True))


def pair(name, **options):
    """Ours, swapped, and Opacus' own, whose layer renames its parameters in its own state dict alone."""
    ours, theirs = Net(getattr(nn, name), **options), Net(getattr(layers, f"DP{name}"), **options)
    for part in ("enter", "rnn", "head"):
        getattr(ours, part).load_state_dict(getattr(theirs, part).state_dict())
    return fused_rnn.swap(ours), theirs


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_rows_are_those_of_opacus_own_layers(name, options, reduction):
    ours, theirs = pair(name, **options)
    x, y = data()
    found, expected = by_hooks(ours, x, y, reduction), by_hooks(theirs, x, y, reduction)
    torch.testing.assert_close(found, one_by_one(ours, x, y))
    assert len(found) == len(expected)  # under other names
    for grads in found.values():
        assert any(grads.shape == other.shape and torch.allclose(grads, other) for other in expected.values())


@pytest.mark.parametrize("name", NAMES)
def test_lengths_resets_and_ids_are_covered(name):
    model = fused_rnn.swap(Net(getattr(nn, name), num_layers=2))
    x, y = data()
    lengths, resets = torch.tensor([5, 2, 4, 1]), torch.rand(ROWS, STEPS) < 0.4
    found = by_hooks(model, x, y, lengths=lengths, reset_mask=resets)
    rows = one_by_one(model, x, y, lambda i: {"lengths": lengths[i : i + 1], "reset_mask": resets[i : i + 1]})
    torch.testing.assert_close(found, rows)


def test_a_packed_sequence_is_refused_by_name():
    class Packs(Net):
        def forward(self, x):
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, [5, 4, 2, 1], batch_first=True))

    hooked = grad_sample.GradSampleModule(fused_rnn.swap(Packs(nn.LSTM)))
    with pytest.raises(NotImplementedError, match=r"no gradients of each row from a PackedSequence; pass .* lengths"):
        hooked(data()[0])
    hooked.eval()
    hooked(data()[0])


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_in_a_loop(name):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = getattr(nn, name)(3, 4, dtype=F64)
            self.head = nn.Linear(4, 2, dtype=F64)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.head(state[0] if isinstance(state, tuple) else state)

    model = fused_rnn.swap(Loop())
    x, y = data()
    torch.testing.assert_close(by_hooks(model, x, y), one_by_one(model, x, y))


def test_frozen_weights_no_rows_and_a_layer_called_twice():
    model = fused_rnn.swap(Net(nn.GRU))
    x, y = data()
    exact = one_by_one(model, x, y)
    model.rnn.weight_hh_l0.requires_grad_(False)
    found = by_hooks(model, x, y, "sum", calls=2)
    assert "rnn.weight_hh_l0" not in found
    for name, grads in found.items():  # as of two batches
        torch.testing.assert_close(grads, [exact[name]] * 2)
    for parameter in model.parameters():
        parameter.grad_sample = None
    found = by_hooks(model, x[:0], y[:0], "sum")
    assert found["rnn.weight_ih_l0"].shape == (0, 12, 3)


def test_hooks_come_off_and_other_hooks_are_as_ever():
    model = fused_rnn.swap(Net(nn.LSTM))
    x, y = data()
    by_hooks(model, x, y)
    assert "_runner" not in vars(model.rnn)
    seen = []
    model.rnn.register_forward_hook(lambda *args: seen.append("forward"))
    model.rnn.register_full_backward_hook(lambda *args: seen.append("backward"))
    model(x).sum().backward()
    assert seen == ["forward", "backward"]
    fused_rnn.freeze(model)
    with pytest.raises(RuntimeError, match=r"call fused_rnn.thaw\(model\) first"):
        grad_sample.GradSampleModule(model)


def test_time_major_models():
    class TimeMajor(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, dtype=F64), nn.Linear(4, 2, dtype=F64)

        def forward(self, x):
            output, (h_n, _) = self.rnn(x)
            return self.head(output + h_n)

    model, x = fused_rnn.swap(TimeMajor()), torch.randn(STEPS, ROWS, 3, dtype=F64)
    hooked = grad_sample.GradSampleModule(model, batch_first=False, loss_reduction="sum")
    hooked(x).square().sum().backward()
    found = [parameter.grad_sample for parameter in model.parameters()]
    hooked.remove_hooks()
    for b in range(ROWS):
        expected = torch.autograd.grad(model(x[:, b : b + 1]).square().sum(), list(model.parameters()))
        torch.testing.assert_close([grad[b] for grad in found], list(expected))


def test_inside_a_module_that_opacus_maps_as_a_whole():
    """One with parameters of its own, for which it has no rule."""

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=F64))
            self.rnn = nn.GRU(3, 4, 2, batch_first=True, dtype=F64)

        def forward(self, x):
            return self.rnn(x * self.scale)[1][-1]

    model, x, y = fused_rnn.swap(Owner()), data()[0], torch.randn(ROWS, 4, dtype=F64)
    torch.testing.assert_close(by_hooks(model, x, y), one_by_one(model, x, y))


def test_weights_that_are_computed_are_refused_by_name():
    model = nn.utils.parametrizations.weight_norm(nn.GRU(3, 4, dtype=F64), "weight_hh_l0")
    hooked = grad_sample.GradSampleModule(fused_rnn.swap(model))
    with pytest.raises(NotImplementedError, match=r"weights that are computed: \['weight_hh_l0'\]"):
        hooked(data()[0])


def test_without_a_wrapper_and_subclasses():
    class Own(nn.LSTM):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    model = fused_rnn.swap(Net(Own))
    x, y = data()
    exact = one_by_one(model, x, y)
    hooks = grad_sample.GradSampleHooks(model, loss_reduction="sum")
    (model(x) - y).square().sum().backward()
    found = {name: parameter.grad_sample for name, parameter in model.named_parameters()}
    torch.testing.assert_close(found, exact)
    hooks.cleanup()
    assert "_runner" not in vars(model.rnn)


def test_the_validator_refuses_what_it_refused_and_not_ours():
    class Normed(Net):
        def __init__(self):
            super().__init__(nn.LSTM)
            self.norm = nn.BatchNorm1d(2)

    def said(model):
        return [str(error) for error in Validator.validate(model)]

    assert len(said(Normed())) == 2
    (left,) = said(fused_rnn.swap(Normed()))  # that of nn.LSTM is about hooks, which ours have
    assert "BatchNorm" in left
    assert said(fused_rnn.swap(Net(nn.LSTM))) == []
    assert len(said(fused_rnn.restore(fused_rnn.swap(Net(nn.LSTM))))) == 1
    assert type(Validator.fix(fused_rnn.swap(Net(nn.GRU))).rnn) is fused_rnn.GRU
    assert said(fused_rnn.swap(Net(nn.LSTM)).eval()) == ["Model needs to be in training mode"]


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
@pytest.mark.parametrize("name", NAMES)
def test_private_training_is_as_with_opacus_own_layers(name, mode):
    """Without noise, so that all steps can be compared; every gradient is clipped."""
    ours, theirs = pair(name)
    x, y = data()
    rows = torch.utils.data.TensorDataset(x, (y[:, 0] > 0).long())

    def train(model, mode):
        engine = opacus.PrivacyEngine()
        private, optimizer, *criterion, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.5),
            criterion=nn.CrossEntropyLoss(),
            data_loader=torch.utils.data.DataLoader(rows, batch_size=2),
            noise_multiplier=0.0,
            max_grad_norm=0.1,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )
        loss = criterion[0] if criterion else nn.CrossEntropyLoss()
        for _ in range(2):
            for batch, target in loader:
                optimizer.zero_grad()
                loss(private(batch), target).backward()
                optimizer.step()
        return engine.accountant.history

    assert train(ours, mode) == train(theirs, "hooks")
    for part in ("enter", "rnn", "head"):
        torch.testing.assert_close(getattr(ours, part).state_dict(), getattr(theirs, part).state_dict())


def test_noise_and_poisson_sampling():
    model = fused_rnn.swap(Net(nn.LSTM))
    engine = opacus.PrivacyEngine()
    rows = torch.utils.data.TensorDataset(*data())
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=torch.utils.data.DataLoader(rows, batch_size=1),  # some batches are empty
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    torch.manual_seed(0)
    sizes = []
    for _ in range(4):
        for x, y in loader:
            sizes.append(len(x))
            optimizer.zero_grad()
            (private(x) - y).square().sum(1).mean().backward()
            optimizer.step()
    assert 0 in sizes
    assert max(sizes) > 1
    assert engine.get_epsilon(1e-5) > 0
    assert "_runner" not in vars(copy.deepcopy(model.rnn))


def test_accumulation_that_poisson_sampling_forbids_is_refused():
    model = fused_rnn.swap(Net(nn.LSTM))
    model.enter.requires_grad_(False)
    model.head.requires_grad_(False)
    hooked = grad_sample.GradSampleModule(model)
    hooked.forbid_grad_accumulation()
    x, _ = data()
    hooked(x).sum().backward()
    with pytest.raises(ValueError, match="Poisson sampling is not compatible with grad accumulation"):
        hooked(x).sum().backward()
