"""Parameters and state of a module against torch.nn: copies, state dicts, conversions, parametrizations, hooks."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from support.modules import (
    DEEP,
    F64,
    KINDS,
    LAYERS,
    as_leaves,
    assert_close,
    assert_same_error,
    assert_same_results,
    every_kind,
    every_layer,
    input_and_states,
    make_input,
    make_pair,
    results_of,
    tensors_of,
    through_file,
    through_pickle,
    weight_hh,
)

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
unprojected = pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])


@every_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_file])
def test_copies_are_independent_of_the_original(kind, copied):
    ours, theirs = make_pair(kind, **DEEP if kind in LAYERS else {})
    args = input_and_states(theirs)
    ours(*args)  # copy a module that has run
    copied_module = copied(ours)
    assert type(copied_module) is type(ours)
    assert_same_results(copied_module, theirs, *args)
    with torch.no_grad():
        for parameter in copied_module.parameters():
            parameter.zero_()
    assert not any(output.any() for output in tensors_of(copied_module(args[0])))
    assert_same_results(ours, theirs, *args)


@every_kind
def test_state_dicts_are_exchanged_through_a_file(kind):
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
def test_wrong_state_dict_raises_torchs_error(kind):
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
def test_to_empty_materializes_a_meta_module(kind):
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
def test_converted_modules_compute_in_the_new_dtype(kind, convert, dtype):
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
def test_tied_weights_accumulate_gradients(kind):
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
    for _ in range(2):  # the second time with updated parameters
        assert any("parametrizations" in key for key in results_of(ours, *args))
        results_of(theirs, *args)  # spectral_norm iterates in each call
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
    """As in AWD-LSTM: before each call the weight, no longer a parameter, is set to a dropped-out copy of another."""
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
    """The tensors that every kind of hook sees in one forward and backward pass."""
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
def test_hooks_see_the_same_as_in_torch(kind):
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
