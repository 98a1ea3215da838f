"""The layers under other parts of torch: checkpoints, anomaly mode, determinism, random states, offloaded weights."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import fused_rnn
from support.modules import (
    CELLS,
    LAYERS,
    assert_close,
    every_kind,
    make_input,
    make_packed,
    make_pair,
    make_states,
    tensors_of,
)

LENGTHS = [4, 1, 5]
FORWARD = torch.ops.fused_rnn.layer_forward.default


def ways_of(kind):
    """(module, arguments, options) for every form of ragged rows, with dropout between layers."""
    if kind in CELLS:
        module, _ = make_pair(kind)
        return [(module, make_input(module), {})]
    module, _ = make_pair(kind, num_layers=2, bidirectional=True, dropout=0.5)
    padded = make_input(module, batch=3)
    mask = torch.rand(5, 3) < 0.3
    ragged = [(module, padded, {"lengths": LENGTHS, "reset_mask": mask}), (module, make_packed(LENGTHS), {})]
    return [(module, padded, {}), *ragged]


def gradients(call, module, input, options, seed=1):
    """Gradients of the input and every parameter; dropout draws from ``seed``."""
    torch.manual_seed(seed)
    module.zero_grad()
    (data,) = tensors_of(input)
    data = data.detach().requires_grad_()
    outputs = call(lambda x: tuple(tensors_of(module(with_data(input, x), **options))), data)
    sum(output.square().sum() for output in outputs).backward()
    return {"input": data.grad, **{name: p.grad.clone() for name, p in module.named_parameters()}}


def with_data(input, data):
    return data if isinstance(input, torch.Tensor) else input._replace(data=data)


def plainly(function, x):
    return function(x)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_kind
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_ragged_rows_under_checkpoint(kind, use_reentrant):
    """Bitwise equal, dropout included: checkpoint restores the random state when it recomputes."""
    for way in ways_of(kind):
        found = gradients(partial(checkpoint, use_reentrant=use_reentrant), *way)
        assert_close(found, gradients(plainly, *way), tolerance=0)


class Count(TorchDispatchMode):
    """How often the forward operator runs."""

    runs = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.runs += op is FORWARD
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(("policy", "runs"), [("MUST_SAVE", 2), ("MUST_RECOMPUTE", 4)])
@pytest.mark.parametrize("kind", LAYERS)
def test_selective_checkpoint_follows_its_policy(kind, policy, runs):
    def choose(ctx, op, *args, **kwargs):
        return CheckpointPolicy[policy if op is FORWARD else "PREFER_RECOMPUTE"]

    contexts = partial(create_selective_checkpoint_contexts, choose)
    for way in ways_of(kind):
        with Count() as count:
            found = gradients(partial(checkpoint, use_reentrant=False, context_fn=contexts), *way)
        assert count.runs == runs  # two layers
        assert_close(found, gradients(plainly, *way), tolerance=0)


@every_kind
def test_anomaly_mode_changes_no_result(kind):
    for way in ways_of(kind):
        expected = gradients(plainly, *way)
        with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
            found = gradients(plainly, *way)
        assert_close(found, expected, tolerance=0)


@every_kind
def test_anomaly_mode_names_the_function_that_made_a_nan(kind):
    module, _ = make_pair(kind)
    for parameter in module.parameters():
        parameter.data.abs_()
    # Saturated gates: results are finite, but the weights' gradients are 0 * inf.
    input = torch.full_like(make_input(module), torch.inf)
    if kind.startswith("rnn_relu"):
        input = -input
    with pytest.warns(UserWarning) as caught, torch.autograd.detect_anomaly():
        output = tensors_of(module(input))[0]
        assert output.isfinite().all()
        with pytest.raises(RuntimeError, match=r"'(PlainLayer|Step)Backward' returned nan values"):
            output.sum().backward()
    assert "output = tensors_of(module(input))[0]" in str(caught[-1].message)  # the line of the call


@every_kind
def test_same_seed_same_bits(kind, deterministic):
    """Also with deterministic algorithms, which fill new memory with NaN and refuse nondeterministic operators."""
    for module, input, options in ways_of(kind):
        found = gradients(plainly, module, input, options)
        assert_close(gradients(plainly, module, input, options), found, tolerance=0)
        torch.use_deterministic_algorithms(False)
        assert_close(gradients(plainly, module, input, options), found, tolerance=0)
        torch.use_deterministic_algorithms(True)
        another = gradients(plainly, module, input, options, seed=2)
        assert torch.equal(another["input"], found["input"]) == (kind in CELLS)  # cells have no dropout


def test_random_state_is_the_callers():
    gru = fused_rnn.GRU(3, 4, num_layers=2, dropout=0.5)
    x, before = torch.randn(5, 2, 3), torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        first = gru(x)[0]
        assert not torch.equal(gru(x)[0], first)
    assert torch.equal(torch.get_rng_state(), before)
    gru.eval()(x)  # draws nothing
    assert torch.equal(gru.train()(x)[0], first)


def offload_as_accelerate(module):
    """Its hooks put each parameter in place before a call, and one on meta after it."""
    away = {name: weight.detach().clone() for name, weight in module.named_parameters()}

    def put(weights):
        for name, weight in weights.items():
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)

    put({name: weight.to("meta") for name, weight in away.items()})
    module.register_forward_pre_hook(lambda *_: put(away))
    module.register_forward_hook(lambda *_: put({name: weight.to("meta") for name, weight in away.items()}))


def offload_as_fsdp(module):
    """The parameters are views of one flat tensor, whose storage has its bytes during calls only."""
    flat = torch.cat([weight.detach().flatten() for weight in module.parameters()])
    away, first = flat.clone(), 0
    for weight in module.parameters():
        weight.requires_grad_(False)
        weight.data = flat[first : first + weight.numel()].view(weight.shape)
        first += weight.numel()
    storage, size = flat.untyped_storage(), flat.untyped_storage().nbytes()
    storage.resize_(0)

    def fill(*_):
        storage.resize_(size)
        flat.copy_(away)

    def free(*_):
        storage.resize_(0)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(free)


@pytest.mark.parametrize("offload", [offload_as_accelerate, offload_as_fsdp])
@every_kind
def test_weights_that_are_there_during_calls_only(kind, offload):
    ours, theirs = make_pair(kind)
    arguments = make_input(theirs), make_states(theirs)
    expected = tensors_of(theirs(*arguments))
    offload(ours)
    for _ in range(2):
        for found, own in zip(tensors_of(ours(*arguments)), expected, strict=True):
            torch.testing.assert_close(found, own.detach())
    with pytest.raises(RuntimeError, match=r"is on meta|not on the same device|bytes of storage|no data"):
        ours.forward(*arguments)
