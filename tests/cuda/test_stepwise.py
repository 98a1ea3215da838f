"""The stepwise CUDA engine, its kernels' PTX run by the machine (ptx/): against the reference, and the CPU engine."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import BY_ID, CELLS
from fused_rnn.ops.layer import Wanted, weight_kinds
from fused_rnn.tools.verify import TOLERANCE, Case, relative_error
from support.cuda import SCHEDULES, examples, stepwise_cases
from support.problems import SIXTEEN_BITS, assert_equals_reference, assert_near, problem_of

pytestmark = pytest.mark.usefixtures("machine")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@given(case=stepwise_cases, strided=st.booleans(), empty_rows=st.booleans(), schedule=st.sampled_from(SCHEDULES))
@examples(5)
def test_equals_reference(machine, name, dtype, case, strided, empty_rows, schedule):
    machine.schedule(schedule)
    assert_equals_reference(name, case, dtype, strided, empty_rows)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
@given(
    count=st.integers(1, 3),
    steps=st.integers(1, 4),
    batch=st.integers(1, 4),
    ragged=st.booleans(),
    ensemble=st.booleans(),
    schedule=st.sampled_from(SCHEDULES),
)
@examples(5)
def test_vmapped_gradients(machine, name, count, steps, batch, ragged, ensemble, schedule):
    """Over weights and inputs (an ensemble), and over inputs alone (per-sample gradients)."""
    machine.schedule(schedule)
    dtype = torch.float64
    problem = problem_of(CELLS[name], Case("random", steps, batch, 3, 5, states=False, lengths=ragged), dtype)
    inputs = torch.stack([problem.tensors[0] * (1 + i) / 2 for i in range(count)])
    weights = tuple(problem.tensors[1:])
    if ensemble:
        weights = tuple(torch.stack([w * (2 + i) / 3 for i in range(count)]) for w in weights)

    def loss(weights, input, api):
        output, *_ = problem.call(api, [input, *weights])
        return (output * torch.linspace(-1, 1, output.numel()).view_as(output).to(output)).sum()

    gradients = grad(loss, argnums=(0, 1))
    found = vmap(lambda w, x: gradients(w, x, functional), (0 if ensemble else None, 0))(weights, inputs)
    for i in range(count):
        own = tuple(w[i] if ensemble else w for w in weights)
        expected = gradients(own, inputs[i], reference)
        assert_near([w[i] for w in found[0]] + [found[1][i]], [*expected[0], expected[1]], dtype)


# ---- the raw operators: arguments and results that modules do not use ------------------------------------------------

OPTIONS = (
    *("bidirectional", "bias", "projected", "states", "cells", "norms", "reset"),
    *("own_input", "own_lengths", "own_reset", "every_gradient", "recurrent_dropout"),
)
calls = st.builds(
    SimpleNamespace,
    steps=st.integers(1, 6),
    batch=st.integers(0, 6),
    input_size=st.integers(0, 5),
    hidden=st.integers(2, 6) | st.just(33),
    members=st.sampled_from([None, None, 1, 3]),
    rows=st.sampled_from(["padded", "lengths", "packed"]),
    groups=st.sampled_from([1, 2, 3, 6]),
    wanted=st.integers(0, 127) | st.just(127),
    zoneout=st.sampled_from([None, "masks", "shares"]),
    options=st.fixed_dictionaries(dict.fromkeys(OPTIONS, st.booleans())),
)


def value_by_value(saved, cell, hidden):
    """``saved`` in the CUDA engines' order. The CPU engine keeps everything of 16 units together."""
    blocks = saved[..., : cell.saved * hidden].split(16 * cell.saved, -1)
    kept = [block.unflatten(-1, (cell.saved, -1)) for block in blocks]
    return torch.cat([torch.cat(kept, -1).flatten(-2), saved[..., cell.saved * hidden :]], -1)


