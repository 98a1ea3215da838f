"""What users of torch.nn's recurrent layers rely on besides the numbers, each held against torch.nn itself."""

import copy
import inspect
import io
import itertools
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn.tools.verify import TOLERANCE
from support.modules import (
    CELLS,
    DEEP,
    F64,
    KINDS,
    LAYERS,
    as_leaves,
    assert_close,
    assert_same_error,
    assert_same_results,
    error_of,
    has_two_states,
    make_input,
    make_packed,
    make_pair,
    make_states,
    results_of,
    tensors_of,
)

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_layer = pytest.mark.parametrize("kind", LAYERS)
unprojected = pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
every_cell = pytest.mark.parametrize("kind", CELLS)


def weight_hh(module):
    return "weight_hh_l0" if isinstance(module, nn.RNNBase) else "weight_hh"


def input_and_states(module, batch=2):
    return make_input(module, batch=batch), make_states(module, batch=batch)


# ---- constructors ----------------------------------------------------------------------------------------------------

WRONG_FOR_ALL = [
    {"dropout": -0.1},
    {"dropout": 1.5},
    {"dropout": True},
    {"dropout": float("nan")},
    {"dropout": "0.5"},
    {"dropout": None},
    {"bias": 1},
    {"bias": "True"},
    {"batch_first": 0},
    {"input_size": 3.0},
    {"hidden_size": "4"},
    {"input_size": 0},
    {"hidden_size": -4},
    {"num_layers": 0},
    {"num_layers": 2.0},
]
WRONG = [(name, options) for name in ("LSTM", "GRU", "RNN") for options in WRONG_FOR_ALL] + [
    ("LSTM", {"proj_size": -1}),
    ("LSTM", {"proj_size": 4}),
    ("GRU", {"proj_size": 0}),
    ("GRU", {"proj_size": 2}),
    ("GRU", {"nonlinearity": "tanh"}),
    ("RNN", {"proj_size": 0}),
    ("RNN", {"proj_size": 2}),
    ("RNN", {"nonlinearity": "gelu"}),
    ("RNN", {"activation": "tanh"}),
]


@pytest.mark.parametrize(("name", "options"), WRONG, ids=str)
def test_constructor_refuses_what_torch_refuses(name, options):
    options = {"input_size": 3, "hidden_size": 4, **options}
    assert_same_error(getattr(fused_rnn, name), getattr(nn, name), **options)


def test_rnn_takes_its_nonlinearity_as_fourth_argument():
    assert_same_error(fused_rnn.RNN, nn.RNN, 3, 4, 2, "gelu")
    ours, theirs = (cls(3, 4, 2, "relu", False, True, 0.5, True) for cls in (fused_rnn.RNN, nn.RNN))
    assert attributes(ours) == attributes(theirs)


def attributes(module):
    names = [*module.__constants__, "nonlinearity"]
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("LSTM", (3, 4, 2, False, True, 0.5, True, 2, "cpu", F64)),
        ("GRU", (3, 4, 2, False, True, 0.5, True)),
        ("RNN", (3, 4, 2, "relu", False, True, 0.5, True)),
        ("LSTMCell", (3, 4, False, "cpu", F64)),
        ("GRUCell", (3, 4, False, "cpu", F64)),
        ("RNNCell", (3, 4, False, "relu", "cpu", F64)),
    ],
)
def test_positional_arguments_mean_what_they_mean_to_torch(name, arguments):
    for count in range(2, len(arguments) + 1):
        ours, theirs = (getattr(library, name)(*arguments[:count]) for library in (fused_rnn, nn))
        assert attributes(ours) == attributes(theirs)
        assert repr(ours) == repr(theirs)
        assert {n: (p.shape, p.dtype) for n, p in ours.named_parameters()} == {
            n: (p.shape, p.dtype) for n, p in theirs.named_parameters()
        }


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_have_the_signature_of_torch(name):
    ours, theirs = (inspect.signature(getattr(library, name)).parameters for library in (fused_rnn, nn))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_dropout_in_one_layer_warns_as_torch_does(name):
    messages = []
    for library in (fused_rnn, nn):
        with pytest.warns(UserWarning, match="dropout option") as caught:
            getattr(library, name)(3, 4, dropout=0.5)
        messages.append([str(warning.message) for warning in caught])
    assert messages[0] == messages[1]


@every_kind
def test_same_seed_gives_bit_identical_weights(kind):
    variants = [{}, {"bias": False}]
    variants += [DEEP] if kind in LAYERS else []
    our_class, torch_class, own_options = KINDS[kind]
    for options in variants:
        drawn = []
        for cls in (our_class, torch_class):
            torch.manual_seed(1)
            module = cls(3, 4, **own_options, **options)
            first = {name: p.detach().clone() for name, p in module.named_parameters()}
            module.reset_parameters()
            drawn.append((first, module.state_dict(), torch.get_rng_state()))
        for ours, theirs in zip(drawn[0][:2], drawn[1][:2], strict=True):
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert torch.equal(drawn[0][2], drawn[1][2])


# ---- wrong arguments of forward --------------------------------------------------------------------------------------


def cut(states, dim, size):
    narrowed = [state.narrow(dim, 0, size) for state in tensors_of(states)]
    return tuple(narrowed) if isinstance(states, tuple) else narrowed[0]


