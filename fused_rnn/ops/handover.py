"""Which calls torch.nn's kernels can run, and which of those go to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from . import engines, library, measured, plans, tables
from .cells import CELLS, Cell
from .checks import NO_OPTIONS, Form, Options
from .layer import Layer, Wanted
from .measured import Choice, Sizes, Table
from .plain import PLAIN, is_eager
from .plans import Gpu

MOST_STEPS_OF_CUDNN = 65_535


class Call(NamedTuple):
    """What the choice of an engine depends on."""

    cell: Cell
    device: str
    tokens: bool
    steps: int
    batch: int
    batched: bool
    options: Options
    index: int
    """The device's."""
    layers: int
    directions: int
    weights: Sequence[Tensor]

    def needs_gradients(self) -> bool:
        return torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights)

    def sizes(self, training: bool) -> Sizes:
        weight = self.weights[0]
        return Sizes(
            self.cell.name,
            str(weight.dtype).removeprefix("torch."),
            training,
            self.steps,
            self.batch,
            weight.shape[-1],
            weight.shape[-2] // self.cell.gates,
            self.layers,
            self.directions,
        )


def call_of(form: Form, input: Tensor | PackedSequence, weights: Sequence[Tensor], options: Options) -> Call | None:
    """None if the input is not plain, so that our checks and operators have to see it."""
    data = input.data if isinstance(input, PackedSequence) else input
    if type(data) not in PLAIN or data.dim() == 0:
        return None
    tokens = not data.is_floating_point()
    rows: Sequence[int] = data.shape if tokens else data.shape[:-1]
    if data is not input:
        rows = len(input.batch_sizes), int(input.batch_sizes[0]) if len(input.batch_sizes) else 0
    batched = len(rows) == 2
    if not batched and len(rows) != 1:
        return None
    steps, batch = (rows[::-1] if form.batch_first and data is input else rows) if batched else (rows[0], 1)
    device = data.device
    deep = (device.index or 0, form.num_layers, form.directions)
    return Call(form.cell, device.type, tokens, steps, batch, batched, options, *deep, weights)


def step_of(cell: Cell, input: Tensor, weights: Sequence[Tensor]) -> Call | None:
    """Likewise of a cell's single step."""
    if type(input) not in PLAIN:
        return None
    batch = 1 if input.dim() == 1 else input.shape[0] if input.dim() else 0
    device, tokens = input.device, not input.is_floating_point()
    return Call(cell, device.type, tokens, 1, batch, True, NO_OPTIONS, device.index or 0, 1, 1, weights)


def call_of_layer(layer: Layer, layers: int, options: Options, device: str) -> Call:
    """Of a call of so many layers, whose first one this is, on such a device."""
    cell, directions, *_, rows = layer.sizes
    sizes, index = layer.batch_sizes, layer.input.device.index or 0
    steps, batch = rows if sizes is None else (len(sizes), int(sizes[0]))
    deep = (index, layers, directions, layer.weights)
    return Call(cell, device, layer.reads_tokens, steps, batch, True, options, *deep)


def obstacle(call: Call) -> str | None:
    """Why torch.nn's kernels cannot run such a call, or None."""
    options = call.options
    if call.device != "cpu" and not (call.device == "cuda" and library.cuda_archs()):
        return f"this library does not run on {call.device}"
    if call.cell.mode is None:
        return f"torch.nn has no {call.cell.name}"
    if call.tokens:
        return "the input is token ids"
    if options.reset_mask is not None:
        return "there is a reset_mask"
    if options.grad_clip is not None:
        return "there is a grad_clip"
    if options.recurrent_dropout:
        return "there is recurrent_dropout"
    if options.zoneout:
        return "there is zoneout"
    if options.heads > 1:
        return "W_hh has heads"
    if options.layer_norm is not None:
        return "there is layer norm"
    if options.checkpoint is not None:
        return "there are checkpoints"
    if options.cells:
        return "the cell states of all steps are returned"
    if options.lengths is not None and (found := _obstacle_of_lengths(call)) is not None:
        return found
    if call.device == "cuda" and call.steps > MOST_STEPS_OF_CUDNN:
        return f"cuDNN takes at most {MOST_STEPS_OF_CUDNN} steps"
    if call.steps == 0 or call.batch == 0:
        return "the input is empty"
    if torch.are_deterministic_algorithms_enabled():
        return "torch.use_deterministic_algorithms is on"
    return None


def _obstacle_of_lengths(call: Call) -> str | None:
    lengths = _on_host(call.options.lengths)
    if lengths is None:
        return "lengths that are not on the host would have to be copied there"
    if not call.batched:
        return "there are lengths of an unbatched input"
    if len(lengths) != call.batch or not all(1 <= length <= call.steps for length in lengths):
        return "a row has no steps, or the lengths do not fit the input"
    return None


