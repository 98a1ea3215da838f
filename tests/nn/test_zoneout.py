"""``zoneout``: units keep their former state after a step, at random in training, in part in evaluation."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.checks import Options
from fused_rnn.ops.layer import Layer
from fused_rnn.ops.loop_masks import drawn
from support import loop_options
from support.loop_options import (
    SHAPES,
    assert_same_bits_whatever_the_threads,
    assert_takes_an_empty_batch,
    assert_zero_is_plain,
    call,
    random_rows,
    results_of,
    run_loop,
    states_for,
)
from support.modules import DEEP, F64
from support.zoneout import CLASSES, every_class, in_both, make, masks


def assert_same(layer, x, states=None, **options):
    loop_options.assert_same(layer, x, states, masks={"zoneouts": masks(layer, *x.shape[:2])}, **options)


@every_class
@in_both
@pytest.mark.parametrize("options", [{}, DEEP, {"bias": False}], ids=str)
def test_values_and_gradients_are_those_of_a_loop_with_the_same_masks(no_reference, kind, training, options):
    layer = make(kind, **options).train(training)
    assert_same(layer, torch.randn(6, 2, 3, dtype=F64), states_for(layer, 2))


@every_class
@in_both
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 1, 33), (1, 3, 7), (60, 1, 70), (40, 17, 19), (9, 70, 5)])
def test_sizes_that_take_other_ways_through_the_kernels(no_reference, kind, training, steps, batch, hidden):
    assert_same(make(kind, 3, hidden).train(training), torch.randn(steps, batch, 3, dtype=F64))


@settings(max_examples=40)
@given(st.sampled_from(sorted(CLASSES)), st.booleans(), *SHAPES)
def test_random_shapes_with_lengths_and_resets(kind, training, steps, batch, hidden, bidirectional, data):
    layer = make(kind, 2, hidden, bidirectional=bidirectional).train(training)
    assert_same(layer, torch.randn(steps, batch, 2, dtype=F64), **random_rows(data, steps, batch))


@every_class
@in_both
def test_a_packed_sequence(no_reference, kind, training):
    layer, lengths = make(kind, bidirectional=True).train(training), torch.tensor([5, 3, 2])
    x = torch.randn(5, 3, 3, dtype=F64)
    packed = pack_padded_sequence(x, lengths)
    output, _ = call(layer, packed)
    zoneouts = masks(layer, int(lengths.sum()))
    if training:  # rows of the mask are those of the packed sequence
        place = (torch.arange(5).unsqueeze(1) < lengths).flatten().nonzero().squeeze(1)
        padded = torch.zeros(15, *zoneouts[0].shape[1:], dtype=torch.bool).index_copy(0, place, zoneouts[0])
        zoneouts = [padded.unflatten(0, (5, 3))]
    expected, *_ = run_loop(layer, x, zoneouts=zoneouts, lengths=lengths)
    torch.testing.assert_close(pad_packed_sequence(output)[0], expected)
    found = torch.autograd.grad(output.data.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))


@every_class
@in_both
@pytest.mark.parametrize("rows", ["plain", "ragged", "packed"])
def test_first_and_second_derivatives(no_reference, kind, training, rows):
    layer = make(kind, 2, 3, bidirectional=rows == "ragged").train(training)
    names = [name for name, _ in layer.named_parameters()]
    ragged = {"lengths": torch.tensor([3, 2]), "reset_mask": torch.tensor([[0, 0], [1, 0], [0, 1]]).bool()}

    def run(x, *weights):
        torch.manual_seed(1)
        given = pack_padded_sequence(x, torch.tensor([3, 2])) if rows == "packed" else x
        options = ragged if rows == "ragged" else {}
        results = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (given,), options)
        return [results[0].data] if rows == "packed" else results_of(results)

    inputs = (torch.randn(3, 2, 2, dtype=F64, requires_grad=True), *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=rows != "packed")  # torch packs no tangents
    assert torch.autograd.gradgradcheck(run, inputs)


@in_both
def test_with_the_other_options_at_once(no_reference, training):
    layer = make("gru", recurrent_dropout=0.4, weight_dropout=0.2).train(training)
    x = torch.randn(4, 2, 3, dtype=F64)
    found, _ = call(layer, x)
    torch.manual_seed(1)
    weight = torch.dropout(layer.weight_hh_l0, 0.2, training)
    if training:
        kept = masks(layer, 4, 2, seed=None)
        factor = [torch.dropout(torch.ones(1, 2, 5, dtype=F64), 0.4, True)]
    else:
        kept, factor = masks(layer), None
    expected, _ = run_loop(layer, x, weights={"weight_hh_l0": weight}, zoneouts=kept, h_factors=factor)
    torch.testing.assert_close(found, expected)


def test_grad_clip_and_return_cells():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    output, (_, c), cells = call(layer, x, return_cells=True)
    torch.testing.assert_close(output, run_loop(layer, x, zoneouts=masks(layer, 4, 2))[0])
    torch.testing.assert_close(cells[-1], c[0])
    found = torch.autograd.grad(call(layer, x, grad_clip=1e-3)[0].sum(), layer.weight_hh_l0)
    torch.manual_seed(1)
    options = {"zoneout": layer.zoneout, "training": True, "grad_clip": 1e-3}
    twin = reference.lstm(x, None, list(layer.parameters()), **options)
    torch.testing.assert_close(found, torch.autograd.grad(twin[0].sum(), layer.weight_hh_l0))


def test_norms_are_of_the_gradients_of_the_states_that_stay(no_reference):
    module, x, upstream = make("lstm"), torch.randn(4, 2, 3, dtype=F64), torch.randn(4, 2, 5, dtype=F64)
    (mask,), each = masks(module, 4, 2), []
    plain = Layer.plain(CELLS["lstm"].id, True, False, x, None, None, tuple(module.parameters()))
    layer = plain._replace(zoneout_mask=mask.flatten(-3))
    with torch.no_grad():
        *_, saved = layer.forward(True, False)
        _, _, _, norms, *_ = layer.backward((upstream, None, None, None), saved, 0, 1, True)
    output, *_ = run_loop(module, x, zoneouts=[mask], each=each)
    states = [state for step in each for state in step]
    grads = torch.autograd.grad(output, states, upstream, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(norms[0].T.flatten(), torch.stack([grad.norm() for grad in grads]))


# ---- the masks -----------------------------------------------------------------------------------------------------


def test_each_unit_step_and_row_keeps_its_state_with_its_probability():
    layer = fused_rnn.LSTM(1, 64, zoneout=(0.25, 0.125))
    x = torch.randn(200, 16, 1)
    output, _, cells = call(layer, x, return_cells=True)
    for states, p in ((output, 0.25), (cells, 0.125)):
        kept = (states[1:] == states[:-1]).double()
        deviation = (p * (1 - p) / kept.numel()) ** 0.5
        assert abs(kept.mean().item() - p) < 5 * deviation
        for dim in (0, 1, 2):
            assert kept.mean(dim).std() > 0  # not the same for all steps, rows, units


def test_elsewhere_than_on_the_cpu_masks_are_drawn_without_numbers_of_the_host():
    """A traced tensor of those is a constant. CUDA graphs capture no copies of them to the device."""
    tensors = [torch.empty(shape, device="meta") for shape in ((4, 2, 3), *((20, 3), (20, 5)) * 2)]

    def draw(x, *weights):
        layer = Layer.plain(CELLS["lstm"].id, False, True, x, None, None, weights)
        return drawn(layer, Options(recurrent_dropout=0.5, zoneout=(0.3, 0.6), zoneout_draws=True)).masks[1:]

    graph = make_fx(draw)(*tensors).graph
    assert [mask.shape for mask in draw(*tensors)] == [(2, 2, 5), (4, 2, 20)]
    assert not [node for node in graph.nodes if node.op == "get_attr"]


def test_probabilities_near_one_and_near_zero():
    x = torch.randn(50, 4, 3)
    output, _ = call(fused_rnn.GRU(3, 5, zoneout=1 - 1e-9), x)
    assert (output == 0).double().mean() > 0.95
    layer = fused_rnn.GRU(3, 5, zoneout=1e-9)
    torch.testing.assert_close(call(layer, x)[0], run_loop(layer, x)[0])


@every_class
@in_both
@pytest.mark.parametrize("grad", [True, False])
def test_the_same_by_seed_whatever_the_threads(kind, training, grad):
    layer, x = make(kind, 3, 40).train(training), torch.randn(7, 9, 3, dtype=F64)
    with torch.set_grad_enabled(grad):
        assert_same_bits_whatever_the_threads(layer, x, draws=training)


def test_zero_is_the_plain_layer():
    assert_zero_is_plain("zoneout", (0, 0.0))
    of_h = make("lstm", zoneout=(0.5, 0))
    assert_same(of_h, torch.randn(4, 2, 3, dtype=F64))


def test_in_evaluation_nothing_is_drawn():
    layer, state = make("lstm").eval(), torch.get_rng_state()
    layer(torch.ones(4, 2, 3, dtype=F64))
    assert torch.equal(state, torch.get_rng_state())


def test_an_empty_batch():
    assert_takes_an_empty_batch(make("lstm"))


@every_class
@in_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_numbers_and_autocast(kind, training, dtype):
    layer, x = make(kind, 3, 40).train(training), torch.randn(6, 18, 3, dtype=F64)
    narrow = copy.deepcopy(layer).to(dtype)
    found = call(narrow, x.to(dtype))[0]
    found.square().sum().backward()
    expected = run_loop(layer, x, zoneouts=masks(layer, 6, 18))[0]
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    grad = torch.autograd.grad(expected.square().sum(), layer.weight_hh_l0)[0]
    assert (narrow.weight_hh_l0.grad.double() - grad).norm() / grad.norm() < tolerance
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert torch.equal(call(copy.deepcopy(layer).float(), x.float())[0], found)


@in_both
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_compiled(training):
    layer, x = make("lstm", **DEEP).train(training), torch.randn(4, 2, 3, dtype=F64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    output, _ = call(compiled, x)
    expected, *_ = run_loop(layer, x, zoneouts=masks(layer, 4, 2))
    torch.testing.assert_close(output, expected)
    found = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))


def test_vmap(no_reference):
    layer, x = make("gru"), torch.randn(3, 4, 2, 3, dtype=F64)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda x: layer(x)[0])(x)
    torch.manual_seed(1)
    same = torch.vmap(lambda x: layer(x)[0], randomness="same")(x)
    for found, own in zip(same, x, strict=True):
        torch.testing.assert_close(found, run_loop(layer, own, zoneouts=masks(layer, 4, 2))[0])
    other = torch.vmap(lambda x: layer(x)[0], randomness="different")(torch.ones_like(x))
    assert not torch.equal(other[0], other[1])
    layer.eval()
    for found, own in zip(torch.vmap(lambda x: layer(x)[0])(x), x, strict=True):
        torch.testing.assert_close(found, run_loop(layer, own, zoneouts=masks(layer))[0])


@in_both
def test_an_ensemble(no_reference, training):
    layer, x = make("lstm").train(training), torch.randn(4, 2, 3, dtype=F64)
    members = [copy.deepcopy(layer) for _ in range(3)]
    for member in members:
        member.reset_parameters()
    stacked, _ = torch.func.stack_module_state(members)

    def run(weights):
        return torch.func.functional_call(layer, weights, (x,))[0]

    torch.manual_seed(1)
    outputs = torch.vmap(run, randomness="same")(stacked)
    for output, member in zip(outputs, members, strict=True):
        torch.testing.assert_close(output, run_loop(member, x, zoneouts=masks(layer, 4, 2))[0])
    outputs.square().sum().backward()
    expected = run_loop(members[1], x, zoneouts=masks(layer, 4, 2))[0].square().sum()
    wanted = torch.autograd.grad(expected, members[1].weight_hh_l0)[0]
    torch.testing.assert_close(stacked["weight_hh_l0"].grad[1], wanted)


def test_exports_and_traces_keep_it():
    layer, x = make("lstm", **DEEP).eval(), torch.randn(4, 2, 3, dtype=F64)
    expected = layer(x)[0]
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x)[0], expected)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x)[0], expected)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@in_both
def test_functions_take_it(name, training):
    layer = make(name, bidirectional=True).train(training)
    x, weights = torch.randn(4, 2, 3, dtype=F64), list(layer.parameters())
    for module in (fused_rnn.functional, reference):
        torch.manual_seed(1)
        found = getattr(module, name)(x, None, weights, bidirectional=True, zoneout=layer.zoneout, training=training)
        torch.testing.assert_close(results_of(found), results_of(call(layer, x)))
    with pytest.raises(ValueError, match=r"zoneout must be a probability"):
        getattr(fused_rnn.functional, name)(x, None, weights, bidirectional=True, zoneout=1.0)


@pytest.mark.parametrize("compiled", [False, True])
@in_both
def test_own_cells_have_it(compiled, training):
    layer = fused_rnn.zoo.slstm.layer(3, 5, zoneout=(0.3, 0.6), dtype=F64, compiled=compiled).train(training)
    x = torch.randn(4, 2, 3, dtype=F64)
    output, _ = call(layer, x)
    torch.manual_seed(1)
    options = {"zoneout": (0.3, 0.6), "training": training}
    expected, _ = fused_rnn.zoo.slstm.reference(x, None, layer._weights(), **options)
    torch.testing.assert_close(output, expected)
    assert fused_rnn.zoo.min_gru.layer(3, 5, zoneout=0.1, compiled=False).zoneout == 0.1