WRONG_FOR_LAYERS = {
    "input of 0 dimensions": lambda m: (torch.tensor(1.0, dtype=F64),),
    "input of 1 dimension": lambda m: (torch.ones(3, dtype=F64),),
    "input of 4 dimensions": lambda m: (torch.ones(1, 5, 2, 3, dtype=F64),),
    "float32 input": lambda m: (make_input(m, dtype=torch.float32),),
    "integer input": lambda m: (make_input(m).long(),),
    "float32 input, unbatched": lambda m: (make_input(m, batch=None, dtype=torch.float32),),
    "input size": lambda m: (make_input(m)[..., :2],),
    "input size, unbatched": lambda m: (make_input(m, batch=None)[..., :2],),
    "batch of hx": lambda m: (make_input(m), make_states(m, 3)),
    "layers of hx": lambda m: (make_input(m), cut(make_states(m), 0, 3)),
    "width of hx": lambda m: (make_input(m), cut(make_states(m), 2, 1)),
    "layers of hx, unbatched": lambda m: (make_input(m, batch=None), cut(make_states(m, None), 0, 3)),
    "dimensions of hx": lambda m: (make_input(m), make_states(m, None)),
    "dimensions of hx, unbatched": lambda m: (make_input(m, batch=None), make_states(m)),
    "no steps": lambda m: (make_input(m, steps=0),),
    "no steps, unbatched": lambda m: (make_input(m, steps=0, batch=None),),
    "no steps, no rows": lambda m: (make_input(m, steps=0, batch=0), make_states(m, 0)),
}
WRONG_FOR_LSTM = {
    "width of c": lambda m: (make_input(m), (make_states(m)[0], make_states(m)[1][..., :1])),
    "dimensions of c": lambda m: (make_input(m), (make_states(m)[0], make_states(m, None)[1])),
    "dimensions of h": lambda m: (make_input(m), (make_states(m, None)[0], make_states(m)[1])),
    "batch of c": lambda m: (make_input(m), (make_states(m)[0], make_states(m, 3)[1])),
}


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("wrong", WRONG_FOR_LAYERS)
def test_layers_refuse_what_torch_refuses(kind, batch_first, wrong):
    ours, theirs = make_pair(kind, **DEEP, batch_first=batch_first)
    assert_same_error(ours, theirs, *WRONG_FOR_LAYERS[wrong](theirs))


@pytest.mark.parametrize("wrong", [*WRONG_FOR_LSTM, "width of hx"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_lstm_refuses_what_torch_refuses(proj_size, wrong):
    ours, theirs = make_pair("lstm", proj_size=proj_size)
    assert_same_error(ours, theirs, *{**WRONG_FOR_LAYERS, **WRONG_FOR_LSTM}[wrong](theirs))


@every_layer
@pytest.mark.parametrize("wrong", ["input size", "float32 input", "batch of hx", "layers of hx", "width of hx"])
def test_packed_input_gets_the_clear_errors_of_padded_input(kind, wrong):
    ours, theirs = make_pair(kind, **DEEP)
    input, *hx = WRONG_FOR_LAYERS[wrong](theirs)
    for enforce_sorted in (False, True):
        packed = pack_padded_sequence(input, torch.tensor([5, 3]), enforce_sorted=enforce_sorted)
        found, expected = error_of(ours, packed, *hx), error_of(theirs, input, *hx)
        assert (type(found), str(found)) == (type(expected), str(expected))


WRONG_FOR_CELLS = {
    "input of 0 dimensions": lambda m: (torch.tensor(1.0, dtype=F64),),
    "input of 3 dimensions": lambda m: (torch.ones(1, 2, 3, dtype=F64),),
    "input size": lambda m: (make_input(m)[..., :2],),
    "input size, unbatched": lambda m: (make_input(m, batch=None)[..., :2], make_states(m, None)),
    "batch of hx": lambda m: (make_input(m), make_states(m, 3)),
    "width of hx": lambda m: (make_input(m), cut(make_states(m), 1, 3)),
    "width of hx, unbatched": lambda m: (make_input(m, batch=None), cut(make_states(m, None), 0, 3)),
    "hx of 0 dimensions": lambda m: (make_input(m), broadcast_states(m, ())),
    "hx of 3 dimensions": lambda m: (make_input(m), broadcast_states(m, (1, 2, 4))),
}


def broadcast_states(module, shape):
    state = torch.ones(shape, dtype=F64)
    return (state, state) if has_two_states(module) else state


@every_cell
@pytest.mark.parametrize("wrong", WRONG_FOR_CELLS)
def test_cells_refuse_what_torch_refuses(kind, wrong):
    ours, theirs = make_pair(kind)
    assert_same_error(ours, theirs, *WRONG_FOR_CELLS[wrong](theirs))


@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (1, 2, 4)])
def test_lstm_cell_checks_its_second_state_as_torch_does(shape):
    ours, theirs = make_pair("lstm_cell")
    states = (torch.ones(2, 4, dtype=F64), torch.ones(shape, dtype=F64))
    assert_same_error(ours, theirs, make_input(theirs), states)


def test_rnn_cell_of_unknown_nonlinearity_fails_when_called():
    ours, theirs = (cls(3, 4, nonlinearity="gelu") for cls in (fused_rnn.RNNCell, nn.RNNCell))
    assert_same_error(ours, theirs, torch.ones(2, 3))


