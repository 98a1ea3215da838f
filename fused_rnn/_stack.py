"""From what a user passes to layers: checks, packing, batch_first, states, dropout between layers, autocast.

Written once, for any function that runs one layer: the compiled operators (:mod:`fused_rnn.functional`) and the plain
reference (:mod:`fused_rnn.reference`). Messages and exception types are those of ``torch.nn`` where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _library, _refusals
from ._cells import CELLS, Cell
from ._ops import LAYOUTS, Layer, Wanted

# (layer, whether the second state after every step is wanted) -> output, h_n, c_n, that state
RunLayer = Callable[[Layer, bool], tuple[Tensor, Tensor, Tensor, Tensor]]
NONLINEARITIES = {"tanh": CELLS["rnn_tanh"], "relu": CELLS["rnn_relu"]}


def lstm(run_layer: RunLayer, input, hx, weights, *, return_cells: bool = False, **options):
    output, h_n, c_n, *cells = run(run_layer, "LSTM", CELLS["lstm"], input, hx, weights, return_cells, **options)
    return output, (h_n, c_n), *cells


def gru(run_layer: RunLayer, input, hx, weights, **options):
    return run(run_layer, "GRU", CELLS["gru"], input, hx, weights, **options)[:2]


def rnn(run_layer: RunLayer, input, hx, weights, *, nonlinearity: str = "tanh", **options):
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return run(run_layer, "RNN", NONLINEARITIES[nonlinearity], input, hx, weights, **options)[:2]


def run(run_layer: RunLayer, name: str, cell: Cell, input, hx, weights, cells: bool = False, /, **options):
    """A stack of layers: (output, h_n, c_n), c_n empty for cells of one state; with ``cells`` the last layer's too."""
    try:
        return _run(run_layer, name, cell, input, hx, weights, cells, **options)
    except Exception as error:
        masks = {what: options.get(what) for what in ("lengths", "reset_mask")}
        _refusals.explain(error, name, input, hx=hx, weights=weights, **masks)
        raise


