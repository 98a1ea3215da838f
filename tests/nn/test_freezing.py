"""freeze and thaw: the same results, never stale ones, and no trace in state dicts."""

import copy
import io
import pickle
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, stateless

import fused_rnn
from fused_rnn.ops.layer import TIME_MAJOR, stack_code
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.modules import (
    F64,
    every_layer,
    make_input,
    make_packed,
    make_pair,
    make_states,
    tensors_of,
    through_file,
    through_pickle,
)

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
THAW = r"call fused_rnn\.thaw\(model\) first"


def frozen_gru(**options):
    return fused_rnn.freeze(fused_rnn.GRU(3, 4, **options))


@contextmanager
def matrices_lost(layer):
    """Fills all weight matrices with NaN, unseen by autograd: only calls on packed weights give numbers."""
    matrices = [weight.data for weight in layer.parameters() if weight.dim() == 2]
    kept = [matrix.clone() for matrix in matrices]
    for matrix in matrices:
        matrix.fill_(torch.nan)
    yield
    for matrix, before in zip(matrices, kept, strict=True):
        matrix.copy_(before)


# ---- same results ----------------------------------------------------------------------------------------------------


def calls(module):
    """(arguments, options) of calls on the fast path and off it, of many rows (T*B) and of few."""
    input, mask = make_input(module, 5, 2), torch.rand(5, 2) < 0.3
    yield (input,), {}
    yield (input[:1], make_states(module)), {}
    yield (input[:1, 0],), {}
    yield (input[:, 0],), {}
    yield (input,), {"lengths": torch.tensor([5, 2]), "reset_mask": mask}
    yield (input,), {"lengths": [5, 2]}
    yield (make_packed([2, 4, 1]),), {}


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@every_layer
def test_frozen_layers_equal_unfrozen(kind, options):
    layer, _ = make_pair(kind, **options)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        for args, masks in calls(layer.requires_grad_(mode is not torch.enable_grad)):
            with mode():
                fused_rnn.thaw(layer)
                expected = tensors_of(layer(*args, **masks))
                fused_rnn.freeze(layer)
                with matrices_lost(layer):
                    found = tensors_of(layer(*args, **masks))
            rows = args[0].data.shape[:-1].numel()
            for one, other in zip(found, expected, strict=True):
                assert not one.requires_grad
                # For fewer rows an unfrozen layer does not pack its weights, and sums in another order.
                assert torch.equal(one, other) if rows >= 5 else relative_error(one, other) <= TOLERANCE[one.dtype]


@torch.no_grad()
def test_batch_first_and_autocast():
    layer = fused_rnn.LSTM(3, 4, batch_first=True)
    input = torch.randn(2, 5, 3)
    expected = layer(input)[0]
    with torch.autocast("cpu", torch.bfloat16):
        narrow = layer(input)[0]
    fused_rnn.freeze(layer)
    assert torch.equal(layer(input)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(input)[0], narrow) and narrow.dtype == torch.bfloat16


@torch.no_grad()
def test_frozen_layers_raise_the_usual_errors():
    layer = frozen_gru()
    with pytest.raises(RuntimeError, match=r"must be equal to input_size\. Expected 3, got 2"):
        layer(torch.randn(5, 2, 2))
    with pytest.raises(ValueError, match="input dtype"):
        layer(torch.randn(5, 2, 3, dtype=F64))


# ---- what a frozen layer refuses -------------------------------------------------------------------------------------


def test_gradients_are_refused():
    layer, input = frozen_gru(), torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match=rf"frozen layer has no gradients\. Call it under torch\.no_grad.*{THAW}"):
        layer(input)
    layer.requires_grad_(False)
    assert not layer(input)[0].requires_grad
    with pytest.raises(RuntimeError, match="no gradients"):
        layer(input.requires_grad_())
    assert fused_rnn.thaw(layer)(input)[0].requires_grad


