"""Cells of one's own on CUDA: the PTX of their plug-ins, executed by the machine (ptx/), against the reference."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import reference, zoo
from fused_rnn.autograd import functions
from fused_rnn.own.cell import OwnCell
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.own_cells import CELLS, ROWS, differentiable, outputs_and_gradients, own_cell, random_layer, with_dropout

pytestmark = pytest.mark.usefixtures("machine")
F64 = torch.float64


@fused_rnn.cell(gates=8, states=("h", "s"), params=("p",), initial={"h": 0.25, "s": -0.5})
def many_gates(x, r, h, s, *, p):
    a, b, c, d, e, f, g, i = x + r
    s = torch.sigmoid(a) * s + torch.tanh(b) * torch.exp(-c.abs()) + 0.1 * d * x[3] * r[3]
    return torch.tanh(s + p * h) * torch.sigmoid(e + f) + 0.1 * torch.maximum(g, i), s


FORMULAS = {"peephole": zoo.peephole_lstm, "slstm": zoo.slstm, "indrnn": zoo.indrnn, "many_gates": many_gates}


def assert_as_reference(layer, tolerance=1e-11):
    found = outputs_and_gradients(functions.run_layer, layer)
    expected = outputs_and_gradients(reference.run_layer, layer)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- layers of the cells in tests/cells ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients(name, rows):
    for given in (True, False):
        assert_as_reference(random_layer(own_cell(name), rows, given=given, bias=given))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("hidden", "batch", "steps"), [(1, 1, 1), (33, 1, 3), (7, 3, 1), (5, 0, 3), (130, 2, 2)])
def test_sizes(name, hidden, batch, steps):
    assert_as_reference(random_layer(own_cell(name), hidden=hidden, batch=batch, steps=steps, given=False))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("rows", ["packed", "lengths and reset"])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_in_the_loop(name, rows, training):
    assert_as_reference(with_dropout(random_layer(own_cell(name), rows, given=training), training))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dropout", [None, "training", "evaluation"])
def test_second_derivatives(name, dropout):
    """Of both passes, by the kernels for tangents: forward mode, and the gradient of a gradient."""
    cell = own_cell(name)
    layer = random_layer(cell, "lengths and reset", hidden=3, directions=1)
    if dropout is not None:
        layer = with_dropout(layer, dropout == "training")
    tensors = [t.detach() for t in differentiable(layer)]
    changes = [torch.randn_like(t) for t in tensors]

    def of(run_layer):
        def run(input, h0, *rest):
            c0, weights = (rest[0], rest[1:]) if layer.c0 is not None else (None, rest)
            own = layer._replace(input=input, h0=h0, c0=c0, weights=tuple(weights))
            return [t for t in run_layer(own, cell.states > 1) if t.numel()]

        inputs = [t.clone().requires_grad_() for t in tensors]
        # sLSTM's m, kept by zoneout, is infinite.
        finite = [t[t.isfinite()] for t in run(*inputs)]
        first = torch.autograd.grad(sum(t.square().sum() for t in finite), inputs, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), inputs)
        return [*torch.func.jvp(run, tuple(tensors), tuple(changes))[1], *second]

    torch.testing.assert_close(of(functions.run_layer), of(reference.run_layer), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["wide_cell", "slstm"])
def test_dtypes(name, dtype):
    wide = random_layer(own_cell(name), "lengths and reset", hidden=5, given=False)
    narrow = [t.detach().to(dtype).requires_grad_() for t in differentiable(wide)]
    exact = [t.detach().double().requires_grad_() for t in narrow]
    found, expected = (
        torch.cat([t.double()[t.isfinite()].flatten() for t in outputs_and_gradients(run, wide._replace(**given))])
        for run, given in (
            (functions.run_layer, {"input": narrow[0], "weights": tuple(narrow[1:])}),
            (reference.run_layer, {"input": exact[0], "weights": tuple(exact[1:])}),
        )
    )
    assert relative_error(found, expected) <= TOLERANCE[dtype]


# ---- layers of cells in Python ---------------------------------------------------------------------------------------


@pytest.fixture
def not_on_the_cpu(monkeypatch):
    """Layers are made without their kernels for the CPU."""
    monkeypatch.setattr(OwnCell, "load", lambda *_: None)


@pytest.mark.usefixtures("not_on_the_cpu")
@pytest.mark.parametrize("name", FORMULAS)
def test_layers(name):
    options = {"num_layers": 2, "bidirectional": True, "dtype": F64}
    layer = FORMULAS[name].layer(3, 5, **options)
    twin = FORMULAS[name].layer(3, 5, **options, compiled=False)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(4, 3, 3, dtype=F64)
    resets = torch.rand(4, 3) < 0.4
    packed = pack_padded_sequence(x, [2, 4, 1], enforce_sorted=False)
    for input, masks in [
        (x, {}),
        (x, {"lengths": [4, 0, 2], "reset_mask": resets}),
        (x[:1, :1], {}),
        (packed, {"grad_clip": 0.1, "reset_mask": resets}),
    ]:
        found, expected = (results(module, input, masks) for module in (layer, twin))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def results(module, input, masks):
    """Of a call for gradients, and of one without."""
    module.zero_grad()
    output, states = module(input, **masks)
    data = output.data if isinstance(output, tuple) else output
    data.square().sum().backward()
    with torch.no_grad():
        again, last = module(input, **{name: mask for name, mask in masks.items() if name != "grad_clip"})
    states = [*(states if isinstance(states, tuple) else (states,)), *(last if isinstance(last, tuple) else (last,))]
    again = again.data if isinstance(again, tuple) else again
    return [data, again, *states, *(p.grad for p in module.parameters())]


@pytest.mark.usefixtures("not_on_the_cpu")
def test_norms_of_all_states():
    """gradient_flow's, against the gradients of the very tensors that the function returns, which its h depends on."""
    layer = zoo.slstm.layer(3, 5, dtype=F64)
    x = torch.randn(3, 2, 3, dtype=F64)
    with fused_rnn.gradient_flow(layer) as flow:
        layer(x)[0][-1].sum().backward()
    ((_, found),) = flow.norms()
    zeros = torch.zeros(2, 5, dtype=F64)
    states, kept = (zeros, zeros, zeros, zeros - torch.inf), []
    for t in range(3):
        from_x = torch.nn.functional.linear(x[t], layer.weight_ih_l0, layer.bias_ih_l0)
        from_h = torch.nn.functional.linear(states[0], layer.weight_hh_l0, layer.bias_hh_l0)
        states = zoo.slstm(from_x.view(2, 4, 5).transpose(0, 1), from_h.view(2, 4, 5).transpose(0, 1), *states)
        kept += states
    expected = torch.autograd.grad(kept[-4].sum(), kept, allow_unused=True)
    norms = torch.tensor([0.0 if grad is None else float(grad.norm()) for grad in expected], dtype=F64)
    torch.testing.assert_close(found[0].T.flatten(), norms, rtol=1e-9, atol=1e-12)


def test_an_unknown_cell_is_named():
    with pytest.raises(RuntimeError, match="no cell with the id 1099511627777 is loaded: define it"):
        torch.ops.fused_rnn_emulated.layer_forward(
            (1 << 40) + 1, False, False, torch.randn(2, 1, 3), None, None, [], None, None, None, False, False
        )
