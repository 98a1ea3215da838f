"""Directional derivatives of ``layer_forward``, and all derivatives of ``layer_backward``.

Computed by the compiled operators (:mod:`fused_rnn.autograd.tangents`) where possible. Where torch.func vmaps over this
(jacfwd, hessian) or differentiates its own gradient, and for third derivatives, the reference is differentiated
instead. Ids are replaced by one-hot rows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import reference
from ..ops import torch_private
from ..ops.calls import STATES
from ..ops.layer import Grads, Layer, Wanted
from . import tangents
from .tangents import Direction


def _outside(function):
    """Runs ``function(layer, saved, ..)``, a directional derivative, outside of the jvp of torch.func that requests it,
    which must not track it; the transforms around that one stay active."""

    @functools.wraps(function)
    def called(*args):
        level, saved = torch_private.innermost_level(), args[1]
        if level is None or not torch_private.is_jvp(level) or not torch_private.is_of_level(saved, level):
            return function(*args)
        with level.lower():
            return function(*torch_private.below_level(args, level))

    return called


@_outside
def forward_along(layer: Layer, saved: Tensor, direction: Direction, cells: bool) -> tuple[Tensor, ...]:
    """Tangents of output, h_n, c_n and cells."""
    layer = layer.with_numbers()

    def plain(*inputs: Tensor | None) -> Grads:
        return _outputs(layer, inputs, cells)

    def compiled() -> Grads:
        return tangents.of_forward(layer, saved, direction, cells)

    return _along(layer, 1, plain, compiled, _inputs(layer), _flat(direction))


@_outside
def backward_along(
    layer: Layer, saved: Tensor, grads: Grads, groups: int, direction: Direction, grads_direction: Grads, wanted: int
) -> tuple[Grads, Grads]:
    """Tangents of the gradients of (input, h0, c0) and of the weights, for tangents of the layer's arguments and of
    ``grads``; None for those not wanted."""
    layer = layer.with_numbers()
    asked = (wanted & Wanted.INPUT, True, True, *(wanted & kind for kind in layer.weight_kinds))

    def only_wanted(results) -> Grads:
        return tuple(result if is_asked else None for result, is_asked in zip(results, asked, strict=True))

    def plain(*inputs: Tensor | None) -> Grads:
        return only_wanted(_backward(layer, groups, inputs))

    def compiled() -> Grads:
        return only_wanted(tangents.of_backward(layer, saved, grads, direction, grads_direction, wanted)[1])

    changes = (*_flat(direction), *grads_direction)
    results = _along(layer, groups, plain, compiled, (*_inputs(layer), *grads), changes)
    states, weights, _ = _split(layer, results)
    return states, weights


def _along(layer: Layer, groups: int, plain, compiled, inputs: Grads, changes: Grads) -> Grads:
    """Tangents of ``plain(*inputs)``: by compiled() where possible, differentiable if a gradient may be requested."""
    if not tangents.are_compiled(layer, groups):
        return _push_forward(plain, inputs, changes)
    with _without_autocast(layer):
        if _is_differentiable((*inputs, *changes)):
            return _Along.apply(plain, compiled, *inputs, *changes)
        with torch_private.below_autograd():
            return compiled()


class _Along(torch.autograd.Function):
    """``apply(plain, compiled, *inputs, *changes)``: the value of compiled() with the gradient of _push_forward."""

    @staticmethod
    def forward(ctx, plain, compiled, *tensors):
        ctx.plain = plain
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch_private.below_autograd():
            return compiled()

    @staticmethod
    def backward(ctx, *grads):
        tensors = ctx.saved_tensors
        count = len(tensors) // 2
        _, _, *needs = ctx.needs_input_grad
        needed = [i for i, is_needed in enumerate(needs) if is_needed]
        given: list[int] = []

        def push(*own: Tensor) -> tuple[Tensor, ...]:
            full = list(tensors)
            for i, tensor in zip(needed, own, strict=True):
                full[i] = tensor
            results = _push_forward(ctx.plain, full[:count], full[count:])
            given[:] = [i for i, grad in enumerate(grads) if grad is not None and results[i] is not None]
            return tuple(results[i] for i in given)

        _, vjp = torch.func.vjp(push, *(tensors[i] for i in needed))
        found: list[Tensor | None] = [None] * len(tensors)
        for i, grad in zip(needed, vjp(tuple(grads[i] for i in given)), strict=True):
            found[i] = grad
        return (None, None, *found)


def differentiate_backward(
    layer: Layer, saved: Tensor, grads: Grads, groups: int, grad_grads: Grads, wanted: int
) -> tuple[Grads, Grads, Grads]:
    """The vector-Jacobian product of ``layer_backward``.

    ``layer_backward`` maps (input, h0, c0, weights, grads) to the gradients of (input, h0, c0, weights); ``grad_grads``
    are the vectors for those, None for zeros. Returns the products for (input, h0, c0), the weights and ``grads``.
    """
    layer, saved, grads, grad_grads = torch_private.without_the_dead((layer, saved, grads, grad_grads))
    of_tokens, layer = layer.reads_tokens, layer.with_numbers()
    inputs = (*_inputs(layer), *grads)
    # A tracer may pass zeros instead of None, also for empty gradients that were not requested.
    pairs = zip(grad_grads, inputs, strict=False)
    grad_grads = [None if input is None or grad is None or grad.shape == (0,) else grad for grad, input in pairs]
    reached = [i for i, grad in enumerate(grad_grads) if grad is not None]
    products: list[Tensor | None] = [None] * len(inputs)
    plain = _is_differentiable((*inputs, *grad_grads)) or _are_batched(grad_grads)
    if reached and not plain and tangents.are_compiled(layer, groups):
        input, h0, c0, *weights = grad_grads
        direction = Direction(input, h0, c0, weights)
        with torch_private.below_autograd(), _without_autocast(layer):
            outputs, states = tangents.of_backward(layer, saved, grads, direction, (None,) * len(grads), wanted)
            if states[0].dim() > layer.input.dim():  # members share it
                states = (states[0].sum(0), *states[1:])
        products = [*states, *outputs]
    elif reached:
        by_autograd = groups == 1 and layer.weights[0].dim() == 2 and not torch_private.in_transform()
        vectors = [grad_grads[i] for i in reached]
        if by_autograd:
            products = _by_autograd(layer, inputs, reached, vectors)
        else:
            products = _by_transforms(layer, groups, inputs, reached, vectors)
    pairs = zip(inputs, products, strict=True)
    products = [None if t is None or product is None or product.shape == (0,) else product for t, product in pairs]
    (input, h0, c0), weights, of_grads = _split(layer, products)
    return (None if of_tokens else input, h0, c0), weights, of_grads  # ids have no gradient


def plain_backward(layer: Layer, groups: int, grads: Grads) -> Grads:
    """``layer_backward``'s gradients of (input, h0, c0, weights), by the reference."""
    layer = layer.with_numbers()
    return tuple(_backward(layer, groups, [*_inputs(layer), *grads]))