# Where torch.nn's own message is a raw one from inside, ours names what is wrong.
@pytest.mark.parametrize(
    ("kind", "arguments", "exception", "message"),
    [
        ("lstm", lambda m: ([[1.0]],), TypeError, "LSTM: input must be a Tensor or a PackedSequence, got list"),
        ("gru_cell", lambda m: (3,), TypeError, "GRUCell: input must be a Tensor"),
        ("gru", lambda m: (make_input(m), (make_states(m),)), TypeError, "GRU: hx must be a Tensor, got tuple"),
        ("rnn_tanh", lambda m: (make_input(m), 0), TypeError, "RNN: hx must be a Tensor, got int"),
        ("lstm", lambda m: (make_input(m), make_states(m)[0]), TypeError, r"hx must be a tuple \(h_0, c_0\)"),
        ("lstm", lambda m: (make_input(m), (make_states(m)[0],) * 3), TypeError, "got tuple of 3"),
        ("lstm", lambda m: (make_input(m), (make_states(m)[0], None)), TypeError, "hx must be a tuple"),
        ("lstm_cell", lambda m: (make_input(m), make_states(m)[0]), TypeError, "LSTMCell: hx must be a tuple"),
        (
            "gru",
            lambda m: (make_input(m), make_states(m).float()),
            ValueError,
            r"hx dtype \(torch.float32\) does not match weight dtype \(torch.float64\)",
        ),
        ("gru_cell", lambda m: (make_input(m).float(),), ValueError, "Convert input: input.to"),
        ("gru_cell", lambda m: (make_input(m), make_states(m).half()), ValueError, "hx dtype"),
        ("gru_cell", lambda m: (make_input(m), make_states(m, None)), RuntimeError, "should also be 2-D but got 1-D"),
        ("lstm", lambda m: (make_input(m).to("meta"),), RuntimeError, "not on the same device: meta and cpu"),
        ("gru", lambda m: (make_input(m), make_states(m).to("meta")), RuntimeError, "Input and hx are not on"),
        ("rnn_relu_cell", lambda m: (make_input(m).to("meta"),), RuntimeError, "Input and weights are not on"),
    ],
)
def test_wrong_types_dtypes_and_devices_are_named(kind, arguments, exception, message):
    ours, theirs = make_pair(kind)
    error_of(theirs, *arguments(theirs))  # torch fails as well
    with pytest.raises(exception, match=message):
        ours(*arguments(theirs))


@every_kind
def test_unsupported_dtype_is_named(kind):
    ours, _ = make_pair(kind)
    ours.to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="must be float32, float64, bfloat16 or float16, got Float8_e4m3fn"):
        ours(make_input(ours).to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("device", "exception", "message"),
    [
        ("cuda", RuntimeError, "built without CUDA.*FUSED_RNN_CUDA=1 pip install"),
        ("mps", NotImplementedError, r"runs on cpu and cuda, not on mps.*\.to\('cpu'\)"),
        ("xpu", NotImplementedError, "runs on cpu and cuda, not on xpu"),
    ],
)
def test_unsupported_device_is_named_with_a_way_out(monkeypatch, device, exception, message):
    monkeypatch.setattr(fused_rnn.ops.library, "cuda_archs", list)
    with pytest.raises(exception, match=message):
        fused_rnn.ops.checks.check_device(torch.device(device))


def mask_of(*shape):
    return torch.zeros(shape, dtype=torch.bool)


@every_layer
@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"lengths": torch.tensor([5.0, 3.0])}, TypeError, "lengths must be integers, got torch.float32"),
        ({"lengths": torch.tensor([True, True])}, TypeError, "lengths must be integers, got torch.bool"),
        ({"lengths": [5, 3, 1]}, ValueError, r"one entry for each of the 2 rows, got shape \[3\]"),
        ({"lengths": torch.tensor(5)}, ValueError, r"got shape \[\]"),
        ({"lengths": torch.tensor([[5, 3]])}, ValueError, r"got shape \[1, 2\]"),
        ({"lengths": [6, 3]}, RuntimeError, "between 0 and the number of steps, 5, got 6 for row 0"),
        ({"lengths": [5, -1]}, RuntimeError, "between 0 and the number of steps, 5, got -1 for row 1"),
        ({"reset_mask": [[True]]}, TypeError, "reset_mask must be a bool tensor, got list"),
        ({"reset_mask": mask_of(5, 2).long()}, TypeError, "must be a bool tensor, got torch.int64"),
        ({"reset_mask": mask_of(2, 5)}, ValueError, r"must be \[T, B\] = \[5, 2\], got \[2, 5\]"),
        ({"reset_mask": mask_of(5)}, ValueError, r"must be \[T, B\] = \[5, 2\], got \[5\]"),
    ],
)
def test_wrong_lengths_and_reset_masks_are_named(kind, options, exception, message):
    ours, _ = make_pair(kind)
    with pytest.raises(exception, match=message):
        ours(make_input(ours), **options)


@every_layer
def test_reset_mask_is_laid_out_as_the_input(kind):
    batch_first, _ = make_pair(kind, batch_first=True)
    with pytest.raises(ValueError, match=r"must be \[B, T\] \(batch_first\) = \[2, 5\], got \[5, 2\]"):
        batch_first(make_input(batch_first), reset_mask=mask_of(5, 2))
    with pytest.raises(ValueError, match=r"must be \[T\] = \[5\], got \[5, 1\]"):
        batch_first(make_input(batch_first, batch=None), reset_mask=mask_of(5, 1))
    with pytest.raises(ValueError, match=r"= \[2, 4\], got \[2, 5\]"):
        batch_first(make_packed([3, 4]), reset_mask=mask_of(2, 5))


@every_layer
def test_packed_input_refuses_lengths(kind):
    ours, _ = make_pair(kind)
    with pytest.raises(ValueError, match="a PackedSequence has its lengths already, so lengths must be None"):
        ours(make_packed([3, 4]), lengths=[3, 4])


