"""lengths and reset_mask against torch.nn on the pieces; the reference against torch.nn."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import CASES, Case, make_problem, outputs_and_gradients, relative_error

KINDS = ["LSTM", "GRU", "RNN"]


def make_pair(kind, **options):
    ours = getattr(fused_rnn, kind)(3, 4, dtype=torch.float64, **options)
    theirs = getattr(nn, kind)(3, 4, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def states_like(kind, *shape):
    states = tuple(torch.randn(*shape, 4, dtype=torch.float64) for _ in range(1 + (kind == "LSTM")))
    return states if kind == "LSTM" else states[0]


def each(hx, f):
    return tuple(f(s) for s in hx) if isinstance(hx, tuple) else f(hx)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_a_length_equals_the_truncated_row(kind, bidirectional, no_reference):
    ours, theirs = make_pair(kind, num_layers=2, bidirectional=bidirectional)
    lengths = [5, 1, 7, 3]
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    hx = states_like(kind, 2 * (1 + bidirectional), 4)
    output, state = ours(x, hx, lengths=lengths)
    for b, n in enumerate(lengths):
        expected, expected_state = theirs(x[:n, b], each(hx, lambda s, b=b: s[:, b]))
        torch.testing.assert_close(output[:n, b], expected)
        assert (output[n:, b] == 0).all()
        torch.testing.assert_close(each(state, lambda s, b=b: s[:, b]), expected_state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_length_zero_keeps_its_state(kind, no_reference):
    ours, _ = make_pair(kind, bidirectional=True)
    hx = states_like(kind, 2, 2)
    output, state = ours(torch.randn(3, 2, 3, dtype=torch.float64), hx, lengths=[0, 3])
    assert (output[:, 0] == 0).all()
    torch.testing.assert_close(each(state, lambda s: s[:, 0]), each(hx, lambda s: s[:, 0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_cuts_the_sequence_in_two(kind, no_reference):
    """Forward: the part before starts from hx, the part after from zero. Reverse: the other way round."""
    ours, theirs = make_pair(kind, bidirectional=True)
    x = torch.randn(7, 1, 3, dtype=torch.float64)
    hx = states_like(kind, 2, 1)
    for at in range(8):
        mask = torch.zeros(7, 1, dtype=torch.bool)
        mask[at:].fill_(False)
        if at < 7:
            mask[at] = True
        output, state = ours(x, hx, reset_mask=mask)
        zeros = each(hx, torch.zeros_like)
        if at == 0:  # the forward direction discards hx, the reverse one keeps its final state
            both = each(hx, lambda s: torch.stack([torch.zeros_like(s[0]), s[1]]))
            expected, expected_state = theirs(x, both)
        elif at == 7:
            expected, expected_state = theirs(x, hx)
        else:
            first, first_state = theirs(x[:at], pick(hx, zeros))
            second, second_state = theirs(x[at:], pick(zeros, hx))
            expected = torch.cat([first, second])
            expected_state = pick(second_state, first_state)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(state, expected_state)


def pick(of_forward, of_reverse):
    """The forward direction's state from one, the reverse direction's from the other."""
    if isinstance(of_forward, tuple):
        return tuple(torch.stack([f[0], r[1]]) for f, r in zip(of_forward, of_reverse, strict=True))
    return torch.stack([of_forward[0], of_reverse[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_passes_a_reset(kind, no_reference):
    ours, _ = make_pair(kind, num_layers=2, bidirectional=True)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[3, 0] = True
    output, _ = ours(x, reset_mask=mask)
    (grad,) = torch.autograd.grad(output[:3].sum(), x)
    assert (grad[3:, 0] == 0).all() and (grad[:3, 0] != 0).all() and (grad[3:, 1] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_resets_past_the_end_are_ignored(kind, no_reference):
    ours, _ = make_pair(kind, bidirectional=True)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[4:, 0] = True  # past row 0's end
    expected = ours(x, lengths=[4, 6])
    found = ours(x, lengths=[4, 6], reset_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_packed_and_unbatched_masks_agree(kind, batch_first, no_reference):
    """Padded, packed in the user's order of rows, and unbatched give the same numbers."""
    ours, _ = make_pair(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    lengths = torch.tensor([3, 6, 1, 5])
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    mask = torch.rand(6, 4) < 0.4
    if batch_first:
        x, mask = x.transpose(0, 1), mask.transpose(0, 1)
    output, state = ours(x, lengths=lengths, reset_mask=mask)
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    packed_output, packed_state = ours(packed, reset_mask=mask)
    padded, _ = nn.utils.rnn.pad_packed_sequence(packed_output, batch_first)
    torch.testing.assert_close(padded, output)
    torch.testing.assert_close(packed_state, state)
    rows = (x, mask, output) if batch_first else (t.transpose(0, 1) for t in (x, mask, output))
    for b, (row, own_mask, expected) in enumerate(zip(*rows, strict=True)):
        n = lengths[b]
        alone, alone_state = ours(row[:n], reset_mask=own_mask[:n])
        torch.testing.assert_close(alone, expected[:n])
        torch.testing.assert_close(alone_state, each(state, lambda s, b=b: s[:, b]))
        longer, _ = ours(row, lengths=n, reset_mask=own_mask)
        torch.testing.assert_close(longer, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_carrying_the_state_over_equals_one_call(kind, dtype, no_reference, pytestconfig):
    layer = getattr(fused_rnn, kind)(3, 4, num_layers=2, dtype=dtype)
    x = torch.randn(9, 2, 3, dtype=dtype)
    whole, _ = layer(x)
    # The LSTM's c is rounded when it leaves a call; everything else is exact.
    exact = kind != "LSTM" or dtype in (torch.float64, torch.float32)
    rounded = 4 * torch.finfo(dtype).eps
    for at in (4, 3, 8):
        first, state = layer(x[:at])
        second, _ = layer(x[at:], state)
        # A piece of a few rows sums its products in another order; the CUDA engine's products are torch's for any size.
        on_cpu = not pytestconfig.pluginmanager.has_plugin("support.on_machine")
        tolerance = 0 if exact and on_cpu and at != 8 else rounded
        torch.testing.assert_close(torch.cat([first, second]), whole, rtol=tolerance, atol=tolerance)


# ---- the reference ---------------------------------------------------------------------------------------------------


CELLS_AND_CASES = [
    pytest.param(cell, case, id=f"{cell}-{case.name}")
    for cell in CELLS
    for case in CASES
    if not case.zoneout  # which torch.nn has not
    if (CELLS[cell].projectable or not case.proj_size) and case.grad_clip is None
]


@pytest.mark.parametrize(("cell", "case"), CELLS_AND_CASES)
def test_reference_equals_torch(cell, case):
    """torch.nn has no resets, and lengths only by packing; resets are tested above."""
    if case.reset:
        case = Case(**{**case.__dict__, "reset": False})
    if case.lengths:
        case = Case(**{**case.__dict__, "lengths": False, "packed": True})
    problem = make_problem(CELLS[cell], case, torch.float64, "cpu")
    found = outputs_and_gradients(problem, reference, torch.float64)
    expected = outputs_and_gradients(problem, TorchTwins, torch.float64)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) <= 1e-12


class TorchTwins:
    """torch.nn's layers under the functional API."""

    @staticmethod
    def _run(module_class, input, hx, weights, num_layers, bidirectional, batch_first, **extra):
        extra.pop("lengths", None)
        extra.pop("reset_mask", None)
        extra.pop("grad_clip", None)
        per = len(weights) // (num_layers * (1 + bidirectional))
        if per % 2:
            extra["proj_size"] = weights[per - 1].shape[0]
        module = module_class(
            weights[0].shape[1],
            weights[per - 1].shape[1] if per % 2 else weights[1].shape[1],
            num_layers,
            bias=per >= 4,
            batch_first=batch_first,
            bidirectional=bidirectional,
            **extra,
        )
        names = [name for name, _ in module.named_parameters()]
        parameters = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, parameters, (input, hx))

    @staticmethod
    def lstm(input, hx, weights, **options):
        return TorchTwins._run(nn.LSTM, input, hx, weights, **options)

    @staticmethod
    def gru(input, hx, weights, **options):
        return TorchTwins._run(nn.GRU, input, hx, weights, **options)

    @staticmethod
    def rnn(input, hx, weights, **options):
        return TorchTwins._run(nn.RNN, input, hx, weights, **options)
