"""Checks of a user's weights, states and options against each other: dimensions, sizes, dtypes, devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import library, torch_private
from .cells import Cell
from .layer import (
    BATCH_FIRST,
    LAYOUTS,
    MOST_WEIGHTS_OF_INFER_LAYER,
    ONE_STEP,
    TIME_MAJOR,
    Wanted,
    own_cell,
    stack_code,
)


class Form(NamedTuple):
    """Everything about a stack of layers except its tensors."""

    cell: Cell
    num_layers: int
    bidirectional: bool
    batch_first: bool
    bias: bool
    kinds: tuple[Wanted, ...]
    """The kinds of the weights of one layer and direction, in order."""
    code: int
    """The stack's code for the operator ``infer``."""
    step_code: int
    """The code for a single step."""
    fits_infer_layer: bool
    """Whether it is one layer in one direction, of as few weights as ``infer_layer`` takes."""
    own_cell: int | None = None
    """The argument of ``infer``."""

    @property
    def name(self) -> str:
        return self.cell.layer_name

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


def form_of(cell: Cell, num_layers: int, bidirectional: bool, batch_first: bool, weights: int) -> Form:
    """The form of a stack with ``weights`` weights; raises if no such stack has that many."""
    layouts = LAYOUTS[cell.id]
    if num_layers < 1:
        raise ValueError("num_layers must be greater than zero")
    blocks = num_layers * (2 if bidirectional else 1)
    count, rest = divmod(weights, blocks)
    if rest or count not in layouts:
        allowed = " or ".join(map(str, sorted(layouts)))
        raise ValueError(
            f"{cell.layer_name}: weights must hold {allowed} tensors for each of {blocks} layers and directions, "
            f"got {weights} in all"
        )
    bias, kinds = layouts[count]
    code = stack_code(cell.id, num_layers, bias, bidirectional, BATCH_FIRST if batch_first else TIME_MAJOR)
    step_code = stack_code(cell.id, num_layers, bias, bidirectional, ONE_STEP)
    own = own_cell(cell.id)
    fits_infer_layer = blocks == 1 and count <= MOST_WEIGHTS_OF_INFER_LAYER and own is None
    return Form(cell, num_layers, bidirectional, batch_first, bias, kinds, code, step_code, fits_infer_layer, own)


known_form = lru_cache(maxsize=1024)(form_of)  # Dynamo cannot enter it


class Options(NamedTuple):
    """The options of one call."""

    dropout: float = 0.0
    """Probability of dropout between layers; 0 outside training."""
    lengths: Tensor | Sequence[int] | None = None
    reset_mask: Tensor | None = None
    grad_clip: float | None = None
    cells: bool = False
    """Whether to return the last layer's second state after every step."""
    recurrent_dropout: float = 0.0
    """Probability with which a unit of h is zero for W_hh, for a whole sequence; 0 outside training."""
    zoneout: tuple[float, float] | None = None
    """Probabilities with which a unit keeps its former h, and its former other states."""
    zoneout_draws: bool = False
    """Whether masks are drawn; if not, each state is the expectation."""
    heads: int = 1
    """How many blocks on its diagonal W_hh has."""
    checkpoint: int | None = None
    """Keep the states that enter every so many steps for the backward pass, which computes the rest again."""
    layer_norm: Sequence[Tensor] | None = None
    """The parameters of the layers' norms (ops/layer_norm.py), if they have them."""


NO_OPTIONS = Options()


def options_of(dropout: float, lengths, reset_mask, grad_clip: float | None, cells: bool = False) -> Options:
    """NO_OPTIONS itself if no option is given."""
    if lengths is reset_mask is grad_clip is None and not (cells or dropout):
        return NO_OPTIONS
    if grad_clip is not None:
        grad_clip = checked_grad_clip(grad_clip)
    return Options(dropout, lengths, reset_mask, grad_clip, cells)


def checked_grad_clip(grad_clip: float) -> float:
    if isinstance(grad_clip, bool) or not isinstance(grad_clip, (int, float)):
        raise TypeError(f"grad_clip must be a number above 0, or None, got {type(grad_clip).__name__}")
    if not grad_clip > 0:
        raise ValueError(f"grad_clip must be a number above 0, or None, got {grad_clip}")
    return float(grad_clip)


def checked_probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a probability, at least 0 and less than 1, got {value!r}")
    return float(value)


def checked_zoneout(value: Any, states: int) -> tuple[float, float]:
    """For h and for the states after it, of a cell with so many states."""
    if not isinstance(value, (tuple, list)):
        p = checked_probability("zoneout", value)
        return p, p
    if states == 1 or len(value) != 2:
        wanted = "a probability" if states == 1 else "a probability or two of them, for h and for c"
        raise ValueError(f"zoneout must be {wanted}, got {value!r}")
    p_h, p_c = (checked_probability("zoneout", p) for p in value)
    return p_h, p_c


