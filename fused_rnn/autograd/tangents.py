"""Directional derivatives of a layer and of its backward pass, by the compiled operators.

The tangent of the states is a linear recurrence over the same steps, ``layer_tangent``. The backward pass is a
recurrence too, and the tangent of its results a third, ``layer_backward_tangent``, which needs intermediate values of
the backward pass (``layer_trace``). Everything that does not depend on other steps is computed here, as products over
all steps at once.

Second derivatives are symmetric, so the gradient of <u, the layer's gradients> is the tangent of these gradients along
u: a double backward runs the same three recurrences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..ops import torch_private
from ..ops.layer import Grads, Layer, Wanted

Parts = Sequence[Tensor | None]
HALF = (torch.float16, torch.bfloat16)
NO_GRADS: Grads = (None,) * 4


class Direction(NamedTuple):
    """Tangents of the layer's arguments; None: zero."""

    input: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    weights: Parts


def are_compiled(layer: Layer, groups: int = 1) -> bool:
    """Whether the operators can be used for this layer, here; they have no vmap."""
    return (
        groups == 1
        and layer.input.device.type != "meta"
        and not layer.sizes[0].params
        and not torch_private.in_transform()
    )


def of_forward(layer: Layer, saved: Tensor, direction: Direction, cells: bool) -> tuple[Tensor, ...]:
    """Tangents of output, h_n, c_n and cells; ``saved`` comes from the layer's forward pass."""
    if layer.weights[0].dim() == 3:
        each = enumerate(_members(layer, direction))
        return _stacked([of_forward(own, saved[m], change, cells) for m, (own, change) in each])
    narrow, (layer, saved, direction) = _in_float(layer, saved, direction)
    *outputs, _ = _forward(layer, saved, direction, cells)
    return narrow(outputs)


