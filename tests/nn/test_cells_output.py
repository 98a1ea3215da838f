"""``return_cells``: an LSTM's c after every step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.tools.verify import TOLERANCE
from support.modules import F64, assert_close, make_input, make_packed, make_pair, make_states, results_of, tensors_of

both = pytest.mark.parametrize("kind", ["lstm", "lstm_projected"])


class Reference(nn.Module):
    """The reference on a module's parameters."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, input, hx=None, *, return_cells=True, **masks):
        options = {name: getattr(self.module, name) for name in ("num_layers", "bidirectional", "batch_first")}
        return reference.lstm(input, hx, list(self.module.parameters()), **options, return_cells=return_cells, **masks)


def assert_like_reference(module, *args, **masks):
    found = results_of(module, *args, return_cells=True, **masks)
    expected = results_of(Reference(module), *args, **masks)
    expected = {name.replace("of module.", "of "): tensor for name, tensor in expected.items()}
    assert_close(found, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_equals_a_loop_over_torch_lstm_cells(num_layers, bidirectional):
    """The last layer's c, and gradients through it alone."""
    layer, _ = make_pair("lstm", num_layers=num_layers, bidirectional=bidirectional)
    input = make_input(layer, steps=6, batch=3).requires_grad_()
    below, expected = input, []
    for k in range(num_layers):
        outputs, expected = [], []
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            cell = nn.LSTMCell(below.shape[-1], 4, dtype=F64)
            names = dict(cell.named_parameters())
            own = {name: getattr(layer, f"{name}_l{k}{suffix}") for name in names}
            h = c = torch.zeros(3, 4, dtype=F64)
            after = {}
            for t in reversed(range(6)) if suffix else range(6):
                h, c = torch.func.functional_call(cell, own, (below[t], (h, c)))
                after[t] = h, c
            outputs.append(torch.stack([after[t][0] for t in range(6)]))
            expected.append(torch.stack([after[t][1] for t in range(6)]))
        below = torch.cat(outputs, -1)
    expected = torch.cat(expected, -1)
    output, (_, c_n), cells = layer(input, return_cells=True)
    torch.testing.assert_close((output, cells), (below, expected))
    assert torch.equal(cells[-1, :, :4], c_n[-1 - bidirectional])
    weight = torch.randn_like(cells)
    wanted = [input, *layer.parameters()]
    found, theirs = (
        torch.autograd.grad((t * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
        for t in (cells, expected)
    )
    torch.testing.assert_close(found, theirs)


@both
@given(
    steps=st.integers(1, 9),
    batch=st.integers(0, 5),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    states=st.booleans(),
    ragged=st.booleans(),
    resets=st.booleans(),
)
@settings(max_examples=60)
def test_every_layout(kind, steps, batch, num_layers, bidirectional, batch_first, states, ragged, resets):
    layer, _ = make_pair(kind, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first)
    shape = (batch, steps) if batch_first else (steps, batch)
    masks = {"lengths": torch.randint(0, steps + 1, (batch,))} if ragged else {}
    if resets:
        masks["reset_mask"] = torch.rand(shape) < 0.3
    args = (make_input(layer, steps, batch), *([make_states(layer, batch)] if states else []))
    assert layer(*args, return_cells=True, **masks)[2].shape == (*shape, 4 * (1 + bidirectional))
    if batch:
        assert_like_reference(layer, *args, **masks)


@both
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(kind, dtype):
    layer, _ = make_pair(kind, bidirectional=True, dtype=dtype)
    input = make_input(layer, dtype=dtype)
    cells = layer(input, return_cells=True)[2]
    wide = fused_rnn.LSTM(3, 4, bidirectional=True, proj_size=layer.proj_size, dtype=F64)
    wide.load_state_dict(layer.state_dict())
    expected = Reference(wide)(input.double())[2]
    assert cells.dtype == dtype
    assert fused_rnn.tools.verify.relative_error(cells, expected) <= TOLERANCE[dtype]


@both
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_input_gives_packed_cells(kind, enforce_sorted):
    layer, _ = make_pair(kind, num_layers=2, bidirectional=True)
    packed = make_packed([5, 3, 2] if enforce_sorted else [2, 5, 3], enforce_sorted=enforce_sorted)
    output, _, cells = layer(packed, return_cells=True)
    assert isinstance(cells, PackedSequence)
    assert all(a is b for a, b in zip(cells[1:], output[1:], strict=True))
    padded, lengths = pad_packed_sequence(packed)
    torch.testing.assert_close(
        pad_packed_sequence(cells)[0], layer(padded, lengths=lengths.tolist(), return_cells=True)[2]
    )
    assert_like_reference(layer, packed)


@both
def test_unbatched(kind):
    layer, _ = make_pair(kind, bidirectional=True)
    input = make_input(layer, batch=None)
    cells = layer(input, return_cells=True)[2]
    assert cells.shape == (5, 8)
    torch.testing.assert_close(cells, layer(input.unsqueeze(1), return_cells=True)[2].squeeze(1))
    assert_like_reference(layer, input)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
@both
def test_inference(kind, frozen, mode):
    """``return_cells`` is not part of the fast inference call: a frozen layer uses its unpacked weights."""
    layer, _ = make_pair(kind, num_layers=2, bidirectional=True)
    input = make_input(layer)
    expected = tensors_of(layer(input, return_cells=True))
    if frozen:
        fused_rnn.freeze(layer)
    with mode():
        found = layer(input, return_cells=True)
        plain = layer(input)
    torch.testing.assert_close(tensors_of(found), [t.detach() for t in expected])
    assert len(plain) == 2


def test_frozen_under_autocast():
    layer = fused_rnn.LSTM(3, 4, num_layers=2)
    input = torch.randn(5, 2, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(input, return_cells=True)[2]
        found = fused_rnn.freeze(layer)(input, return_cells=True)[2]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@both
@pytest.mark.parametrize("masks", [{}, {"lengths": torch.tensor([3, 1])}, {"reset_mask": torch.eye(3, 2).bool()}])
def test_finite_differences(kind, masks):
    layer, _ = make_pair(kind, 2, 3, bidirectional=True)
    weights = list(layer.parameters())
    input = make_input(layer, steps=3).requires_grad_()
    states = tuple(state.requires_grad_() for state in make_states(layer))

    def run(input, h0, c0, *weights):
        return functional.lstm(input, (h0, c0), weights, bidirectional=True, return_cells=True, **masks)[2]

    assert torch.autograd.gradcheck(run, (input, *states, *weights), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (input, *states, *weights), fast_mode=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled():
    layer, _ = make_pair("lstm", num_layers=2)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        input = make_input(layer, batch=batch)
        found, expected = (results_of(call, input, return_cells=True) for call in (compiled, layer))
        assert_close({name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}, expected)
    torch._dynamo.reset()


def test_vmap():
    layer, _ = make_pair("lstm", bidirectional=True)
    inputs = torch.stack([make_input(layer) for _ in range(3)])
    found = torch.vmap(lambda x: layer(x, return_cells=True)[2])(inputs)
    torch.testing.assert_close(found, torch.stack([layer(x, return_cells=True)[2] for x in inputs]))


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
def test_gru_and_rnn_refuse_return_cells(kind):
    layer, _ = make_pair(kind)
    input = make_input(layer)
    with pytest.raises(TypeError, match="return_cells"):
        layer(input, return_cells=True)
    for api in (functional, reference):
        with pytest.raises(TypeError, match="return_cells"):
            getattr(api, kind[:3])(input, None, list(layer.parameters()), return_cells=True)
