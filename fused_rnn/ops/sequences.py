"""Converts a user's sequence to and from the operators' layout: padded, packed, unbatched, batch first, ids."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .checks import Form, check_state_dtypes, states_of
from .layer import Wanted


class Rows(NamedTuple):
    """A sequence in the operators' layout: padded [T, B, I] or packed [rows, I]; ids: [T, B] or [rows]."""

    data: Tensor
    steps: int
    batch: int
    lengths: Tensor | None = None
    reset_mask: Tensor | None = None  # [T, B] in the user's order of rows
    batch_sizes: Tensor | None = None
    order: Tensor | None = None  # packed: the permutation from the user's rows to the sorted ones
    of_tokens: bool = False  # ids: each stands for a one-hot row

    def sort(self, tensor: Tensor | None) -> Tensor | None:
        """Reorders dimension 1, the user's batch rows, to the order of ``data``."""
        return tensor if tensor is None or self.order is None else tensor.index_select(1, self.order)


def _holds_tokens(input: Tensor, most_dims: int) -> bool:
    """Whether the input is ids. Integers with a feature dimension are features of an unsupported dtype."""
    return input.dtype in (torch.int64, torch.int32) and 0 < input.dim() <= most_dims


def enter_padded(form: Form, input: Tensor, hx, lengths, reset_mask):
    name = form.name
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a Tensor or a PackedSequence, got {type(input).__name__}")
    of_tokens = _holds_tokens(input, 2)
    dims = input.dim() + of_tokens
    if dims not in (2, 3):
        tensor = " tensor" if name == "RNN" else ""
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{tensor} instead")
    batched = dims == 3
    states = states_of(hx, name, form.cell)
    if states and any(state.dim() != dims for state in states):
        raise RuntimeError(_state_dims_message(dims, states, of_tokens))
    if not batched:
        input, states = input.unsqueeze(1), tuple(state.unsqueeze(1) for state in states)
    elif form.batch_first:
        input = input.transpose(0, 1)
    steps, batch = input.shape[:2]
    rows = Rows(
        input,
        steps,
        batch,
        lengths=_lengths_tensor(lengths, batched, batch, input.device),
        reset_mask=_time_major_mask(form, reset_mask, steps, batch if batched else None, input.device),
        of_tokens=of_tokens,
    )

    def lay_out(sequence):
        if not batched:
            return sequence.squeeze(1)
        return sequence.transpose(0, 1) if form.batch_first else sequence

    def leave(output, h_n, c_n, *cells):
        if not batched:
            h_n, c_n = h_n.squeeze(1), c_n.squeeze(1) if _is_state(c_n) else c_n
        return lay_out(output), h_n, c_n, *map(lay_out, cells)

    return rows, states, leave


def _is_state(c_n: Tensor | None) -> bool:
    """None or an empty tensor: the cell has no second state."""
    return c_n is not None and c_n.dim() == 3


def _state_dims_message(input_dims: int, states: tuple[Tensor, ...], of_tokens: bool) -> str:
    kind = "batched 3-D" if input_dims == 3 else "unbatched 2-D"
    if of_tokens:  # [T, B] or [T]: counted as if one-hot
        kind = "batched ids, like 3-D" if input_dims == 3 else "unbatched ids, like 2-D"
    if len(states) == 1:
        return f"For {kind} input, hx should also be {input_dims}-D but got {states[0].dim()}-D tensor"
    found = ", ".join(f"{state.dim()}-D" for state in states)
    return f"For {kind} input, hx and cx should also be {input_dims}-D but got ({found}) tensors"


def enter_packed(form: Form, packed: PackedSequence, hx, lengths, reset_mask):
    # Refused here, since tracing may fail before it reaches the layer.
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        raise NotImplementedError("fused_rnn: ONNX has no PackedSequence; pass padded input and lengths")
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    if lengths is not None:
        raise ValueError(f"{form.name}: a PackedSequence has its lengths already, so lengths must be None")
    of_tokens = _holds_tokens(data, 1)
    if data.dim() != 2 - of_tokens:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    states = states_of(hx, form.name, form.cell)
    steps, batch = batch_sizes.shape[0], _packed_batch(form, packed, states, reset_mask)
    mask = _time_major_mask(form, reset_mask, steps, batch, data.device)
    rows = Rows(data, steps, batch, reset_mask=mask, batch_sizes=batch_sizes, order=sorted_indices, of_tokens=of_tokens)

    def lay_out(sequence):
        return PackedSequence(sequence, batch_sizes, sorted_indices, unsorted_indices)

    def leave(output, h_n, c_n, *cells):
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = c_n.index_select(1, unsorted_indices) if _is_state(c_n) else c_n
        return lay_out(output), h_n, c_n, *map(lay_out, cells)

    return rows, states, leave


def _packed_batch(form: Form, packed: PackedSequence, states: tuple[Tensor, ...], mask) -> int:
    if torch.compiler.is_compiling():
        # A value read from a tensor cannot be compared with sizes in a graph, so B is taken from other arguments; the
        # operator checks it.
        if packed.sorted_indices is not None:
            return packed.sorted_indices.shape[0]
        if states and states[0].dim() == 3:
            return states[0].shape[1]
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask.shape[0 if form.batch_first else 1]
    return int(packed.batch_sizes[0])


def _lengths_tensor(lengths, batched: bool, batch: int, device) -> Tensor | None:
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, device=device)
        if not lengths.numel():  # an empty list becomes float32
            lengths = lengths.long()
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if not batched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have one entry for each of the {batch} rows, got shape {list(lengths.shape)}")
    return lengths.to(device=device, dtype=torch.int64)


def _time_major_mask(form: Form, mask, steps: int, batch: int | None, device) -> Tensor | None:
    """The mask as [T, B]; ``batch`` is None for unbatched input."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"reset_mask must be a bool tensor, got {mask.dtype if isinstance(mask, Tensor) else type(mask).__name__}"
        )
    if batch is None:
        expected, layout = (steps,), "[T]"
    elif form.batch_first:
        expected, layout = (batch, steps), "[B, T] (batch_first)"
    else:
        expected, layout = (steps, batch), "[T, B]"
    if mask.shape != expected:
        raise ValueError(f"reset_mask must be {layout} = {list(expected)}, got {list(mask.shape)}")
    mask = mask.to(device)
    if batch is None:
        return mask.unsqueeze(1)
    return mask.transpose(0, 1) if form.batch_first else mask


def check_sizes(form: Form, rows: Rows, states, weights) -> None:
    kinds = form.kinds
    input_size, given = weights[0].shape[-1], rows.data.shape[-1]
    if not rows.of_tokens and given != input_size:  # in this order, so that a compiler need not specialise on B
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {given}")
    hidden = weights[0].shape[0] // form.cell.gates
    width = weights[len(kinds) - 1].shape[0] if kinds[-1] is Wanted.WEIGHT_HR else hidden
    for i, state in enumerate(states):
        expected_width = width if i == 0 else hidden
        expected = (form.num_layers * form.directions, rows.batch, expected_width)
        if state.shape != expected:
            what = f"hidden[{i}]" if form.cell.states > 1 else "hidden"
            raise RuntimeError(f"Expected {what} size {expected}, got {list(state.shape)}")
    check_state_dtypes(states, weights[0].dtype)
    if rows.steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
