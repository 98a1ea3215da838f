"""``freeze(model, weights=...)``: copies, conversions, what is refused, streams, compiled calls."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.nn.runners import Frozen
from fused_rnn.ops.layer import WeightFormat
from support.modules import (
    KINDS,
    LAYERS,
    every_kind,
    every_layer,
    make_input,
    make_pair,
    make_states,
    tensors_of,
    through_file,
    through_pickle,
)

pytestmark = pytest.mark.usefixtures("no_reference")
F32 = torch.float32
FORMATS = {"int8": WeightFormat.INT8, "int8-weights-only": WeightFormat.INT8_WEIGHTS_ONLY}
THAW = r"call fused_rnn\.thaw\(model\) first"
every_format = pytest.mark.parametrize("weights", FORMATS)


def module_of(kind="gru", **options):
    return make_pair(kind, 5, 6, dtype=F32, **options)[0].eval()


def frozen(kind="gru", weights="int8", **options):
    return fused_rnn.freeze(module_of(kind, **options), weights=weights)


def assert_equal(found, expected):
    found, expected = tensors_of(found), tensors_of(expected)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def format_of(module):
    """The format of a frozen module's weights, as its results show."""
    input = make_input(module, dtype=F32)
    with torch.no_grad():
        results = {name: tensors_of(fused_rnn.freeze(module_of_same(module), weights=name)(input)) for name in FORMATS}
        found = tensors_of(module(input))
    return next((name for name, of in results.items() if all(map(torch.equal, found, of))), None)


def module_of_same(module):
    return fused_rnn.thaw(copy.deepcopy(module))


# ---- what is asked for -----------------------------------------------------------------------------------------------


@every_format
@every_kind
@torch.no_grad()
def test_formats_differ_from_float_and_each_other(kind, weights):
    module = module_of(kind)
    input = make_input(module, dtype=F32)
    expected = tensors_of(module(input))[0]
    found = tensors_of(fused_rnn.freeze(module, weights=weights)(input))[0]
    assert 0 < (found - expected).norm() <= 0.05 * expected.norm()
    assert format_of(module) == weights
    torch.testing.assert_close(tensors_of(fused_rnn.freeze(module)(input))[0], expected)


@pytest.mark.parametrize("weights", ["int4", "INT8", "", 8])
def test_unknown_weights(weights):
    layer = module_of()
    with pytest.raises(ValueError, match=r'weights must be None or one of "int8", "int8-weights-only", got '):
        fused_rnn.freeze(layer, weights=weights)
    assert layer(torch.randn(5, 2, 5))[0].requires_grad


@pytest.mark.parametrize("weights", [True, ["int8"], torch.int8])
def test_weights_of_another_type(weights):
    with pytest.raises((ValueError, TypeError)):
        fused_rnn.freeze(module_of(), weights=weights)


@every_format
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_only_float32_layers_become_int8(dtype, weights):
    for layer in (fused_rnn.GRU(3, 4, dtype=dtype), fused_rnn.LSTMCell(3, 4, dtype=dtype)):
        with pytest.raises(RuntimeError, match="weights become int8 in float32 layers, not in"):
            fused_rnn.freeze(layer, weights=weights)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@every_format
@torch.no_grad()
def test_weights_without_a_scale_name_the_layer(wrong, weights):
    model = nn.ModuleDict({"encoder": module_of("lstm_projected"), "head": nn.Sequential(module_of("gru_cell"))})
    for name, parameter in [("encoder", "weight_hr_l0"), ("encoder", "bias_ih_l0"), ("head.0", "weight_hh")]:
        weight = getattr(model.get_submodule(name), parameter)
        before = weight.clone()
        weight.view(-1)[-1] = wrong
        with pytest.raises(RuntimeError, match=rf"NaN or infinite, which int8 has no scale for \(in {name}\)"):
            fused_rnn.freeze(model, weights=weights)
        assert not any(isinstance(getattr(module, "_runner", None), Frozen) for module in model.modules())
        weight.copy_(before)
    fused_rnn.freeze(model, weights=weights)


def test_the_meta_device():
    with pytest.raises(RuntimeError, match="frozen on cpu, not on meta"):
        fused_rnn.freeze(fused_rnn.GRU(3, 4, device="meta"), weights="int8")


