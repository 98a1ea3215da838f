"""The fast path of plain inference, one operator: when it is taken, and that it gives the general path's results and
errors."""

import re
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from support.modules import (
    CELLS,
    F64,
    KINDS,
    error_of,
    every_kind,
    every_layer,
    make_input,
    make_pair,
    make_states,
    tensors_of,
)
from support.operators import Recorder, recorded

pytestmark = pytest.mark.usefixtures("no_reference")


FAST = ("fused_rnn::infer", "fused_rnn::infer_layer")


class Paths:
    """Calls a module on either path, and checks which one it took."""

    def fast(self, module, *args, **options):
        with torch.no_grad(), recorded() as names:
            results = module(*args, **options)
        assert len(names) == 1 and names[0] in FAST, "it took the general path"
        return tensors_of(results)

    def general(self, module, *args, **options):
        with torch.no_grad(), Recorder():  # under a dispatch mode every call is general
            results = module(*args, **options)
        return tensors_of(results)

    def assert_same(self, module, *args, **options):
        found, expected = self.fast(module, *args, **options), self.general(module, *args, **options)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert torch.equal(one, other)

    def assert_not_fast(self, module, *args, **options):
        with recorded() as names:
            results = module(*args, **options)
        assert not set(FAST) & set(names), "it took the fast path"
        return results


@pytest.fixture
def paths():
    return Paths()


# ---- same results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
@every_kind
def test_both_paths_give_the_same_results(kind, batch, dtype, paths, poisoned):
    if batch is None and kind in CELLS:
        pytest.skip("a cell's unbatched step takes the general path")
    module, _ = make_pair(kind, dtype=dtype)
    for steps in (1, 4):
        input = make_input(module, steps, batch, dtype)
        paths.assert_same(module, input)
        paths.assert_same(module, input, make_states(module, batch, dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 3},
        {"bidirectional": True},
        {"bias": False},
        {"num_layers": 2, "bidirectional": True, "bias": False},
    ],
    ids=str,
)
@every_layer
def test_stacks_and_directions(kind, options, paths, poisoned):
    module, _ = make_pair(kind, **options)
    for batch in (None, 1, 2):
        paths.assert_same(module, make_input(module, 3, batch), make_states(module, batch))


@every_layer
def test_batch_first(kind, paths, poisoned):
    module, _ = make_pair(kind, batch_first=True, num_layers=2, bidirectional=True)
    for steps, batch in ((1, 1), (1, 3), (4, 1), (4, None)):
        paths.assert_same(module, make_input(module, steps, batch), make_states(module, batch))
    many = make_input(module, 4, 3)  # must be copied to [T, B] order
    with torch.no_grad():
        found = tensors_of(paths.assert_not_fast(module, many))
    for one, other in zip(found, paths.general(module, many), strict=True):
        assert torch.equal(one, other)


@every_layer
def test_lengths_and_resets(kind, paths, poisoned):
    module, _ = make_pair(kind, num_layers=2, bidirectional=True)
    input, mask = make_input(module, 4, 3), torch.rand(4, 3) < 0.4
    paths.assert_same(module, input, lengths=torch.tensor([4, 0, 2]), reset_mask=mask)
    paths.assert_same(module, input, reset_mask=mask)
    paths.assert_same(module, input[:, 0], reset_mask=mask[:, 0])
    module.batch_first = True
    paths.assert_same(module, input[:1], reset_mask=torch.tensor([[False, True, True]]))


@every_kind
def test_strided_input_and_states(kind, paths):
    module, _ = make_pair(kind)
    input = make_input(module, 4, 6)[..., ::2, :]
    states = make_states(module, 6)
    strided = tuple(s[..., ::2, :] for s in states) if isinstance(states, tuple) else states[..., ::2, :]
    assert not input.is_contiguous()
    paths.assert_same(module, input, strided)


@every_layer
def test_carried_states_are_one_sequence(kind, paths):
    module, _ = make_pair(kind, num_layers=2)
    input = make_input(module, 6, 2)
    whole, state = paths.fast(module, input)[0], None
    with torch.inference_mode():
        for t in range(6):
            output, state = module(input[t : t + 1], state)
            torch.testing.assert_close(output[0], whole[t])
    assert output.is_inference()