def _run(
    run_layer: RunLayer,
    name: str,
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
    options = _Options(name, cell, num_layers, bidirectional, batch_first)
    if grad_clip is not None:
        run_layer = partial(run_layer, grad_clip=checked_grad_clip(grad_clip))
    bias, kinds = _weight_layout(options, weights)
    per_direction = len(kinds)
    enter = _enter_packed if isinstance(input, PackedSequence) else _enter_padded
    rows, states, leave = enter(options, input, hx, lengths, reset_mask)
    data, states, weights = _in_one_dtype(rows.data, states, weights, rows.of_tokens)
    _check_sizes(options, rows, states, weights, kinds)
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
            *_two(tuple(state[span] for state in states)),
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


def checked_grad_clip(grad_clip: float) -> float:
    if isinstance(grad_clip, bool) or not isinstance(grad_clip, (int, float)):
        raise TypeError(f"grad_clip must be a number above 0, or None, got {type(grad_clip).__name__}")
    if not grad_clip > 0:
        raise ValueError(f"grad_clip must be a number above 0, or None, got {grad_clip}")
    return float(grad_clip)


def single_step(run_layer: RunLayer, name: str, cell: Cell, input, hx, weights: Sequence[Tensor]):
    """One step of one cell: the new states. ``weights``: weight_ih, weight_hh and, if any, bias_ih, bias_hh."""
    try:
        return _single_step(run_layer, name, cell, input, hx, weights)
    except Exception as error:
        _refusals.explain(error, name, input, hx=hx, weights=weights)
        raise


def _single_step(
    run_layer: RunLayer,
    name: str,
    cell: Cell,
    input: Tensor,
    hx: tuple[Tensor, Tensor] | Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a Tensor, got {type(input).__name__}")
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    states = _states_of(hx, name, cell)
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
    input, states, weights = _in_one_dtype(input, states, weights)
    _check_state_dtypes(states, input.dtype)
    h0, c0 = _two(tuple(state.unsqueeze(0) for state in states))
    layer = Layer(cell.id, len(weights) == 4, False, input.unsqueeze(0), h0, c0, None, None, None, tuple(weights))
    new_states = [state[0] if batched else state[0, 0] for state in run_layer(layer, False)[1 : 1 + cell.states]]
    return tuple(new_states)


class _Options(NamedTuple):
    name: str
    cell: Cell
    num_layers: int
    bidirectional: bool
    batch_first: bool

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


class _Rows(NamedTuple):
    """How the sequence lies in ``data``: padded [T, B, I] or packed [rows, I]; of ids [T, B] or [rows]."""

    data: Tensor
    steps: int
    batch: int
    lengths: Tensor | None = None
    reset_mask: Tensor | None = None  # [T, B] in the user's order of rows
    batch_sizes: Tensor | None = None
    order: Tensor | None = None  # packed: which of the user's rows comes where
    of_tokens: bool = False  # ids: each stands for a one-hot row

    def sort(self, tensor: Tensor | None) -> Tensor | None:
        """A [.., B, ..] tensor of the user's, its rows (dimension 1) in the order of ``data``."""
        return tensor if tensor is None or self.order is None else tensor.index_select(1, self.order)


# ---- the sequence in and out ---------------------------------------------------------------------------------------


def _holds_tokens(input: Tensor, most_dims: int) -> bool:
    """Integers with a dimension for each number of a row are no ids, but numbers of a dtype that no layer takes."""
    return input.dtype in (torch.int64, torch.int32) and 0 < input.dim() <= most_dims


def _enter_padded(options: _Options, input: Tensor, hx, lengths, reset_mask):
    name = options.name
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a Tensor or a PackedSequence, got {type(input).__name__}")
    of_tokens = _holds_tokens(input, 2)
    dims = input.dim() + of_tokens
    if dims not in (2, 3):
        tensor = " tensor" if name == "RNN" else ""
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{tensor} instead")
    batched = dims == 3
    states = _states_of(hx, name, options.cell)
    if states and any(state.dim() != dims for state in states):
        raise RuntimeError(_state_dims_message(dims, states, of_tokens))
    if not batched:
        input, states = input.unsqueeze(1), tuple(state.unsqueeze(1) for state in states)
    elif options.batch_first:
        input = input.transpose(0, 1)
    steps, batch = input.shape[:2]
    rows = _Rows(
        input,
        steps,
        batch,
        lengths=_lengths_tensor(lengths, batched, batch, input.device),
        reset_mask=_time_major_mask(options, reset_mask, steps, batch if batched else None, input.device),
        of_tokens=of_tokens,
    )

    def lay_out(sequence):
        if not batched:
            return sequence.squeeze(1)
        return sequence.transpose(0, 1) if options.batch_first else sequence

    def leave(output, h_n, c_n, *cells):
        if not batched:
            h_n, c_n = h_n.squeeze(1), c_n.squeeze(1) if c_n.dim() == 3 else c_n
        return lay_out(output), h_n, c_n, *map(lay_out, cells)

    return rows, states, leave


def _state_dims_message(input_dims: int, states: tuple[Tensor, ...], of_tokens: bool) -> str:
    kind = "batched 3-D" if input_dims == 3 else "unbatched 2-D"
    if of_tokens:  # [T, B] or [T], as if it were spelled out
        kind = "batched ids, like 3-D" if input_dims == 3 else "unbatched ids, like 2-D"
    if len(states) == 1:
        return f"For {kind} input, hx should also be {input_dims}-D but got {states[0].dim()}-D tensor"
    found = ", ".join(f"{state.dim()}-D" for state in states)
    return f"For {kind} input, hx and cx should also be {input_dims}-D but got ({found}) tensors"


def _enter_packed(options: _Options, packed: PackedSequence, hx, lengths, reset_mask):
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():  # here, as tracing may not get to the layer
        raise NotImplementedError("fused_rnn: ONNX has no PackedSequence; pass padded input and lengths")
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    if lengths is not None:
        raise ValueError(f"{options.name}: a PackedSequence has its lengths already, so lengths must be None")
    of_tokens = _holds_tokens(data, 1)
    if data.dim() != 2 - of_tokens:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    states = _states_of(hx, options.name, options.cell)
    steps, batch = batch_sizes.shape[0], _packed_batch(options, packed, states, reset_mask)
    mask = _time_major_mask(options, reset_mask, steps, batch, data.device)
    rows = _Rows(
        data, steps, batch, reset_mask=mask, batch_sizes=batch_sizes, order=sorted_indices, of_tokens=of_tokens
    )

    def lay_out(sequence):
        return PackedSequence(sequence, batch_sizes, sorted_indices, unsorted_indices)

    def leave(output, h_n, c_n, *cells):
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = c_n.index_select(1, unsorted_indices) if c_n.dim() == 3 else c_n
        return lay_out(output), h_n, c_n, *map(lay_out, cells)

    return rows, states, leave


def _packed_batch(options: _Options, packed: PackedSequence, states: tuple[Tensor, ...], mask) -> int:
    if torch.compiler.is_compiling():
        # What a graph reads from a tensor it cannot compare with sizes. So the others say it; the operator compares.
        if packed.sorted_indices is not None:
            return packed.sorted_indices.shape[0]
        if states and states[0].dim() == 3:
            return states[0].shape[1]
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask.shape[0 if options.batch_first else 1]
    return int(packed.batch_sizes[0])


def _lengths_tensor(lengths, batched: bool, batch: int, device) -> Tensor | None:
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, device=device)
        if not lengths.numel():  # of no rows: float32 by default
            lengths = lengths.long()
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if not batched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have one entry for each of the {batch} rows, got shape {list(lengths.shape)}")
    return lengths.to(device=device, dtype=torch.int64)


def _time_major_mask(options: _Options, mask, steps: int, batch: int | None, device) -> Tensor | None:
    """The mask as [T, B]; ``batch`` is None for unbatched input."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"reset_mask must be a bool tensor, got {mask.dtype if isinstance(mask, Tensor) else type(mask).__name__}"
        )
    if batch is None:
        expected, layout = (steps,), "[T]"
    elif options.batch_first:
        expected, layout = (batch, steps), "[B, T] (batch_first)"
    else:
        expected, layout = (steps, batch), "[T, B]"
    if mask.shape != expected:
        raise ValueError(f"reset_mask must be {layout} = {list(expected)}, got {list(mask.shape)}")
    mask = mask.to(device)
    if batch is None:
        return mask.unsqueeze(1)
    return mask.transpose(0, 1) if options.batch_first else mask


# ---- weights and states --------------------------------------------------------------------------------------------


def _weight_layout(options: _Options, weights: Sequence[Tensor]) -> tuple[bool, tuple[Wanted, ...]]:
    """Are there biases, and what are the weights of each layer and direction?"""
    blocks = options.num_layers * options.directions
    layouts = LAYOUTS[options.cell.id]
    count, rest = divmod(len(weights), blocks)
    if rest or count not in layouts:
        allowed = " or ".join(map(str, sorted(layouts)))
        raise ValueError(
            f"{options.name}: weights must hold {allowed} tensors for each of {blocks} layers and directions, "
            f"got {len(weights)} in all"
        )
    bias, kinds = layouts[count]
    for i, (weight, kind) in enumerate(zip(weights, kinds * blocks, strict=True)):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{options.name}: weights[{i}] must be a Tensor, got {type(weight).__name__}")
        dims = 1 if kind is Wanted.BIAS_IH or kind is Wanted.BIAS_HH else 2
        if weight.dim() != dims:
            name = kind.name.lower()
            raise ValueError(f"{options.name}: weights[{i}] ({name}) must be {dims}-D, got {list(weight.shape)}")
    return bias, kinds


def _states_of(hx, name: str, cell: Cell) -> tuple[Tensor, ...]:
    if hx is None:
        return ()
    if cell.states == 1:
        if not isinstance(hx, Tensor):
            raise TypeError(f"{name}: hx must be a Tensor, got {type(hx).__name__}")
        return (hx,)
    if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(s, Tensor) for s in hx):
        got = f"{type(hx).__name__} of {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"{name}: hx must be a tuple (h_0, c_0) of Tensors, got {got}")
    return tuple(hx)


def _two(states: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    h0, c0 = (*states, None, None)[:2]
    return h0, c0


def _in_one_dtype(input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor], of_tokens: bool = False):
    """All in one dtype, autocast's if that is on, on one supported device; or an error that says what differs. Ids are
    left out of it."""
    device = input.device
    check_device(device)

    def is_cast(tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.dtype != torch.float64

    for what, tensor in (("weights", weights[0]), *(("hx", state) for state in states)):
        if tensor.device != device:
            raise RuntimeError(f"Input and {what} are not on the same device: {device} and {tensor.device}")
    if (
        device.type != "meta"
        and torch.is_autocast_enabled(device.type)
        and (of_tokens or is_cast(input))
        and all(map(is_cast, (*states, weights[0])))
    ):
        cast = partial(torch.Tensor.to, dtype=torch.get_autocast_dtype(device.type))
        return input.long() if of_tokens else cast(input), tuple(map(cast, states)), tuple(map(cast, weights))
    if of_tokens:
        return input.long(), states, tuple(weights)
    dtype = weights[0].dtype
    if input.dtype != dtype:
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
        )
    return input, states, tuple(weights)


def _check_state_dtypes(states: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for state in states:
        if state.dtype != dtype:
            raise ValueError(f"hx dtype ({state.dtype}) does not match weight dtype ({dtype})")


def check_device(device: torch.device) -> None:
    """Raises unless the compiled library can compute there."""
    if device.type in ("cpu", "meta"):
        return
    if device.type != "cuda":
        raise NotImplementedError(
            f"fused_rnn runs on cpu and cuda, not on {device.type}. Move the module and its input with .to('cpu'), or "
            f"take torch.nn's layer (fused_rnn.restore) on {device.type}."
        )
    if not _library.cuda_archs():
        raise RuntimeError(
            "This fused_rnn was built without CUDA, but the input is a CUDA tensor. Rebuild it where nvcc is on the "
            "PATH: FUSED_RNN_CUDA=1 pip install --no-build-isolation --force-reinstall ."
        )


def _check_sizes(options: _Options, rows: _Rows, states, weights, kinds: tuple[Wanted, ...]) -> None:
    input_size, given = weights[0].shape[-1], rows.data.shape[-1]
    if not rows.of_tokens and given != input_size:  # in this order: no guess about B is left to a compiler
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {given}")
    hidden = weights[0].shape[0] // options.cell.gates
    width = weights[len(kinds) - 1].shape[0] if kinds[-1] is Wanted.WEIGHT_HR else hidden
    for i, (state, expected_width) in enumerate(zip(states, (width, hidden), strict=False)):
        expected = (options.num_layers * options.directions, rows.batch, expected_width)
        if state.shape != expected:
            what = f"hidden[{i}]" if options.cell.states > 1 else "hidden"
            raise RuntimeError(f"Expected {what} size {expected}, got {list(state.shape)}")
    _check_state_dtypes(states, weights[0].dtype)
    if rows.steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
