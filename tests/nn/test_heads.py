"""``heads``: W_hh in blocks on its diagonal, against the dense layer with zeros elsewhere."""

import copy

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
    assert_same_bits_whatever_the_threads,
    call,
    random_rows,
    results_of,
    run_loop,
    states_for,
)
from support.modules import DEEP, F64, through_file

KINDS = sorted(set(LAYERS) - {"projected"})
every_class = pytest.mark.parametrize("kind", KINDS)


def make(kind, *sizes, **options):
    made, own = LAYERS[kind]
    return loop_options.make(made, *(sizes or (3, 6)), **own | {"heads": 2} | options)


def whole(weight_hh, hidden, heads):
    """W_hh with its zeros."""
    gates = weight_hh.chunk(weight_hh.shape[0] // hidden)
    return torch.cat([torch.block_diag(*gate.chunk(heads)) for gate in gates])


def dense_weights(layer):
    """Of the dense layer, as functions of this layer's."""
    return {
        name: whole(weight, layer.hidden_size, layer.heads) if name.startswith("weight_hh") else weight
        for name, weight in layer.named_parameters()
    }


def assert_same(layer, x, states=None, **options):
    loop_options.assert_same(layer, x, states, masks={"weights": dense_weights(layer)}, **options)


@every_class
@pytest.mark.parametrize("options", [{}, DEEP, {"bias": False}, {"heads": 3}, {"heads": 6}], ids=str)
def test_values_and_gradients_are_those_of_the_dense_loop(no_reference, kind, options):
    layer = make(kind, **options)
    assert_same(layer, torch.randn(6, 2, 3, dtype=F64), states_for(layer, 2))


@every_class
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 1, 33), (1, 3, 9), (60, 1, 69), (40, 17, 21), (9, 70, 6)])
def test_sizes_that_take_other_ways_through_the_kernels(no_reference, kind, steps, batch, hidden):
    assert_same(make(kind, 3, hidden, heads=3), torch.randn(steps, batch, 3, dtype=F64))


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 4), *SHAPES)
def test_random_shapes_with_lengths_and_resets(kind, heads, steps, batch, hidden, bidirectional, data):
    layer = make(kind, 2, heads * (1 + hidden // 4), bidirectional=bidirectional, heads=heads)
    assert_same(layer, torch.randn(steps, batch, 2, dtype=F64), **random_rows(data, steps, batch))


@every_class
def test_a_packed_sequence(no_reference, kind):
    layer, lengths = make(kind, bidirectional=True), torch.tensor([2, 5, 3])
    x = torch.randn(5, 3, 3, dtype=F64)
    output, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    expected, *_ = run_loop(layer, x, weights=dense_weights(layer), lengths=lengths)
    torch.testing.assert_close(pad_packed_sequence(output)[0], expected)
    found = torch.autograd.grad(output.data.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))


def test_layouts_of_the_input(no_reference):
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    expected = layer(x)[0]
    first = make("lstm", batch_first=True)
    first.load_state_dict(layer.state_dict())
    torch.testing.assert_close(first(x.transpose(0, 1))[0].transpose(0, 1), expected)
    torch.testing.assert_close(layer(x[:, 1])[0], expected[:, 1])
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous() and torch.equal(layer(strided)[0], expected)
    output, (h, c) = layer(x[:, :0])
    assert output.shape == (4, 0, 6) and h.shape == c.shape == (1, 0, 6)
    ids = torch.randint(3, (4, 2))
    torch.testing.assert_close(layer(ids)[0], layer(nn.functional.one_hot(ids, 3).to(F64))[0])


def test_grad_clip_and_return_cells():
    layer, x = make("lstm", bidirectional=True), torch.randn(4, 2, 3, dtype=F64)
    dense = list(dense_weights(layer).values())
    twin = reference.lstm(x, None, dense, bidirectional=True, return_cells=True, grad_clip=1e-3)
    output, states, cells = layer(x, return_cells=True, grad_clip=1e-3)
    torch.testing.assert_close([output, *states, cells], [twin[0], *twin[1], twin[2]])
    found = torch.autograd.grad(output.sum() + cells.square().sum(), layer.weight_hh_l0)
    wanted = torch.autograd.grad(twin[0].sum() + twin[2].square().sum(), layer.weight_hh_l0)
    # Norms are clipped element by element, so heads do not change them.
    torch.testing.assert_close(found, wanted)


@every_class
@pytest.mark.parametrize("rows", ["plain", "ragged", "masked"])
def test_first_and_second_derivatives(no_reference, kind, rows):
    masked = {"recurrent_dropout": 0.4, "zoneout": 0.3} if rows == "masked" else {}
    layer = make(kind, 2, 4, bidirectional=rows == "ragged", **masked)
    names = [name for name, _ in layer.named_parameters()]
    ragged = {"lengths": torch.tensor([3, 2]), "reset_mask": torch.tensor([[0, 0], [1, 0], [0, 1]]).bool()}
    states = [state.requires_grad_() for state in states_for(layer, 2)]

    def run(x, *given):
        hx, weights = given[: len(states)], dict(zip(names, given[len(states) :], strict=True))
        call = (x, hx if len(states) > 1 else hx[0])
        torch.manual_seed(1)
        return results_of(torch.func.functional_call(layer, weights, call, ragged if rows == "ragged" else {}))

    inputs = (torch.randn(3, 2, 2, dtype=F64, requires_grad=True), *states, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


@every_class
def test_other_options_have_the_masks_of_the_dense_layer(kind):
    options = {"recurrent_dropout": 0.4, "zoneout": 0.3, "bidirectional": True}
    layer, dense = make(kind, **options), make(kind, heads=1, **options)
    dense.load_state_dict(dense_weights(layer))
    x = torch.randn(5, 3, 3, dtype=F64)
    torch.testing.assert_close(results_of(call(layer, x)), results_of(call(dense, x)))
    torch.testing.assert_close(results_of(layer.eval()(x)), results_of(dense.eval()(x)))


def test_weight_dropout_drops_elements_of_the_blocks():
    layer, x = make("gru", weight_dropout=0.5), torch.randn(4, 2, 3, dtype=F64)
    torch.manual_seed(1)
    dropped = torch.dropout(layer.weight_hh_l0, 0.5, True)
    expected, _ = run_loop(layer, x, weights={"weight_hh_l0": whole(dropped, 6, 2)})
    torch.testing.assert_close(call(layer, x)[0], expected)


@pytest.mark.parametrize("grad", [True, False])
@every_class
def test_same_bits_whatever_the_threads(kind, grad):
    with torch.set_grad_enabled(grad):
        assert_same_bits_whatever_the_threads(make(kind, 3, 80), torch.randn(7, 9, 3, dtype=F64), draws=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_numbers_and_autocast(dtype):
    layer, x = make("lstm", 3, 40, heads=4), torch.randn(6, 18, 3, dtype=F64)
    narrow = copy.deepcopy(layer).to(dtype)
    found = narrow(x.to(dtype))[0]
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found.double(), layer(x)[0], rtol=0, atol=tolerance)
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert torch.equal(copy.deepcopy(layer).float()(x.float())[0], found)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_compiled_and_exported():
    layer, x = make("lstm", **DEEP), torch.randn(4, 2, 3, dtype=F64)
    expected = layer(x)[0]
    output, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(output, expected)
    found = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*layer.parameters()]))
    program = torch.export.export(layer.eval(), (x,))
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])
    traced = torch.jit.trace(layer, (x,))
    torch.testing.assert_close(traced(x[:3])[0], layer(x[:3])[0])


