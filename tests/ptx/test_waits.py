"""Nothing hangs: blocks that wait in vain give up, what they computed is right or NaN, and the next call says so."""

import re

import pytest
import torch

from . import calls, cases

WAIT_S = "0.002"  # of the machine's clock, which counts instructions as nanoseconds
# How blocks exchange, and a dtype of each kind of arithmetic there.
WAYS = [
    *((way, dtype) for way in ("cluster", "polling") for dtype in (cases.F32, cases.BF16)),
    *((way, cases.F64) for way in ("cluster", "flags")),
    ("flags", cases.F32),
]
STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 70  # of several blocks each


@pytest.fixture(autouse=True)
def short_waits(machine, monkeypatch):
    machine.options()
    monkeypatch.setenv("FUSED_RNN_CUDA_WAIT_S", WAIT_S)


def layer(dtype, gates=4):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=cases.F64).to(dtype)

    weights = [random(gates * HIDDEN, n) / 8 for n in (INPUT, HIDDEN)] + [random(gates * HIDDEN) for _ in range(2)]
    return random(STEPS, BATCH, INPUT), weights, [random(STEPS, BATCH, HIDDEN), random(1, BATCH, HIDDEN)]


def forward(x, weights):
    return torch.ops.fused_rnn_emulated.layer_forward(
        0, True, False, x, None, None, weights, None, None, None, True, False, None
    )


def backward(x, weights, grads, saved):
    none = (None,) * 2
    *states, of_weights = torch.ops.fused_rnn_emulated.layer_backward(
        *(0, True, False, grads[0], grads[1], *none, x, *none, weights, None, None, None, saved),
        *(calls.EVERYTHING, 1, False, None),
    )
    return [t for t in (*states[:3], *of_weights) if t.numel()]


def right_or_nan(found, expected):
    for one, other in zip(found, expected, strict=True):
        is_nan = one.isnan()
        torch.testing.assert_close(one[~is_nan], other[~is_nan])


def report_of(call):
    with pytest.raises(
        RuntimeError, match=r"an earlier call on CUDA device 0, on some stream .* has timed out; results .* are NaN"
    ) as raised:
        call()
    return re.search(r"block (\d+) of group (\d+) .* \((\w+), (\w+)\) .* of step (\d+)", str(raised.value)).groups()


# At once, and after some steps: a block has several publications in each.
@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize(("way", "dtype"), WAYS)
def test_forward(machine, monkeypatch, way, dtype, after):
    monkeypatch.setenv("FUSED_RNN_ENGINE", way)
    x, weights, _ = layer(dtype)
    expected = forward(x, weights)
    with machine.silence(1, after):
        found = forward(x, weights)
    right_or_nan(found[:3], expected[:3])
    assert found[0][-1].isnan().all() and found[1].isnan().all() and found[2].isnan().all()
    _block, group, blocks, direction, step = report_of(lambda: forward(x, weights))
    assert (group, blocks, direction) == ("0", way, "forward") and int(step) < STEPS
    right_or_nan(forward(x, weights)[:3], expected[:3])  # and all goes on
    assert forward(x, weights)[0].isfinite().all()


@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize(("way", "dtype"), WAYS)
def test_backward(machine, monkeypatch, way, dtype, after):
    monkeypatch.setenv("FUSED_RNN_ENGINE", way)
    x, weights, grads = layer(dtype)
    saved = forward(x, weights)[4]
    expected = backward(x, weights, grads, saved)
    with machine.silence(0, after):
        found = backward(x, weights, grads, saved)
    right_or_nan(found, expected)
    assert all(t.isnan().any() for t in found)
    assert all(t.isnan().all() for t in found[3:])  # those of the weights sum over all steps
    *_, direction, step = report_of(lambda: backward(x, weights, grads, saved))
    assert direction == "backward" and int(step) <= STEPS
    assert all(t.isfinite().all() for t in backward(x, weights, grads, saved))


@pytest.mark.parametrize("order", ["in_turn", "adversarial", "block_ahead", "warp_ahead", "block_behind"])
@pytest.mark.parametrize("way", ["cluster", "polling", "flags"])
def test_in_every_order(machine, monkeypatch, way, order):
    monkeypatch.setenv("FUSED_RNN_ENGINE", way)
    x, weights, _ = layer(cases.F32)
    expected = forward(x, weights)
    for seed in range(3):
        machine.options(seed=seed, order=order)
        with machine.silence(seed % 2, 4 * seed):
            found = forward(x, weights)
        right_or_nan(found[:3], expected[:3])
        assert found[1].isnan().all()
        report_of(lambda: forward(x, weights))


def test_resets_begin_anew(machine, monkeypatch):
    """A row whose state is cut owes nothing to what came before."""
    monkeypatch.setenv("FUSED_RNN_ENGINE", "polling")
    x, weights, _ = layer(cases.F32)
    reset = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    reset[4, 1] = True

    def call():
        return torch.ops.fused_rnn_emulated.layer_forward(
            0, True, False, x, None, None, weights, None, None, reset, True, False, None
        )

    expected = call()
    with machine.silence(1, 0):
        found = call()
    right_or_nan(found[:3], expected[:3])
    assert not found[0][4, 1].isnan().any() and found[0][5, 1].isnan().all()
    report_of(call)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "1e300"])
def test_the_time_must_be_one(monkeypatch, value):
    monkeypatch.setenv("FUSED_RNN_ENGINE", "polling")
    monkeypatch.setenv("FUSED_RNN_CUDA_WAIT_S", value)
    x, weights, _ = layer(cases.F32)
    with pytest.raises(RuntimeError, match=f"FUSED_RNN_CUDA_WAIT_S must be a number of seconds above 0, got '{value}'"):
        forward(x, weights)


@pytest.mark.parametrize("way", ["cluster", "polling", "flags"])
def test_gradients_of_a_failed_pass(machine, monkeypatch, way):
    """Nothing that it left lends itself to plausible gradients, by ReLU either."""
    monkeypatch.setenv("FUSED_RNN_ENGINE", way)
    x, weights, grads = layer(cases.F32, gates=1)
    relu = (3, True, False, x, None, None, weights, None, None, None)
    with machine.silence(1, 0):
        saved = torch.ops.fused_rnn_emulated.layer_forward(*relu, True, False, None)[4]
    report_of(lambda: forward(x, layer(cases.F32)[1]))
    found = torch.ops.fused_rnn_emulated.layer_backward(
        *(3, True, False, *grads, None, None, x, None, None, weights, None, None, None, saved),
        *(calls.EVERYTHING, 1, False, None),
    )
    assert all(t.isnan().all() for t in found[4])
