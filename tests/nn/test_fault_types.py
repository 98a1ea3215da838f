"""Whatever torch.nn's layers and cells refuse, ours refuse with an exception of the same type.

Freed memory is not among the faults, as torch.nn may crash on it: ``ops/test_memory.py`` has it.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from support.modules import CELLS, F64, LAYERS, has_two_states, make_input, make_pair, make_states, tensors_of

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Sparse"),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.complex64, torch.complex128)


def resized(tensor, dim, change):
    """The tensor with that dimension larger or smaller by ``change``."""
    shape = list(tensor.shape)
    shape[dim] = max(0, shape[dim] + change)
    return torch.ones(shape, dtype=tensor.dtype)


def of_dims(tensor, dims):
    """The tensor's last dimensions, or dimensions of 1 before them."""
    while tensor.dim() > dims:
        tensor = tensor[0]
    return tensor.reshape([1] * (dims - tensor.dim()) + list(tensor.shape)).clone()


# Of one tensor: name -> what it becomes.
FAULTS = {f"{dims} dimensions": lambda t, dims=dims: of_dims(t, dims) for dims in range(6)}
FAULTS |= {
    f"dimension {dim} by {change:+d}": lambda t, dim=dim, change=change: resized(t, dim, change)
    for dim, change in itertools.product((-3, -2, -1), (-1, 1, 5, -9))
}
FAULTS |= {str(dtype): lambda t, dtype=dtype: t.to(dtype) for dtype in DTYPES}
FAULTS |= {
    "meta": lambda t: t.to("meta"),
    "transposed": lambda t: t.transpose(-1, -2) if t.dim() > 1 else t,
    "sparse": lambda t: t.to_sparse(),
}


def becomes(fault, tensor):
    """The faulty tensor; None where this fault does not exist for it, or changes nothing."""
    try:
        changed = FAULTS[fault](tensor)
    except IndexError:  # it has no such dimension
        return None
    is_same = changed.shape == tensor.shape and changed.dtype == tensor.dtype and fault in ("transposed",)
    return None if is_same or (changed.shape == tensor.shape and fault.endswith("dimensions")) else changed


def arguments_of(module, batch):
    return make_input(module, batch=batch), make_states(module, batch=batch)


def packed_like(input):
    return pack_padded_sequence(input, [5, 3])


def faulty_calls(module):
    """(name, our arguments, torch's) for every place of a call and every fault that a tensor there may have."""
    is_layer = isinstance(module, nn.RNNBase)
    for batch, fault in itertools.product((2, None), FAULTS):
        input, states = arguments_of(module, batch)
        where = f"{fault}, batch {batch}"
        changed = becomes(fault, input)
        if changed is not None:
            yield f"input: {where}", (changed,), (changed,)
            yield f"input beside states: {where}", (changed, states), (changed, states)
        pair = tensors_of(states)
        for i, state in enumerate(pair):
            changed = becomes(fault, state)
            if changed is not None:
                one_changed = (*pair[:i], changed, *pair[i + 1 :])
                hx = one_changed if len(pair) > 1 else changed
                yield f"state {i}: {where}", (input, hx), (input, hx)
                if is_layer and batch and not module.batch_first:  # torch checks no states here, and may crash
                    yield f"state {i} beside packed input: {where}", (packed_like(input), hx), (input, hx)
    if is_layer and not module.batch_first:
        input, _ = arguments_of(module, 2)
        packed = packed_like(input)
        for fault in FAULTS:
            changed = becomes(fault, packed.data)
            if changed is not None and fault != "dimension -2 by +5":
                faulty = PackedSequence(changed, packed.batch_sizes)
                # The type of padded input's errors, also where torch checks packed input less.
                theirs = becomes(fault, input) if changed.dtype != input.dtype else faulty
                yield f"packed input: {fault}", (faulty,), (theirs,)


def faulty_weights(module):
    """(name, the weight's name, what it becomes)."""
    for (name, weight), fault in itertools.product(module.named_parameters(), FAULTS):
        changed = becomes(fault, weight.detach())
        if changed is not None and (changed.is_floating_point() or changed.is_complex()):
            yield f"{name}: {fault}", name, changed


def type_raised(call, *args):
    try:
        call(*args)
    except Exception as error:
        return type(error)
    return None


def replace_weight(module, name, changed):
    module._parameters[name] = nn.Parameter(changed)
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [module._parameters[own] for own in module._flat_weights_names]


def differences(kind, **options):
    """Every faulty call that torch.nn refuses, where ours does not raise the same type."""
    found, refused = [], 0

    def compare(name, ours, theirs, our_args, their_args):
        nonlocal refused
        expected = type_raised(theirs, *their_args)
        if expected is None:
            return
        refused += 1
        raised = type_raised(ours, *our_args)
        if expected is IndexError:  # from inside of a cell's product, for weights of too few dimensions
            expected = RuntimeError
        if raised is not expected:
            found.append(f"{name}: {raised and raised.__name__}, not {expected.__name__}")

    ours, theirs = make_pair(kind, **options)
    for name, our_args, their_args in faulty_calls(theirs):
        compare(name, ours, theirs, our_args, their_args)
    for name, weight, changed in faulty_weights(theirs):
        pair = make_pair(kind, **options)
        for module in pair:
            replace_weight(module, weight, changed)
        args = (make_input(theirs),)
        compare(name, *pair, args, args)
    return refused, found


@pytest.mark.parametrize("with_gradients", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_raise_what_torch_raises(kind, options, with_gradients):
    with torch.set_grad_enabled(with_gradients):
        refused, found = differences(kind, **options)
    assert refused > 50
    assert not found, "\n".join(found)


@pytest.mark.parametrize("with_gradients", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_raise_what_torch_raises(kind, with_gradients):
    with torch.set_grad_enabled(with_gradients):
        refused, found = differences(kind)
    assert refused > 50
    assert not found, "\n".join(found)


def test_states_are_a_pair_where_there_are_two():
    """What the faults above are made for."""
    for kind in (*LAYERS, *CELLS):
        _, theirs = make_pair(kind)
        assert len(tensors_of(make_states(theirs))) == 1 + has_two_states(theirs)
        assert make_states(theirs) is not None and make_input(theirs).dtype == F64