# ---- parameters and state --------------------------------------------------------------------------------------------


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_save])
def test_copies_work_and_are_apart_from_the_original(kind, copied):
    ours, theirs = make_pair(kind, **DEEP if kind in LAYERS else {})
    args = input_and_states(theirs)
    ours(*args)  # a module that has been used
    copied_module = copied(ours)
    assert type(copied_module) is type(ours)
    assert_same_results(copied_module, theirs, *args)
    with torch.no_grad():
        for parameter in copied_module.parameters():
            parameter.zero_()
    assert not any(output.any() for output in tensors_of(copied_module(args[0])))
    assert_same_results(ours, theirs, *args)


@every_kind
def test_state_dict_goes_through_a_file_both_ways(kind):
    ours, theirs = make_pair(kind)
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.normal_()
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        assert str(target.load_state_dict(torch.load(file))) == "<All keys matched successfully>"
        assert_same_results(ours, theirs, *input_and_states(theirs))


@every_kind
def test_wrong_state_dict_is_refused_as_torch_refuses_it(kind):
    ours, theirs = make_pair(kind)
    other, _ = make_pair(kind, 5, 6)
    assert_same_error(ours.load_state_dict, theirs.load_state_dict, other.state_dict())
    assert_same_error(ours.load_state_dict, theirs.load_state_dict, {"weight": torch.ones(1)})


@unprojected
@pytest.mark.parametrize("bias", [True, False])
def test_pickles_of_old_torch_still_load(kind, bias):
    pair = make_pair(kind, **DEEP, bias=bias)
    loaded = []
    for module in pair:
        state = module.__getstate__()
        for newer in ("proj_size", "_all_weights", "_flat_weights", "_flat_weights_names", "nonlinearity"):
            state.pop(newer, None)
        state["all_weights"] = module.all_weights  # tensors, not names
        old = type(module).__new__(type(module))
        old.__setstate__(state)
        loaded.append(old)
    ours, theirs = loaded
    assert ours.proj_size == 0
    assert ours._all_weights == theirs._all_weights
    assert_same_results(ours, theirs, *input_and_states(pair[1]))


@every_kind
def test_meta_module_takes_a_state_dict_by_assignment(kind):
    our_class, _, options = KINDS[kind]
    _, theirs = make_pair(kind)
    ours = our_class(3, 4, **options, device="meta", dtype=F64)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    assert all(parameter.device.type == "cpu" for parameter in ours.parameters())
    assert_same_results(ours, theirs, *input_and_states(theirs))


@every_kind
def test_to_empty_gives_a_meta_module_its_memory(kind):
    our_class, _, options = KINDS[kind]
    _, theirs = make_pair(kind)
    ours = our_class(3, 4, **options, device="meta", dtype=F64).to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    assert_same_results(ours, theirs, *input_and_states(theirs))


@every_kind
@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.float(), torch.float32),
        (lambda m: m.float().double(), F64),
        (lambda m: m.to(torch.bfloat16), torch.bfloat16),
        (lambda m: m.to(device="cpu", dtype=torch.float32), torch.float32),
    ],
)
def test_converted_modules_compute_in_their_new_dtype(kind, convert, dtype):
    ours, _ = make_pair(kind)
    ours(make_input(ours))
    convert(ours)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    outputs = tensors_of(ours(make_input(ours, dtype=dtype)))
    assert {output.dtype for output in outputs} == {dtype}


@every_layer
def test_weights_are_listed_as_torch_lists_them(kind):
    ours, theirs = make_pair(kind, **DEEP)
    assert [len(group) for group in ours.all_weights] == [len(group) for group in theirs.all_weights]
    flat = [weight for group in ours.all_weights for weight in group]
    for lists in (flat, ours._flat_weights, list(ours.parameters())):
        assert len(lists) == len(theirs._flat_weights)
        assert all(a is b for a, b in zip(lists, flat, strict=True))
    assert ours.flatten_parameters() is None
    assert_same_results(ours, theirs, *input_and_states(theirs))


@every_kind
def test_replaced_parameters_are_used(kind):
    ours, theirs = make_pair(kind)
    name, args = weight_hh(ours), input_and_states(theirs)
    for module in (ours, theirs):
        setattr(module, name, nn.Parameter(getattr(module, name) * 2))
    assert_same_results(ours, theirs, *args)
    for module in (ours, theirs):
        module._parameters[name] = nn.Parameter(getattr(module, name) * 0.5)
    assert_same_results(ours, theirs, *args)
    for module in (ours, theirs):
        getattr(module, name).data = getattr(module, name).data + 1
    assert_same_results(ours, theirs, *args)


@unprojected
def test_tied_weights_gather_their_gradients(kind):
    ours, theirs = make_pair(kind, 4, 4, num_layers=2)
    for module in (ours, theirs):
        for name in ("weight_ih", "weight_hh", "bias_ih"):
            setattr(module, f"{name}_l1", getattr(module, f"{name}_l0"))
    assert len(list(ours.parameters())) == 5
    assert_same_results(ours, theirs, *input_and_states(theirs))


