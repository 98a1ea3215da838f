"""From a user's arguments to layers: checks, packing, batch_first, states, dropout between layers, autocast.

Shared by everything that can run a layer: the operators (:mod:`fused_rnn.functional`), the plain reference
(:mod:`fused_rnn.reference`), frozen or watched layers. Messages and exception types are those of ``torch.nn`` where it
has them. Plain calls take a fast path straight to the operator, which does its own checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from . import engines, handover, heads, in_place, layer_norm, loop_masks, plain, refusals, torch_private
from .cells import BY_ID, CELLS, Cell
from .checks import (
    NO_OPTIONS,
    Form,
    Options,
    apart,
    apart_by_direction,
    check_state_dtypes,
    check_weights,
    checked_checkpoint,
    checked_heads,
    contiguous,
    form_of,
    h0_and_c0,
    in_one_dtype,
    known_form,
    options_of,
    states_of,
    with_loop_options,
)
from .layer import LAYOUTS, Layer, Wanted
from .nodes import own_node, own_nodes
from .sequences import check_sizes, enter_packed, enter_padded

# (layer, whether to return the second state of every step) -> output, h_n, c_n, those states
RunLayer = Callable[[Layer, bool], tuple[Tensor, Tensor, Tensor, Tensor]]
# (stack, batch_sizes, input, h0, c0, weights) -> output, h_n and c_n, if any; of a step the states alone
RunByTorch = Callable[..., Sequence[Tensor]]
# (code of the step, input, (h0, c0), weights) -> the new states
RunStep = Callable[[int, Tensor, Sequence[Tensor | None], list[Tensor]], Sequence[Tensor]]
_NONLINEARITIES = {cell.nonlinearity: cell for cell in CELLS.values() if cell.nonlinearity is not None}
_infer = torch_private.bare(torch.ops.fused_rnn.infer.default)
_infer_layer = torch_private.bare(torch.ops.fused_rnn.infer_layer.default)


class ForTorch(NamedTuple):
    """Layers, without their tensors, that torch.nn's kernels are to run."""

    cell: Cell
    bias: bool
    bidirectional: bool = False
    layers: int = 1
    batch_first: bool = False
    is_step: bool = False
    """A single step, of a cell."""


class Runner:
    """Runs the layers of a call."""

    infers = False
    """Whether a plain call without gradients may go to the operator ``infer``, which runs all layers at once."""
    packed: Sequence[Tensor] | None = None
    """The layers' packed weights, for ``infer`` and ``infer_layer``."""
    run_for_gradients: RunLayer | None = None
    """Runs the layers of plain calls that need gradients; None: ``layers()`` does."""
    step_for_gradients: RunStep | None = None
    """Likewise for a cell's single step."""
    watches: str | None = None
    """Who sees each layer by itself, as it runs."""
    run_normed: layer_norm.RunNormed | None = None
    """Runs layers with layer norm."""
    run_by_torch: RunByTorch | None = None
    """Runs calls on torch.nn's kernels; None: this runner's calls do not go to them."""

    def __init__(self, run_layer: RunLayer):
        self._run_layer = run_layer

    def layers(self) -> RunLayer:
        """The function that runs one call's layers, one after the other."""
        return self._run_layer


# ---- whole sequences -------------------------------------------------------------------------------------------------


def lstm(runner: Runner, input, hx, weights, *, return_cells: bool = False, **options):
    output, h_n, c_n, *cells = run_cell(runner, CELLS["lstm"], input, hx, weights, cells=return_cells, **options)
    return output, (h_n, c_n), *cells


def gru(runner: Runner, input, hx, weights, **options):
    output, h_n = run_cell(runner, CELLS["gru"], input, hx, weights, **options)
    return output, h_n


def rnn(runner: Runner, input, hx, weights, *, nonlinearity: str = "tanh", **options):
    output, h_n = run_cell(runner, rnn_cell(nonlinearity), input, hx, weights, **options)
    return output, h_n


def rnn_cell(nonlinearity: str) -> Cell:
    if nonlinearity not in _NONLINEARITIES:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return _NONLINEARITIES[nonlinearity]