def run_operators(operators, cell, call, dtype):
    """All results of both operators as one list, for the same random numbers every time."""
    seed = torch.Generator().manual_seed(0)
    has = SimpleNamespace(**{"clip": False, "tokens": False} | call.options)
    members = () if call.members is None else (call.members,)
    directions, hidden, batch, steps = 1 + has.bidirectional, call.hidden, call.batch, call.steps
    width = hidden - 1 if has.projected and cell.projectable else hidden

    def random(*shape, own=True):
        numbers = torch.randn(*(members if own else ()), *shape, generator=seed, dtype=torch.float64)
        return (numbers * 0.6).to(dtype)

    def gate_rows(kind):
        return {
            Wanted.WEIGHT_IH: (cell.gates * hidden, call.input_size),
            Wanted.WEIGHT_HH: (cell.gates * hidden, width),
            Wanted.BIAS_IH: (cell.gates * hidden,),
            Wanted.BIAS_HH: (cell.gates * hidden,),
            Wanted.WEIGHT_HR: (width, hidden),
        }[kind]

    kinds = weight_kinds(cell, has.bias, width != hidden)
    weights = [random(*gate_rows(kind)) for kind in kinds * directions]
    rows, batch_sizes, lengths = (steps, batch), None, None
    if call.rows == "packed" and batch > 0:
        batch_sizes = torch.randint(1, batch + 1, (steps,), generator=seed).sort(descending=True).values
        rows, batch = (int(batch_sizes.sum()),), int(batch_sizes[0])
    input = random(*rows, call.input_size, own=has.own_input)
    if call.rows == "lengths":
        own = members if has.own_lengths else ()
        lengths = torch.randint(0, steps + 1, (*own, batch), generator=seed)
        if not (own and not has.own_input and members):  # padding may hold anything
            past_end = torch.arange(steps)[:, None] >= lengths[..., None, :]
            input[past_end.expand(input.shape[:-1])] = torch.nan
    wanted = call.wanted
    if has.tokens and call.input_size > 0:  # no gradient, and padding may hold anything
        padding, wanted = input.isnan().any(-1), wanted & ~1
        input = torch.randint(0, call.input_size, input.shape[:-1], generator=seed).masked_fill(padding, -1)
    own = members if has.own_reset else ()
    reset = torch.rand(*own, steps, batch, generator=seed) < 0.3 if has.reset else None
    h0 = random(directions, batch, width) if has.states else None
    c0 = random(directions, batch, hidden) if has.states and cell.states > 1 else None
    h_factor = random(directions, batch, width) if has.recurrent_dropout else None
    kept, shares = None, (None, None)
    if call.zoneout == "masks" and width == hidden:
        kept = torch.rand(*members, *rows, directions * cell.states * hidden, generator=seed) < 0.4
    elif call.zoneout == "shares" and width == hidden:
        shares = (0.25, 0.6)
    loop = (h_factor, kept, *shares)
    cells = has.cells and cell.states > 1
    layer = (cell.id, has.bias, has.bidirectional)
    masks = (lengths, batch_sizes, reset)
    outputs = operators.layer_forward(*layer, input, h0, c0, weights, *masks, True, cells, None, *loop)
    grads = [random(*o.shape[len(members) :]) if o.shape != (0,) else None for o in outputs[:4]]
    if not has.every_gradient:
        grads[::2] = None, None
    groups = call.groups if batch_sizes is None and batch % call.groups == 0 else 1
    clip = 0.1 if has.clip else None
    arguments = (input, h0, c0, weights, *masks, outputs[4], wanted, groups, has.norms, clip)
    *states, grad_weights = operators.layer_backward(*layer, *grads, *arguments, *loop)
    output, h_n, c_n, all_cells, saved = outputs
    if operators is torch.ops.fused_rnn and width == hidden:
        saved = value_by_value(saved, cell, hidden)
    return [output, h_n, c_n, all_cells, saved, *states, *grad_weights]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", BY_ID.values(), ids=lambda cell: cell.name)
@given(call=calls, schedule=st.sampled_from(SCHEDULES))
@examples(5)
def test_operators_equal_those_of_the_cpu(machine, cell, dtype, call, schedule):
    machine.schedule(schedule)
    found = run_operators(torch.ops.fused_rnn_emulated, cell, call, dtype)
    expected = run_operators(torch.ops.fused_rnn, cell, call, dtype)
    tolerance = TOLERANCE[dtype]
    if dtype in SIXTEEN_BITS:  # rounded equally often, but in other places
        found, expected = ([torch.cat([t.flatten().double() for t in side])] for side in (found, expected))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one.shape, one.dtype) == (other.shape, other.dtype), f"result {i}"
        assert relative_error(one, other) <= tolerance, f"result {i}"


@pytest.mark.parametrize("options", [{"clip": True}, {"tokens": True}, {"clip": True, "tokens": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cell", BY_ID.values(), ids=lambda cell: cell.name)
@given(call=calls, schedule=st.sampled_from(SCHEDULES))
@examples(5)
def test_clipped_gradients_and_ids(machine, cell, dtype, options, call, schedule):
    machine.schedule(schedule)
    call = SimpleNamespace(**vars(call) | {"options": call.options | options})
    found, expected = (
        run_operators(operators, cell, call, dtype) for operators in (torch.ops.fused_rnn_emulated, torch.ops.fused_rnn)
    )
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one.shape, one.dtype) == (other.shape, other.dtype), f"result {i}"
        assert relative_error(one, other) <= TOLERANCE[dtype], f"result {i}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cell", BY_ID.values(), ids=lambda cell: cell.name)
def test_every_schedule_gives_the_same_bits(machine, cell, dtype):
    call = SimpleNamespace(steps=5, batch=6, input_size=5, hidden=33, members=2, rows="lengths", groups=2, wanted=127)
    call.zoneout, call.options = "masks", dict.fromkeys(OPTIONS, True) | {"own_lengths": False}
    runs, orders = [], len(machine.orders)
    for schedule in (*range(orders), *range(2 * orders, 3 * orders)):  # that cut the sequence alike
        machine.schedule(schedule)
        runs.append(run_operators(torch.ops.fused_rnn_emulated, cell, call, dtype))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_many_rows_are_summed_in_pieces():
    layer = fused_rnn.GRU(2, 3, dtype=torch.float64)
    expected = fused_rnn.GRU(2, 3, dtype=torch.float64)
    expected.load_state_dict(layer.state_dict())
    input = torch.randn(60, 7, 2, dtype=torch.float64)
    layer(input)[0].sum().backward()
    reference.gru(input, None, list(expected.parameters()))[0].sum().backward()
    for one, other in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_inference(name):
    module = getattr(fused_rnn, name)(4, 5, num_layers=2, bidirectional=True, dtype=torch.float64)
    input = torch.randn(6, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        found = module(input)[0]
    torch.testing.assert_close(found, module(input)[0].detach())


def test_verify():
    report = fused_rnn.verify(quick=True, show_progress=False)
    assert report.passed, str(report)
