"""``layer_norm``: W_ih x, W_hh h and an LSTM's c, normalised, against a loop that is written out."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import reference
from fused_rnn.ops import library
from support import loop_options
from support.loop_options import (
    LAYERS,
    SHAPES,
    assert_same_bits_whatever_the_threads,
    other_threads,
    random_rows,
    results_of,
    run_loop,
    states_for,
)
from support.modules import DEEP, F64, through_file

KINDS = sorted(set(LAYERS) - {"projected"})
every_class = pytest.mark.parametrize("kind", KINDS)


def make(kind, *sizes, **options):
    """With gains and biases that are not those of the beginning."""
    made, own = LAYERS[kind]
    layer = loop_options.make(made, *sizes, **own | {"layer_norm": True} | options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith(("gain", "bias_c")):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return layer


def norms_of(layer):
    return [p for name, p in layer.named_parameters() if name.startswith(("gain", "bias_c"))]


def assert_same(layer, x, states=None, masks=None, **options):
    loop_options.assert_same(layer, x, states, masks=masks or {}, **options)


@every_class
@pytest.mark.parametrize("options", [{}, DEEP, {"bias": False}, {"bias": False, "bidirectional": True}], ids=str)
def test_values_and_gradients_are_those_of_the_loop(no_reference, kind, options):
    layer = make(kind, **options)
    assert_same(layer, torch.randn(6, 2, 3, dtype=F64), states_for(layer, 2))


@every_class
@pytest.mark.parametrize(
    ("steps", "batch", "hidden"), [(1, 1, 1), (1, 1, 33), (1, 3, 9), (60, 1, 130), (40, 17, 21), (9, 70, 64)]
)
def test_sizes_that_take_other_ways_through_the_kernels(no_reference, kind, steps, batch, hidden):
    assert_same(make(kind, 3, hidden), torch.randn(steps, batch, 3, dtype=F64))


@settings(max_examples=60)
@given(st.sampled_from(KINDS), *SHAPES)
def test_random_shapes_with_lengths_and_resets(kind, steps, batch, hidden, bidirectional, data):
    layer = make(kind, 2, hidden, bidirectional=bidirectional)
    assert_same(layer, torch.randn(steps, batch, 2, dtype=F64), **random_rows(data, steps, batch))


@every_class
def test_a_packed_sequence(no_reference, kind):
    layer, lengths = make(kind, bidirectional=True), torch.tensor([2, 5, 3])
    x = torch.randn(5, 3, 3, dtype=F64)
    output, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    expected, *_ = run_loop(layer, x, lengths=lengths)
    torch.testing.assert_close(pad_packed_sequence(output)[0], expected)
    found = torch.autograd.grad(output.data.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))


def test_padding_may_hold_anything(no_reference):
    layer, x, lengths = make("lstm"), torch.randn(4, 2, 3, dtype=F64), torch.tensor([2, 4])
    dirty = x.clone()
    dirty[2:, 0] = torch.nan
    results = [layer(some, lengths=lengths)[0] for some in (x, dirty)]
    assert torch.equal(*results)
    grads = [torch.autograd.grad(result.sum(), [*layer.parameters()]) for result in results]
    assert all(map(torch.equal, *grads))


def test_layouts_of_the_input(no_reference):
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    expected = layer(x)[0]
    first = make("lstm", batch_first=True)
    first.load_state_dict(layer.state_dict())
    torch.testing.assert_close(first(x.transpose(0, 1))[0].transpose(0, 1), expected)
    torch.testing.assert_close(layer(x[:, 1])[0], expected[:, 1])
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous() and torch.equal(layer(strided)[0], expected)
    loop_options.assert_takes_an_empty_batch(layer)


def test_token_ids(no_reference):
    layer, ids = make("lstm", bidirectional=True), torch.randint(3, (4, 2))
    lengths = torch.tensor([4, 2])
    found, expected = (layer(rows, lengths=lengths)[0] for rows in (ids, nn.functional.one_hot(ids, 3).to(F64)))
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(output.square().sum(), [*layer.parameters()]) for output in (found, expected))
    torch.testing.assert_close(*grads)


@every_class
@pytest.mark.parametrize("training", [True, False])
def test_with_masks_in_the_loop(no_reference, kind, training):
    zoneout = (0.3, 0.6) if kind == "lstm" else 0.3
    options = {"recurrent_dropout": 0.4, "zoneout": zoneout, "weight_dropout": 0.3, "bidirectional": True}
    layer = make(kind, **options).train(training)
    x = torch.randn(5, 3, 3, dtype=F64)
    outputs = []
    for runner in (None, reference.RUNNER):
        torch.manual_seed(1)
        outputs.append(results_of(layer._run(x, runner=runner)))
    torch.testing.assert_close(*outputs)
    losses = [sum(output.square().sum() for output in some) for some in outputs]
    torch.testing.assert_close(*(torch.autograd.grad(loss, [*layer.parameters()]) for loss in losses))


def test_grad_clip_and_return_cells(no_reference):
    layer, x = make("lstm", bidirectional=True), torch.randn(4, 2, 3, dtype=F64)
    found = layer(x, return_cells=True, grad_clip=1e-2)
    expected = layer._run(x, cells=True, grad_clip=1e-2, runner=reference.RUNNER)
    for own, twin in zip((found[0], *found[1], found[2]), (expected[0], *expected[1], expected[2]), strict=True):
        torch.testing.assert_close(own, twin)
    losses = [output.sum() + cells.square().sum() for output, _, cells in (found, expected)]
    torch.testing.assert_close(*(torch.autograd.grad(loss, [*layer.parameters()]) for loss in losses))


@every_class
@pytest.mark.parametrize("rows", ["plain", "ragged"])
def test_first_and_second_derivatives(kind, rows):
    layer = make(kind, 2, 3, bidirectional=rows == "ragged")
    names = [name for name, _ in layer.named_parameters()]
    ragged = {"lengths": torch.tensor([3, 2]), "reset_mask": torch.tensor([[0, 0], [1, 0], [0, 1]]).bool()}
    states = [state.requires_grad_() for state in states_for(layer, 2)]

    def run(x, *given):
        hx, weights = given[: len(states)], dict(zip(names, given[len(states) :], strict=True))
        call = (x, hx if len(states) > 1 else hx[0])
        return results_of(torch.func.functional_call(layer, weights, call, ragged if rows == "ragged" else {}))

    inputs = (torch.randn(3, 2, 2, dtype=F64, requires_grad=True), *states, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


@every_class
def test_only_what_is_wanted(no_reference, kind):
    layer, x = make(kind), torch.randn(4, 2, 3, dtype=F64)
    leaves = dict(layer.named_parameters())
    every = torch.autograd.grad(layer(x)[0].sum(), [*leaves.values()])
    for (name, leaf), expected in zip(leaves.items(), every, strict=True):
        for other in leaves.values():
            other.requires_grad_(other is leaf)
        torch.testing.assert_close(torch.autograd.grad(layer(x)[0].sum(), leaf)[0], expected, msg=name)


@pytest.mark.parametrize("grad", [True, False])
@every_class
def test_same_bits_whatever_the_threads(kind, grad):
    with torch.set_grad_enabled(grad):
        for hidden, batch in ((80, 9), (256, 1)):
            x = torch.randn(7, batch, 3, dtype=F64)
            assert_same_bits_whatever_the_threads(make(kind, 3, hidden), x, draws=False)


def test_same_gradients_whatever_the_threads():
    layer, x = make("lstm", 3, 256), torch.randn(5, 1, 3, dtype=F64)

    def grads():
        return torch.autograd.grad(layer(x)[0].square().sum(), [*layer.parameters()])

    first = grads()
    with other_threads():
        assert all(map(torch.equal, first, grads()))


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_numbers_and_autocast(kind, dtype):
    layer, x = make(kind, 3, 70), torch.randn(6, 18, 3, dtype=F64)
    narrow = copy.deepcopy(layer).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    found, expected = narrow(x.to(dtype))[0], layer(x)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    grads = [
        torch.autograd.grad(output.sum(), [*own.parameters()]) for output, own in ((found, narrow), (expected, layer))
    ]
    for own, exact in zip(*grads, strict=True):
        assert (own - exact).norm() <= 3 * tolerance * exact.norm()
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert torch.equal(copy.deepcopy(layer).float()(x.float())[0], found)


def test_rows_without_spread_and_far_from_zero(no_reference):
    """The variance is 0, and is not lost in the mean."""
    layer = make("gru", 3, 20)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(0.5)
    assert_same(layer, torch.randn(4, 2, 3, dtype=F64))
    narrow = make("rnn", 1, 40, bias=False, dtype=torch.float32)
    with torch.no_grad():
        narrow.weight_ih_l0.add_(10)
    x = torch.ones(1, 1, 1)
    exact = copy.deepcopy(narrow).double()(x.double())[0]
    torch.testing.assert_close(narrow(x)[0].double(), exact, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_compiled_and_exported(no_reference):
    layer, x = make("lstm", **DEEP), torch.randn(4, 2, 3, dtype=F64)
    expected = layer(x)[0]
    output, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(output, expected)
    found = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))
    with torch.no_grad():
        program = torch.export.export(layer.eval(), (x,))
        torch.testing.assert_close(program.module()(x)[0], layer(x)[0])
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace does not know layer_norm"):
        torch.jit.trace(layer, (x,))


def test_transforms():
    layer, x = make("gru"), torch.randn(3, 4, 2, 3, dtype=F64)
    torch.testing.assert_close(torch.vmap(lambda x: layer(x)[0])(x), torch.stack([layer(own)[0] for own in x]))
    members = [make("gru") for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(members)
    outputs = torch.vmap(lambda w, x: torch.func.functional_call(layer, w, (x,))[0])(stacked, x)
    torch.testing.assert_close(outputs, torch.stack([member(own)[0] for member, own in zip(members, x, strict=True)]))

    def of_row(weights, row):
        return torch.func.functional_call(layer, weights, (row.unsqueeze(1),))[0].square().sum()

    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    each = torch.vmap(torch.func.grad(of_row), (None, 1))(weights, x[0])
    loss = layer(x[0])[0].square().sum()
    for name, whole in zip(each, torch.autograd.grad(loss, [*layer.parameters()]), strict=True):
        torch.testing.assert_close(each[name].sum(0), whole)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["peephole_lstm", "min_gru"])
def test_own_cells_have_it(name, compiled):
    cell = getattr(fused_rnn.zoo, name)
    layer = cell.layer(3, 6, num_layers=2, bidirectional=True, layer_norm=True, dtype=F64, compiled=compiled)
    assert "layer_norm=True" in repr(layer)
    assert hasattr(layer, "gain_hh_l1_reverse") is cell.recurrent and torch.equal(
        layer.gain_ih_l0, torch.ones_like(layer.gain_ih_l0)
    )
    with torch.no_grad():
        for gain in norms_of(layer):
            gain.add_(torch.randn_like(gain), alpha=0.3)
    x, lengths = torch.randn(4, 2, 3, dtype=F64), torch.tensor([4, 2])
    found, expected = layer(x, lengths=lengths), layer._run(x, lengths=lengths, by=reference.RUNNER)
    torch.testing.assert_close(results_of(found), results_of(expected))
    losses = [output.square().sum() for output, _ in (found, expected)]
    torch.testing.assert_close(*(torch.autograd.grad(loss, [*layer.parameters()]) for loss in losses))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_functions_take_it(kind):
    layer, x = make(kind, bidirectional=True), torch.randn(4, 2, 3, dtype=F64)
    own = {"bidirectional": True} | ({"nonlinearity": "relu"} if kind == "rnn" else {})
    weights, norms = list(layer._flat_weights), [getattr(layer, name) for name in layer._norm_names(layer_row(kind))]
    for module in (fused_rnn.functional, reference):
        found = getattr(module, kind)(x, None, weights, layer_norm=norms, **own)
        torch.testing.assert_close(results_of(found), results_of(layer(x)))
    function = getattr(fused_rnn.functional, kind)
    with pytest.raises(ValueError, match=r"layer_norm must hold gain_ih, gain_hh.* for each of 2 layers and d"):
        function(x, None, weights, layer_norm=norms[1:], **own)
    with pytest.raises(RuntimeError, match=r"layer_norm\[1\] \(gain_hh\) must be \[\d+\], got \[3\]"):
        function(x, None, weights, layer_norm=[norms[0], torch.ones(3, dtype=F64), *norms[2:]], **own)
    with pytest.raises(TypeError, match=r"layer_norm\[0\] must be a Tensor, got NoneType"):
        function(x, None, weights, layer_norm=[None, *norms[1:]], **own)
    with pytest.raises(RuntimeError, match="gain_ih must be Double, got Float"):
        function(x, None, weights, layer_norm=[norm.float() for norm in norms], **own)


def layer_row(kind):
    return fused_rnn.ops.cells.CELLS["rnn_relu" if kind == "rnn" else kind]


# ---- what knows of it ------------------------------------------------------------------------------------------------


def test_parameters_copies_and_files():
    torch.manual_seed(0)
    layer = fused_rnn.LSTM(3, 5, layer_norm=True, dtype=F64, **DEEP)
    assert "layer_norm=True" in repr(layer)
    assert layer.gain_ih_l0.shape == layer.gain_hh_l1_reverse.shape == (20,)
    assert layer.gain_c_l0.shape == layer.bias_c_l1_reverse.shape == (5,)
    assert all((norm == norm.flatten()[0]).all() for norm in norms_of(layer))
    assert not hasattr(fused_rnn.GRU(3, 5, layer_norm=True), "gain_c_l0")
    assert not hasattr(fused_rnn.LSTM(3, 5, bias=False, layer_norm=True), "bias_c_l0")
    x = torch.randn(4, 2, 3, dtype=F64)
    for other in (copy.deepcopy(layer), through_file(layer)):
        assert other.layer_norm and torch.equal(layer.eval()(x)[0], other.eval()(x)[0])
    with torch.no_grad():
        layer.gain_ih_l0.fill_(3)
    layer.reset_parameters()
    layer.flatten_parameters()
    assert torch.equal(layer.gain_ih_l0, torch.ones(20, dtype=F64)) and (layer.bias_c_l0 == 0).all()
    assert layer.weight_hh_l0.abs().max() <= 5**-0.5
    assert "layer_norm" not in vars(fused_rnn.LSTM(3, 5, layer_norm=False))
    stack = fused_rnn.Stack("gru", 3, [6, 6], layer_norm=True)
    assert [part.layer_norm for part in stack.layers] == [True, True]
    assert fused_rnn.GRU(3, 5, layer_norm=True, device="meta").gain_hh_l0.is_meta


def test_a_layer_trains():
    torch.manual_seed(0)
    layer, x = fused_rnn.LSTM(3, 8, layer_norm=True), torch.randn(6, 4, 3)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x)[0] - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert len({parameter.grad.data_ptr() for parameter in layer.parameters()}) == len([*layer.parameters()])


def test_explain_says_how_it_runs():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    found = fused_rnn.explain(layer, x)
    assert found.engine == "fused" and "layer_norm=True: W_ih x, W_hh h and an LSTM's c are normalised" in found.reason
    by_torch = fused_rnn.explain(layer, x, engine="torch")
    assert by_torch.engine == "fused" and "there is layer norm" in by_torch.reason
    expected = layer(x)[0]
    with fused_rnn.engine("torch"):
        assert torch.equal(layer(x)[0], expected)
    if library.cuda_archs():
        assert fused_rnn.explain(layer, x, gpu="H200", engine="ours").engine == "stepwise"
        on_gpu = fused_rnn.explain(layer, x, gpu="H200", engine="cluster")
        assert on_gpu.engine == "none" and "persistent kernels have no layer_norm" in on_gpu.reason


def test_what_excludes_it():
    for made in (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN, fused_rnn.zoo.mgu.layer):
        with pytest.raises(TypeError, match="layer_norm must be of type bool, got int"):
            made(3, 6, layer_norm=1)
        with pytest.raises(ValueError, match="layer_norm=True and heads=2 exclude each other"):
            made(3, 6, layer_norm=True, heads=2)
        with pytest.raises(ValueError, match="layer_norm=True and checkpoint=8 exclude each other"):
            made(3, 6, layer_norm=True, checkpoint=8)
    with pytest.raises(ValueError, match="layer_norm=True and proj_size=2 exclude each other"):
        fused_rnn.LSTM(3, 6, proj_size=2, layer_norm=True)
    weights, x = [torch.ones(24, 3), torch.ones(24, 2), torch.ones(2, 6)], torch.ones(2, 1, 3)
    with pytest.raises(ValueError, match=r"layer_norm and a projection \(weight_hr\) exclude each other"):
        fused_rnn.functional.lstm(x, None, weights, layer_norm=[])
    with pytest.raises(ValueError, match="layer_norm and checkpoint exclude each other"):
        fused_rnn.functional.lstm(x, None, [torch.ones(24, 3), torch.ones(24, 6)], layer_norm=[], checkpoint=4)


def test_what_does_not_know_it():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    with pytest.raises(NotImplementedError, match="packed weights have no layer_norm=True"):
        fused_rnn.freeze(layer)
    with pytest.raises(NotImplementedError, match="packed weights have no layer_norm=True"):
        fused_rnn.Stream(layer, batch=1)
    does_not_know = pytest.raises(NotImplementedError, match="gradient_flow does not know layer_norm")
    with fused_rnn.gradient_flow(layer), does_not_know:
        layer(x)
    with pytest.raises(NotImplementedError, match="gate_statistics does not know layer_norm"):
        fused_rnn.gate_statistics(layer, x)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script has no layer_norm=True"):
        torch.jit.script(layer)
    with pytest.warns(UserWarning, match="torch.nn has no layer_norm=True"):
        assert fused_rnn.restore(layer) is layer and isinstance(layer, fused_rnn.LSTM)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.onnx.export(dynamo=False), by itself
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_has_no_word_for_it(dynamo, tmp_path):
    with pytest.raises(Exception, match=r"torch\.onnx\.export\S* has no layer_norm=True"):
        torch.onnx.export(make("gru").float().eval(), (torch.ones(4, 2, 3),), tmp_path / "m.onnx", dynamo=dynamo)