def checked_heads(heads: Any, hidden: Any) -> int:
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"heads must be of type int, got {type(heads).__name__}")
    if heads < 1:
        raise ValueError(f"heads must be greater than zero, got {heads}")
    if isinstance(hidden, int) and hidden % heads:
        raise ValueError(f"heads={heads} must divide hidden_size={hidden}")
    return heads


def checked_checkpoint(steps: Any) -> int | None:
    if steps is None:
        return None
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"checkpoint must be a number of steps or None, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"checkpoint must be a number of steps above 0, or None, got {steps}")
    return steps


def with_loop_options(options: Options, cell: Cell, recurrent_dropout: Any, zoneout: Any, training: bool) -> Options:
    p = checked_probability("recurrent_dropout", recurrent_dropout)
    pair = checked_zoneout(zoneout, cell.states)
    acting = {"recurrent_dropout": p if training else 0.0, "zoneout": pair if any(pair) else None}
    return options._replace(**acting, zoneout_draws=training) if any(acting.values()) else options


def check_weights(name: str, kinds: Sequence[Wanted], weights: Sequence[Tensor]) -> None:
    """Raises unless every weight is a tensor with the right number of dimensions; ``kinds``: of all of them."""
    for i, (weight, kind) in enumerate(zip(weights, kinds, strict=True)):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name}: weights[{i}] must be a Tensor, got {type(weight).__name__}")
        dims = 1 if kind is Wanted.BIAS_IH or kind is Wanted.BIAS_HH else 2
        if weight.dim() != dims:
            what = kind.name.lower()
            raise RuntimeError(f"{name}: weights[{i}] ({what}) must be {dims}-D, got {list(weight.shape)}")


def states_of(hx, name: str, cell: Cell) -> tuple[Tensor, ...]:
    if hx is None:
        return ()
    if cell.states == 1:
        if not isinstance(hx, Tensor):
            raise TypeError(f"{name}: hx must be a Tensor, got {type(hx).__name__}")
        return (hx,)
    if not isinstance(hx, (tuple, list)) or len(hx) != cell.states or not all(isinstance(s, Tensor) for s in hx):
        got = f"{type(hx).__name__} of {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
        names = ", ".join(f"{state}_0" for state in cell.state_names or ("h", "c"))
        raise TypeError(f"{name}: hx must be a tuple ({names}) of Tensors, got {got}")
    return tuple(hx)


def h0_and_c0(states: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The operators' arguments: all states after h are one, side by side."""
    if len(states) > 2:
        return states[0], torch.cat(states[1:], -1)
    h0, c0 = (*states, None, None)[:2]
    return h0, c0


def apart(cell: Cell, c: Tensor) -> tuple[Tensor, ...]:
    """The inverse: every state after h."""
    if cell.states == 2:
        return (c,)
    return c.chunk(cell.states - 1, -1) if cell.states > 2 else ()


def apart_by_direction(cell: Cell, directions: int, cells: Tensor) -> tuple[Tensor, ...]:
    """The same for the states of every step, [.., D*W]."""
    if cell.states == 2 or directions == 1:
        return apart(cell, cells)
    each = cells.unflatten(-1, (directions, cells.shape[-1] // directions)).chunk(cell.states - 1, -1)
    return tuple(state.flatten(-2) for state in each)


def in_one_dtype(
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    of_tokens: bool = False,
    wrong_dtype: type[Exception] = ValueError,
):
    """Everything in one dtype (autocast's, if it is on) on one supported device; raises if they differ, ``wrong_dtype``
    for the input's. Ids keep their dtype."""
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
        raise wrong_dtype(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
        )
    return input, states, tuple(weights)


def check_state_dtypes(states: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for state in states:
        if state.dtype != dtype:
            raise RuntimeError(f"hx dtype ({state.dtype}) does not match weight dtype ({dtype})")


def contiguous(data: Tensor) -> Tensor:
    """``data.contiguous()``; raises where torch's would read freed memory."""
    if not torch.compiler.is_compiling() and not data.is_contiguous():
        has_storage = type(data) is Tensor and data.device.type != "meta" and not torch_private.in_transform()
        if has_storage and data.numel() and not data.untyped_storage().nbytes():
            raise RuntimeError("fused_rnn: the input's storage was freed")
    return data.contiguous()  # the only one here: torch.jit.trace compares source lines


def check_device(device: torch.device) -> None:
    """Raises unless the compiled library can run on this device."""
    if device.type in ("cpu", "meta"):
        return
    if device.type != "cuda":
        raise NotImplementedError(
            f"fused_rnn runs on cpu and cuda, not on {device.type}. Move the module and its input with .to('cpu'), or "
            f"take torch.nn's layer (fused_rnn.restore) on {device.type}."
        )
    if not library.cuda_archs():
        raise RuntimeError(
            "This fused_rnn was built without CUDA, but the input is a CUDA tensor. Rebuild it where nvcc is on the "
            "PATH: FUSED_RNN_CUDA=1 pip install --no-build-isolation --force-reinstall ."
        )
