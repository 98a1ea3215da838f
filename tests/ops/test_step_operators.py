"""The operators of a single step are layer_forward and layer_backward of one step; cells train through them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fused_rnn
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.layer import ONE_STEP, Layer, Wanted, stack_code, weight_kinds
from fused_rnn.tools.verify import TOLERANCE, relative_error

pytestmark = pytest.mark.usefixtures("no_reference")
operators = torch.ops.fused_rnn


def make_step(cell, batch, inputs, hidden, bias, with_states, dtype):
    shapes = [(cell.gates * hidden, inputs), (cell.gates * hidden, hidden), *[(cell.gates * hidden,)] * 2 * bias]
    weights = [0.5 * torch.randn(shape, dtype=dtype) for shape in shapes]
    states = [torch.randn(batch, hidden, dtype=dtype) for _ in range(cell.states)] if with_states else []
    h0, c0 = (*states, None, None)[:2]
    return stack_code(cell.id, 1, bias, False, ONE_STEP), torch.randn(batch, inputs, dtype=dtype), h0, c0, weights


def as_sequence(tensor):
    return None if tensor is None else tensor.unsqueeze(0)


@given(
    cell=st.sampled_from(list(CELLS.values())),
    batch=st.integers(0, 9),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    bias=st.booleans(),
    with_states=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    wanted=st.integers(0, 31),
)
@torch.no_grad()
def test_a_step_is_a_sequence_of_one(cell, batch, sizes, bias, with_states, dtype, wanted):
    code, input, h0, c0, weights = make_step(cell, batch, *sizes, bias, with_states, dtype)
    layer = Layer.plain(cell.id, bias, False, *map(as_sequence, (input, h0, c0)), tuple(weights))
    *states, saved = operators.step_forward(code, input, h0, c0, weights)
    _, h_n, c_n, _, whole_saved = layer.forward(save=True, cells=False)
    assert torch.equal(states[0], h_n[0])
    assert all(torch.equal(c, c_n[0]) for c in states[1:])
    assert torch.equal(saved.flatten(), whole_saved.flatten())

    grads = [torch.randn_like(state) for state in states]
    grad_h, grad_c = (*grads, None)[:2]
    found = operators.step_backward(code, grad_h, grad_c, input, h0, c0, weights, saved, wanted)
    layers_grads = (None, as_sequence(grad_h), as_sequence(grad_c), None)
    to_input, to_h0, to_c0, _, *to_weights = layer.backward(layers_grads, whole_saved, wanted, 1, False)
    asked = [wanted & Wanted.INPUT, with_states, with_states and cell.states > 1]
    asked += [wanted & kind for kind in weight_kinds(cell, bias)]
    expected = [to_input.squeeze(0), to_h0.squeeze(0), to_c0.squeeze(0), *to_weights]
    expected = [grad for grad, is_asked in zip(expected, asked, strict=True) if is_asked]
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("sizes", [(3, 4), (33, 70), (130, 64)])
@pytest.mark.parametrize("frozen", [None, "weight_hh", "bias_ih", "input"])
def test_loops_of_cells_train_as_torchs(name, batch, sizes, frozen):
    ours, theirs = (getattr(library, name)(*sizes, dtype=torch.float64) for library in (fused_rnn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, batch, sizes[0], dtype=torch.float64)
    results = []
    for cell in (ours, theirs):
        leaf = x.clone().requires_grad_(frozen != "input")
        for parameter_name, parameter in cell.named_parameters():
            parameter.requires_grad_(parameter_name != frozen)
        state, outputs = None, []
        for step in leaf:
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        loss = torch.stack(outputs).square().sum()
        leaves = [t for t in (leaf, *cell.parameters()) if t.requires_grad]
        loss.backward(retain_graph=True)
        once = [t.grad.clone() for t in leaves]
        loss.backward()
        results.append([*outputs, *once, *(t.grad for t in leaves)])
    for own, other in zip(*results, strict=True):
        assert relative_error(own, other) < TOLERANCE[torch.float64]


def test_a_cell_reports_weights_changed_in_place_before_backward():
    cell, x = fused_rnn.GRUCell(3, 4), torch.randn(2, 3)
    h = cell(x, cell(x))
    with torch.no_grad():
        cell.weight_hh.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_a_state_of_an_lstm_cell_that_no_loss_reaches():
    cell, x = fused_rnn.LSTMCell(3, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    theirs = torch.nn.LSTMCell(3, 4, dtype=torch.float64)
    theirs.load_state_dict(cell.state_dict())
    for k in (0, 1):
        found, expected = (torch.autograd.grad(m(x)[k].sum(), list(m.parameters())) for m in (cell, theirs))
        torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("cell", CELLS.values(), ids=lambda cell: cell.name)
def test_shapes_without_data(cell, with_states):
    arguments = make_step(cell, 5, 3, 4, True, with_states, torch.float32)
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(operators.step_forward.default, arguments, **checks)
    code, input, h0, c0, weights = arguments
    *states, saved = operators.step_forward(*arguments)
    grads = (*states, None)[:2]
    for wanted in (0, 31):
        arguments = (code, *grads, input, h0, c0, weights, saved, wanted)
        torch.library.opcheck(operators.step_backward.default, arguments, **checks)


def test_they_refuse_to_lose_a_gradient():
    arguments = make_step(CELLS["gru"], 5, 3, 4, True, False, torch.float32)
    with pytest.raises(RuntimeError, match="have no gradient: call a cell"):
        operators.step_forward(*arguments)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: stack_code(1, 1, True, False, 0)}, "a single step is one layer's"),
        ({0: stack_code(1, 2, True, False, ONE_STEP)}, "a single step is one layer's"),
        ({0: stack_code(1, 1, True, True, ONE_STEP)}, "a single step is one layer's"),
        ({1: torch.zeros(1, 5, 3)}, r"input must be \[B, I\], got \[1, 5, 3\]"),
        ({1: torch.zeros(5, 3, dtype=torch.int64)}, "of ids"),
        ({1: torch.zeros(5, 4)}, r"input must be \[5, 3\]"),
        ({2: torch.zeros(1, 5, 4)}, r"h0 must be \[5, 4\]"),
        ({3: torch.zeros(5, 4)}, "no second state"),
    ],
)
def test_what_is_refused(change, message):
    arguments = list(make_step(CELLS["gru"], 5, 3, 4, True, False, torch.float32))
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        operators.step_forward(*arguments)


@pytest.mark.parametrize("used", [0, 1])
def test_hooks_on_states_that_no_loss_reaches_are_not_called(used):
    cell, x, called = fused_rnn.LSTMCell(3, 4), torch.randn(3, 2, 3), []
    states = None
    for step in x:
        states = cell(step, states)
        for k, state in enumerate(states):
            state.register_hook(lambda grad, k=k: called.append(k) or grad.clamp(-1, 1))
    states[used].sum().backward()
    assert sorted(called) == sorted([0, 1] * 2 + [used])


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_batched_and_forward_mode_derivatives_of_a_cells_gradient(name):
    cell = getattr(fused_rnn, name)(3, 4, dtype=torch.float64)
    x, h0 = torch.randn(2, 3, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)

    def h(x):
        states = cell(x, (h0, h0) if name == "LSTMCell" else h0)
        return states[0] if isinstance(states, tuple) else states

    jacobians = [torch.autograd.functional.jacobian(h, x, vectorize=vectorize) for vectorize in (True, False)]
    torch.testing.assert_close(*jacobians)
    leaf = x.clone().requires_grad_()
    output, vectors = h(leaf), torch.randn(5, 2, 4, dtype=torch.float64)
    batched = torch.autograd.grad(output, leaf, vectors, is_grads_batched=True, retain_graph=True)[0]
    by_vmap = torch.vmap(lambda v: torch.autograd.grad(output, leaf, v, retain_graph=True)[0])(vectors)
    one_by_one = torch.stack([torch.autograd.grad(output, leaf, v, retain_graph=True)[0] for v in vectors])
    torch.testing.assert_close(batched, one_by_one)
    torch.testing.assert_close(by_vmap, one_by_one)
    torch.autograd.gradcheck(h, leaf, check_batched_grad=True)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(vectors[0], vectors[1])
        (grad,) = torch.autograd.grad(output, leaf, dual)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(grad).tangent, one_by_one[1])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
def test_compiled_autograd_takes_a_cell():
    cell, x = fused_rnn.GRUCell(3, 4), torch.randn(2, 3)
    expected = torch.autograd.grad(cell(x).square().sum(), list(cell.parameters()))
    loss = cell(x).square().sum()
    with torch._dynamo.compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager", fullgraph=True)):
        loss.backward()
    torch.testing.assert_close([p.grad for p in cell.parameters()], list(expected))
    torch._dynamo.reset()