@torch.no_grad()
def test_transforms_are_refused():
    layer, input = frozen_gru(), torch.randn(5, 2, 3)
    for call in (
        lambda: torch.vmap(lambda x: layer(x)[0])(input.expand(4, 5, 2, 3)),
        lambda: torch.func.grad(lambda x: layer(x)[0].sum())(input),
        lambda: torch.func.jvp(lambda x: layer(x)[0], (input,), (input,)),
    ):
        with pytest.raises(RuntimeError, match=rf"no part in torch\.func's transforms; {THAW}"):
            call()


def replace_parameter(layer):
    layer.weight_ih_l0 = nn.Parameter(layer.weight_ih_l0.clone())


def step_of_an_optimizer(layer):
    layer.weight_hh_l1.grad = torch.ones_like(layer.weight_hh_l1)
    torch.optim.SGD([layer.weight_hh_l1], lr=0.1).step()


def replace_memory(layer):
    layer.bias_ih_l0.data = layer.bias_ih_l0.data.clone()


CHANGES = {
    "replaced": (replace_parameter, "was replaced"),
    "in place": (lambda layer: layer.bias_hh_l1.add_(1), "was changed in place"),
    "optimizer": (step_of_an_optimizer, "was changed in place"),
    "parametrized": (lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"), "was replaced"),
    "memory": (replace_memory, "was replaced"),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("masks", [{}, {"lengths": [5, 5]}], ids=["fast path", "general path"])
def test_changed_weights_are_refused(change, masks):
    layer, input = frozen_gru(num_layers=2), torch.randn(5, 2, 3)
    layer(input, **masks)
    make, message = CHANGES[change]
    make(layer)
    with pytest.raises(RuntimeError, match=message):
        layer(input, **masks)
    expected = fused_rnn.thaw(layer)(input)[0]
    if change != "parametrized":
        assert torch.equal(fused_rnn.freeze(layer)(input, **masks)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("change", ["replaced", "memory"])
def test_changed_weights_of_one_number_are_refused(change):
    """Tensors of one number can be compared, so equal ones must not pass for the same."""
    layer, input = fused_rnn.freeze(fused_rnn.RNN(1, 1)), torch.randn(5, 2, 1)
    layer(input)
    make, message = CHANGES[change]
    make(layer)
    with pytest.raises(RuntimeError, match=message):
        layer(input)


@torch.no_grad()
def test_functional_call_is_refused():
    layer, input = frozen_gru(), torch.randn(5, 2, 3)
    doubled = {name: weight * 2 for name, weight in layer.named_parameters()}
    for call in (torch.func.functional_call, stateless.functional_call):
        with warnings.catch_warnings(), pytest.raises(RuntimeError, match=f"was replaced; {THAW}"):
            warnings.simplefilter("ignore")  # the second one is deprecated
            call(layer, doubled, (input,))
    layer(input)


# ---- automatic repacking ---------------------------------------------------------------------------------------------


def is_frozen(layer):
    return "frozen" in fused_rnn.explain(layer, torch.zeros(1, 1, 3, dtype=layer.weight_ih_l0.dtype)).reason


@torch.no_grad()
def test_loading_weights_repacks():
    for assign in (False, True):
        model, other = nn.Sequential(nn.Linear(3, 3), frozen_gru()), nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4))
        model.load_state_dict(other.state_dict(), assign=assign)
        assert is_frozen(model[1])
        input = torch.randn(5, 2, 3)
        torch.testing.assert_close(model(input)[0], other(input)[0])


@torch.no_grad()
def test_conversions_repack():
    layer, input = frozen_gru(), torch.randn(5, 2, 3)
    expected = layer(input)[0]
    assert layer.double() is layer and is_frozen(layer)
    torch.testing.assert_close(layer(input.double())[0].float(), expected)
    layer.float().to("cpu").share_memory()
    assert is_frozen(layer)
    torch.testing.assert_close(layer(input)[0], expected)
    with pytest.raises(RuntimeError, match=f"weights are frozen on cpu, not on meta; {THAW}"):
        layer.to("meta")


@torch.no_grad()
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, through_pickle, through_file])
def test_copies_have_packed_weights_of_their_own(duplicate):
    layer, input = frozen_gru(), torch.randn(5, 2, 3)
    expected = layer(input)[0]
    twin = duplicate(layer)
    assert is_frozen(twin) and is_frozen(layer)
    assert torch.equal(twin(input)[0], expected)
    if duplicate is not copy.copy:  # a shallow copy shares the parameters
        layer.weight_ih_l0.add_(1)
        assert not torch.equal(fused_rnn.freeze(layer)(input)[0], expected)
    fused_rnn.thaw(layer)
    assert is_frozen(twin) and torch.equal(twin(input)[0], expected)