# ---- flat lists: input, h0, c0, then the weights, then the four gradients, if any ------------------------------------


def _inputs(layer: Layer) -> tuple[Tensor | None, ...]:
    return (layer.input, layer.h0, layer.c0, *layer.weights)


_FIRST_WEIGHT = len(Layer._fields[STATES])


def _first_grad(layer: Layer) -> int:
    return _FIRST_WEIGHT + len(layer.weights)


def _split(layer: Layer, flat) -> tuple[tuple, tuple, tuple]:
    """Splits a flat list into (input, h0, c0), the weights and the gradients."""
    grads = _first_grad(layer)
    return tuple(flat[:_FIRST_WEIGHT]), tuple(flat[_FIRST_WEIGHT:grads]), tuple(flat[grads:])


def _with(layer: Layer, flat) -> Layer:
    (input, h0, c0), weights, _ = _split(layer, flat)
    return layer._replace(input=input, h0=h0, c0=c0, weights=weights)


def _flat(direction: Direction) -> tuple[Tensor | None, ...]:
    return (direction.input, direction.h0, direction.c0, *direction.weights)


# ---- properties of a call --------------------------------------------------------------------------------------------


def _are_batched(tensors: Grads) -> bool:
    """Whether ``torch.autograd.grad(is_grads_batched=True)``, which has its own vmap, has batched one of them."""
    return any(tensor is not None and torch_private.is_legacy_batched(tensor) for tensor in tensors)


