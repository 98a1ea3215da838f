"""Cells that are registered at run time, from the headers of tests/cells, and random layers of them."""

import math
from functools import cache

import torch

from fused_rnn.ops.cells import Row
from fused_rnn.ops.layer import Layer, weight_kinds
from fused_rnn.ops.layer import Wanted as W
from fused_rnn.ops.library import CellTraits
from fused_rnn.own.register import register
from support.paths import TESTS


def peephole_lstm_step(x, r, h, c, params):
    i, f, g, o = (x + r).chunk(4, -1)
    p_i, p_f, p_o = params
    c_next = (f + p_f * c).sigmoid() * c + (i + p_i * c).sigmoid() * g.tanh()
    return (o + p_o * c_next).sigmoid() * c_next.tanh(), c_next


def min_gru_step(x, r, h):
    z, n = x.chunk(2, -1)
    return ((1 - z.sigmoid()) * h + z.sigmoid() * n,)


def slstm_step(x, r, h, c, n, m):
    i, f, g, o = (x + r).chunk(4, -1)
    m_next = torch.maximum(f + m, i)
    enter, forget = (i - m_next).exp(), (f + m - m_next).exp()
    c_next, n_next = forget * c + enter * g.tanh(), forget * n + enter
    return o.sigmoid() * c_next / n_next, c_next, n_next, m_next


def wide_cell_step(x, r, h, s, q, params):
    x, r = x.chunk(6, -1), r.chunk(6, -1)
    a, b = (x[0] + r[0] + params[0] * s).sigmoid(), (x[1] + r[1]).tanh()
    e = (x[2] + r[2] + params[1] * q).sigmoid()
    s_next = a * s + (1 - a) * b + 0.1 * (x[3] + 0.5 * r[3])
    return 0.5 * h + s_next.tanh() * e + 0.1 * x[5] * r[5], s_next, e * q + 0.2 * (x[4] - r[4]).tanh()


# By name: struct, step, names of the states, their beginning, and the traits in the order of CellTraits.
CELLS = {
    "peephole_lstm": ("PeepholeLstm", peephole_lstm_step, "hc", (), (4, 2, 4, 3, 4, True, False, True, True)),
    "min_gru": ("MinGru", min_gru_step, "h", (), (2, 1, 2, 0, 2, False, True, False, True)),
    "slstm": ("Slstm", slstm_step, "hcnm", (0, 0, 0, -math.inf), (4, 4, 4, 0, 4, True, False, False, True)),
    "wide_cell": ("WideCell", wide_cell_step, "hsq", (0.5, 0, -1), (6, 3, 7, 2, 3, True, True, False, False)),
}


def header_of(name):
    struct = CELLS[name][0]
    text = (TESTS / f"cells/{name}.h").read_text()
    return f"{text}namespace fused_rnn {{ namespace {{ using Own = {struct}; }} }}\n"


@cache
def own_cell(name):
    _, step, states, initial, traits = CELLS[name]
    row = Row(name, state_names=tuple(states), initial=initial)
    return register(row, CellTraits(*traits), header_of(name), step)


# ---- layers ----------------------------------------------------------------------------------------------------------

F64 = torch.float64
STEPS, BATCH, INPUT = 5, 4, 3
LENGTHS = torch.tensor([5, 4, 0, 1])
RESET = torch.rand(STEPS, BATCH, generator=torch.Generator().manual_seed(0)) < 0.4
ROWS = {
    "padded": {},
    "lengths": {"lengths": LENGTHS},
    "packed": {"batch_sizes": torch.tensor([4, 3, 2, 2, 1])},
    "lengths and reset": {"lengths": LENGTHS, "reset_mask": RESET},
}


def weights_of(cell, hidden, inputs=INPUT, bias=True, directions=1, members=(), dtype=F64):
    gate_rows = cell.gates * hidden
    shapes = {W.WEIGHT_IH: (gate_rows, inputs), W.WEIGHT_HH: (gate_rows, hidden), W.PARAMETERS: (cell.params, hidden)}
    kinds = weight_kinds(cell, bias) * directions
    return [torch.randn(*members, *shapes.get(kind, (gate_rows,)), dtype=dtype).mul(0.5) for kind in kinds]


def random_layer(cell, rows="padded", hidden=6, given=True, bias=True, directions=2, batch=BATCH, steps=STEPS):
    masks = {"lengths": None, "batch_sizes": None, "reset_mask": None}
    masks |= {name: mask.clone() for name, mask in ROWS[rows].items()}  # which the machine knows the memory of
    further = (cell.states - 1) * hidden
    input = torch.randn(12, INPUT, dtype=F64) if rows == "packed" else torch.randn(steps, batch, INPUT, dtype=F64)
    h0 = torch.randn(directions, batch, hidden, dtype=F64) if given else None
    # n of an sLSTM is a sum of exponentials.
    c0 = torch.rand(directions, batch, further, dtype=F64) + 0.5 if given and further else None
    weights = weights_of(cell, hidden, bias=bias, directions=directions)
    layer = Layer.plain(cell.id, bias, directions == 2, input, h0, c0, weights=tuple(weights), **masks)
    for tensor in differentiable(layer):
        tensor.requires_grad_()
    return layer


def with_dropout(layer, training=True):
    """With recurrent dropout, where there is a W_hh, and zoneout."""
    cell, directions, hidden, *_, rows = layer.sizes
    batch = rows[-1] if layer.batch_sizes is None else int(layer.batch_sizes[0])
    if cell.recurrent:
        layer = layer._replace(h_factor=torch.rand(directions, batch, hidden, dtype=F64).round() * 2)
    if training:
        return layer._replace(zoneout_mask=torch.rand(*rows, directions * cell.states * hidden) < 0.4)
    return layer._replace(zoneout_h=0.25, zoneout_c=0.5)


def differentiable(layer):
    return [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]


def outputs_and_gradients(run_layer, layer):
    outputs = [t for t in run_layer(layer, cells=own_states(layer) > 1) if t.shape != (0,)]  # those are not asked for
    seed = torch.Generator().manual_seed(2)
    grads = [torch.randn(t.shape, generator=seed, dtype=F64).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, differentiable(layer), grads)]


def own_states(layer):
    return layer.sizes[0].states
