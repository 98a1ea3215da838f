"""``recurrent_dropout``: a mask on h before W_hh, drawn once for a sequence in training."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import reference
from support import loop_options
from support.loop_options import (
    LAYERS,
    SHAPES,
    assert_plain_in_evaluation,
    assert_same_bits_whatever_the_threads,
    assert_takes_an_empty_batch,
    assert_zero_is_plain,
    call,
    every_class,
    random_rows,
    results_of,
    run_loop,
    states_for,
)
from support.modules import DEEP, F64, make_states, through_file

P = 0.4


def make(kind, *sizes, **options):
    made, own = LAYERS[kind]
    return loop_options.make(made, *sizes, **own | {"recurrent_dropout": P} | options)


def factors(layer, batch, seed=1):
    """The masks of a call after this seed, drawn again: one for each layer."""
    torch.manual_seed(seed)
    shape = (1 + layer.bidirectional, batch, layer.proj_size or layer.hidden_size)
    return [torch.dropout(torch.ones(shape, dtype=F64), P, True) for _ in range(layer.num_layers)]


def assert_same(layer, x, states=None, **options):
    loop_options.assert_same(layer, x, states, masks={"h_factors": factors(layer, x.shape[1])}, **options)


@every_class
@pytest.mark.parametrize("options", [{}, DEEP, {"bias": False}], ids=str)
def test_values_and_gradients_are_those_of_a_loop_with_the_same_masks(no_reference, kind, options):
    layer = make(kind, **options)
    assert_same(layer, torch.randn(6, 2, 3, dtype=F64), states_for(layer, 2))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 1, 33), (1, 3, 7), (60, 1, 70), (40, 17, 19), (9, 70, 5)])
def test_sizes_that_take_other_ways_through_the_kernels(no_reference, kind, steps, batch, hidden):
    """One step; one row; several rounds of weight gradients; several panels."""
    assert_same(make(kind, 3, hidden), torch.randn(steps, batch, 3, dtype=F64))


@settings(max_examples=40)
@given(st.sampled_from(sorted(LAYERS)), *SHAPES)
def test_random_shapes_with_lengths_and_resets(kind, steps, batch, hidden, bidirectional, data):
    layer = make(kind, 2, hidden, bidirectional=bidirectional)
    assert_same(layer, torch.randn(steps, batch, 2, dtype=F64), **random_rows(data, steps, batch))


@every_class
def test_a_packed_sequence(no_reference, kind):
    layer, lengths = make(kind, bidirectional=True), torch.tensor([2, 5, 3])
    order = lengths.argsort(descending=True)  # rows of the mask are in the packed order
    x = torch.randn(5, 3, 3, dtype=F64)
    output, _ = call(layer, pack_padded_sequence(x, lengths, enforce_sorted=False))
    expected, *_ = run_loop(layer, x[:, order], h_factors=factors(layer, 3), lengths=lengths[order])
    torch.testing.assert_close(pad_packed_sequence(output)[0][:, order], expected)
    found = torch.autograd.grad(output.data.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))


# ---- derivatives ---------------------------------------------------------------------------------------------------


def held(layer, **options):
    """The layer as a function of input and weights, with the same masks in each call."""
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *weights):
        torch.manual_seed(1)
        return results_of(torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,), options))

    return run


@every_class
@pytest.mark.parametrize("rows", ["plain", "ragged"])
def test_first_and_second_derivatives(no_reference, kind, rows):
    layer = make(kind, 2, 3, bidirectional=rows == "ragged")
    ragged = {"lengths": torch.tensor([3, 2]), "reset_mask": torch.tensor([[0, 0], [1, 0], [0, 1]]).bool()}
    run = held(layer, **ragged if rows == "ragged" else {})
    inputs = (torch.randn(3, 2, 2, dtype=F64, requires_grad=True), *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


@every_class
def test_second_derivatives_of_a_packed_sequence(no_reference, kind):
    layer = make(kind, 2, 4)
    names = [name for name, _ in layer.named_parameters()]
    first, second = factors(layer, 2, seed=3)[0][0]
    assert not torch.equal(first, second)

    def run(x, *weights):
        packed = pack_padded_sequence(x, torch.tensor([3, 2]))
        torch.manual_seed(3)
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (packed,))[0].data

    inputs = (torch.randn(3, 2, 2, dtype=F64, requires_grad=True), *layer.parameters())
    assert torch.autograd.gradgradcheck(run, inputs)


def test_hessians_and_gradients_of_each_row():
    layer, x = make("gru", 2, 3), torch.randn(3, 2, 2, dtype=F64)
    weights = dict(layer.named_parameters())

    def loss(w):
        torch.manual_seed(1)
        return torch.func.functional_call(layer, weights | {"weight_hh_l0": w}, (x,))[0].square().sum()

    found = torch.func.jacfwd(torch.func.jacrev(loss), randomness="same")(layer.weight_hh_l0)
    wanted = torch.autograd.functional.hessian(loss, layer.weight_hh_l0)
    torch.testing.assert_close(found, wanted)

    def of_row(w, row):
        return torch.func.functional_call(layer, weights | w, (row.unsqueeze(1),))[0].square().sum()

    each = torch.vmap(torch.func.grad(of_row), (None, 1), randomness="different")
    torch.manual_seed(1)
    grads = each({"weight_hh_l0": layer.weight_hh_l0.detach()}, x)["weight_hh_l0"]
    assert grads.shape == (2, *layer.weight_hh_l0.shape) and grads.count_nonzero()


def test_grad_clip_and_return_cells():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    output, _, cells = call(layer, x, return_cells=True)
    torch.testing.assert_close(output, run_loop(layer, x, h_factors=factors(layer, 2))[0])
    assert cells.shape == output.shape
    found = torch.autograd.grad(call(layer, x, grad_clip=1e-3)[0].sum(), layer.weight_hh_l0)
    torch.manual_seed(1)
    twin = reference.lstm(x, None, list(layer.parameters()), recurrent_dropout=P, training=True, grad_clip=1e-3)
    torch.testing.assert_close(found, torch.autograd.grad(twin[0].sum(), layer.weight_hh_l0))


# ---- what draws the mask, and when ---------------------------------------------------------------------------------


@every_class
def test_in_evaluation_it_does_nothing(no_reference, kind):
    assert_plain_in_evaluation(make(kind), "recurrent_dropout")


def test_zero_is_the_plain_layer():
    assert_zero_is_plain("recurrent_dropout")


@every_class
@pytest.mark.parametrize("grad", [True, False])
def test_one_mask_a_call_by_seed_whatever_the_threads(kind, grad):
    with torch.set_grad_enabled(grad):
        assert_same_bits_whatever_the_threads(make(kind, 3, 40), torch.randn(7, 9, 3, dtype=F64))


def test_an_empty_batch():
    assert_takes_an_empty_batch(make("lstm"))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_numbers_and_autocast(kind, dtype):
    layer, x = make(kind, 3, 40), torch.randn(6, 18, 3, dtype=F64)
    narrow = copy.deepcopy(layer).to(dtype)
    torch.manual_seed(1)
    found = narrow(x.to(dtype))[0]
    found.square().sum().backward()
    torch.manual_seed(1)
    wide = [f.double() for f in [torch.dropout(torch.ones(1, 18, 40, dtype=dtype), P, True)]]
    expected = run_loop(layer, x, h_factors=wide)[0]
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    grad = torch.autograd.grad(expected.square().sum(), layer.weight_hh_l0)[0]
    error = (narrow.weight_hh_l0.grad.double() - grad).norm() / grad.norm()
    assert error < tolerance
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            torch.manual_seed(1)
            assert torch.equal(copy.deepcopy(layer).float()(x.float())[0], found)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_compiled():
    layer, x = make("lstm", **DEEP), torch.randn(4, 2, 3, dtype=F64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    output, _ = call(compiled, x)
    expected, *_ = run_loop(layer, x, h_factors=factors(layer, 2))
    torch.testing.assert_close(output, expected)
    found = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))


def test_vmap_asks_for_what_torch_asks(no_reference):
    layer, x = make("gru"), torch.randn(3, 4, 2, 3, dtype=F64)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda x: layer(x)[0])(x)
    torch.manual_seed(1)
    same = torch.vmap(lambda x: layer(x)[0], randomness="same")(x)
    for found, own in zip(same, x, strict=True):
        torch.testing.assert_close(found, run_loop(layer, own, h_factors=factors(layer, 2))[0])
    other = torch.vmap(lambda x: layer(x)[0], randomness="different")(torch.ones_like(x))
    assert not torch.equal(other[0], other[1])


def test_an_ensemble(no_reference):
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    members = [copy.deepcopy(layer) for _ in range(3)]
    for member in members:
        member.reset_parameters()
    stacked, _ = torch.func.stack_module_state(members)
    torch.manual_seed(1)
    outputs = torch.vmap(lambda w: torch.func.functional_call(layer, w, (x,))[0], randomness="same")(stacked)
    for output, member in zip(outputs, members, strict=True):
        torch.testing.assert_close(output, run_loop(member, x, h_factors=factors(layer, 2))[0])
    outputs.square().sum().backward()
    expected = run_loop(members[1], x, h_factors=factors(layer, 2))[0].square().sum()
    wanted = torch.autograd.grad(expected, members[1].weight_hh_l0)[0]
    torch.testing.assert_close(stacked["weight_hh_l0"].grad[1], wanted)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_functions_take_it(name):
    layer = make(name, bidirectional=True)
    x, weights = torch.randn(4, 2, 3, dtype=F64), list(layer.parameters())
    own = {"bidirectional": True} | ({"nonlinearity": "relu"} if name == "rnn" else {})
    for module in (fused_rnn.functional, reference):
        torch.manual_seed(1)
        found = getattr(module, name)(x, None, weights, recurrent_dropout=P, training=True, **own)
        torch.testing.assert_close(results_of(found), results_of(call(layer, x)))
        evaluated = getattr(module, name)(x, None, weights, recurrent_dropout=P, **own)
        torch.testing.assert_close(results_of(evaluated), run_loop(layer, x))
    with pytest.raises(ValueError, match=r"recurrent_dropout must be a probability"):
        getattr(fused_rnn.functional, name)(x, None, weights, recurrent_dropout=1.0, training=True, **own)


def test_token_ids():
    layer = make("gru", 7, 5)
    ids = torch.randint(7, (4, 2))
    torch.testing.assert_close(
        results_of(call(layer, ids)), results_of(call(layer, nn.functional.one_hot(ids, 7).to(F64)))
    )


def test_a_stack_passes_it_on():
    stack = fused_rnn.Stack("gru", 3, [5, 5], skip="residual", recurrent_dropout=P)
    assert [layer.recurrent_dropout for layer in stack.layers] == [P, P]


def test_tools_see_the_masked_layer():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    with fused_rnn.gradient_flow(layer) as flow:
        call(layer, x)[0].sum().backward()
    assert flow is not None
    states = make_states(layer, 2)
    torch.manual_seed(1)
    found = fused_rnn.gate_statistics(layer, x[:1], states)
    h = states[0][0] * factors(layer, 2)[0][0]
    gates = x[0] @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0
    assert found.gates[0].mean == pytest.approx(gates[:, :5].sigmoid().mean().item())


@pytest.mark.parametrize("compiled", [False, True])
def test_own_cells_have_it(compiled):
    layer = fused_rnn.zoo.mgu.layer(3, 5, recurrent_dropout=P, dtype=F64, compiled=compiled)
    assert "recurrent_dropout=0.4" in repr(layer)
    x = torch.randn(4, 2, 3, dtype=F64)
    output, _ = call(layer, x)
    torch.manual_seed(1)
    expected, _ = fused_rnn.zoo.mgu.reference(x, None, layer._weights(), recurrent_dropout=P, training=True)
    torch.testing.assert_close(output, expected)
    with pytest.raises(ValueError, match=r"min_gru has no W_hh, which recurrent_dropout=0.4 acts on"):
        fused_rnn.zoo.min_gru.layer(3, 5, recurrent_dropout=P, compiled=False)


# ---- who refuses it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 1.0, -0.1, 2, float("nan"), True, "0.5", None], ids=str)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_values_that_are_no_probabilities(kind, value):
    with pytest.raises(ValueError, match=r"recurrent_dropout must be a probability, at least 0 and less than 1, got"):
        make(kind, recurrent_dropout=value)


def test_wrong_factors_for_the_operator():
    weights = [torch.randn(9, 2), torch.randn(9, 3)]

    def run(factor):
        return torch.ops.fused_rnn.layer_forward(
            1, False, False, torch.randn(4, 2, 2), None, None, weights, None, None, None, False, False, h_factor=factor
        )

    assert run(torch.ones(1, 2, 3))[0].shape == (4, 2, 3)
    with pytest.raises(RuntimeError, match="h_factor must be"):
        run(torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="h_factor must be"):
        run(torch.ones(1, 2, 3, dtype=F64))


def test_print_pickle_and_copy():
    layer = make("gru", weight_dropout=0.1)
    assert repr(layer) == "fused_rnn.GRU(3, 5, recurrent_dropout=0.4, weight_dropout=0.1)"
    assert through_file(layer).recurrent_dropout == copy.deepcopy(layer).recurrent_dropout == P


def test_in_training_frozen_layers_torchscript_and_onnx_refuse_it():
    layer, x = make("lstm", dtype=torch.float32), torch.randn(4, 2, 3)
    with pytest.raises(NotImplementedError, match=r"torch.jit.script has no recurrent_dropout=0.4"):
        torch.jit.script(layer)
    with torch.no_grad():
        with pytest.raises(NotImplementedError, match=r"a frozen layer has no recurrent_dropout=0.4.*call eval\(\)"):
            fused_rnn.freeze(layer)(x)
        assert layer.eval()(x)[0].shape == (4, 2, 5)
    pytest.importorskip("onnxscript")
    layer = fused_rnn.thaw(layer).train()
    with warnings.catch_warnings(), pytest.raises(torch.onnx.OnnxExporterError, match="has no recurrent_dropout"):
        warnings.simplefilter("ignore")
        torch.onnx.export(layer, (x,), dynamo=True)


def test_explain_names_it_and_draws_nothing():
    layer, x = make("gru"), torch.randn(4, 2, 3, dtype=F64)
    state = torch.get_rng_state()
    assert "recurrent_dropout=0.4: h is multiplied by a mask" in fused_rnn.explain(layer, x).reason
    found = fused_rnn.explain(layer, x, engine="torch")
    assert found.engine == "fused" and "Not torch.nn's kernels, as there is recurrent_dropout" in found.reason
    assert torch.equal(state, torch.get_rng_state())
    assert "recurrent_dropout" not in fused_rnn.explain(layer.eval(), x).reason
    with fused_rnn.engine("torch"):
        torch.testing.assert_close(call(layer.train(), x)[0], run_loop(layer, x, h_factors=factors(layer, 2))[0])
