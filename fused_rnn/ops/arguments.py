"""From what a user passes to layers: checks, packing, batch_first, states, dropout between layers, autocast.

Written once, for any function that runs one layer: the compiled operators (:mod:`fused_rnn.functional`) and the plain
reference (:mod:`fused_rnn.reference`). Messages and exception types are those of ``torch.nn`` where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import refusals
from .cells import BY_ID, CELLS, Cell
from .checks import (
    Options,
    check_state_dtypes,
    checked_grad_clip,
    h0_and_c0,
    in_one_dtype,
    states_of,
    weight_layout,
)
from .layer import Layer
from .sequences import check_sizes, enter_packed, enter_padded

# (layer, whether the second state after every step is wanted) -> output, h_n, c_n, that state
RunLayer = Callable[[Layer, bool], tuple[Tensor, Tensor, Tensor, Tensor]]
_NONLINEARITIES = {cell.nonlinearity: cell for cell in BY_ID if cell.nonlinearity is not None}


def lstm(run_layer: RunLayer, input, hx, weights, *, return_cells: bool = False, **options):
    output, h_n, c_n, *cells = run(run_layer, CELLS["lstm"], input, hx, weights, return_cells, **options)
    return output, (h_n, c_n), *cells


def gru(run_layer: RunLayer, input, hx, weights, **options):
    return run(run_layer, CELLS["gru"], input, hx, weights, **options)[:2]


def rnn(run_layer: RunLayer, input, hx, weights, *, nonlinearity: str = "tanh", **options):
    return run(run_layer, rnn_cell(nonlinearity), input, hx, weights, **options)[:2]


def rnn_cell(nonlinearity: str) -> Cell:
    if nonlinearity not in _NONLINEARITIES:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return _NONLINEARITIES[nonlinearity]


def run(run_layer: RunLayer, cell: Cell, input, hx, weights, cells: bool = False, /, **options):
    """A stack of layers: (output, h_n, c_n), c_n empty for cells of one state; with ``cells`` the last layer's too."""
    try:
        return _run(run_layer, cell, input, hx, weights, cells, **options)
    except Exception as error:
        masks = {what: options.get(what) for what in ("lengths", "reset_mask")}
        refusals.explain(error, cell.layer_name, input, hx=hx, weights=weights, **masks)
        raise


def _run(
    run_layer: RunLayer,
    cell: Cell,
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | Tensor | None,
    weights: Sequence[Tensor],
    with_cells: bool,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
) -> tuple:
    options = Options(cell.layer_name, cell, num_layers, bidirectional, batch_first)
    if grad_clip is not None:
        run_layer = partial(run_layer, grad_clip=checked_grad_clip(grad_clip))
    bias, kinds = weight_layout(options, weights)
    per_direction = len(kinds)
    enter = enter_packed if isinstance(input, PackedSequence) else enter_padded
    rows, states, leave = enter(options, input, hx, lengths, reset_mask)
    data, states, weights = in_one_dtype(rows.data, states, weights, rows.of_tokens)
    check_sizes(options, rows, states, weights, kinds)
    states = tuple(map(rows.sort, states))
    mask = rows.sort(rows.reset_mask)

    finals: list[tuple[Tensor, ...]] = []
    for k in range(num_layers):
        span = slice(k * options.directions, (k + 1) * options.directions)
        layer = Layer(
            cell.id,
            bias,
            bidirectional,
            data.contiguous(),  # here, so that what is kept for the backward pass is no view of the user's tensor
            *h0_and_c0(tuple(state[span] for state in states)),
            rows.lengths,
            rows.batch_sizes,
            mask,
            tuple(weights[span.start * per_direction : span.stop * per_direction]),
        )
        data, h_n, c_n, cells = run_layer(layer, with_cells and k + 1 == num_layers)
        finals.append((h_n, c_n))
        if training and dropout and k + 1 < num_layers:
            data = torch.dropout(data, dropout, True)
    h_n, c_n = finals[0] if len(finals) == 1 else (torch.cat(layers) for layers in zip(*finals, strict=True))
    return leave(data, h_n, c_n, *([cells] if with_cells else []))


def single_step(run_layer: RunLayer, cell: Cell, input, hx, weights: Sequence[Tensor]):
    """One step of one cell: the new states. ``weights``: weight_ih, weight_hh and, if any, bias_ih, bias_hh."""
    try:
        return _single_step(run_layer, cell, input, hx, weights)
    except Exception as error:
        refusals.explain(error, cell.step_name, input, hx=hx, weights=weights)
        raise


def _single_step(
    run_layer: RunLayer,
    cell: Cell,
    input: Tensor,
    hx: tuple[Tensor, Tensor] | Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    name = cell.step_name
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a Tensor, got {type(input).__name__}")
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    states = states_of(hx, name, cell)
    for i, state in enumerate(states):
        if state.dim() not in (1, 2):
            what = f"hx[{i}]" if cell.states > 1 else "hidden"
            raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {state.dim()}D instead")
        if state.dim() != input.dim():
            raise RuntimeError(
                f"{name}: For {input.dim()}-D input, hidden should also be {input.dim()}-D "
                f"but got {state.dim()}-D tensor"
            )
    batched = input.dim() == 2
    if not batched:
        input, states = input.unsqueeze(0), tuple(state.unsqueeze(0) for state in states)
    hidden = weights[1].shape[-1]
    if input.shape[1] != weights[0].shape[-1]:
        raise RuntimeError(f"input has inconsistent input_size: got {input.shape[1]} expected {weights[0].shape[-1]}")
    for i, state in enumerate(states):
        if state.shape[0] != input.shape[0]:
            raise RuntimeError(f"Input batch size {input.shape[0]} doesn't match hidden{i} batch size {state.shape[0]}")
        if state.shape[1] != hidden:
            raise RuntimeError(f"hidden{i} has inconsistent hidden_size: got {state.shape[1]}, expected {hidden}")
    input, states, weights = in_one_dtype(input, states, weights)
    check_state_dtypes(states, input.dtype)
    h0, c0 = h0_and_c0(tuple(state.unsqueeze(0) for state in states))
    layer = Layer(cell.id, len(weights) == 4, False, input.unsqueeze(0), h0, c0, None, None, None, tuple(weights))
    new_states = [state[0] if batched else state[0, 0] for state in run_layer(layer, False)[1 : 1 + cell.states]]
    return tuple(new_states)