def sgd_step(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.sign()


@every_kind
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_weights(kind, name):
    ours, theirs = make_pair(kind)
    for module in (ours, theirs):
        torch.manual_seed(1)
        getattr(parametrizations, name)(module, weight_hh(module))
    theirs.load_state_dict(ours.state_dict())
    args = input_and_states(theirs)
    for _ in range(2):  # the second time with other parameters underneath
        assert any("parametrizations" in key for key in results_of(ours, *args))
        results_of(theirs, *args)  # spectral_norm takes a step each time
        assert_same_results(ours, theirs, *args)
        sgd_step(ours)
        sgd_step(theirs)
    for module in (ours, theirs):
        nn.utils.parametrize.remove_parametrizations(module, weight_hh(module))
    assert type(ours) is KINDS[kind][0]
    assert_same_results(ours, theirs, *args)


@every_kind
def test_weights_normalised_by_hooks(kind):
    ours, theirs = make_pair(kind)
    for module in (ours, theirs):
        torch.manual_seed(1)
        nn.utils.spectral_norm(module, weight_hh(module))
    assert f"{weight_hh(ours)}_orig" in dict(ours.named_parameters())
    assert_same_results(ours, theirs, *input_and_states(theirs))


@every_kind
def test_pruned_weights(kind):
    ours, theirs = make_pair(kind)
    args = input_and_states(theirs)
    for module in (ours, theirs):
        prune.l1_unstructured(module, weight_hh(module), amount=0.4)
    assert (getattr(ours, weight_hh(ours)) == 0).any()
    assert_same_results(ours, theirs, *args)
    for module in (ours, theirs):
        prune.remove(module, weight_hh(module))
    assert_same_results(ours, theirs, *args)


@every_kind
def test_dropped_weights(kind):
    """As AWD-LSTM does it: the weight is deleted and set again, before each call, to a tensor with a history."""
    ours, theirs = make_pair(kind)
    name = weight_hh(ours)
    mask = (torch.rand(getattr(ours, name).shape) < 0.5).double() * 2
    for module in (ours, theirs):
        raw = getattr(module, name)
        delattr(module, name)
        module.register_parameter(f"{name}_raw", nn.Parameter(raw.detach()))
        module.register_forward_pre_hook(lambda m, _: setattr(m, name, getattr(m, f"{name}_raw") * mask))
    for _ in range(2):
        assert f"gradient of {name}_raw" in results_of(ours, *input_and_states(theirs))
        assert_same_results(ours, theirs, *input_and_states(theirs))
        sgd_step(ours)
        sgd_step(theirs)


@every_kind
def test_functional_call(kind):
    ours, theirs = make_pair(kind)
    args = input_and_states(theirs)
    before = tensors_of(ours(*args))
    parameters = {n: torch.randn_like(p).requires_grad_() for n, p in theirs.named_parameters()}
    results = []
    for module in (ours, theirs):
        outputs = tensors_of(torch.func.functional_call(module, parameters, args))
        grads = torch.autograd.grad([o.sum() for o in outputs], list(parameters.values()))
        results.append(dict(enumerate([*outputs, *grads])))
    assert_close(*results)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(ours(*args)), before, strict=True))


def seen_by_hooks(module, args):
    """All that every kind of hook is shown in one forward and backward."""
    seen = {}

    def note(name):
        def hook(_, *shown):
            for i, tensor in enumerate(tensors_of(shown)):
                seen[f"{name} {i}"] = tensor.detach().clone()

        return hook

    module.register_forward_pre_hook(note("forward pre"))
    module.register_forward_hook(note("forward"))
    module.register_full_backward_pre_hook(note("backward pre"))
    module.register_full_backward_hook(note("backward"))
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda grad, name=name: note(f"gradient of {name}")(None, grad))
        parameter.register_post_accumulate_grad_hook(lambda p, n=name: note(f"grad of {n}")(None, p.grad))
    sum(output.square().sum() for output in tensors_of(module(*as_leaves(args)))).backward()
    return seen


@every_kind
def test_every_hook_is_shown_what_torch_shows(kind):
    ours, theirs = make_pair(kind)
    args = input_and_states(theirs)
    found, expected = seen_by_hooks(ours, args), seen_by_hooks(theirs, args)
    assert {name.split(" ")[0] for name in expected} == {"forward", "backward", "gradient", "grad"}
    assert_close(found, expected)


@every_kind
def test_hooks_may_replace_arguments_and_results(kind):
    ours, theirs = make_pair(kind)
    for module in (ours, theirs):
        module.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:]))
        module.register_forward_hook(lambda m, args, result: tuple(t * 3 for t in tensors_of(result)))
        module.register_full_backward_hook(lambda m, grads, _: tuple(g * 5 for g in grads if g is not None))
    assert_same_results(ours, theirs, make_input(theirs))


@every_kind
def test_optimizer_inside_the_backward(kind):
    ours, theirs = make_pair(kind, **{"num_layers": 2} if kind in LAYERS else {})
    args = input_and_states(theirs)
    for module in (ours, theirs):
        for parameter in module.parameters():
            step = torch.optim.SGD([parameter], lr=0.1).step
            parameter.register_post_accumulate_grad_hook(lambda _, step=step: step())
        for _ in range(2):
            module.zero_grad()
            sum(output.sum() for output in tensors_of(module(*args))).backward()
    assert_close(ours.state_dict(), theirs.state_dict())


# ---- shapes and layouts ----------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
@pytest.mark.parametrize("steps", [1, 5])
def test_every_layout_of_the_input(kind, batch_first, batch, steps):
    ours, theirs = make_pair(kind, **DEEP, batch_first=batch_first)
    input = make_input(theirs, steps=steps, batch=batch)
    assert_same_results(ours, theirs, input)
    assert_same_results(ours, theirs, input, make_states(theirs, batch=batch))


@every_cell
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
@pytest.mark.parametrize("hidden", [0, 1, 4])
def test_every_layout_of_a_cell(kind, batch, hidden):
    ours, theirs = make_pair(kind, 3, hidden)
    input = make_input(theirs, batch=batch)
    assert_same_results(ours, theirs, input)
    assert_same_results(ours, theirs, input, make_states(theirs, batch=batch))


