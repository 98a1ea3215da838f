"""Autocast, and modules of 16 bits: what they compute, in which dtype, and that they train."""

import copy
import functools

import pytest
import torch
from torch import nn

from support.gpu import on_a_gpu
from support.modules import F64, LAYERS, every_kind, make_input, make_pair, make_states, tensors_of

pytestmark = pytest.mark.usefixtures("no_reference")
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_a_gpu)])
both_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
F32 = torch.float32


def to(nested, *args, **options):
    return torch.utils._pytree.tree_map(lambda tensor: tensor.to(*args, **options), nested)


# ---- autocast --------------------------------------------------------------------------------------------------------


@both_dtypes
@every_device
@every_kind
def test_autocast_equals_a_module_of_that_dtype(kind, device, dtype):
    """Input, states and weights are cast, each from float32 or 16 bits; results have the autocast dtype."""
    ours, _ = make_pair(kind, dtype=F32, **{"num_layers": 2} if kind in LAYERS else {})
    ours.to(device)
    input, states = to((make_input(ours, dtype=F32), make_states(ours, dtype=F32)), device)
    low = copy.deepcopy(ours).to(dtype)
    expected = tensors_of(low(input.to(dtype), to(states, dtype)))
    with torch.autocast(device, dtype):
        for args in ((input, states), (input.half().to(dtype), states), (input, to(states, dtype))):
            for module in (ours, low):
                found = tensors_of(module(*args))
                assert {output.dtype for output in found} == {dtype}
                if args[0] is input:
                    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        with torch.autocast(device, enabled=False):
            assert tensors_of(ours(input, states))[0].dtype == F32


@every_kind
def test_autocast_leaves_float64_alone(kind):
    ours, _ = make_pair(kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert {output.dtype for output in tensors_of(ours(make_input(ours)))} == {F64}
        for args in ((make_input(ours, dtype=F32),), (make_input(ours), make_states(ours, dtype=F32))):
            is_layers_input = kind in LAYERS and len(args) == 1
            with pytest.raises(ValueError if is_layers_input else RuntimeError, match="does not match weight dtype"):
                ours(*args)


@every_kind
def test_autocast_refuses_integers_as_torch_does(kind):
    for module in make_pair(kind, dtype=F32):
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises((RuntimeError, ValueError), match="dtype"):
            module(make_input(module).long())


# ---- training --------------------------------------------------------------------------------------------------------

# How much less the loss may fall than in float32, relative to that: gradients are rounded to 8 or 11 bits and, where
# weights have 16 bits too, so are small steps.
MARGIN = {torch.bfloat16: 0.005, torch.float16: 0.001}


@functools.cache
def losses(kind, device, weights=F32, autocast=None, scaled=False):
    """Losses of steps on a small task, always the same one."""
    torch.manual_seed(0)
    ours, _ = make_pair(kind, 4, 8, dtype=F32)
    head = nn.Linear(make_states(ours)[0].shape[-1], 1)
    model = nn.ModuleList([ours, head]).to(device, weights)
    input = make_input(ours, steps=6, batch=16, dtype=F32).to(device)
    target = input.sum(-1, keepdim=True).tanh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=scaled)
    found = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast(device, autocast, enabled=autocast is not None):
            output = tensors_of(ours(input.to(weights)))[0]
            assert output.dtype == (autocast or weights)
            loss = (head(output).float() - target).square().mean()
        scaler.scale(loss).backward()
        assert {parameter.grad.dtype for parameter in model.parameters()} == {weights}
        scaler.step(optimizer)
        scaler.update()
        found.append(loss.item())
    return found


@both_dtypes
@pytest.mark.parametrize("how", ["autocast", "scaled autocast", "weights of 16 bits"])
@every_device
@pytest.mark.parametrize("kind", ["lstm_projected", "gru", "rnn_tanh", "lstm_cell"])
def test_training_in_16_bits_keeps_up_with_float32(kind, device, how, dtype):
    expected = losses(kind, device)
    assert expected[-1] < 0.25 * expected[0]
    if how == "weights of 16 bits":
        found = losses(kind, device, weights=dtype)
    else:
        found = losses(kind, device, autocast=dtype, scaled=how.startswith("scaled"))
    assert abs(found[-1] - expected[-1]) <= MARGIN[dtype] * (expected[0] - expected[-1])


@every_kind
def test_a_scaler_skips_a_step_that_overflows(kind):
    ours, _ = make_pair(kind, dtype=F32)
    before = copy.deepcopy(ours.state_dict())
    optimizer, scaler = torch.optim.SGD(ours.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**20)
    scales = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            output = tensors_of(ours(make_input(ours, dtype=F32)))[0]
        scaler.scale(output.sum()).backward()
        scaler.step(optimizer)
        scales.append(scaler.get_scale())
        scaler.update()
        assert all(weight.isfinite().all() for weight in ours.parameters())
    assert scales[-1] < scales[0], "2 ** 20 overflows in float16"
    assert not torch.equal(ours.get_parameter(next(iter(before))), next(iter(before.values()))), (
        "the next step was taken"
    )