def run_cell(
    runner: Runner,
    cell: Cell,
    input,
    hx,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    grad_clip: float | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    heads: int = 1,
    checkpoint: int | None = None,
    layer_norm: Sequence[Tensor] | None = None,
    cells: bool = False,
) -> Sequence:
    """:func:`run` for the arguments of :mod:`fused_rnn.functional`."""
    form = form_of(cell, num_layers, bidirectional, batch_first, len(weights))
    options = options_of(training and dropout, lengths, reset_mask, grad_clip, cells)
    if recurrent_dropout or zoneout:
        options = with_loop_options(options, cell, recurrent_dropout, zoneout, training)
    if (type(heads) is not int or heads != 1) and checked_heads(heads, weights[0].shape[0] // cell.gates) > 1:
        if form.kinds[-1] is Wanted.WEIGHT_HR:
            raise ValueError(f"heads={heads} and a projection (weight_hr) exclude each other")
        options = options._replace(heads=heads)
    if checked_checkpoint(checkpoint) is not None or layer_norm is not None:
        options = options._replace(checkpoint=checkpoint, layer_norm=layer_norm)
    return run(runner, form, input, hx, list(weights), options, plain.are_plain(weights))


def run(
    runner: Runner,
    form: Form,
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | Tensor | None,
    weights: list[Tensor],
    options: Options,
    are_plain: bool,
) -> Sequence:
    """Runs a stack of layers: output, h_n and each further state; then what ``options`` ask for.

    ``are_plain``: the result of :func:`plain.are_plain` for the weights.
    """
    is_plain = False
    try:
        if engines.hands_over is not False and are_plain and (engines.hands_over or getattr(input, "is_cuda", False)):
            call = None if runner.run_by_torch is None else handover.call_of(form, input, weights, options)
            if in_place.is_wanted(call):
                in_place.measure(call, partial(_run_once, runner, form, input, hx))
            if handover.goes_to_torch(call):
                return _run_by_torch(runner.run_by_torch, form, input, hx, weights, options)
        states = plain.states_of(form.cell, input, hx) if are_plain else None
        if states is not None:
            if not torch.is_grad_enabled():
                is_time_major = options is NO_OPTIONS and not form.batch_first
                is_plain = runner.infers and (is_time_major or plain.fit_infer(form, input, options))
                if is_plain and options is NO_OPTIONS and form.fits_infer_layer:
                    return _infer_layer(form.code, input, *states, *(runner.packed or weights))
                if is_plain:
                    masks = (options.lengths, None, options.reset_mask)
                    if form.own_cell is None:
                        return _infer(form.code, input, *states, weights, runner.packed, *masks)
                    output, h_n, *c_n = _infer(
                        form.code, input, *states, weights, runner.packed, *masks, False, form.own_cell
                    )
                    return output, h_n, *(state for c in c_n for state in apart(form.cell, c))
            elif runner.run_for_gradients is not None and options is NO_OPTIONS and input.dim() == 3:
                is_plain = plain.need_gradients(input, weights) and (form.num_layers == 1 or _are_whole(form, states))
                if is_plain:
                    data = contiguous(input.transpose(0, 1) if form.batch_first else input)
                    whole = Layer.plain(form.cell.id, form.bias, form.bidirectional, data, *states, tuple(weights))
                    output, h_n, c_n, _ = over_layers(form.num_layers, runner.run_for_gradients, whole, options)
                    results = (output, h_n, c_n) if form.cell.states > 1 else (output, h_n)
                    for result in results if form.num_layers == 1 else (output,):  # others are concatenations
                        own_node(result)
                    if form.cell.states > 2:
                        results = (output, h_n, *apart(form.cell, c_n))
                    return results if not form.batch_first else (output.transpose(0, 1), *results[1:])
        if torch_private.is_tracing():
            with torch_private.no_tracer_warnings():
                return _run_any(runner, form, input, hx, weights, options)
        return _run_any(runner, form, input, hx, weights, options)
    except Exception as error:
        masks = {"lengths": options.lengths, "reset_mask": options.reset_mask}
        if is_plain and (refusal := refusals.raised_by(_prepare, form, input, hx, weights, options)) is not None:
            refusals.explain(refusal, form.name, input, hx=hx, weights=weights, **masks)
            raise refusal from error  # with torch.nn's message instead of the operator's
        refusals.explain(error, form.name, input, hx=hx, weights=weights, **masks)
        raise


def _run_any(runner: Runner, form: Form, input, hx, weights: list[Tensor], options: Options) -> Sequence:
    """The general path of :func:`run`."""
    run_layer = runner.layers() if options.layer_norm is None else layer_norm.layers(runner, form, weights, options)
    if options.checkpoint is not None and runner.run_for_gradients is None:
        options = options._replace(checkpoint=None)  # for who sees the saved values
    whole, leave = _prepare(form, input, hx, weights, options)
    output, h_n, c_n, cells = over_layers(form.num_layers, run_layer, whole, options)
    every = apart_by_direction(form.cell, form.directions, cells) if options.cells else ()
    output, h_n, c_n, *every = leave(output, h_n, c_n, *every)
    results = (output, h_n, *(apart(form.cell, c_n) if c_n is not None else ()), *every)
    if plain.is_eager():
        own_nodes(results)
    return results


def _run_once(runner: Runner, form: Form, input, hx, weights: list[Tensor]) -> list[Tensor]:
    """A call of its own, without the graph that its arguments come from: all tensors that it returns."""
    input, hx = torch_private.map_tensors(Tensor.detach, (input, hx))
    results = run(runner, form, input, hx, weights, NO_OPTIONS, are_plain=True)
    return [result[0] if isinstance(result, PackedSequence) else result for result in results]


def _run_by_torch(by_torch: RunByTorch, form: Form, input, hx, weights: list[Tensor], options: Options) -> Sequence:
    """:func:`run` on torch.nn's kernels."""
    states = plain.states_of(form.cell, input, hx) if options is NO_OPTIONS else None
    cell, bias, bidirectional = form.cell, form.bias, form.bidirectional
    if states is not None and handover.fits_torch(form, input, *states, weights):  # without all checks
        stack = ForTorch(cell, bias, bidirectional, form.num_layers, form.batch_first)
        return by_torch(stack, None, input, *states, weights)
    if options.lengths is not None:
        packed = handover.packed_by(input, options.lengths, form.batch_first)
        output, *states = _run_by_torch(by_torch, form, packed, hx, weights, options._replace(lengths=None))
        steps = input.shape[1 if form.batch_first else 0]
        return pad_packed_sequence(output, form.batch_first, total_length=steps)[0], *states
    whole, leave = _prepare(form, input, hx, weights, options)
    # Dropout between layers is ours: the engine must not change its numbers.
    at_once = 1 if options.dropout else form.num_layers
    stack = ForTorch(cell, bias, bidirectional, at_once)

    def run_layers(layer: Layer, cells: bool):
        results = by_torch(stack, layer.batch_sizes, layer.input, layer.h0, layer.c0, layer.weights)
        return (*results, None, None)[:4]

    output, h_n, c_n, _ = over_layers(form.num_layers // at_once, run_layers, whole, options)
    return leave(output, h_n, c_n)[: 1 + cell.states]


def _are_whole(form: Form, states: tuple[Tensor | None, Tensor | None]) -> bool:
    """Whether the states have a row for each layer and direction: the operator sees only one layer's at a time."""
    rows = form.num_layers * form.directions
    return all(state is None or (state.dim() == 3 and state.shape[0] == rows) for state in states)


def _prepare(form: Form, input, hx, weights: list[Tensor], options: Options):
    """Checks everything. Returns the first layer's arguments with the states and weights of all layers, and the
    function that turns the results into the user's layout."""
    check_weights(form.name, form.kinds * (form.num_layers * form.directions), weights)
    enter = enter_packed if isinstance(input, PackedSequence) else enter_padded
    rows, states, leave = enter(form, input, hx, options.lengths, options.reset_mask)
    data, states, weights = in_one_dtype(rows.data, states, weights, rows.of_tokens)
    check_sizes(form, rows, states, weights)
    h0, c0 = h0_and_c0(tuple(map(rows.sort, states)))
    masks = (rows.lengths, rows.batch_sizes, rows.sort(rows.reset_mask))
    # Made contiguous here, so that what is saved for the backward pass is not a view of the user's tensor.
    data = contiguous(data)
    return Layer.plain(form.cell.id, form.bias, form.bidirectional, data, h0, c0, weights, *masks), leave


def over_layers(count: int, run_layer: RunLayer, whole: Layer, options: Options = NO_OPTIONS):
    """Output, h_n, c_n and cells of stacked layers; ``whole`` holds the states and weights of all of them."""
    if options.grad_clip is not None:
        run_layer = partial(run_layer, grad_clip=options.grad_clip)
    if options.heads > 1:
        run_layer = partial(heads.run, run_layer, options.heads)
    whole = whole._replace(checkpoint=options.checkpoint)
    if count == 1:
        return run_layer(loop_masks.drawn(whole, options), options.cells)
    data, h0, c0, weights, cell = whole.input, whole.h0, whole.c0, whole.weights, whole.cell
    directions, per_layer, last = 1 + whole.bidirectional, len(weights) // count, count - 1
    h_ns, c_ns = [], []
    for k in range(count):
        rows = slice(k * directions, (k + 1) * directions)
        layer = whole._replace(
            input=data if k == 0 else data.contiguous(),
            h0=None if h0 is None else h0[rows],
            c0=None if c0 is None else c0[rows],
            weights=weights[k * per_layer : (k + 1) * per_layer],
        )
        data, h_n, c_n, cells = run_layer(loop_masks.drawn(layer, options), options.cells and k == last)
        h_ns.append(h_n)
        c_ns.append(c_n)
        if options.dropout and k < last:
            data = torch.dropout(data, options.dropout, True)
    return data, torch.cat(h_ns), torch.cat(c_ns) if BY_ID[cell].states > 1 else c_n, cells


# ---- single steps ----------------------------------------------------------------------------------------------------


def single_step(runner: Runner, cell: Cell, input, hx, weights: list[Tensor], are_plain: bool) -> Sequence[Tensor]:
    """One step of one cell: the new states. ``weights``: weight_ih, weight_hh and, if any, bias_ih, bias_hh.

    ``are_plain``: as in :func:`run`.
    """
    is_plain = False
    try:
        if engines.hands_over is not False and are_plain and (engines.hands_over or getattr(input, "is_cuda", False)):
            call = None if runner.run_by_torch is None else handover.step_of(cell, input, weights)
            if handover.goes_to_torch(call):
                return _step_by_torch(runner.run_by_torch, cell, input, hx, weights)
        states = plain.states_of(cell, input, hx) if are_plain else None
        if states is not None and input.dim() == 2:
            form = known_form(cell, 1, False, False, len(weights))
            if not torch.is_grad_enabled():
                is_plain = runner.infers
                if is_plain:
                    return _infer_layer(form.step_code, input, *states, *(runner.packed or weights))
            elif runner.step_for_gradients is not None and plain.need_gradients(input, weights):
                is_plain = True
                return runner.step_for_gradients(form.step_code, input, states, weights)
        if torch_private.is_tracing():
            with torch_private.no_tracer_warnings():
                return _one_step(runner.layers(), cell, input, hx, weights)
        return _one_step(runner.layers(), cell, input, hx, weights)
    except Exception as error:
        if is_plain and (refusal := refusals.raised_by(_prepare_step, cell, input, hx, weights)) is not None:
            refusals.explain(refusal, cell.step_name, input, hx=hx, weights=weights)
            raise refusal from error
        refusals.explain(error, cell.step_name, input, hx=hx, weights=weights)
        raise


def _prepared_rows(cell: Cell, input, hx, weights: Sequence[Tensor]):
    """What :func:`_prepare_step` returns, with a dimension for rows; and whether there was one."""
    input, states, weights = _prepare_step(cell, input, hx, weights)
    batched = input.dim() == 2
    tensors = (input, *states)
    return tensors if batched else [None if t is None else t.unsqueeze(0) for t in tensors], batched, weights


def _one_step(run_layer: RunLayer, cell: Cell, input, hx, weights) -> list[Tensor]:
    rows, batched, weights = _prepared_rows(cell, input, hx, weights)
    tensors = (None if tensor is None else tensor.unsqueeze(0) for tensor in rows)
    layer = Layer.plain(cell.id, len(weights) == 4, False, *tensors, tuple(weights))
    _, h_n, c_n, _ = run_layer(layer, False)
    return [state[0] if batched else state[0, 0] for state in (h_n, c_n)[: cell.states]]


def _step_by_torch(by_torch: RunByTorch, cell: Cell, input, hx, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    stack = ForTorch(cell, len(weights) == 4, is_step=True)
    tensors = plain.states_of(cell, input, hx)
    if tensors is not None and handover.step_fits_torch(input, *tensors, weights):  # without all checks
        return by_torch(stack, None, input, *tensors, weights)
    tensors, batched, weights = _prepared_rows(cell, input, hx, weights)
    states = by_torch(stack, None, *tensors, weights)
    return states if batched else [state[0] for state in states]


def _prepare_step(cell: Cell, input: Tensor, hx, weights: Sequence[Tensor]):
    """Checks everything; returns input, (h0, c0) and weights."""
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
    check_weights(name, LAYOUTS[cell.id][len(weights)][1], weights)
    weight_ih, weight_hh, *_ = weights
    input_size, hidden = weight_ih.shape[-1], weight_hh.shape[-1]
    if input.shape[-1] != input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {input_size}")
    for i, state in enumerate(states):
        if state.shape[:-1] != input.shape[:-1]:
            raise RuntimeError(f"Input batch size {input.shape[0]} doesn't match hidden{i} batch size {state.shape[0]}")
        if state.shape[-1] != hidden:
            raise RuntimeError(f"hidden{i} has inconsistent hidden_size: got {state.shape[-1]}, expected {hidden}")
    input, states, weights = in_one_dtype(input, states, weights, wrong_dtype=RuntimeError)
    check_state_dtypes(states, input.dtype)
    return input, h0_and_c0(states), weights
