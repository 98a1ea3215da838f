"""fused_rnn.tbptt against explicit loops over the pieces with torch.nn; its memory; its progress bar."""

import copy
import itertools
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fused_rnn
from fused_rnn import init
from fused_rnn.tools.progress import progress
from support.modules import F64, make_pair, make_states, tensors_of
from support.processes import run_python

KINDS = ["lstm", "gru", "rnn_tanh", "lstm_projected"]
every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("no_reference")


def squares(output, target):
    return (output - target).square().sum()


def sequence(ours, steps, batch, resets=0.0):
    x = torch.randn(steps, batch, ours.input_size, dtype=F64)
    target = torch.randn(steps, batch, ours.proj_size or ours.hidden_size, dtype=F64)
    return x, target, torch.rand(steps, batch) < resets


def in_chunks(size, *tensors):
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def mapped(function, states):
    return torch.utils._pytree.tree_map(function, states)


def row_of(states, b):
    return mapped(lambda state: state[:, b : b + 1], states)


def explicit_loop(theirs, x, target, resets, size, state):
    """Yields each chunk's loss, computed row by row and piece by piece between resets."""
    states = [row_of(state, b) for b in range(x.shape[1])]
    for begin in range(0, len(x), size):
        end, loss = min(begin + size, len(x)), 0
        for b in range(x.shape[1]):
            cuts = [begin, *(t for t in range(begin, end) if resets[t, b]), end]
            for piece_begin, piece_end in itertools.pairwise(cuts):
                if resets[piece_begin, b]:
                    states[b] = None
                if piece_begin < piece_end:
                    output, states[b] = theirs(x[piece_begin:piece_end, b : b + 1], states[b])
                    loss = loss + squares(output, target[piece_begin:piece_end, b : b + 1])
            states[b] = mapped(torch.Tensor.detach, states[b])
        yield loss


def gradients_of(module):
    return [parameter.grad.clone() for parameter in module.parameters()]


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 12),
    batch=st.integers(1, 3),
    size=st.integers(1, 13),
    resets=st.sampled_from([0.0, 0.3, 1.0]),
    num_layers=st.integers(1, 2),
    accumulate=st.booleans(),
)
def test_gradients_are_those_of_an_explicit_loop(kind, steps, batch, size, resets, num_layers, accumulate):
    ours, theirs = make_pair(kind, num_layers=num_layers)
    x, target, mask = sequence(ours, steps, batch, resets)
    state = make_states(ours, batch)
    expected = explicit_loop(theirs, x, target, mask, size, state)
    for chunk in fused_rnn.tbptt(ours, squares, in_chunks(size, x, target, mask), state):
        loss = next(expected)
        loss.backward()
        torch.testing.assert_close(chunk.loss, loss.detach())
        torch.testing.assert_close(gradients_of(ours), gradients_of(theirs))
        if not accumulate:
            ours.zero_grad()
            theirs.zero_grad()
    assert next(expected, None) is None, "the number of chunks"


@every_kind
@pytest.mark.parametrize("at", [3, 4, 7, 8])
def test_a_reset_at_a_chunks_border_or_within(kind, at):
    """In the last step before a chunk's border, at the border, and in the last, short chunk."""
    ours, theirs = make_pair(kind)
    x, target, mask = sequence(ours, 10, 2)
    mask[at] = True
    state = make_states(ours, 2)
    for _ in fused_rnn.tbptt(ours, squares, in_chunks(4, x, target, mask), state):
        pass
    ends = sorted({0, 4, 8, 10, at})
    for begin, end in itertools.pairwise(ends):
        # No gradient passes these: chunks end there, and a reset leaves no state.
        output, state = theirs(x[begin:end], None if begin == at else mapped(torch.Tensor.detach, state))
        squares(output, target[begin:end]).backward()
    torch.testing.assert_close(gradients_of(ours), gradients_of(theirs))


