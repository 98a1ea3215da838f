"""The collection, against implementations of the papers' equations that share nothing with it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fused_rnn
from fused_rnn import zoo

STEPS, BATCH, INPUT, HIDDEN = 7, 3, 4, 5


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def array(tensor):
    return tensor.detach().numpy()


class Weights:
    """The weights of a layer by gate: ``w.x[g]``, ``w.h[g]`` and both biases."""

    def __init__(self, layer):
        gates = layer.cell.gates
        self.x = array(layer.weight_ih_l0).reshape(gates, HIDDEN, INPUT)
        self.b = array(layer.bias_ih_l0).reshape(gates, HIDDEN)
        if layer.cell.recurrent:
            self.h = array(layer.weight_hh_l0).reshape(gates, HIDDEN, HIDDEN)
            self.b_h = array(layer.bias_hh_l0).reshape(gates, HIDDEN)
        self.own = {name: array(getattr(layer, f"{name}_l0")) for name in layer.cell.params}

    def of_x(self, gate, x):
        return x @ self.x[gate].T + self.b[gate]

    def of_h(self, gate, h):
        return h @ self.h[gate].T + self.b_h[gate]

    def both(self, gate, x, h):
        return self.of_x(gate, x) + self.of_h(gate, h)


def zeros():
    return np.zeros((BATCH, HIDDEN))


def peephole_lstm(w, xs):
    h, c = zeros(), zeros()
    for x in xs:
        enter = sigmoid(w.both(0, x, h) + w.own["p_i"] * c)
        forget = sigmoid(w.both(1, x, h) + w.own["p_f"] * c)
        new = forget * c + enter * np.tanh(w.both(2, x, h))
        h, c = sigmoid(w.both(3, x, h) + w.own["p_o"] * new) * np.tanh(new), new
        yield h


def cifg_lstm(w, xs):
    h, c = zeros(), zeros()
    for x in xs:
        forget, enter = sigmoid(w.both(0, x, h)), sigmoid(-w.both(0, x, h))
        c = forget * c + enter * np.tanh(w.both(1, x, h))
        h = sigmoid(w.both(2, x, h)) * np.tanh(c)
        yield h


def janet(w, xs):
    h = zeros()
    for x in xs:
        s = w.both(0, x, h)
        h = sigmoid(s) * h + sigmoid(1 - s) * np.tanh(w.both(1, x, h))
        yield h


def mgu(w, xs):
    h = zeros()
    for x in xs:
        forget = sigmoid(w.both(0, x, h))
        h = h + forget * (np.tanh(w.of_x(1, x) + forget * w.of_h(1, h)) - h)
        yield h


def ugrnn(w, xs):
    h = zeros()
    for x in xs:
        keep, candidate = sigmoid(w.both(0, x, h)), np.tanh(w.both(1, x, h))
        h = candidate + keep * (h - candidate)
        yield h


def ligru(w, xs):
    h = zeros()
    for x in xs:
        candidate, z = np.maximum(w.both(0, x, h), 0), sigmoid(w.both(1, x, h))
        h = z * h + (1 - z) * candidate
        yield h


def indrnn(w, xs):
    h = zeros()
    for x in xs:
        h = np.maximum(w.of_x(0, x) + h @ np.diag(w.own["u"]), 0)
        yield h


def sru(w, xs):
    c = zeros()
    for x in xs:
        forget = sigmoid(w.of_x(1, x) + w.own["v_f"] * c)
        reset = sigmoid(w.of_x(2, x) + w.own["v_r"] * c)
        c = c * forget + (w.of_x(0, x) - w.of_x(0, x) * forget)
        yield w.of_x(3, x) + reset * (c - w.of_x(3, x))


def qrnn(w, xs):
    """c_t is a sum over all earlier steps, each times the forget gates since."""
    z, forget, out = (f(w.of_x(g, xs)) for g, f in enumerate((np.tanh, sigmoid, sigmoid)))
    for t in range(len(xs)):
        kept = [np.prod(forget[s + 1 : t + 1], axis=0) * (1 - forget[s]) * z[s] for s in range(t + 1)]
        yield out[t] * sum(kept)


def scan_of_logarithms(log_keep, log_new):
    """h_t = keep_t h_{t-1} + new_t from h = 0, all steps at once: the parallel form of the paper."""
    sums = log_keep.cumsum(0)
    return (sums + (log_new - sums).logcumsumexp(0)).exp()


def log_positive(x):
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))


def min_gru(w, xs):
    k, n = (torch.tensor(w.of_x(g, xs)) for g in range(2))
    yield from scan_of_logarithms(-F.softplus(k), -F.softplus(-k) + log_positive(n)).numpy()


def min_lstm(w, xs):
    f, i, n = (torch.tensor(w.of_x(g, xs)) for g in range(3))
    difference = F.softplus(-f) - F.softplus(-i)
    yield from scan_of_logarithms(-F.softplus(difference), -F.softplus(-difference) + log_positive(n)).numpy()


def slstm(w, xs):
    """Without the stabiliser, which cancels."""
    h, c, n = zeros(), zeros(), zeros()
    for x in xs:
        enter, forget = np.exp(w.both(0, x, h)), sigmoid(w.both(1, x, h))
        c, n = forget * c + enter * np.tanh(w.both(2, x, h)), forget * n + enter
        h = sigmoid(w.both(3, x, h)) * c / n
        yield h


INDEPENDENT = {name: globals()[name] for name in zoo.__all__}


@pytest.mark.parametrize("name", zoo.__all__)
def test_the_papers_equations(name):
    layer = getattr(zoo, name).layer(INPUT, HIDDEN, dtype=torch.float64, compiled=False)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64) * 2
    expected = torch.tensor(np.stack(list(INDEPENDENT[name](Weights(layer), array(x)))))
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", zoo.__all__)
def test_extreme_inputs_stay_finite(name):
    layer = getattr(zoo, name).layer(INPUT, HIDDEN, compiled=False)
    x = (torch.randn(STEPS, BATCH, INPUT).sign() * 1e4).requires_grad_()
    output, _ = layer(x)
    output.sum().backward()
    assert output.isfinite().all() and x.grad.isfinite().all()


def test_each_names_its_paper():
    for name in zoo.__all__:
        cell = getattr(zoo, name)
        assert isinstance(cell, fused_rnn.OwnCell) and cell.name == name
        assert any(f", {year}" in cell.__doc__ for year in range(1997, 2027)), name