def of_backward(
    layer: Layer, saved: Tensor, grads: Grads, direction: Direction, grads_direction: Grads, wanted: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Tangents of the layer's outputs along ``direction``, and tangents of the gradients of input, h0, c0 and weights
    along ``direction`` and ``grads_direction``; of an input that members share, that of each member."""
    if layer.weights[0].dim() == 3:
        outputs, results = [], []
        for m, (own, change) in enumerate(_members(layer, direction)):
            own_grads, own_change = (tuple(g if g is None else g[m] for g in of) for of in (grads, grads_direction))
            found = of_backward(own, saved[m], own_grads, change, own_change, wanted)
            outputs.append(found[0])
            results.append(found[1])
        return _stacked(outputs), _stacked(results)
    narrow, (layer, saved, grads, direction, grads_direction) = _in_float(
        layer, saved, grads, direction, grads_direction
    )
    *outputs, saved_tangent = _forward(layer, saved, direction, grads[3] is not None)
    results = _backward(layer, saved, saved_tangent, grads, direction, grads_direction, wanted)
    return narrow(outputs), narrow(results)


def _members(layer: Layer, direction: Direction) -> Iterator[tuple[Layer, Direction]]:
    """Each member as a layer of its own, and its part of the direction."""
    of_rows = 2 if layer.batch_sizes is not None else 3  # dimensions of the input
    for m in range(layer.weights[0].shape[0]):

        def own(tensor: Tensor | None, dims: int, m: int = m) -> Tensor | None:
            return tensor if tensor is None or tensor.dim() == dims else tensor[m]

        yield (
            layer._replace(
                input=own(layer.input, of_rows),
                h0=own(layer.h0, 3),
                c0=own(layer.c0, 3),
                lengths=own(layer.lengths, 1),
                reset_mask=own(layer.reset_mask, 2),
                h_factor=own(layer.h_factor, 3),
                zoneout_mask=own(layer.zoneout_mask, of_rows),
                weights=tuple(weight[m] for weight in layer.weights),
            ),
            Direction(
                own(direction.input, of_rows),
                own(direction.h0, 3),
                own(direction.c0, 3),
                [change if change is None else change[m] for change in direction.weights],
            ),
        )


def _stacked(of_members: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(parts[0] if parts[0].shape == (0,) else torch.stack(parts) for parts in zip(*of_members, strict=True))


def _forward(layer: Layer, saved: Tensor, direction: Direction, cells: bool) -> tuple[Tensor, ...]:
    gates_x, gates_r, projected = [], [], []
    ways = list(_ways(layer, direction))
    wide_h = None
    if any(Wanted.WEIGHT_HR in way.change for way in ways):  # h before its projection, which is not saved
        *_, wide_h = layer.trace(NO_GRADS, saved)
    for way in ways:
        gates_x.append(
            _sum(
                _linear(direction.input, way.weights[Wanted.WEIGHT_IH]),
                _linear(layer.input, way.change.get(Wanted.WEIGHT_IH)),
                way.change.get(Wanted.BIAS_IH),
            )
        )
        gates_r.append(
            _sum(
                _linear(way.entering_h(saved), way.change.get(Wanted.WEIGHT_HH)),
                way.change.get(Wanted.BIAS_HH),
            )
        )
        to_project = way.change.get(Wanted.WEIGHT_HR)
        projected.append(None if to_project is None else _linear(way.part(wide_h), to_project))
    x, r, h = (_side_by_side(parts, layer) for parts in (gates_x, gates_r, projected))
    return layer._replace(h0=direction.h0, c0=direction.c0).tangent(saved, x, r, h, cells)


def _backward(layer, saved, saved_tangent, grads, direction, grads_direction, wanted) -> tuple[Tensor, ...]:
    traced_x, traced_r, traced_states, traced_output, _ = layer.trace(grads, saved)
    if traced_r.shape == (0,):
        traced_r = traced_x
    ways = list(_ways(layer, direction))
    to_h = [way.masked(_times(way.part(traced_r), way.change.get(Wanted.WEIGHT_HH))) for way in ways]
    to_wide = [_times(way.part(traced_output), way.change.get(Wanted.WEIGHT_HR)) for way in ways]
    grad_input, grad_h0, grad_c0, wide_change, *grad_weights = layer.backward_tangent(
        grads_direction,
        saved,
        saved_tangent,
        traced_states,
        _side_by_side(to_h, layer),
        _side_by_side(to_wide, layer),
        wanted,
    )
    input_change = _without_padding(layer, direction.input)
    for way in ways:
        x, r = way.part(traced_x), way.part(traced_r)
        if wanted & Wanted.INPUT:
            _add(grad_input, _times(x, way.change.get(Wanted.WEIGHT_IH)))
        for kind, grad in zip(way.weights, grad_weights[way.first_weight :], strict=False):
            if not wanted & kind:
                continue
            if kind is Wanted.WEIGHT_IH:
                _add(grad, _outer(x, input_change))
            elif kind is Wanted.WEIGHT_HH:
                _add(grad, _outer(r, way.entering_h(saved_tangent)))
            elif kind is Wanted.WEIGHT_HR:
                _add(grad, _outer(way.part(traced_output), way.part(wide_change)))
    return (grad_input, grad_h0, grad_c0, *grad_weights)


class _Way(NamedTuple):
    """One direction (forward or reverse) of a layer."""

    layer: Layer
    number: int
    weights: dict[Wanted, Tensor]
    change: dict[Wanted, Tensor]  # of those that have a tangent

    @property
    def first_weight(self) -> int:
        return self.number * len(self.weights)

    def part(self, tensor: Tensor) -> Tensor:
        """This direction's part of [rows, D*width]."""
        width = tensor.shape[-1] // self.layer.sizes[1]
        return tensor.narrow(-1, self.number * width, width) if tensor.dim() > 1 else tensor

    def entering_h(self, saved: Tensor) -> Tensor:
        """The h that W_hh was multiplied by in each step, from the saved values or from their tangent."""
        cell, _, hidden, width, *_ = self.layer.sizes
        return self.masked(saved[self.number].narrow(-1, cell.saved * hidden, width))

    def masked(self, h: Tensor | None) -> Tensor | None:
        """[rows, P] times the layer's h_factor."""
        factor = self.layer.h_factor
        if h is None or factor is None:
            return h
        own = factor[self.number]
        if self.layer.batch_sizes is not None:  # the rows of step t are the first ones of the batch
            own = torch.cat([own[:count] for count in self.layer.batch_sizes.tolist()])
        return h * own


def _ways(layer: Layer, direction: Direction) -> Iterator[_Way]:
    count = len(layer.weights) // layer.sizes[1]
    for d in range(layer.sizes[1]):
        own = slice(d * count, (d + 1) * count)
        kinds = layer.weight_kinds[own]
        change = {k: t for k, t in zip(kinds, direction.weights[own], strict=True) if t is not None}
        yield _Way(layer, d, dict(zip(kinds, layer.weights[own], strict=True)), change)


def _linear(x: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if x is None or weight is None else linear(x, weight)


def _times(x: Tensor, matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else x @ matrix


def _outer(x: Tensor, y: Tensor | None) -> Tensor | None:
    """The outer product, summed over rows."""
    return None if y is None else x.flatten(0, -2).T @ y.flatten(0, -2)


def _sum(*parts: Tensor | None) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return sum(given[1:], given[0]) if given else None


def _add(to: Tensor, part: Tensor | None) -> None:
    if part is not None:
        to += part


def _side_by_side(parts: list[Tensor | None], layer: Layer) -> Tensor | None:
    """Concatenates the directions' [rows, width] to [rows, D*width]; a bias is broadcast over rows."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    shape = (*layer.sizes[-1], given[0].shape[-1])
    return torch.cat([given[0].new_zeros(shape) if part is None else part.expand(shape) for part in parts], -1)


def _without_padding(layer: Layer, change: Tensor | None) -> Tensor | None:
    """Zeroes padding, which may hold anything: zero times NaN is not zero."""
    if change is None or layer.lengths is None:
        return change
    steps = torch.arange(change.shape[0], device=change.device)
    return change.masked_fill((steps.unsqueeze(1) >= layer.lengths).unsqueeze(-1), 0)


def _in_float(layer: Layer, *nested) -> tuple[Callable, tuple]:
    """Everything with 16-bit tensors converted to float32, and the function that converts results back: sums of rounded
    products would lose too many digits."""
    dtype = layer.input.dtype
    if dtype not in HALF:
        return tuple, (layer, *nested)

    wide = torch_private.map_tensors(lambda t: t.float() if t.dtype == dtype else t, (layer, *nested))
    return (lambda results: tuple(t.to(dtype) for t in results)), wide