@torch.no_grad()
def test_models_with_several_layers_and_formats_one_after_the_other():
    model = nn.ModuleList([module_of(kind) for kind in KINDS])
    for weights in ("int8", None, "int8-weights-only", "int8"):
        assert fused_rnn.freeze(model, weights=weights) is model
        assert {format_of(module) for module in model} == {weights}
    fused_rnn.thaw(model)
    assert {format_of(module) for module in model} == {None}


# ---- copies, conversions, loading ------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("kind", ["lstm_projected", "gru", "rnn_relu_cell"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, through_pickle, through_file])
@torch.no_grad()
def test_copies_are_packed_in_the_same_format(duplicate, kind, weights):
    module = frozen(kind, weights)
    input = make_input(module, dtype=F32)
    expected = module(input)
    twin = duplicate(module)
    assert_equal(twin(input), expected)
    assert format_of(twin) == weights
    fused_rnn.thaw(module)
    assert_equal(twin(input), expected)


@torch.no_grad()
def test_the_first_pickles_marked_frozen_layers_with_true():
    layer = fused_rnn.freeze(module_of())
    state = layer.__getstate__()
    assert state["_frozen"] == int(WeightFormat.OWN) and type(state["_frozen"]) is int
    twin = fused_rnn.GRU.__new__(fused_rnn.GRU)
    twin.__setstate__(state | {"_frozen": True})
    input = torch.randn(4, 2, 5)
    assert_equal(twin(input), layer(input))
    with pytest.raises(RuntimeError, match="no gradients"), torch.enable_grad():
        twin(input)


@every_format
@every_kind
def test_state_dicts_and_pickles_do_not_change(kind, weights):
    module = module_of(kind)
    before, size = {name: weight.clone() for name, weight in module.state_dict().items()}, len(pickle.dumps(module))
    after = fused_rnn.freeze(module, weights=weights).state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], weight) for name, weight in before.items())
    assert list(module.buffers()) == [] and len(pickle.dumps(module)) < size + 50


@every_format
@every_kind
@torch.no_grad()
def test_thaw_gives_the_float_layer_back(kind, weights):
    module = module_of(kind)
    input = make_input(module, dtype=F32)
    expected = module(input)
    fused_rnn.thaw(fused_rnn.freeze(module, weights=weights))
    assert_equal(module(input), expected)
    assert "_runner" not in vars(module) and format_of(module) is None
    with torch.enable_grad():
        assert tensors_of(module(input))[0].requires_grad


@every_format
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru_cell"])
@torch.no_grad()
def test_loading_weights_packs_them_in_the_same_format(kind, assign, weights):
    module, other = frozen(kind, weights), module_of(kind)
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file), assign=assign)
    input = make_input(module, dtype=F32)
    assert_equal(module(input), fused_rnn.freeze(other, weights=weights)(input))


@every_format
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, nn.Module.bfloat16])
@torch.no_grad()
def test_other_dtypes_have_no_int8(convert, weights):
    with pytest.raises(RuntimeError, match="weights become int8 in float32 layers, not in"):
        convert(frozen(weights=weights))


@every_format
@torch.no_grad()
def test_conversions_that_leave_float32_pack_again(weights):
    layer, input = frozen(weights=weights), torch.randn(5, 2, 5)
    expected = layer(input)
    layer.float().to("cpu").share_memory()
    assert_equal(layer(input), expected)
    with pytest.raises(RuntimeError, match=f"weights are frozen on cpu, not on meta; {THAW}"):
        layer.to("meta")


# ---- what a quantized module refuses ---------------------------------------------------------------------------------


def replace_parameter(module, name):
    setattr(module, name, nn.Parameter(getattr(module, name).clone()))


def change_in_place(module, name):
    getattr(module, name).mul_(2)


def replace_memory(module, name):
    getattr(module, name).data = getattr(module, name).data.clone()


@every_format
@pytest.mark.parametrize(
    ("change", "message"),
    [(replace_parameter, "replaced"), (change_in_place, "changed in place"), (replace_memory, "replaced")],
)
@pytest.mark.parametrize(
    ("kind", "name"), [("gru", "weight_hh_l0"), ("lstm_cell", "weight_ih"), ("lstm_cell", "bias_hh")]
)
@torch.no_grad()
def test_changed_weights(kind, name, change, message, weights):
    module = frozen(kind, weights)
    input = make_input(module, dtype=F32)
    module(input)
    change(module, name)
    with pytest.raises(RuntimeError, match=rf"a weight of this frozen layer was {message}; {THAW}"):
        module(input)
    twin = module_of(kind)
    twin.load_state_dict(module.state_dict())
    assert_equal(fused_rnn.freeze(module, weights=weights)(input), fused_rnn.freeze(twin, weights=weights)(input))