def goes_to_torch(call: Call | None) -> bool:
    """Whether torch.nn's kernels run this call."""
    if call is None or not is_eager():
        return False
    name = engines.engine_for(call.device)
    if name == "torch":
        return obstacle(call) is None
    table = tables.table_for(call.device, call.index)  # which ours go by on CUDA too
    if name != "auto" or obstacle(call) is not None:
        return False
    if table is None and call.device == "cuda":
        tables.tell_once(unmeasured(tables.device_name("cuda", call.index)))
    return choice(call, table).engine == "torch"


def unmeasured(device: str) -> str:
    return (
        f"no measurements for {device}: torch.nn's kernels run; `python -m fused_rnn tune --device cuda` takes about 8 "
        "minutes and lets the fused ones run where they are faster"
    )


def choice(call: Call, table: Table | None, training: bool | None = None, gpu: Gpu | None = None) -> Choice:
    """By what was measured.

    ``training``: whether there will be a backward pass; None: as grad mode and weights say. ``gpu``: None for that of
    the call.
    """
    if training is None:
        training = call.needs_gradients()
    if table is None:
        return measured.select(call.sizes(training), call.device, None)
    if gpu is None and call.device == "cuda":
        gpu = plans.gpu(torch.device("cuda", call.index))
    return _choice(call.sizes(training), _Same(table), gpu)


class _Same:
    """Compares and hashes a table by identity, which is fast."""

    def __init__(self, table: Table | None):
        self.table = table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.table is other.table

    def __hash__(self) -> int:
        return id(self.table)


@lru_cache(maxsize=4096)
def _choice(sizes: Sizes, table: _Same, gpu: Gpu | None) -> Choice:
    def fits(name: str) -> bool:
        if gpu is None or name == "stepwise":
            return True
        dtype, same = getattr(torch, sizes.dtype), {"batch": sizes.batch, "hidden": sizes.hidden}
        same |= {"problems": sizes.directions, "backward": sizes.training}
        try:
            plans.cuda_plan(CELLS[sizes.cell].id, dtype, gpu, wanted=name, **same)
        except RuntimeError:
            return False
        return True

    return measured.select(sizes, "cpu" if gpu is None else "cuda", table.table, fits)


def fits_torch(form: Form, input: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]) -> bool:
    """Whether torch.nn's kernels take the tensors as they are. If not, the checks of other calls say why."""
    if not _is_of_weights(input, 3, weights):
        return False
    if h0 is None and c0 is None:
        return True
    shape, weight, kinds = input.shape, weights[0], form.kinds
    hidden = weight.shape[0] // form.cell.gates
    width = weights[len(kinds) - 1].shape[0] if kinds[-1] is Wanted.WEIGHT_HR else hidden
    rows, batch = form.num_layers * form.directions, shape[not form.batch_first]
    return _fits(h0, (rows, batch, width), weight) and _fits(c0, (rows, batch, hidden), weight)


def step_fits_torch(input: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]) -> bool:
    """Likewise of a cell's single step."""
    if not _is_of_weights(input, 2, weights):
        return False
    if h0 is None and c0 is None:
        return True
    shape = (input.shape[0], weights[1].shape[1])
    return _fits(h0, shape, weights[0]) and _fits(c0, shape, weights[0])


def _is_of_weights(input: Tensor, dims: int, weights: Sequence[Tensor]) -> bool:
    weight, shape = weights[0], input.shape
    if len(shape) != dims or weight.dim() != 2 or shape[-1] != weight.shape[1]:
        return False
    return input.dtype is weight.dtype and input.device == weight.device


def _fits(state: Tensor | None, shape: tuple[int, ...], weight: Tensor) -> bool:
    return state is None or (state.shape == shape and state.dtype is weight.dtype and state.device == weight.device)


def _on_host(lengths: Tensor | Sequence[int] | None) -> list[int] | None:
    """The lengths as numbers, without waiting for a device; None if they are elsewhere, or are none."""
    if not isinstance(lengths, Tensor):
        return list(lengths or ())
    if type(lengths) not in PLAIN or lengths.device.type != "cpu" or lengths.dim() != 1:
        return None
    return None if lengths.is_floating_point() or lengths.dtype == torch.bool else lengths.tolist()


def packed_by(input: Tensor, lengths: Tensor | Sequence[int], batch_first: bool) -> PackedSequence:
    """The padded input as torch.nn takes it."""
    on_host = torch.as_tensor(_on_host(lengths))
    return pack_padded_sequence(input, on_host, batch_first, enforce_sorted=False)