@every_layer
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_input_and_states(kind, enforce_sorted):
    ours, theirs = make_pair(kind, **DEEP)
    lengths = [5, 4, 4, 1] if enforce_sorted else [4, 1, 5, 4]
    packed = make_packed(lengths, enforce_sorted=enforce_sorted)
    assert_same_results(ours, theirs, packed)
    assert_same_results(ours, theirs, packed, make_states(theirs, batch=4))
    found, expected = ours(packed)[0], theirs(packed)[0]
    assert isinstance(found, PackedSequence)
    for field in PackedSequence._fields[1:]:
        assert (getattr(found, field) is None) == (getattr(expected, field) is None)
        assert getattr(found, field) is None or torch.equal(getattr(found, field), getattr(expected, field))
    assert torch.equal(pad_packed_sequence(found)[1], torch.tensor(lengths))


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("batch", [None, 2])
def test_states_of_an_lstm_may_be_a_list(proj_size, batch):
    for kind in ("lstm", "lstm_cell"):
        options = {**DEEP, "proj_size": proj_size} if kind == "lstm" else {}
        ours, theirs = make_pair(kind, **options)
        input, states = make_input(theirs, batch=batch), list(make_states(theirs, batch=batch))
        assert_same_results(ours, theirs, input, states)
        output = ours(input, states)
        assert isinstance(output, tuple)
        assert kind == "lstm_cell" or isinstance(output[1], tuple)


@every_kind
def test_results_can_be_viewed_where_those_of_torch_can(kind):
    for ours, theirs, args in layouts_of(kind):
        for found, expected in zip(tensors_of(ours(*args)), tensors_of(theirs(*args)), strict=True):
            assert found.stride() == expected.stride()


@every_layer
def test_empty_batch_takes_empty_lengths(kind):
    ours, _ = make_pair(kind)
    for empty in ([], torch.empty(0, dtype=torch.int64)):
        assert ours(make_input(ours, batch=0), lengths=empty)[0].shape[:2] == (5, 0)


def strided(tensor):
    """The same numbers in memory that is neither contiguous nor dense."""
    wide = torch.full((*tensor.shape, 3), float("nan"), dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


@every_kind
def test_non_contiguous_input_states_and_weights(kind):
    ours, theirs = make_pair(kind, **DEEP if kind in LAYERS else {})
    for module in (ours, theirs):
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(strided(parameter.detach())))
    args = make_input(theirs), make_states(theirs)
    args = strided(args[0]), tuple(map(strided, args[1])) if has_two_states(theirs) else strided(args[1])
    assert not any(tensor.is_contiguous() for tensor in [*tensors_of(args), *ours.parameters()])
    assert_same_results(ours, theirs, *args)


@every_kind
def test_expanded_input_and_output_gradients(kind):
    ours, theirs = make_pair(kind)
    row = make_input(theirs, batch=1)
    input = row.expand(*row.shape[:-2], 4, 3)
    results = []
    for module in (ours, theirs):
        leaf = input.detach().requires_grad_()
        outputs = tensors_of(module(leaf))
        sum(output.sum() for output in outputs).backward()  # sum()'s gradient is one number, expanded
        results.append({"input": leaf.grad} | {n: p.grad for n, p in module.named_parameters()})
    assert_close(*results)


@every_layer
def test_non_contiguous_weights_of_float32(kind):
    ours, theirs = make_pair(kind, 5, 16, dtype=torch.float32)
    for module in (ours, theirs):
        module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().t().contiguous().t())
    assert_same_results(ours, theirs, make_input(theirs, dtype=torch.float32))


# ---- dropout ---------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["padded", "batch_first", "unbatched", "packed"])
@pytest.mark.parametrize("dropout", [0.4, 1.0])
def test_dropout_draws_the_numbers_that_torch_draws(kind, training, layout, dropout):
    for bidirectional in (False, True):
        options = {"num_layers": 3, "dropout": dropout, "bidirectional": bidirectional}
        ours, theirs = make_pair(kind, **options, batch_first=layout == "batch_first")
        input = make_input(theirs, batch=None if layout == "unbatched" else 2)
        if layout == "packed":
            input = make_packed([4, 1, 5])
        results = []
        for module in (ours.train(training), theirs.train(training)):
            torch.manual_seed(3)
            results.append(results_of(module, input) | {"random state": torch.get_rng_state()})
        assert torch.equal(results[0].pop("random state"), results[1].pop("random state"))
        assert_close(*results)


@every_layer
def test_dropout_acts_in_training_only(kind):
    ours, _ = make_pair(kind, num_layers=2, dropout=0.5)
    input = make_input(ours)
    assert not torch.equal(ours(input)[0], ours(input)[0])
    assert torch.equal(ours.eval()(input)[0], ours(input)[0])


# ---- gradients -------------------------------------------------------------------------------------------------------


def layouts_of(kind):
    """(module, torch.nn's, arguments) in every layout of input and output."""
    if kind in CELLS:
        for batch in (None, 2):
            ours, theirs = make_pair(kind)
            yield ours, theirs, input_and_states(theirs, batch)
        return
    for options, batch in (({}, 2), (DEEP, 2), ({"batch_first": True}, 2), ({}, None)):
        ours, theirs = make_pair(kind, **options)
        yield ours, theirs, input_and_states(theirs, batch)
    ours, theirs = make_pair(kind, **DEEP)
    yield ours, theirs, (make_packed([4, 1, 5]), make_states(theirs, batch=3))