@every_format
@every_kind
def test_gradients(kind, weights):
    module = frozen(kind, weights)
    input = make_input(module, dtype=F32)
    with pytest.raises(RuntimeError, match=rf"frozen layer has no gradients\. Call it under torch\.no_grad.*{THAW}"):
        module(input)
    module.requires_grad_(False)
    assert not tensors_of(module(input))[0].requires_grad
    with pytest.raises(RuntimeError, match="no gradients"):
        module(input.requires_grad_())
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"no part in torch\.func's transforms"):
        torch.vmap(lambda x: tensors_of(module(x))[0])(input.detach().expand(2, *input.shape))


@every_format
@pytest.mark.parametrize("kind", ["lstm", "gru_cell"])
@torch.no_grad()
def test_autocast(kind, weights):
    module = frozen(kind, weights)
    input = make_input(module, dtype=F32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="outside of autocast"):
        module(input)
    module(input)


@every_format
@pytest.mark.parametrize("kind", ["lstm", "gru_cell"])
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_export_trace_and_script(kind, weights):
    module = frozen(kind, weights)
    input = make_input(module, dtype=F32)
    for capture in (torch.export.export, torch.jit.trace, lambda module, _: torch.jit.script(module)):
        with pytest.raises(Exception, match="int8 weights is not exported, traced or scripted") as caught:
            capture(module, (input,))
        assert "fused_rnn.thaw(model)" in str(caught.value)


@torch.no_grad()
def test_wrong_inputs():
    layer = frozen()
    with pytest.raises(RuntimeError, match=r"must be equal to input_size\. Expected 5, got 2"):
        layer(torch.randn(5, 2, 2))
    with pytest.raises(ValueError, match="input dtype"):
        layer(torch.randn(5, 2, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="ids must lie between 0 and 4"):
        layer(torch.full((3, 2), 5))


# ---- other ways to call ----------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("kind", ["lstm_projected", "gru", "rnn_tanh_cell"])
@torch.no_grad()
def test_compiled_calls_have_the_same_bits(kind, weights):
    module = frozen(kind, weights)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    args = make_input(module, dtype=F32), make_states(module, dtype=F32)
    assert_equal(compiled(*args), module(*args))


@every_format
@every_layer
@torch.no_grad()
def test_streams_have_the_bits_of_the_module(kind, weights):
    for options in ({}, {"num_layers": 2}):
        layer = module_of(kind, **options)
        fused_rnn.freeze(layer, weights=weights)
        for x in (torch.randn(4, 3, 5), torch.randint(5, (4, 3))):
            stream = fused_rnn.Stream(layer, batch=3)
            twin = pickle.loads(pickle.dumps(stream))
            state = None
            for step in x:
                output, state = layer(step[None], state)
                assert_equal(stream.step(step), output[0])
                assert_equal(twin.step(step), output[0])
            assert_equal(stream.state, state)


@every_format
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_explain_tells_the_format_and_the_error(kind, weights):
    layer, input = module_of(kind), torch.randn(5, 2, 5)
    expected = layer(input)[0]
    fused_rnn.freeze(layer, weights=weights)
    error = ((layer(input)[0] - expected).norm() / expected.norm()).item()
    found = fused_rnn.explain(layer, input)
    assert found.engine == "fused"
    isa = fused_rnn.info()["CPU instruction set for int8"]
    if (weights, isa) == ("int8-weights-only", "amx"):
        isa = "avx512_vnni"  # tiles multiply bytes by bytes alone
    assert found.instruction_set == isa
    assert f"The weights are {weights}: for this input the output differs by {error:.1e} of its norm" in found.reason
    assert "int8" not in fused_rnn.explain(fused_rnn.freeze(layer), input).reason


@torch.no_grad()
def test_explain_of_cells_masks_and_models():
    cell = frozen("lstm_cell")
    assert "The weights are int8" in fused_rnn.explain(cell, torch.randn(2, 5)).reason
    layer = frozen("gru", batch_first=True)
    found = fused_rnn.explain(layer, torch.randn(2, 4, 5), lengths=torch.tensor([4, 2]))
    assert "The weights are int8" in found.reason
    assert "0: fused" in (found := str(fused_rnn.explain(nn.Sequential(layer), torch.randn(2, 4, 5))))
    assert "The weights are int8" in found
