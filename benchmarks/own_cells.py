"""Cells of your own: the collection against the same step in a Python loop, LSTM and GRU against the built-in ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import fused_rnn
from fused_rnn import zoo

from .features import Feature, Run

SHAPES = ((100, 16, 128), (100, 1, 512))  # steps, batch, units
LARGEST_COST = 1.05  # of an own LSTM or GRU, as times of the built-in one


@fused_rnn.cell(gates=4, states=("h", "c"))
def own_lstm(x: Any, r: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = x + r
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@fused_rnn.cell(gates=3, states=("h",))
def own_gru(x: Any, r: Any, h: Tensor) -> Tensor:
    x_r, x_z, x_n = x
    r_r, r_z, r_n = r
    z = torch.sigmoid(x_z + r_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + r_r) * r_n)
    return (1 - z) * n + z * h


BUILT_IN = ((own_lstm, fused_rnn.LSTM), (own_gru, fused_rnn.GRU))


def features(full: bool = False) -> list[Feature]:
    """``full``: with torch.compile's loop, which takes minutes to compile."""
    found = []
    for (cell, built_in), shape, mode in product(BUILT_IN, SHAPES, ("inference", "training")):
        name = f"{built_in.__name__} {mode}, {_shown(shape)}"
        build = lambda c=cell, b=built_in, s=shape, m=mode: _beside_built_in(c, b, s, m)  # noqa: E731
        found.append(Feature(name, build, LARGEST_COST))
    for name, shape, mode in product(zoo.__all__, SHAPES, ("inference", "training")):
        build = lambda n=name, s=shape, m=mode: _beside_loops(getattr(zoo, n), s, m, full)  # noqa: E731
        found.append(Feature(f"{name} {mode}, {_shown(shape)}", build))
    return found


def _shown(shape: tuple[int, int, int]) -> str:
    return "T{} B{} H{}".format(*shape)


def _beside_built_in(
    cell: fused_rnn.OwnCell, built_in: Callable, shape: tuple[int, int, int], mode: str
) -> dict[str, Run]:
    steps, batch, hidden = shape
    theirs, ours = built_in(hidden, hidden), cell.layer(hidden, hidden)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, hidden)
    return {
        "built-in": _call(theirs, lambda x: theirs(x)[0], x, mode),
        "own": _call(ours, lambda x: ours(x)[0], x, mode),
    }


def _beside_loops(cell: fused_rnn.OwnCell, shape: tuple[int, int, int], mode: str, full: bool) -> dict[str, Run]:
    steps, batch, hidden = shape
    layer = cell.layer(hidden, hidden)
    x = torch.randn(steps, batch, hidden)
    runs = {
        "ours": _call(layer, lambda x: layer(x)[0], x, mode),
        "Python loop": _call(layer, loop(layer, ahead=False), x, mode),
        "Python loop, W_ih x ahead": _call(layer, loop(layer, ahead=True), x, mode),
    }
    if full:
        runs["compiled loop"] = _call(layer, torch.compile(loop(layer, ahead=False), dynamic=False), x, mode)
    return runs


def loop(layer: fused_rnn.OwnLayer, ahead: bool) -> Callable[[Tensor], Tensor]:
    """The layer's step, called by Python. ``ahead``: W_ih x of all steps is one product."""
    cell, hidden = layer.cell, layer.hidden_size
    params = {name: getattr(layer, f"{name}_l0") for name in cell.params}

    def gates(product: Tensor) -> Tensor:
        return product.unflatten(-1, (cell.gates, hidden)).movedim(-2, 0)

    def run(x: Tensor) -> Tensor:
        states = [x.new_full((x.shape[1], hidden), value) for value in cell.initial]
        outputs = []
        rows = linear(x, layer.weight_ih_l0, layer.bias_ih_l0) if ahead else x
        for row in rows.unbind(0):
            given = [gates(row if ahead else linear(row, layer.weight_ih_l0, layer.bias_ih_l0))]
            if cell.recurrent:
                given.append(gates(linear(states[0], layer.weight_hh_l0, layer.bias_hh_l0)))
            new = cell.function(*given, *states, **params)
            states = list(new) if isinstance(new, tuple) else [new]
            outputs.append(states[0])
        return torch.stack(outputs)

    return run


def _call(layer: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> Run:
    def infer() -> list[Tensor]:
        with torch.no_grad():
            return [run(x)]

    leaf, gradient = x.clone().requires_grad_(), torch.ones(x.shape)

    def train() -> list[Tensor]:
        output = run(leaf)
        return [output, *torch.autograd.grad(output, [leaf, *layer.parameters()], gradient)]

    return train if mode == "training" else infer