@every_kind
def test_outputs_may_be_edited_in_place_before_the_backward(kind):
    for ours, theirs, args in layouts_of(kind):
        for edited in range(len(tensors_of(ours(*args)))):
            results = []
            for module in (ours, theirs):
                leaves = as_leaves(args)
                outputs = tensors_of(module(*leaves))
                if module is ours:
                    before = [output.detach().clone() for output in outputs]
                    outputs[edited].mul_(3).add_(1)
                    unchanged = [torch.equal(a, b) for a, b in zip(outputs, before, strict=True)]
                    assert unchanged == [i != edited for i, _ in enumerate(outputs)]
                else:  # some of torch.nn's own layers cannot do it in place
                    outputs[edited] = outputs[edited] * 3 + 1
                loss = sum(output.square().sum() for output in outputs)
                grads = torch.autograd.grad(loss, [*tensors_of(leaves), *module.parameters()])
                results.append(dict(enumerate([*outputs, *grads])))
            assert_close(*results)


@every_kind
@pytest.mark.parametrize("edited", ["weight", "input"])
def test_edits_in_place_of_what_the_backward_needs_are_noticed(kind, edited):
    for ours, theirs, args in layouts_of(kind):
        noticed = []
        for module in (ours, theirs):
            leaves = as_leaves(args)
            output = tensors_of(module(*leaves))[0]
            with torch.no_grad():
                (getattr(module, weight_hh(module)) if edited == "weight" else tensors_of(leaves)[0]).mul_(2)
            try:
                output.sum().backward()
                noticed.append(False)
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
                noticed.append(True)
        # With batch_first the layers work on a copy of the input: then there is nothing to notice.
        assert noticed[0] == noticed[1]
        assert noticed[0] or edited == "input"


@every_kind
def test_tensors_of_inference_mode_are_used_outside_as_those_of_torch(kind):
    ours, theirs = make_pair(kind)
    with torch.inference_mode():
        args = input_and_states(theirs)
        made_inside = copy.deepcopy(ours), copy.deepcopy(theirs)
        outputs = [tensors_of(module(*args))[0] for module in (ours, theirs)]
        expected = outputs[0].clone()
    assert_same_error(*(lambda output=output: output.add_(1) for output in outputs))
    assert_same_error(*(lambda output=output: (output * nn.Parameter(output.clone())).sum() for output in outputs))
    assert_same_error(ours, theirs, *args)
    plain = torch.utils._pytree.tree_map(torch.clone, args)
    if kind in LAYERS:  # some of torch's cells save none of such weights, and run
        assert_same_error(*made_inside, *plain)
    assert_same_results(ours, theirs, *plain)
    with torch.no_grad():
        for module in (ours, made_inside[0]):
            for given in (args, plain):
                found = tensors_of(module(*given))[0]
                assert torch.equal(found, expected)
                assert not found.is_inference()


