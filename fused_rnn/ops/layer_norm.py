"""Layer norm: of W_ih x and W_hh h, each over its units and gates, and of an LSTM's c before its tanh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .cells import Cell
from .checks import Form, Options
from .layer import Layer, Wanted

EPSILON = 1e-5  # csrc/core/problem.h's kNormEpsilon

# (layer, the parameters of its norms, whether to return the second state of every step, grad_clip)
RunNormed = Callable[[Layer, Sequence[Tensor], bool, "float | None"], tuple[Tensor, ...]]


def names(cell: Cell, bias: bool) -> list[str]:
    """The parameters of one layer and direction, in the operators' order."""
    found = ["gain_ih"]
    if cell.recurrent:
        found.append("gain_hh")
    if cell.output_gate:
        found += ["gain_c", "bias_c"] if bias else ["gain_c"]
    return found


def size(name: str, cell: Cell, hidden: int) -> int:
    return hidden if name.endswith("_c") else cell.gates * hidden


def check(name: str, cell: Cell, bias: bool, hidden: int, given: Sequence[Tensor], blocks: int) -> None:
    """Raises unless these are the parameters for so many layers and directions."""
    expected = names(cell, bias) * blocks
    if len(given) != len(expected):
        raise ValueError(
            f"{name}: layer_norm must hold {', '.join(names(cell, bias))} for each of {blocks} layers and directions, "
            f"got {len(given)} in all"
        )
    for i, (tensor, kind) in enumerate(zip(given, expected, strict=True)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: layer_norm[{i}] must be a Tensor, got {type(tensor).__name__}")
        wanted = [size(kind, cell, hidden)]
        if list(tensor.shape) != wanted:
            raise RuntimeError(f"{name}: layer_norm[{i}] ({kind}) must be {wanted}, got {list(tensor.shape)}")


def layers(runner: Any, form: Form, weights: Sequence[Tensor], options: Options):
    """What runs one call's layers, one after the other. ``runner``: an :class:`arguments.Runner`."""
    given = {
        "heads": options.heads > 1,
        "checkpoint": options.checkpoint is not None,
        "a projection (weight_hr)": form.kinds[-1] is Wanted.WEIGHT_HR,
    }
    if others := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"layer_norm and {others[0]} exclude each other")
    if runner.run_normed is None:
        raise NotImplementedError(f"fused_rnn: {runner.watches or 'what runs this layer'} does not know layer_norm")
    of_all = options.layer_norm or ()
    blocks, hidden = form.num_layers * form.directions, weights[0].shape[0] // form.cell.gates
    check(form.name, form.cell, form.bias, hidden, of_all, blocks)
    norms, per_layer = iter(of_all), len(of_all) // form.num_layers

    def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):
        own = [next(norms) for _ in range(per_layer)]
        cast, dtype = layer.weights[0].dtype, weights[0].dtype
        if cast != dtype:  # by autocast
            own = [norm.to(cast) if norm.dtype == dtype else norm for norm in own]
        return runner.run_normed(layer, own, cells, grad_clip)

    return run_layer