def test_learned_initial_state_and_frozen_weights(paths):
    module, _ = make_pair("gru")
    paths.assert_same(module, make_input(module), nn.Parameter(make_states(module)))
    paths.assert_same(module.requires_grad_(False), make_input(module))


def test_replaced_weights_are_used(paths):
    module, other = make_pair("gru")[0], fused_rnn.GRU(3, 4, dtype=F64)
    input = make_input(module)
    paths.fast(module, input)
    module.weight_hh_l0 = other.weight_hh_l0
    paths.assert_same(module, input)
    with torch.no_grad():
        module.weight_ih_l0.copy_(other.weight_ih_l0)
        module.bias_ih_l0.data = other.bias_ih_l0.data
        module.bias_hh_l0.data.copy_(other.bias_hh_l0)
        assert torch.equal(module(input)[0], other(input)[0])
        weights = dict(module.named_parameters())
        functional = torch.func.functional_call(other, {n: w * 2 for n, w in weights.items()}, (input,))
        for weight in weights.values():
            weight.mul_(2)
        assert torch.equal(functional[0], paths.fast(module, input)[0])


def test_scratch_memory_is_reused_between_calls(poisoned):
    small, large, huge = (fused_rnn.LSTM(2, hidden, dtype=F64) for hidden in (3, 90, 600))
    input = torch.randn(2, 1, 2, dtype=F64)
    with torch.no_grad():
        expected = [reference_output(layer, input) for layer in (small, large, huge)]
        for _ in range(3):
            for layer, output in zip((small, large, huge), expected, strict=True):
                torch.testing.assert_close(layer(input)[0], output)


def reference_output(layer, input):
    theirs = nn.LSTM(layer.input_size, layer.hidden_size, dtype=F64)
    theirs.load_state_dict(layer.state_dict())
    return theirs(input)[0]