@every_kind
def test_an_optimizer_step_per_chunk(kind):
    ours, theirs = make_pair(kind)
    x, target, mask = sequence(ours, 11, 2, resets=0.2)
    optimizers = [torch.optim.SGD(module.parameters(), 0.01) for module in (ours, theirs)]
    expected = explicit_loop(theirs, x, target, mask, 4, make_zeros(ours, 2))
    for _ in fused_rnn.tbptt(ours, squares, in_chunks(4, x, target, mask)):
        next(expected).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def make_zeros(module, batch):
    return mapped(torch.zeros_like, make_states(module, batch))


@every_kind
def test_one_chunk_is_full_backpropagation(kind):
    ours, theirs = make_pair(kind)
    x, target, _ = sequence(ours, 9, 2)
    (chunk,) = fused_rnn.tbptt(ours, squares, [(x, target)])
    output, state = theirs(x)
    squares(output, target).backward()
    torch.testing.assert_close(tensors_of(chunk[1:]), tensors_of((output, state)))
    torch.testing.assert_close(gradients_of(ours), gradients_of(theirs))


@every_kind
def test_torch_layers_without_resets(kind):
    ours, theirs = make_pair(kind, num_layers=2)
    x, target, _ = sequence(ours, 10, 2)
    found = [list(fused_rnn.tbptt(module, squares, in_chunks(3, x, target))) for module in (ours, theirs)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(tensors_of(one), tensors_of(other))
    torch.testing.assert_close(gradients_of(ours), gradients_of(theirs))


def test_nested_states():
    """A Stack's states within a dict and a list; yielded states have no graph."""
    stack = fused_rnn.Stack("lstm", 3, [4, 4], skip="residual", dtype=F64)
    x, target, mask = torch.randn(9, 2, 3, dtype=F64), torch.randn(9, 2, 4, dtype=F64), torch.rand(9, 2) < 0.2

    def model(x, state, reset_mask):
        output, state = stack(x, state["stack"][0], reset_mask=reset_mask)
        return output, {"stack": [state], "nothing": None}

    seen = list(fused_rnn.tbptt(model, squares, in_chunks(4, x, target, mask), {"stack": [None]}))
    found = gradients_of(stack)
    stack.zero_grad()
    state = None
    for chunk, (x_, target_, mask_) in zip(seen, in_chunks(4, x, target, mask), strict=True):
        output, state = stack(x_, state, reset_mask=mask_)
        squares(output, target_).backward()
        state = mapped(torch.Tensor.detach, state)
        torch.testing.assert_close(chunk.output, output.detach())
        torch.testing.assert_close(chunk.state["stack"][0], state)
        assert not any(t.requires_grad for t in (chunk.loss, chunk.output, *tensors_of(chunk.state["stack"])))
    torch.testing.assert_close(found, gradients_of(stack))


def test_a_learned_initial_state_learns_from_the_first_chunk():
    ours, _ = make_pair("lstm")
    initial = init.InitialState(ours)
    x, target, _ = sequence(ours, 10, 3)
    for _ in fused_rnn.tbptt(ours, squares, in_chunks(4, x, target), initial(3)):
        pass
    found = gradients_of(initial)
    initial.zero_grad()
    squares(ours(x[:4], initial(3))[0], target[:4]).backward()
    torch.testing.assert_close(found, gradients_of(initial))


def test_carrying_on_from_a_state():
    ours, _ = make_pair("gru")
    x, target, _ = sequence(ours, 10, 2)
    chunks = in_chunks(2, x, target)
    whole = list(fused_rnn.tbptt(ours, squares, chunks))
    first = list(fused_rnn.tbptt(ours, squares, chunks[:2]))
    rest = list(fused_rnn.tbptt(ours, squares, chunks[2:], first[-1].state))
    torch.testing.assert_close(tensors_of([*first, *rest]), tensors_of(whole))


def test_evaluation_without_gradients():
    ours, _ = make_pair("lstm")
    x, target, mask = sequence(ours, 10, 2, resets=0.2)
    expected = [chunk.loss for chunk in fused_rnn.tbptt(ours, squares, in_chunks(4, x, target, mask))]
    evaluated = copy.deepcopy(ours)
    evaluated.zero_grad()
    with torch.no_grad():
        found = list(fused_rnn.tbptt(evaluated, squares, in_chunks(4, x, target, mask), backward=None))
    torch.testing.assert_close([chunk.loss for chunk in found], expected)
    assert all(parameter.grad is None for parameter in evaluated.parameters())


def test_custom_backward():
    """As GradScaler needs it."""
    ours, theirs = make_pair("gru")
    x, target, _ = sequence(ours, 7, 2)
    for module, backward in ((ours, lambda loss: (8 * loss).backward()), (theirs, torch.Tensor.backward)):
        for _ in fused_rnn.tbptt(module, squares, in_chunks(3, x, target), backward=backward):
            pass
    torch.testing.assert_close(gradients_of(ours), [8 * grad for grad in gradients_of(theirs)])


# ---- errors ----------------------------------------------------------------------------------------------------------


def run(model=None, loss_fn=squares, chunks=None):
    x, target = torch.randn(4, 2, 3), torch.randn(4, 2, 4)
    return list(fused_rnn.tbptt(model or fused_rnn.GRU(3, 4), loss_fn, chunks or [(x, target)]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"chunks": [torch.zeros(4, 2, 3)]}, r"each chunk must be \(input, target\) or .*, got Tensor"),
        ({"chunks": [(torch.zeros(4, 2, 3),)]}, r"each chunk must be .*, got tuple of 1"),
        ({"model": lambda x, state: x}, r"the model must return \(output, state\), got Tensor"),
        ({"loss_fn": lambda output, target: output - target}, r"a tensor of one number, got shape \[4, 2, 4\]"),
        ({"loss_fn": lambda output, target: 1.0}, "a tensor of one number, got float"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(TypeError, match=f"tbptt: .*{message}"):
        run(**wrong)


def test_torch_layers_refuse_masks():
    chunk = (torch.randn(4, 2, 3), torch.randn(4, 2, 4), torch.zeros(4, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="unexpected keyword argument 'reset_mask'"):
        run(nn.GRU(3, 4), chunks=[chunk])


# ---- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import sys
import torch
import fused_rnn

torch.manual_seed(0)
model = fused_rnn.LSTM(4, 8)
seed = torch.Generator()


def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])


def chunks(steps, size):
    for _ in range(steps // size):
        x = torch.randn(size, 16, 4, generator=seed)
        yield x, torch.zeros(size, 16, 8), torch.rand(size, 16, generator=seed) < 0.01


def run(steps, size):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in fused_rnn.tbptt(model, torch.nn.functional.mse_loss, chunks(steps, size)):
        optimizer.step()
        optimizer.zero_grad()
    return peak()


print(run(1000, 100), run(1000, 100), run(100_000, 100), run(10_000, 10_000))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_sequence():
    _, short, long, at_once = map(int, run_python("-c", MEMORY).split())
    assert at_once - long > 10_000, "kB: the measurement sees a tenth of these steps when they are one chunk"
    assert long - short < 1500, "kB: the allocator settles in its first thousand chunks, with torch.nn's layers too"


# ---- the progress bar ------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch, capsys):
    """What a terminal shows of stderr while a function runs."""

    def watch(function):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # only now is it that of the test itself
        function()
        return capsys.readouterr().err

    return watch


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (list, {}, "3/4 loss"),
        (iter, {"total": 4}, "3/4 loss"),
        (lambda chunks: (chunk for chunk in chunks), {}, "K3 loss"),
        (list, {"show_progress": False}, None),
    ],
)
def test_bar(shown, make, options, expected):
    ours, _ = make_pair("gru")
    x, target, _ = sequence(ours, 7, 2)
    losses = []

    def run():
        for chunk in fused_rnn.tbptt(ours, squares, make(in_chunks(2, x, target)), **options):
            losses.append(chunk.loss)

    err = shown(run)
    if expected is None:
        assert err == ""
    else:
        assert f"{expected} {losses[2]:.4g}" in err
        assert err.endswith("\r\033[K"), "the line is cleared"


def test_a_bar_left_early_is_cleared(shown):
    def run():
        for item in progress(range(9), 3):  # more than was said
            if item == 4:
                break

    assert shown(run).endswith("4/3 4\r\033[K")