def test_packed_weights_stay_out_of_state_dicts_and_pickles():
    layer = fused_rnn.LSTM(3, 4)
    names, size = list(layer.state_dict()), len(pickle.dumps(layer))
    fused_rnn.freeze(layer)
    assert list(layer.state_dict()) == names
    assert [name for name, _ in layer.named_buffers()] == []
    assert len(pickle.dumps(layer)) < size + 50


@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    torch._dynamo.reset()
    layer, input = fused_rnn.LSTM(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3)
    expected = layer(input)[0]
    compiled = torch.compile(fused_rnn.freeze(layer), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(input)[0], expected)
    compiled(input, lengths=torch.tensor([5, 5]))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.testing.assert_close(compiled(input, lengths=torch.tensor([5, 5]))[0], expected)
    calls = [event.name for event in profiler.events()]
    assert calls.count("fused_rnn::infer") == 2 and "fused_rnn::layer_forward" not in calls
    layer.weight_ih_l0.data = layer.weight_ih_l0.data * 2
    with pytest.raises(RuntimeError, match="not the weights that were packed"):
        compiled(input)


# Inside torch.export.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_an_exported_frozen_layer_can_be_loaded():
    layer, input = fused_rnn.freeze(fused_rnn.LSTM(3, 4, num_layers=2)), torch.randn(5, 2, 3)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (input,)), file)
    file.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(file).module()(input), layer(input))


# ---- freeze and thaw themselves --------------------------------------------------------------------------------------


def test_freeze_walks_a_model_and_warns_of_skipped_layers():
    model = nn.ModuleDict({"lstm": fused_rnn.LSTM(3, 4), "cell": fused_rnn.GRUCell(3, 4), "linear": nn.Linear(3, 4)})
    model["normed"] = parametrizations.weight_norm(fused_rnn.GRU(3, 4), "weight_hh_l0")
    with pytest.warns(UserWarning, match=r"passed over layers whose weights are computed: normed$") as caught:
        assert fused_rnn.freeze(model) is model
    assert caught[0].filename == __file__
    assert is_frozen(model["lstm"])
    assert fused_rnn.thaw(model) is model
    assert not is_frozen(model["lstm"])
    with pytest.warns(UserWarning, match=r"found no layer.*fused_rnn\.swap"):
        fused_rnn.freeze(nn.Sequential(nn.LSTM(3, 4)))
    with pytest.raises(RuntimeError, match="frozen on cpu, not on meta"):
        fused_rnn.freeze(nn.Sequential(model["lstm"], fused_rnn.GRU(3, 4, device="meta")))
    assert not is_frozen(model["lstm"]), "either all layers are frozen or none"


@torch.no_grad()
def test_freezing_again_repacks_unnoticed_changes():
    layer, input = frozen_gru(), torch.randn(5, 2, 3)
    layer.weight_ih_l0.data.mul_(2)
    fused_rnn.freeze(layer)
    expected = nn.GRU(3, 4)
    expected.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(input)[0], expected(input)[0])