def test_vmap(no_reference):
    layer, x = make("gru"), torch.randn(3, 4, 2, 3, dtype=F64)
    torch.testing.assert_close(torch.vmap(lambda x: layer(x)[0])(x), torch.stack([layer(own)[0] for own in x]))
    members = [make("gru") for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(members)
    outputs = torch.vmap(lambda w: torch.func.functional_call(layer, w, (x[0],))[0])(stacked)
    torch.testing.assert_close(outputs, torch.stack([member(x[0])[0] for member in members]))
    outputs = torch.vmap(lambda w, x: torch.func.functional_call(layer, w, (x,))[0])(stacked, x)
    torch.testing.assert_close(outputs, torch.stack([member(own)[0] for member, own in zip(members, x, strict=True)]))

    def of_row(weights, row):
        return torch.func.functional_call(layer, weights, (row.unsqueeze(1),))[0].square().sum()

    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    each = torch.vmap(torch.func.grad(of_row), (None, 1))(weights, x[0])
    loss = layer(x[0])[0].square().sum()
    torch.testing.assert_close(each["weight_hh_l0"].sum(0), torch.autograd.grad(loss, layer.weight_hh_l0)[0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["peephole_lstm", "slstm"])
def test_own_cells_have_it(name, compiled):
    cell = getattr(fused_rnn.zoo, name)
    layer = cell.layer(3, 6, heads=3, bidirectional=True, dtype=F64, compiled=compiled)
    assert "heads=3" in repr(layer) and layer.weight_hh_l0.shape == (24, 2)
    x, weights = torch.randn(4, 2, 3, dtype=F64), layer._weights()
    recurrent = {id(layer.weight_hh_l0), id(layer.weight_hh_l0_reverse)}
    dense = [whole(weight, 6, 3) if id(weight) in recurrent else weight for weight in weights]
    found, expected = layer(x), cell.reference(x, None, dense, bidirectional=True)
    torch.testing.assert_close(results_of(found), results_of(expected))
    losses = [output.square().sum() for output, _ in (found, expected)]
    given, wanted = (torch.autograd.grad(loss, [*layer.parameters()]) for loss in losses)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_functions_take_it(kind):
    layer, x = make(kind, bidirectional=True), torch.randn(4, 2, 3, dtype=F64)
    own = {"bidirectional": True} | ({"nonlinearity": "relu"} if kind == "rnn" else {})
    for module in (fused_rnn.functional, reference):
        found = getattr(module, kind)(x, None, list(layer.parameters()), heads=2, **own)
        torch.testing.assert_close(results_of(found), results_of(layer(x)))
    with pytest.raises(ValueError, match="heads=4 must divide hidden_size=6"):
        getattr(fused_rnn.functional, kind)(x, None, list(layer.parameters()), heads=4, **own)
    given = list(layer.parameters())
    for at, name in enumerate(["weight_ih", "weight_hh", "bias_ih", "bias_hh"]):
        for k in (at, at + 4)[not at :]:  # the first weight_ih says what H is
            wrong = [torch.cat([w, w]) if n == k else w for n, w in enumerate(given)]
            with pytest.raises(RuntimeError, match=rf"{name} must be \[.*\] with heads=2, got \["):
                getattr(fused_rnn.functional, kind)(x, None, wrong, heads=2, **own)


# ---- what knows of it ------------------------------------------------------------------------------------------------


def test_parameters_copies_and_files():
    torch.manual_seed(0)
    layer = make("lstm", **DEEP)
    assert "heads=2" in repr(layer)
    assert layer.weight_hh_l0.shape == layer.weight_hh_l1_reverse.shape == (24, 3)
    assert [id(w) for w in layer._flat_weights] == [id(w) for w in layer.parameters()]
    x = torch.randn(4, 2, 3, dtype=F64)
    for other in (copy.deepcopy(layer), through_file(layer)):
        assert other.heads == 2 and torch.equal(layer.eval()(x)[0], other.eval()(x)[0])
    layer.reset_parameters()
    layer.flatten_parameters()
    assert layer.weight_hh_l0.abs().max() <= 6**-0.5
    assert "heads" not in vars(make("lstm", heads=1))
    stack = fused_rnn.Stack("gru", 3, [6, 6], heads=3)
    assert [part.heads for part in stack.layers] == [3, 3]
    assert make("gru", device="meta").weight_hh_l0.shape == (18, 3)


def test_initial_values_and_spectrum():
    gru = fused_rnn.init.orthogonal_(make("gru"), gain=0.5)
    for block in gru.weight_hh_l0.detach().view(3, 2, 3, 3).flatten(0, 1):
        torch.testing.assert_close(block @ block.T, 0.25 * torch.eye(3, dtype=F64))
    assert fused_rnn.spectrum(gru).blocks[0].singular_values == pytest.approx([0.5] * 6)
    rnn = fused_rnn.init.identity_(make("rnn"))
    assert torch.equal(whole(rnn.weight_hh_l0, 6, 2), torch.eye(6, dtype=F64))


def test_explain_says_how_it_runs():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    found = fused_rnn.explain(layer, x)
    assert found.engine == "fused" and "heads=2: the layer runs as so many smaller ones" in found.reason
    by_torch = fused_rnn.explain(layer, x, engine="torch")
    assert by_torch.engine == "fused" and "W_hh has heads" in by_torch.reason
    expected = layer(x)[0]
    with fused_rnn.engine("torch"):
        assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        (4, ValueError, "heads=4 must divide hidden_size=6"),
        (0, ValueError, "heads must be greater than zero, got 0"),
        (2.0, TypeError, "heads must be of type int, got float"),
        (True, TypeError, "heads must be of type int, got bool"),
    ],
)
def test_wrong_numbers(heads, error, message):
    for make_it in (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN, fused_rnn.zoo.mgu.layer):
        with pytest.raises(error, match=message):
            make_it(3, 6, heads=heads)