def _is_differentiable(tensors: Grads) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return True
    return torch_private.in_forward_mode() and any(map(torch_private.has_tangent, given))


def _without_autocast(layer: Layer):
    """Everything has its final dtype already."""
    return torch.autocast(layer.input.device.type, enabled=False)


# ---- by differentiating the reference --------------------------------------------------------------------------------


def _push_forward(function, inputs, changes):
    """Tangents of ``function``'s results, by torch.func.jvp; None for absent arguments, tangents and results."""
    changing = [i for i, change in enumerate(changes) if change is not None and inputs[i] is not None]
    given: list[int] = []
    size = 0

    def of_changing(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal given, size
        filled = dict(zip(changing, tensors, strict=True))
        results = function(*(filled.get(i, t) for i, t in enumerate(inputs)))
        size = len(results)
        given = [i for i, result in enumerate(results) if result is not None]
        return tuple(results[i] for i in given)

    _, found = torch.func.jvp(of_changing, tuple(inputs[i] for i in changing), tuple(changes[i] for i in changing))
    by_place = dict(zip(given, found, strict=True))
    return tuple(by_place.get(i) for i in range(size))


def _outputs(layer: Layer, inputs, cells: bool) -> tuple[Tensor, ...]:
    return reference.run_layer(_with(layer, inputs), cells)


def _by_autograd(layer: Layer, inputs, wanted: list[int], vectors: list[Tensor]):
    """Differentiates twice with plain autograd, which unlike torch.func works with hooks on saved tensors."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: gradients stop at them, while further derivatives propagate to the user's tensors.
        own = [None if t is None else t.view_as(t).requires_grad_() for t in inputs]
        outputs, grads = _outputs_with_gradients(layer, own)
        first = torch.autograd.grad(outputs, [own[i] for i in wanted], grads, create_graph=True, allow_unused=True)
        reached = [(f, v) for f, v in zip(first, vectors, strict=True) if f is not None and f.requires_grad]
        given = [i for i, t in enumerate(own) if t is not None]
        products: list[Tensor | None] = [None] * len(inputs)
        if reached:
            results = torch.autograd.grad(
                [f for f, _ in reached],
                [own[i] for i in given],
                [v for _, v in reached],
                create_graph=create_graph,
                allow_unused=True,
            )
            for i, result in zip(given, results, strict=True):
                products[i] = result
    return products


def _by_transforms(layer: Layer, groups: int, inputs, wanted: list[int], vectors: list[Tensor]):
    """The same with torch.func, which works inside its own transforms and vmaps over members and groups."""
    given = [i for i, t in enumerate(inputs) if t is not None]

    def first_order(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = dict(zip(given, tensors, strict=True))
        results = _backward(layer, groups, [filled.get(i) for i in range(len(inputs))])
        return tuple(results[i] for i in wanted)

    _, vjp = torch.func.vjp(first_order, *(inputs[i] for i in given))
    products: list[Tensor | None] = [None] * len(inputs)
    for i, product in zip(given, vjp(tuple(vectors)), strict=True):
        products[i] = product
    return products


def _outputs_with_gradients(layer: Layer, inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The reference's outputs that have a gradient, and these gradients."""
    _, _, grads = _split(layer, inputs)
    *_, grad_cells = grads
    outputs = _outputs(layer, inputs, cells=grad_cells is not None)
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    return [output for output, _ in pairs], [grad for _, grad in pairs]


def _backward(layer: Layer, groups: int, inputs: list[Tensor | None]) -> list[Tensor | None]:
    """``layer_backward`` in plain PyTorch, differentiable; members and weight groups as vmapped dimensions."""
    if layer.weights[0].dim() == 3:
        return _over_members(layer, groups, inputs)
    if groups > 1:
        return _over_groups(layer, groups, inputs)
    count = _first_grad(layer)
    given = [i for i, t in enumerate(inputs[:count]) if t is not None]

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = dict(zip(given, tensors, strict=True))
        own = [filled.get(i) for i in range(count)]
        return tuple(_outputs_with_gradients(layer, [*own, *inputs[count:]])[0])

    _, vjp = torch.func.vjp(forward, *(inputs[i] for i in given))
    results = vjp(tuple(grad for grad in inputs[count:] if grad is not None))
    full: list[Tensor | None] = [None] * count
    for i, result in zip(given, results, strict=True):
        full[i] = result
    return full


def _vmapped(layer: Layer, inputs, dims, layer_dims, groups: int, out_dims) -> list[Tensor | None]:
    """``_backward`` with one dimension of the inputs, and of the masks, mapped over."""
    given = [i for i, t in enumerate(inputs) if t is not None]
    masks = [name for name in layer_dims if getattr(layer, name) is not None]
    count = _first_grad(layer)
    results = [i for i in given if i < count]

    def one(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = dict(zip(given, tensors, strict=False))
        own_masks = dict(zip(masks, tensors[len(given) :], strict=True))
        own_inputs = [filled.get(i) for i in range(len(inputs))]
        own = _with(layer, own_inputs)._replace(**own_masks)
        full = _backward(own, groups, own_inputs)
        return tuple(full[i] for i in results)

    in_dims = tuple(dims[i] for i in given) + tuple(layer_dims[name] for name in masks)
    tensors = [inputs[i] for i in given] + [getattr(layer, name) for name in masks]
    mapped = torch.vmap(one, in_dims, tuple(out_dims[i] for i in results))(*tensors)
    full: list[Tensor | None] = [None] * count
    for i, result in zip(results, mapped, strict=True):
        full[i] = result
    return full


def _over_members(layer: Layer, groups: int, inputs) -> list[Tensor | None]:
    own_dims = 2 if layer.batch_sizes is not None else 3
    dims = [0] * len(inputs)
    dims[0] = 0 if layer.input.dim() == own_dims + 1 else None
    layer_dims = {
        "lengths": 0 if layer.lengths is not None and layer.lengths.dim() == 2 else None,
        "reset_mask": 0 if layer.reset_mask is not None and layer.reset_mask.dim() == 3 else None,
        "h_factor": 0,
        "zoneout_mask": 0,
    }
    return _vmapped(layer, inputs, dims, layer_dims, groups, [0] * len(inputs))


def _over_groups(layer: Layer, groups: int, inputs) -> list[Tensor | None]:
    count = _first_grad(layer)

    def cut(tensor: Tensor | None, batch_dim: int) -> Tensor | None:
        if tensor is None:
            return None
        at = tensor.dim() + batch_dim
        return tensor.unflatten(at, (groups, tensor.shape[at] // groups))

    # The batch dimension is -2, so that of its groups, once split off, is -3.
    rows = [i for i in range(len(inputs)) if i < _FIRST_WEIGHT or i >= count]
    cut_inputs = [cut(t, -2) if i in rows else t for i, t in enumerate(inputs)]
    dims = [-3 if i in rows else None for i in range(len(inputs))]
    input, *_ = cut_inputs
    masks = {"lengths": -1, "reset_mask": -1, "h_factor": -2, "zoneout_mask": -2}
    own_masks = {name: cut(getattr(layer, name), batch_dim) for name, batch_dim in masks.items()}
    own = layer._replace(input=input, **own_masks)
    out_dims = [-3 if i < _FIRST_WEIGHT else 0 for i in range(count)]
    full = _vmapped(own, cut_inputs, dims, {name: at - 1 for name, at in masks.items()}, 1, out_dims)
    return [t.flatten(-3, -2) if t is not None and i < _FIRST_WEIGHT else t for i, t in enumerate(full)]