@every_kind
def test_lazily_negated_and_zero_tensors(kind):
    ours, theirs = make_pair(kind)
    args = input_and_states(theirs)
    negated = torch.utils._pytree.tree_map(torch._neg_view, args)
    zero = torch.utils._pytree.tree_map(lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype), args)
    for lazy, plain in ((negated, lambda t: -t), (zero, torch.zeros_like)):
        expected = tensors_of(ours(*torch.utils._pytree.tree_map(plain, args)))
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                found = tensors_of(ours(*lazy))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_kind
def test_retained_graph_gives_the_same_bits_twice(kind):
    for ours, _, args in layouts_of(kind):
        leaves = as_leaves(args)
        outputs = tensors_of(ours(*leaves))
        wanted = [*tensors_of(leaves), *ours.parameters()]
        weights = [torch.randn_like(output) for output in outputs]
        once, again = (torch.autograd.grad(outputs, wanted, weights, retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@every_kind
def test_a_second_backward_needs_a_retained_graph(kind):
    for ours, theirs, args in layouts_of(kind):
        losses = [tensors_of(module(*as_leaves(args)))[0].sum() for module in (ours, theirs)]
        for loss in losses:
            loss.backward()
        assert_same_error(losses[0].backward, losses[1].backward)


@every_kind
def test_gradients_of_some_outputs_only(kind):
    for ours, theirs, args in layouts_of(kind):
        count = len(tensors_of(theirs(*args)))
        for chosen in itertools.chain.from_iterable(
            itertools.combinations(range(count), n) for n in range(1, count + 1)
        ):
            results = []
            for module in (ours, theirs):
                leaves = as_leaves(args)
                outputs = tensors_of(module(*leaves))
                wanted = [*tensors_of(leaves), *module.parameters()]
                loss = sum((outputs[i] * (i + 1)).square().sum() for i in chosen)
                grads = torch.autograd.grad(loss, wanted, materialize_grads=True)
                results.append(dict(enumerate(grads)))
            assert_close(*results)


@every_kind
def test_any_part_of_inputs_and_weights_may_be_frozen(kind):
    draw = random.Random(0)
    for ours, theirs, args in layouts_of(kind):
        names = [name for name, _ in theirs.named_parameters()]
        count = len(tensors_of(args))
        for _ in range(6):
            chosen = set(draw.sample([*range(count), *names], draw.randint(1, min(4, count + len(names)))))
            results = []
            for module in (ours, theirs):
                leaves = as_leaves(args)
                for i, leaf in enumerate(tensors_of(leaves)):
                    leaf.requires_grad_(i in chosen)
                for name, parameter in module.named_parameters():
                    parameter.requires_grad_(name in chosen)
                    parameter.grad = None
                sum(output.square().sum() for output in tensors_of(module(*leaves))).backward()
                grads = {f"argument {i}": leaf.grad for i, leaf in enumerate(tensors_of(leaves))}
                results.append(grads | {name: p.grad for name, p in module.named_parameters()})
            assert {n for n, grad in results[0].items() if grad is not None} == {
                f"argument {c}" if isinstance(c, int) else c for c in chosen
            }
            assert_close(*results)


class ForwardCalls(TorchDispatchMode):
    """Notes of every call of the operator whether it was asked to save what a backward needs."""

    def __init__(self):
        super().__init__()
        self.saved = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.fused_rnn.layer_forward.default:
            self.saved.append(args[[argument.name for argument in op._schema.arguments].index("save")])
        return op(*args, **(kwargs or {}))


@every_kind
def test_nothing_is_saved_when_no_gradient_is_asked_for(kind):
    for ours, _, args in layouts_of(kind):
        with ForwardCalls() as calls:
            with torch.no_grad():
                assert all(output.grad_fn is None for output in tensors_of(ours(*as_leaves(args))))
            with torch.inference_mode():
                assert all(output.is_inference() for output in tensors_of(ours(*args)))
            ours.requires_grad_(False)
            assert not any(output.requires_grad for output in tensors_of(ours(*args)))
            assert calls.saved
            assert not any(calls.saved)
            calls.saved.clear()
            ours.requires_grad_(True)
            assert all(output.requires_grad for output in tensors_of(ours(*args)))
            assert all(calls.saved)


@every_kind
def test_backward_in_eval_mode(kind):
    for ours, theirs, args in layouts_of(kind):
        assert_same_results(ours.eval(), theirs.eval(), *args)
        assert_close(results_of(ours.eval(), *args), results_of(ours.train(), *args), tolerance=0)


@every_kind
def test_saved_tensors_may_live_elsewhere(kind):
    for ours, _, args in layouts_of(kind):
        expected = results_of(ours, *args)
        with torch.autograd.graph.save_on_cpu():
            assert_close(results_of(ours, *args), expected, tolerance=0)


@every_kind
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(kind, use_reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input, hx):
            # A reentrant checkpoint sees only tensors that are arguments or results themselves.
            def flat(input, *states):
                return tuple(tensors_of(self.inner(input, states if len(states) > 1 else states[0])))

            return checkpoint(flat, input, *tensors_of(hx), use_reentrant=use_reentrant)

    ours, theirs = make_pair(kind, **{"num_layers": 2, "dropout": 0.5} if kind in LAYERS else {})
    args = input_and_states(theirs)
    results = []
    for module in (Checkpointed(ours), Checkpointed(theirs)):
        torch.manual_seed(1)
        leaves = as_leaves(args)
        sum(output.square().sum() for output in module(*leaves)).backward()
        grads = {str(i): leaf.grad for i, leaf in enumerate(tensors_of(leaves))}
        results.append(grads | {name: p.grad for name, p in module.named_parameters()})
    assert_close(*results)


@every_kind
@pytest.mark.parametrize("how", ["meta", "fake"])
def test_shapes_without_data(kind, how):
    def shapes(module, args):
        return {name: (t.shape, t.dtype) for name, t in results_of(module, *args).items()}

    for ours, theirs, args in layouts_of(kind):
        if isinstance(args[0], PackedSequence):
            continue  # packing reads the lengths
        expected = shapes(theirs, args)
        if how == "meta":
            on_meta = args[0].to("meta"), torch.utils._pytree.tree_map(lambda t: t.to("meta"), args[1])
            assert shapes_on_meta(ours.to("meta"), on_meta) == expected
            continue
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = torch.utils._pytree.tree_map(mode.from_tensor, args)
            assert shapes_on_meta(ours, fakes) == expected


def shapes_on_meta(module, args):
    args = as_leaves(args)
    outputs = tensors_of(module(*args))
    parameters = dict(module.named_parameters())
    wanted = [*tensors_of(args), *parameters.values()]
    grads = torch.autograd.grad([o.sum() for o in outputs], wanted)
    names = [f"output {i}" for i, _ in enumerate(outputs)]
    names += [f"gradient of argument {i}" for i, _ in enumerate(tensors_of(args))]
    names += [f"gradient of {name}" for name in parameters]
    return {n: (t.shape, t.dtype) for n, t in zip(names, [*outputs, *grads], strict=True)}


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_dtype_against_float64(kind, dtype):
    options = DEEP if kind in LAYERS else {}
    ours, _ = make_pair(kind, 7, 9, dtype=dtype, **options)
    theirs = KINDS[kind][1](7, 9, **KINDS[kind][2], **options, dtype=F64)
    theirs.load_state_dict(ours.state_dict())
    args = make_input(ours, dtype=dtype, batch=4), make_states(ours, dtype=dtype, batch=4)
    wide_args = torch.utils._pytree.tree_map(lambda tensor: tensor.double(), args)
    found = results_of(ours, *args)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_close(found, results_of(theirs, *wide_args))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_everything_public_of_torch_is_there(name):
    assert set(dir(getattr(torch.nn, name))) <= set(dir(getattr(fused_rnn, name)))


def test_public_helpers_work():
    ours, theirs = (module.LSTM(3, 5, 2, proj_size=4) for module in (fused_rnn, torch.nn))
    x = torch.randn(6, 2, 3)
    assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    hx = (torch.randn(2, 2, 4), torch.randn(2, 2, 5))
    ours.check_forward_args(x, hx, None)
    order = torch.tensor([1, 0])
    torch.testing.assert_close(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
