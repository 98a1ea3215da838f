"""The raw operators under torch.library.opcheck, and what they refuse."""

import pytest
import torch

from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import Case, make_problem


def operator_arguments(cell, requires_grad, **options):
    # Few steps: the trace contains the double backward, unrolled in time.
    case = Case("", steps=2, bidirectional=True, **options)
    problem = make_problem(CELLS[cell], case, torch.float32, "cpu")
    tensors = [t.requires_grad_(requires_grad) for t in problem.tensors]
    states = CELLS[cell].states
    h0, c0 = (*tensors[1 : 1 + states], None)[:2]
    input, batch_sizes, lengths = tensors[0], None, problem.lengths
    if case.packed:
        packed = torch.nn.utils.rnn.pack_padded_sequence(input.detach(), lengths, enforce_sorted=False)
        input, batch_sizes, lengths = packed.data.requires_grad_(requires_grad), packed.batch_sizes, None
    shared = (CELLS[cell].id, case.bias, True)
    return shared, (input, h0, c0, tensors[1 + states :], lengths, batch_sizes, problem.reset_mask)


OPTIONS = [{}, {"lengths": True, "reset": True}, {"packed": True}]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_forward(cell, options, requires_grad):
    shared, tensors = operator_arguments(cell, requires_grad, **options)
    two_states = CELLS[cell].states > 1
    arguments = (*shared, *tensors, requires_grad, two_states and not requires_grad)
    torch.library.opcheck(torch.ops.fused_rnn.layer_forward.default, arguments)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_backward(cell, options, requires_grad):
    shared, tensors = operator_arguments(cell, requires_grad, **options)
    with torch.no_grad():
        output, h_n, c_n, _, saved = torch.ops.fused_rnn.layer_forward(*shared, *tensors, True, False)
    grads = [torch.randn_like(output).requires_grad_(requires_grad), torch.randn_like(h_n)]
    grads += [torch.randn_like(c_n) if c_n.numel() else None, None]
    groups = 1 if options.get("packed") or requires_grad else 5
    arguments = (*shared, *grads, *tensors, saved, 127, groups, not requires_grad)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if options.get("packed") and requires_grad:
        checks.pop()  # the double backward reads batch_sizes, which a trace with symbolic values cannot
    torch.library.opcheck(torch.ops.fused_rnn.layer_backward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_with_the_loops_options(cell, draws, requires_grad):
    (cell_id, bias, _), (x, h0, c0, weights, *masks) = operator_arguments(cell, requires_grad, reset=True)
    states = CELLS[cell].states
    hidden = weights[0].shape[0] // CELLS[cell].gates
    kept = torch.rand(*x.shape[:2], 2 * states * hidden) < 0.5
    zoneout = (kept, None, None) if draws else (None, 0.25, 0.5)
    options = (torch.dropout(torch.ones(2, x.shape[1], hidden), 0.5, True), *zoneout)
    arguments = (cell_id, bias, True, x, h0, c0, weights, *masks, requires_grad, False, None, *options)
    torch.library.opcheck(torch.ops.fused_rnn.layer_forward.default, arguments)


def test_opcheck_of_the_masks():
    arguments = (torch.tensor(3), 7, 2, 5, 0, 1 << 14)
    torch.library.opcheck(torch.ops.fused_rnn.zoneout_mask.default, arguments, test_utils=("test_schema",))
    with pytest.raises(RuntimeError, match="seed must be one int64"):
        torch.ops.fused_rnn.zoneout_mask(torch.tensor(3.0), *arguments[1:])


def test_raw_operator_refuses_tangents():
    shared, (x, *tensors) = operator_arguments("lstm", False)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="no forward-mode AD"):
            torch.ops.fused_rnn.layer_forward(*shared, dual, *tensors, False, False)


@pytest.mark.parametrize("cell", CELLS)
def test_a_call_that_needs_gradients_saves_for_them_unasked(cell):
    shared, tensors = operator_arguments(cell, True)
    leaves = [t for t in (*tensors[:3], *tensors[3]) if t is not None]
    grads = []
    for save in (False, True):
        output = torch.ops.fused_rnn.layer_forward(*shared, *tensors, save, False)[0]
        grads.append(torch.autograd.grad(output.sum(), leaves, allow_unused=True))
    torch.testing.assert_close(*grads, rtol=0, atol=0)
