"""Cells that are registered at run time, from the headers of tests/cells."""

import math
from functools import cache

import torch

from fused_rnn.ops.cells import Row
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