def test_what_excludes_it():
    with pytest.raises(ValueError, match="heads=2 and proj_size=2 exclude each other"):
        fused_rnn.LSTM(3, 6, proj_size=2, heads=2)
    weights = [torch.ones(24, 3), torch.ones(24, 1), torch.ones(2, 6)]
    with pytest.raises(ValueError, match=r"heads=2 and a projection \(weight_hr\) exclude each other"):
        fused_rnn.functional.lstm(torch.ones(2, 1, 3), None, weights, heads=2)
    cell = fused_rnn.zoo.min_gru
    for of_min_gru in (
        lambda: cell.layer(3, 6, heads=2),
        lambda: cell.reference(torch.ones(2, 1, 3, dtype=F64), None, cell.layer(3, 6, dtype=F64)._weights(), heads=2),
    ):
        with pytest.raises(ValueError, match="has no W_hh, which heads=2 acts on"):
            of_min_gru()


def test_what_does_not_know_it():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    with pytest.raises(NotImplementedError, match="packed weights have no heads=2"):
        fused_rnn.freeze(layer)
    with pytest.raises(NotImplementedError, match="packed weights have no heads=2"):
        fused_rnn.Stream(layer, batch=1)
    does_not_know = pytest.raises(NotImplementedError, match="gradient_flow does not know heads=2")
    with fused_rnn.gradient_flow(layer), does_not_know:
        layer(x)
    with pytest.raises(NotImplementedError, match="gate_statistics does not know heads=2"):
        fused_rnn.gate_statistics(layer, x)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script has no heads=2"):
        torch.jit.script(layer)
    with pytest.warns(UserWarning, match="torch.nn has no heads=2"):
        assert fused_rnn.restore(layer) is layer and isinstance(layer, fused_rnn.LSTM)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.onnx.export(dynamo=False), by itself
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_has_no_word_for_it(dynamo, tmp_path):
    with pytest.raises(Exception, match=r"torch\.onnx\.export\S* has no heads=2"):
        torch.onnx.export(make("gru").float().eval(), (torch.ones(4, 2, 3),), tmp_path / "m.onnx", dynamo=dynamo)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch
def test_onnx_has_no_word_for_it_in_a_function():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = make("gru", dtype=torch.float32)

        def forward(self, x):
            return fused_rnn.functional.gru(x, None, list(self.gru.parameters()), heads=2)[0]

    with pytest.raises(torch.onnx.OnnxExporterError, match="ONNX's GRU node has no heads"):
        torch.onnx.export(Model().eval(), (torch.randn(4, 2, 3),), dynamo=True)
