"""The argument lists of the operators and of the autograd functions, all derived from the fields of ``Layer``.

There are two orders. The operators take a layer's weights as one list, between its states and its masks. The autograd
functions take them last and one by one, since autograd only sees tensors that are arguments of their own: such a list
is called flat here, and has the fields of ``ForwardArguments`` or ``BackwardArguments``.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import torch_private
from .layer import Layer

# Positions in a flat list that begins with a layer's arguments.
_place = Layer._fields.index
STATIC = slice(0, _place("input"))  # cell, bias, bidirectional ...
STATES = slice(_place("input"), _place("lengths"))  # input, h0, c0
MASKS = slice(_place("lengths"), _place("weights"))  # lengths, batch_sizes, reset_mask
WEIGHTS = slice(_place("weights"), None)


def layer_of(flat: Sequence[Any]) -> Layer:
    """A Layer from a flat list of its arguments, or of one value (a flag, a tangent) per argument."""
    return Layer(*flat[: WEIGHTS.start], tuple(flat[WEIGHTS]))


# ---- flat: the arguments of the autograd functions -------------------------------------------------------------------


class ForwardArguments(NamedTuple):
    """The arguments of ``LayerForward.apply``; ``layer`` stands for its fields."""

    save: bool
    cells: bool
    grad_clip: float | None
    layer: Layer


class BackwardArguments(NamedTuple):
    """The arguments of ``LayerBackward.apply``; ``layer`` stands for its fields."""

    wanted: int
    weight_groups: int
    norms: bool
    grad_clip: float | None
    grad_output: Tensor | None
    grad_h_n: Tensor | None
    grad_c_n: Tensor | None
    grad_cells: Tensor | None
    saved: Tensor
    layer: Layer

    @property
    def grads(self) -> tuple[Tensor | None, ...]:
        return self[GRADS]


def flatten(arguments: ForwardArguments | BackwardArguments) -> tuple:
    return (*arguments[:-1], *arguments.layer[:-1], *arguments.layer.weights)


def unflatten(kind, flat: Sequence[Any]) -> Any:
    """``ForwardArguments`` or ``BackwardArguments`` from a flat list of them, or of one value per argument."""
    layer = len(kind._fields) - 1
    return kind(*flat[:layer], layer_of(flat[layer:]))


GRADS = slice(BackwardArguments._fields.index("grad_output"), BackwardArguments._fields.index("saved"))

# Gradients of the arguments, in the same order; None for arguments without a gradient.
_OF_STATIC, _OF_MASKS = (None,) * len(Layer._fields[STATIC]), (None,) * len(Layer._fields[MASKS])
_BEFORE_LAYER = (None,) * ForwardArguments._fields.index("layer")
_BEFORE_GRADS = (None,) * BackwardArguments._fields.index("grad_output")
FORWARD_TENSORS = len(_BEFORE_LAYER) + STATES.start  # the flat list's first tensor


def forward_gradients(input, h0, c0, weights: Sequence[Any]) -> tuple:
    return (*_BEFORE_LAYER, *_OF_STATIC, input, h0, c0, *_OF_MASKS, *weights)


def backward_gradients(grads: Sequence[Any], states: Sequence[Any], weights: Sequence[Any]) -> tuple:
    """``grads``: for the four gradients; ``states``: for input, h0 and c0."""
    return (*_BEFORE_GRADS, *grads, None, *_OF_STATIC, *states, *_OF_MASKS, *weights)


# ---- the operators' own order ----------------------------------------------------------------------------------------


def _call(name: str):
    """A named tuple of an operator's arguments, from its schema, with properties ``layer`` and ``grads``."""
    operator = getattr(torch.ops.fused_rnn, name).default
    names, defaults = torch_private.arguments_of(operator)
    call = namedtuple(name, names, defaults=defaults)

    def layer(self) -> Layer:
        own = {field: getattr(self, field, None) for field in Layer._fields}  # not all of them take checkpoints
        return Layer(**own | {"weights": tuple(self.weights)})

    call.layer = property(layer)
    call.grads = property(lambda self: tuple(getattr(self, f) for f in BackwardArguments._fields[GRADS]))
    return call


ForwardCall, BackwardCall = _call("layer_forward"), _call("layer_backward")
TangentCall, TraceCall, BackwardTangentCall = map(_call, ("layer_tangent", "layer_trace", "layer_backward_tangent"))
NormedCall, NormedBackwardCall = _call("normed_forward"), _call("normed_backward")