def test_threads_of_the_caller_do_not_share_scratch_memory():
    layers = [fused_rnn.GRU(8, hidden) for hidden in (16, 40, 64)]
    inputs = [torch.randn(50, 4, 8) for _ in layers]
    wrong = []

    def work(layer, input, expected):
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(layer(input)[0], expected):
                    wrong.append(layer)

    with torch.no_grad():
        jobs = [(layer, input, layer(input)[0]) for layer, input in zip(layers, inputs, strict=True)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- calls that take the general path --------------------------------------------------------------------------------


class Tagged(torch.Tensor):
    pass


@every_kind
def test_calls_that_need_gradients_take_the_general_path(kind, paths):
    module, _ = make_pair(kind)
    output = tensors_of(paths.assert_not_fast(module, make_input(module)))[0]
    assert output.requires_grad
    module.requires_grad_(False)
    assert tensors_of(paths.assert_not_fast(module, make_input(module).requires_grad_()))[0].requires_grad


@torch.no_grad()
def test_modes_transforms_and_subclasses_take_the_general_path(paths):
    module = fused_rnn.GRU(3, 4)
    input = torch.randn(5, 2, 3)
    plain = module(input)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert paths.assert_not_fast(module, input)[0].dtype == torch.bfloat16
    batched = paths.assert_not_fast(torch.vmap(lambda x: module(x)[0]), torch.stack([input, input]))
    torch.testing.assert_close(batched[1], plain)
    assert isinstance(paths.assert_not_fast(module, input.as_subclass(Tagged))[0], Tagged)
    assert isinstance(paths.assert_not_fast(module, input, torch.zeros(1, 2, 4).as_subclass(Tagged))[1], Tagged)
    _, tangent = torch.func.jvp(lambda x: paths.assert_not_fast(module, x)[0], (input,), (input,))
    # A finite difference in float32 has few digits.
    difference = module(1.01 * input)[0] - module(0.99 * input)[0]
    torch.testing.assert_close(tangent, difference / 0.02, rtol=1e-2, atol=1e-3)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(input)
        assert paths.assert_not_fast(fused_rnn.GRU(3, 4), fake)[0].shape == (5, 2, 4)
    packed = pack_padded_sequence(input, torch.tensor([5, 5]))
    torch.testing.assert_close(paths.assert_not_fast(module, packed)[0].data, plain.flatten(0, 1))


@torch.no_grad()
def test_computed_weights_take_the_general_path(paths):
    module = parametrizations.weight_norm(fused_rnn.GRU(3, 4), "weight_hh_l0")
    input = torch.randn(5, 2, 3)
    before = paths.assert_not_fast(module, input)[0]
    module.parametrizations.weight_hh_l0.original0.mul_(3)
    assert not torch.equal(paths.assert_not_fast(module, input)[0], before)


@torch.no_grad()
def test_dropout_takes_the_general_path(paths):
    module = fused_rnn.GRU(3, 4, num_layers=2, dropout=0.9)
    input = torch.randn(5, 2, 3)
    assert not torch.equal(paths.assert_not_fast(module, input)[0], paths.assert_not_fast(module, input)[0])
    paths.assert_same(module.eval(), input)


@every_kind
def test_forward_hooks_run(kind):
    module, _ = make_pair(kind)
    seen = []
    module.register_forward_hook(lambda *_: seen.append("forward"))
    with torch.no_grad():
        module(make_input(module))
    assert seen == ["forward"]


# ---- errors ----------------------------------------------------------------------------------------------------------


def bad_calls(module):
    input, states = make_input(module), make_states(module)
    first = states[0] if isinstance(states, tuple) else states
    yield (None,)
    yield ([[1.0]],)
    yield (input.float(),)
    yield (input.to(torch.int64),)
    yield (input[..., :2],)
    yield (input.unsqueeze(0).unsqueeze(0),)
    yield (input[0] if input.dim() == 2 else input[:, 0], states)
    yield (input, torch.stack((first, first), -1) if states is first else (first[..., 1:], first))
    yield (input, first[..., :1, :] if states is first else (first, first[..., :1, :]))
    yield (input, first.float() if states is first else (first.float(), first.float()))
    if isinstance(module, nn.RNNBase):
        yield (input[:0],)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lstm_projected"])
def test_errors_are_the_same_without_gradients(kind):
    ours, _ = make_pair(kind)
    for number, args in enumerate(bad_calls(ours)):
        print(number)  # shown when this case fails
        with torch.enable_grad():
            expected = error_of(ours, *args)
        found = error_of(ours, *args)
        assert (type(found), str(found)) == (type(expected), str(expected))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lstm_projected"])
def test_errors_are_those_of_the_general_path(kind, gradients):
    ours, _ = make_pair(kind)
    for number, args in enumerate(bad_calls(ours)):
        print(number)
        with torch.set_grad_enabled(gradients):
            found = error_of(ours, *args)
            with Recorder():
                expected = error_of(ours, *args)
        assert (type(found), str(found)) == (type(expected), str(expected))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru_cell"])
def test_a_call_that_fails_is_not_run_again(kind, gradients):
    ours, _ = make_pair(kind)
    with recorded() as names, torch.set_grad_enabled(gradients):
        error = error_of(ours, make_input(ours)[..., :2])
    assert isinstance(error, RuntimeError) and re.search(r"input.size\(-1\)|input_size", str(error))
    trained = "fused_rnn::step_forward" if kind in CELLS else "fused_rnn::layer_forward"
    assert names == [trained if gradients else "fused_rnn::infer_layer"]
    assert "input must be" in str(error.__cause__), "the operator's own error is kept as the cause"


@every_layer
def test_states_of_too_many_layers(kind):
    """The operator is given only the rows of the layers there are, and cannot notice the others."""
    ours, theirs = make_pair(kind, num_layers=2)
    more = make_states(make_pair(kind, num_layers=3)[0])
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            found, expected = error_of(ours, make_input(ours), more), error_of(theirs, make_input(ours), more)
        assert (type(found), str(found)) == (type(expected), str(expected))


@torch.no_grad()
@pytest.mark.parametrize(
    "hx", [lambda h: h, lambda h: (h,), lambda h: (h, None), lambda h: (None, None), lambda h: "hx"]
)
def test_lstm_needs_two_states_or_none(hx):
    module, input = fused_rnn.LSTM(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(TypeError, match="hx must be a tuple"):
        module(input, hx(torch.zeros(1, 2, 4)))
