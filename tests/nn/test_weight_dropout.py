"""``weight_dropout``: a mask on W_hh, drawn once for a call in training."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
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
from support.modules import DEEP, F64, through_file

P = 0.4


def make(kind, *sizes, **options):
    made, own = LAYERS[kind]
    return loop_options.make(made, *sizes, **own | {"weight_dropout": P} | options)


def dropped(layer, seed=1, p=P):
    """The weights that a call after this seed has, drawn again."""
    torch.manual_seed(seed)
    return {n: dropout(w, p) for n, w in layer.named_parameters() if n.startswith("weight_hh")}


def assert_same(layer, x, states=None, **options):
    loop_options.assert_same(layer, x, states, masks={"weights": dropped(layer)}, **options)


@every_class
@pytest.mark.parametrize("deep", [{}, DEEP, {"bias": False}], ids=str)
def test_values_and_gradients_are_those_of_a_loop_with_the_same_masks(no_reference, kind, deep):
    layer = make(kind, **deep)
    assert_same(layer, torch.randn(6, 2, 3, dtype=F64), states_for(layer, 2))


@settings(max_examples=40)
@given(st.sampled_from(sorted(LAYERS)), *SHAPES)
def test_random_shapes_with_lengths_and_resets(kind, steps, batch, hidden, bidirectional, data):
    layer = make(kind, 2, hidden, bidirectional=bidirectional)
    assert_same(layer, torch.randn(steps, batch, 2, dtype=F64), **random_rows(data, steps, batch))


@every_class
def test_a_packed_sequence(kind):
    layer, lengths = make(kind, bidirectional=True), torch.tensor([2, 5, 3])
    x = torch.randn(5, 3, 3, dtype=F64)
    output, _ = call(layer, pack_padded_sequence(x, lengths, enforce_sorted=False))
    expected, *_ = run_loop(layer, x, weights=dropped(layer), lengths=lengths)
    torch.testing.assert_close(pad_packed_sequence(output)[0], expected)


@every_class
def test_gradcheck_with_the_mask_held(kind):
    layer = make(kind, 2, 3)
    x = torch.randn(3, 2, 2, dtype=F64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *weights):
        torch.manual_seed(1)
        return results_of(torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,)))

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@every_class
def test_in_evaluation_it_does_nothing(no_reference, kind):
    assert_plain_in_evaluation(make(kind), "weight_dropout")


def test_zero_is_the_plain_layer():
    assert_zero_is_plain("weight_dropout")


@every_class
def test_one_mask_a_call_by_seed_whatever_the_threads(kind):
    assert_same_bits_whatever_the_threads(make(kind, 3, 40), torch.randn(7, 9, 3, dtype=F64))


def test_each_layer_and_direction_has_its_own_mask_which_rows_share():
    layer = make("rnn", 3, 5, num_layers=2, bidirectional=True)
    masks = [weight == 0 for weight in dropped(layer).values()]
    assert not any(torch.equal(a, b) for k, a in enumerate(masks) for b in masks[:k])
    output, _ = call(layer, torch.ones(4, 2, 3, dtype=F64))
    assert torch.equal(output[:, 0], output[:, 1])


def test_an_empty_batch():
    assert_takes_an_empty_batch(make("lstm"))


def test_under_autocast_and_in_bfloat16():
    layer, x = make("gru", dtype=torch.float32), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = call(layer, x)
    torch.manual_seed(1)
    masked = copy.deepcopy(layer).eval()
    with torch.no_grad():
        masked.weight_hh_l0.copy_(dropout(masked.weight_hh_l0, P))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output, masked(x)[0])
    assert make("gru", dtype=torch.bfloat16)(x.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_compiled():
    layer, x = make("lstm"), torch.randn(4, 2, 3, dtype=F64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        output, _ = call(compiled, x)
        output.sum().backward()
    expected, *_ = run_loop(layer, x, weights=dropped(layer))
    torch.testing.assert_close(output, expected)
    assert (layer.weight_hh_l0.grad[dropped(layer)["weight_hh_l0"] == 0]).count_nonzero() == 0


def test_vmap_asks_for_what_torch_asks():
    layer, x = make("gru"), torch.randn(3, 4, 2, 3, dtype=F64)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda x: layer(x)[0])(x)
    same = torch.vmap(lambda x: layer(x)[0], randomness="same")(x)
    other = torch.vmap(lambda x: layer(x)[0], randomness="different")(torch.ones_like(x))
    assert same.shape == other.shape == (3, 4, 2, 5) and not torch.equal(other[0], other[1])


def test_a_stack_passes_it_on():
    stack = fused_rnn.Stack("gru", 3, [5, 5], skip="residual", weight_dropout=P)
    assert [layer.weight_dropout for layer in stack.layers] == [P, P]


def test_own_cells_have_it():
    layer = fused_rnn.zoo.mgu.layer(3, 5, weight_dropout=P, dtype=F64, compiled=False)
    assert "weight_dropout=0.4" in repr(layer)
    x = torch.randn(4, 2, 3, dtype=F64)
    output, _ = call(layer, x)
    masked = copy.deepcopy(layer).eval()
    with torch.no_grad():
        masked.weight_hh_l0.copy_(dropped(layer)["weight_hh_l0"])
    assert torch.equal(output, masked(x)[0])
    with pytest.raises(ValueError, match=r"min_gru has no W_hh, which weight_dropout=0.4 acts on"):
        fused_rnn.zoo.min_gru.layer(3, 5, weight_dropout=P, compiled=False)


# ---- who refuses it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 1.0, -0.1, 2, float("nan"), True, "0.5", None], ids=str)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_values_that_are_no_probabilities(kind, value):
    with pytest.raises(ValueError, match=r"weight_dropout must be a probability, at least 0 and less than 1, got"):
        make(kind, weight_dropout=value)


def test_it_is_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        fused_rnn.LSTM(3, 5, 1, True, False, 0.0, False, 0, None, None, P)


def test_print_pickle_copy_and_state_dict():
    layer = make("gru")
    assert repr(layer) == "fused_rnn.GRU(3, 5, weight_dropout=0.4)"
    assert through_file(layer).weight_dropout == copy.deepcopy(layer).weight_dropout == P
    assert list(layer.state_dict()) == list(nn.GRU(3, 5).state_dict())


def test_swapped_layers_have_none():
    layer = fused_rnn.swap(nn.LSTM(3, 5))
    assert layer.weight_dropout == 0 and layer(torch.ones(2, 1, 3))[0].shape == (2, 1, 5)


def test_restore_keeps_the_layer_and_says_why():
    model = nn.Sequential(make("gru"), fused_rnn.GRU(5, 5))
    with pytest.warns(UserWarning, match=r"restore passed over 0: torch.nn has no weight_dropout=0.4"):
        fused_rnn.restore(model)
    assert [type(layer) for layer in model] == [fused_rnn.GRU, nn.GRU]


def test_a_frozen_layer_refuses_it_in_training_only():
    layer, x = fused_rnn.freeze(make("lstm", dtype=torch.float32)), torch.randn(4, 2, 3)
    with torch.no_grad():
        with pytest.raises(NotImplementedError, match=r"a frozen layer has no weight_dropout=0.4.*call eval\(\)"):
            layer(x)
        assert layer.eval()(x)[0].shape == (4, 2, 5)


def test_torchscript_refuses_it_in_training_only():
    layer = make("lstm")
    with pytest.raises(NotImplementedError, match=r"torch.jit.script has no weight_dropout=0.4"):
        torch.jit.script(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.jit.script(layer.eval()) is not None


@pytest.mark.filterwarnings("ignore")  # of torch: the exporter is old, and the model in training mode
def test_onnx_refuses_it_in_training_only():
    pytest.importorskip("onnxscript")
    layer, x = make("gru", dtype=torch.float32), torch.randn(4, 2, 3)
    with pytest.raises(NotImplementedError, match=r"torch.onnx.export\(dynamo=False\) has no weight_dropout=0.4"):
        torch.onnx.export(layer, (x,), io.BytesIO(), dynamo=False, training=torch.onnx.TrainingMode.TRAINING)
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"torch.onnx.export has no weight_dropout=0.4"):
        torch.onnx.export(layer, (x,), dynamo=True)
    assert torch.onnx.export(layer.eval(), (x,), dynamo=True) is not None


def test_a_stream_does_not_drop():
    layer = make("gru", dtype=torch.float32)
    stream, x = fused_rnn.Stream(layer), torch.randn(1, 3)
    with torch.inference_mode():
        torch.testing.assert_close(stream.step(x), layer.eval()(x.unsqueeze(0))[0][0])


def test_explain_names_it_and_draws_nothing():
    layer, x = make("gru"), torch.randn(4, 2, 3, dtype=F64)
    state = torch.get_rng_state()
    assert "weight_dropout=0.4: a copy of W_hh with a mask" in fused_rnn.explain(layer, x).reason
    assert torch.equal(state, torch.get_rng_state())
    assert "weight_dropout" not in fused_rnn.explain(layer.eval(), x).reason
