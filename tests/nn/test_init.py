"""fused_rnn.init: the weights afterwards, how the layer then behaves, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fused_rnn
from fused_rnn import init
from fused_rnn.nn.kinds import cell_of
from support.modules import (
    CELLS,
    DEEP,
    F64,
    KINDS,
    LAYERS,
    every_kind,
    has_two_states,
    make_input,
    make_pair,
    make_states,
    tensors_of,
)

both = pytest.mark.parametrize("ours", [True, False], ids=["fused_rnn", "torch.nn"])
gated = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("lstm", "gru"))])
OPENS = {"lstm": init.forget_bias_, "gru": init.update_bias_}


def make(kind, ours=True, **options):
    """A layer of two layers and directions, or a cell, of this library or of torch.nn."""
    options = options if kind in CELLS else {**DEEP, **options}
    return make_pair(kind, **options)[0 if ours else 1]


def named(module, start):
    return {name: parameter for name, parameter in module.named_parameters() if name.startswith(start)}


def snapshot(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def unchanged(module, before):
    return all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


def zero(module):
    for parameter in module.parameters():
        parameter.data.zero_()
    return module


# ---- gate biases -----------------------------------------------------------------------------------------------------


@gated
@both
def test_only_the_sum_of_the_two_biases_is_set(kind, ours):
    module = make(kind, ours)
    before = snapshot(module)
    assert OPENS[kind.split("_")[0]](module, 1.5) is module
    gates = 4 if kind.startswith("lstm") else 3
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad and parameter.is_leaf and parameter.grad_fn is None
        if name.startswith("bias"):
            chunks, old = parameter.chunk(gates), before[name].chunk(gates)
            assert (chunks[1] == (1.5 if name.startswith("bias_ih") else 0)).all()
            assert all(torch.equal(chunks[k], old[k]) for k in range(gates) if k != 1)
        else:
            assert torch.equal(parameter, before[name])


@gated
@pytest.mark.parametrize("tied", [False, True])
def test_share_of_the_memory_kept_in_a_step(kind, tied):
    """With all other weights zero, a step keeps that share of the LSTM's c or the GRU's h, in every layer."""
    module = zero(make(kind))
    if tied:
        for name in named(module, "bias_ih"):
            setattr(module, name.replace("bias_ih", "bias_hh"), getattr(module, name))
    OPENS[kind.split("_")[0]](module, 2.0)
    states = make_states(module)
    results = module(make_input(module, steps=1), states)
    new = tensors_of(results if kind in CELLS else results[1])[-1]
    torch.testing.assert_close(new, tensors_of(states)[-1] * torch.tensor(2.0, dtype=F64).sigmoid())


@gated
@both
def test_chrono_spreads_memory_up_to_the_maximum(kind, ours):
    module = make_pair(kind, 3, 500, **({"proj_size": 4} if kind == "lstm_projected" else {}))[0 if ours else 1]
    assert init.chrono_(module, 100, torch.Generator().manual_seed(0)) is module
    gates = 4 if kind.startswith("lstm") else 3
    (bias_ih,), (bias_hh,) = named(module, "bias_ih").values(), named(module, "bias_hh").values()
    keep = bias_ih.detach().chunk(gates)[1]
    steps = keep.exp()  # uniform from 1 to 99
    assert 1 <= steps.min() < 3 and 97 < steps.max() <= 99 and 45 < steps.mean() < 55
    if kind.startswith("lstm"):
        assert torch.equal(bias_ih.chunk(4)[0], -keep)
        assert (bias_hh.chunk(4)[0] == 0).all()
    assert (bias_hh.chunk(gates)[1] == 0).all()
    again = init.chrono_(copy.deepcopy(module), 100, torch.Generator().manual_seed(0))
    assert torch.equal(next(iter(named(again, "bias_ih").values())), bias_ih)


# ---- recurrent weights -----------------------------------------------------------------------------------------------


@every_kind
@both
def test_each_gates_block_is_orthogonal(kind, ours):
    module = make(kind, ours)
    before = snapshot(module)
    assert init.orthogonal_(module, 1.5, torch.Generator().manual_seed(0)) is module
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind.split("_")[0]]
    blocks = [block for weight in named(module, "weight_hh").values() for block in weight.detach().chunk(gates)]
    assert len(blocks) == gates * (1 if kind in CELLS else 4)
    for block in blocks:
        torch.testing.assert_close(block.T @ block, 1.5**2 * torch.eye(block.shape[1], dtype=F64))
    assert len({block[0, 0].item() for block in blocks}) == len(blocks), "blocks are drawn independently"
    again = init.orthogonal_(copy.deepcopy(module), 1.5, torch.Generator().manual_seed(0))
    assert unchanged(again, snapshot(module))
    for name, parameter in module.named_parameters():
        assert name.startswith("weight_hh") or torch.equal(parameter, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_orthogonal_in_every_dtype(dtype):
    module = init.orthogonal_(fused_rnn.GRU(3, 4, dtype=dtype))
    for block in module.weight_hh_l0.detach().double().chunk(3):
        torch.testing.assert_close(block.T @ block, torch.eye(4, dtype=F64), rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["rnn_relu", "rnn_relu_cell"])
@both
def test_identity(kind, ours):
    module = make(kind, ours)
    before = snapshot(module)
    assert init.identity_(module, 0.5) is module
    for name, parameter in module.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.equal(parameter, 0.5 * torch.eye(4, dtype=F64))
        else:
            assert torch.equal(parameter, before[name] if name.startswith("weight_ih") else torch.zeros(4, dtype=F64))


def test_identity_sums_the_inputs():
    module = fused_rnn.RNN(4, 4, nonlinearity="relu", dtype=F64)
    init.identity_(module).weight_ih_l0.data.copy_(torch.eye(4))
    x = torch.rand(6, 2, 4, dtype=F64)
    torch.testing.assert_close(module(x)[0], x.cumsum(0))


def test_identity_without_biases():
    module = init.identity_(fused_rnn.RNN(3, 4, nonlinearity="relu", bias=False))
    assert torch.equal(module.weight_hh_l0, torch.eye(4))


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_every_layer_of_a_model():
    model = nn.ModuleDict({"a": fused_rnn.LSTM(3, 4), "b": nn.ModuleList([nn.LSTMCell(4, 5)]), "c": nn.Linear(5, 1)})
    assert init.forget_bias_(model, 1.0) is model
    assert (model["a"].bias_ih_l0.chunk(4)[1] == 1).all() and (model["b"][0].bias_ih.chunk(4)[1] == 1).all()
    stack = init.forget_bias_(fused_rnn.Stack("lstm", 3, [4, 5]), 2.0)
    assert all((layer.bias_ih_l0.chunk(4)[1] == 2).all() for layer in stack.layers)


ALL = {
    "forget_bias_": (lambda module: init.forget_bias_(module, 1.0), "lstm"),
    "update_bias_": (lambda module: init.update_bias_(module, 1.0), "gru"),
    "chrono_": (lambda module: init.chrono_(module, 10), "lstm gru"),
    "orthogonal_": (init.orthogonal_, "lstm gru rnn_tanh rnn_relu"),
    "identity_": (init.identity_, "rnn_relu"),
}


@pytest.mark.parametrize("name", ALL)
@every_kind
@both
def test_other_cells_are_refused(name, kind, ours):
    call, fits = ALL[name]
    module = make(kind, ours)
    cell = kind.removesuffix("_cell").removesuffix("_projected")
    if cell in fits.split():
        assert call(module) is module
        return
    before = snapshot(module)
    expected = f"{name} is for cells of kind .*, but this {type(module).__name__} is {cell}"
    with pytest.raises(TypeError, match=expected):
        call(module)
    assert unchanged(module, before)


@pytest.mark.parametrize("name", ALL)
def test_other_modules_are_refused(name):
    call, _ = ALL[name]
    with pytest.raises(TypeError, match=f"{name}: Linear is no recurrent layer or cell, and has none"):
        call(nn.Linear(3, 4))
    with pytest.raises(TypeError, match=f"{name}: module must be a torch.nn.Module, got Tensor"):
        call(torch.zeros(3))


def test_a_refusal_changes_no_layer():
    model = nn.Sequential(fused_rnn.LSTM(3, 4), fused_rnn.GRU(4, 4))
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"but 1 \(GRU\) is gru"):
        init.forget_bias_(model, 1.0)
    assert unchanged(model, before)


def test_frozen_layers_are_refused():
    layer = fused_rnn.freeze(fused_rnn.LSTM(3, 4))
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r"this LSTM is frozen; call fused_rnn.thaw\(model\) first"):
        init.forget_bias_(layer, 1.0)
    assert unchanged(layer, before)
    init.forget_bias_(fused_rnn.thaw(layer), 1.0)


def test_layers_without_biases_are_refused():
    for module in (fused_rnn.LSTM(3, 4, bias=False), nn.LSTMCell(3, 4, bias=False)):
        with pytest.raises(ValueError, match="has no biases"):
            init.forget_bias_(module, 1.0)
        init.orthogonal_(module)


@pytest.mark.parametrize("how", [parametrizations.orthogonal, lambda m, name: prune.random_unstructured(m, name, 0.5)])
@both
def test_computed_weights_are_refused(how, ours):
    layer = make("lstm", ours)
    how(layer, "weight_hh_l1")
    with pytest.raises(RuntimeError, match=r"weight_hh_l1 of this .*LSTM is no parameter"):
        init.orthogonal_(layer)
    init.forget_bias_(layer, 1.0)  # not computed
    assert (layer.bias_ih_l1.chunk(4)[1] == 1).all()


def test_a_longest_memory_of_no_steps_is_refused():
    for longest in (1, 0, float("nan")):
        with pytest.raises(ValueError, match="longest must be at least 2 steps, got"):
            init.chrono_(fused_rnn.GRU(3, 4), longest)


# ---- learned initial state -------------------------------------------------------------------------------------------


@every_kind
@both
def test_initial_state_fits_its_module(kind, ours):
    module = make(kind, ours)
    initial = init.InitialState(module)
    assert sorted(initial.state_dict()) == (["c_0", "h_0"] if has_two_states(module) else ["h_0"])
    for batch in (3, 1, None):
        input = make_input(module, batch=batch)
        torch.testing.assert_close(tensors_of(module(input, initial(batch))), tensors_of(module(input)))
        for ours_, theirs in zip(tensors_of(initial(batch)), tensors_of(make_states(module, batch)), strict=True):
            assert ours_.shape == theirs.shape and ours_.dtype == theirs.dtype


@every_kind
def test_initial_state_learns_from_every_row(kind):
    module = make(kind)
    initial = init.InitialState(module)
    for parameter in initial.parameters():
        nn.init.normal_(parameter)
    input = make_input(module, batch=3)
    states = tuple(state.detach().clone().requires_grad_() for state in tensors_of(initial(3)))
    hx = states if has_two_states(module) else states[0]
    loss = sum(output.square().sum() for output in tensors_of(module(input, hx)))
    expected = [g.sum(-2, keepdim=True) for g in torch.autograd.grad(loss, states)]
    sum(output.square().sum() for output in tensors_of(module(input, initial(3)))).backward()
    torch.testing.assert_close([parameter.grad for parameter in initial.parameters()], expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_initial_state_of_a_stack(cell):
    stack = fused_rnn.Stack(cell, 3, [4, 5], bidirectional=True, dtype=F64)
    initial = init.InitialState(stack)
    assert len(list(initial.parameters())) == (4 if cell == "lstm" else 2)
    for shape in ((6, 2, 3), (6, 3)):
        input = torch.randn(shape, dtype=F64)
        states = initial(*shape[1:-1])
        torch.testing.assert_close(tensors_of(stack(input, states)), tensors_of(stack(input)))
    compiled = torch.compile(initial, fullgraph=True, backend="eager")
    torch.testing.assert_close(tensors_of(compiled(2)), tensors_of(initial(2)))


def test_initial_state_of_other_modules_is_refused():
    with pytest.raises(TypeError, match=r"InitialState is for a layer, a cell or a fused_rnn\.Stack, got Linear"):
        init.InitialState(nn.Linear(3, 4))


def test_every_kind_of_layer_is_known():
    assert {cell_of(make(kind)).name for kind in (*LAYERS, *CELLS)} == set(fused_rnn.ops.cells.CELLS)