def test_restore_thaws():
    layer = fused_rnn.restore(frozen_gru())
    assert type(layer) is nn.GRU and layer(torch.randn(5, 2, 3))[0].requires_grad
    assert vars(layer).keys() == vars(nn.GRU(3, 4)).keys()


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        layer, input = frozen_gru(), torch.randn(5, 2, 3)
        expected = layer(input)[0]
    with torch.no_grad():
        assert torch.equal(layer(input)[0], expected)


def test_explain_says_frozen():
    layer, input = frozen_gru(), torch.zeros(1, 1, 3)
    with torch.no_grad():
        assert fused_rnn.explain(layer, input).engine == "fused"
    found = fused_rnn.explain(layer, input)
    assert found.engine == "none" and "no gradients" in found.reason


# ---- the operators ---------------------------------------------------------------------------------------------------


def infer(layer, input, packed):
    weights = list(layer.parameters())
    return torch.ops.fused_rnn.infer(stack_code(1, 1, True, False, TIME_MAJOR), input, None, None, weights, packed)


def pack(layer, cell=1):
    return torch.ops.fused_rnn.pack_weights(cell, True, False, list(layer.parameters()))


def with_byte(packed, at, value):
    packed[at] = value
    return packed


@torch.no_grad()
def test_foreign_packed_weights_are_refused():
    layer, twin, input = fused_rnn.GRU(3, 4), fused_rnn.GRU(3, 4), torch.randn(5, 2, 3)
    packed = pack(layer)
    assert torch.equal(infer(layer, input, [packed])[0], infer(layer, input, None)[0])
    for wrong, message in (
        ([packed, packed], "packed must hold one tensor for each of 1 layers, got 2"),
        ([pack(twin)], "not the weights that were packed"),
        ([pack(fused_rnn.GRU(3, 5))], "what pack_weights returned|not the weights"),
        ([packed[:-1]], "what pack_weights returned"),
        ([packed.float()], "what pack_weights returned"),
        ([torch.zeros_like(packed)], "what pack_weights returned"),
        ([torch.cat([packed[:1], packed])[1:]], "not a part of another tensor"),
        ([packed.repeat_interleave(2)[::2]], "what pack_weights returned"),
        ([with_byte(packed.clone(), 8, 77)], "another instruction set"),
        ([with_byte(packed.clone(), 16, 1)], "not the weights that were packed"),  # in 8 bits
        ([with_byte(packed.clone(), 16, 9)], "there is no format 9 of weights"),
        ([with_byte(packed.clone(), 24, 0)], "not the weights that were packed"),  # of another cell
    ):
        with pytest.raises(RuntimeError, match=message):
            infer(layer, input, wrong)


@torch.no_grad()
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((9, True, False, [torch.zeros(3, 3)]), "unknown cell 9"),
        ((1, True, False, [torch.zeros(12, 3)] * 4), r"weight_hh must be \[12, 4\]"),
        ((1, False, False, [torch.zeros(2, 12, 3), torch.zeros(2, 12, 4)]), "weights of members"),
        ((1, False, False, [torch.zeros(12, 3, dtype=torch.int), torch.zeros(12, 4)]), "must be float32"),
    ],
)
def test_pack_weights_refuses(args, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fused_rnn.pack_weights(*args)


# ---- what print shows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "shown"),
    [(None, "frozen"), ("int8", "frozen, int8"), ("int8-weights-only", "frozen, int8-weights-only")],
)
def test_print_shows_what_is_frozen(weights, shown):
    model = torch.nn.Sequential(fused_rnn.LSTM(3, 4, batch_first=True), fused_rnn.GRUCell(3, 4))
    before = repr(model)
    fused_rnn.freeze(model, weights=weights)
    assert f"fused_rnn.LSTM(3, 4, batch_first=True, {shown})" in repr(model)
    assert f"fused_rnn.GRUCell(3, 4, {shown})" in repr(model)
    assert repr(fused_rnn.thaw(model)) == before
    assert "frozen" not in repr(fused_rnn.restore(fused_rnn.freeze(model, weights=weights)))
