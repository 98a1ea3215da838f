"""From torch's graphs to graphs of one unit's numbers: tensors [..., B, H] become arrays of nodes without B and H."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .graph import Graph, Node

Numbers = np.ndarray
"""Nodes, in the shape of a tensor without its last two dimensions."""

_SQRT_HALF_PI = 2.0 / torch.pi**0.5


def _compared(op: str, swap: bool = False) -> Callable:
    return lambda graph, a, b: graph.make(op, *((b, a) if swap else (a, b)))


def _same(op: str) -> Callable:
    return lambda graph, *args: graph.make(op, *args)


def _sum(sign: str) -> Callable:
    def make(graph: Graph, a: Any, b: Any, alpha: float = 1) -> Node:
        return graph.make(sign, a, graph.make("mul", b, alpha) if alpha != 1 else b)

    return make


def _not(graph: Graph, a: Any) -> Node:
    return graph.make("sub", 1.0, a)


def _bounded(graph: Graph, a: Any, low: Any = None, high: Any = None) -> Node:
    a = graph.make("maximum", a, low) if low is not None else a
    return graph.make("minimum", a, high) if high is not None else a


def _over_root(graph: Graph, a: Any) -> Node:
    return graph.make("div", 1.0, graph.make("sqrt", a))


# By the name of the operator: a function of the graph and the numbers. Masks are numbers too, 0 or 1.
_OF_NUMBERS: dict[str, Callable[..., Node]] = {
    **{
        name: _same(name) for name in ("mul", "div", "neg", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "erf")
    },
    **{name: _same(name) for name in ("tanh", "sigmoid", "relu", "abs", "sign", "pow", "maximum", "minimum")},
    "add": _sum("add"),
    "sub": _sum("sub"),
    "rsub": lambda graph, a, b, alpha=1: graph.make("sub", b, graph.make("mul", a, alpha)),
    "sgn": _same("sign"),
    "where": _same("select"),
    "eq": _compared("equal"),
    "ne": lambda graph, a, b: _not(graph, graph.make("equal", a, b)),
    "lt": _compared("less"),
    "le": _compared("less_equal"),
    "gt": _compared("less", swap=True),
    "ge": _compared("less_equal", swap=True),
    "clamp": _bounded,
    "clamp_min": _bounded,
    "clamp_max": lambda graph, a, high: _bounded(graph, a, None, high),
    "reciprocal": lambda graph, a: graph.make("div", 1.0, a),
    "rsqrt": _over_root,
    "square": lambda graph, a: graph.make("mul", a, a),
    "erfc": lambda graph, a: graph.make("sub", 1.0, graph.make("erf", a)),
    "exp2": lambda graph, a: graph.make("pow", 2.0, a),
    "log2": lambda graph, a: graph.make("mul", graph.make("log", a), 1.4426950408889634),
    "log10": lambda graph, a: graph.make("mul", graph.make("log", a), 0.4342944819032518),
    "tan": lambda graph, a: graph.make("div", graph.make("sin", a), graph.make("cos", a)),
    "logical_and": _same("mul"),
    "bitwise_and": _same("mul"),
    "logical_or": _same("maximum"),
    "bitwise_or": _same("maximum"),
    "logical_not": _not,
    "bitwise_not": _not,
    **{
        name: lambda graph, a, *_: a
        for name in ("clone", "alias", "detach", "_to_copy", "lift_fresh", "lift_fresh_copy")
    },
}


def lift(module: torch.fx.GraphModule, inputs: Sequence[Numbers], graph: Graph) -> Any:
    """Runs torch's graph on nodes; returns its outputs as arrays of nodes, one after the other."""
    return _Lift(module, graph).run(*inputs, enable_io_processing=False)


class _Lift(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, graph: Graph):
        super().__init__(module)
        self.numbers = graph

    def run_node(self, n: torch.fx.Node) -> Any:
        self._shape = getattr(n.meta.get("val"), "shape", None)
        return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        if value.numel() != 1:
            raise NotImplementedError("a formula may hold no tensors but numbers")
        return self._array((), value.item())

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(target, torch._ops.OpOverload):
            return super().call_function(target, args, kwargs)
        name = target._schema.name.removeprefix("aten::")
        if name in _OF_NUMBERS:
            return self._each(_OF_NUMBERS[name], args, {k: v for k, v in kwargs.items() if k == "alpha"})
        by_shape = getattr(self, f"_{name}", None)
        if by_shape is None:
            raise NotImplementedError(f"its derivative needs {target}, which cells do not have")
        return by_shape(*args, **kwargs)

    def _array(self, shape: Sequence[int], value: float) -> Numbers:
        found = np.empty(tuple(shape), dtype=object)
        found.fill(self.numbers.constant(value))
        return found

    def _each(self, function: Callable, args: Sequence[Any], kwargs: dict) -> Numbers:
        arrays = [arg if isinstance(arg, np.ndarray) else None for arg in args]
        shape = np.broadcast_shapes(*(array.shape for array in arrays if array is not None))
        wide = [None if array is None else np.broadcast_to(array, shape) for array in arrays]
        found = np.empty(shape, dtype=object)
        for at in np.ndindex(shape):
            numbers = [arg if array is None else array[at] for arg, array in zip(args, wide, strict=True)]
            found[at] = function(self.numbers, *numbers, **kwargs)
        return found

    # ---- constants ------------------------------------------------------------------------------------------------

    def _filled(self, value: float) -> Numbers:
        return self._array(self._shape[:-2], value)

    def _full(self, size: Any, value: float, **_: Any) -> Numbers:
        return self._filled(value)

    def _full_like(self, like: Numbers, value: float, **_: Any) -> Numbers:
        return self._filled(value)

    def _scalar_tensor(self, value: float, **_: Any) -> Numbers:
        return self._filled(value)

    def _zeros(self, size: Any, *_: Any, **__: Any) -> Numbers:
        return self._filled(0.0)

    def _ones(self, size: Any, **_: Any) -> Numbers:
        return self._filled(1.0)

    _zeros_like = _new_zeros = lambda self, like, *_, **__: self._filled(0.0)
    _ones_like = _new_ones = lambda self, like, *_, **__: self._filled(1.0)
    _empty_permuted = _empty_like = _empty = _zeros  # filled before they are read

    # ---- shapes ---------------------------------------------------------------------------------------------------

    def _unbind(self, array: Numbers, dim: int = 0) -> list[Numbers]:
        return [np.take(array, k, self._dim(array, dim)) for k in range(array.shape[self._dim(array, dim)])]

    def _select(self, array: Numbers, dim: int, index: int) -> Numbers:
        return _as_array(np.take(array, index, self._dim(array, dim)))

    def _slice(self, array: Numbers, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Numbers:
        at: list[Any] = [slice(None)] * array.ndim
        if dim % (array.ndim + 2) >= array.ndim:  # all of a dimension of B or H, or it would have been refused
            return array
        at[self._dim(array, dim)] = slice(start, end, step)
        return array[tuple(at)]

    def _select_scatter(self, array: Numbers, source: Numbers, dim: int, index: int) -> Numbers:
        return self._scattered(array, source, dim, index)

    def _slice_scatter(self, array: Numbers, source: Numbers, dim=0, start=None, end=None, step=1) -> Numbers:
        if dim % (array.ndim + 2) >= array.ndim:
            return source
        return self._scattered(array, source, dim, slice(start, end, step))

    def _select_backward(self, source: Numbers, sizes: Sequence[int], dim: int, index: int) -> Numbers:
        return self._scattered(self._filled(0.0), source, dim, index)

    def _slice_backward(self, source: Numbers, sizes, dim: int, start: int, end: int, step: int) -> Numbers:
        return self._slice_scatter(self._filled(0.0), source, dim, start, end, step)

    def _scattered(self, array: Numbers, source: Numbers, dim: int, index: Any) -> Numbers:
        at: list[Any] = [slice(None)] * array.ndim
        at[self._dim(array, dim)] = index
        found = array.copy()
        found[tuple(at)] = source if source.ndim else source.item()
        return found

    def _cat(self, arrays: Sequence[Numbers], dim: int = 0) -> Numbers:
        if arrays[0].ndim:
            return np.concatenate(arrays, self._dim(arrays[0], dim))
        # Tensors [B, H] one below the other, as stack's decomposition has them: the view that follows separates them.
        return np.stack(arrays)

    def _view(self, array: Numbers, size: Sequence[int]) -> Numbers:
        return array.reshape(tuple(self._shape[:-2]))

    def _squeeze(self, array: Numbers, dims: Any = None) -> Numbers:
        return array.reshape(tuple(self._shape[:-2]))

    _unsqueeze = _reshape = __unsafe_view = _squeeze

    def _expand(self, array: Numbers, size: Sequence[int], **_: Any) -> Numbers:
        return np.broadcast_to(array, tuple(self._shape[:-2]))

    def _sum(self, array: Numbers, dims: Sequence[int] = (), keepdim: bool = False, **_: Any) -> Numbers:
        """Over gates: the gradient of a tensor that was broadcast to them."""
        for dim in sorted((self._dim(array, dim) for dim in dims), reverse=True):
            total = np.take(array, 0, dim)
            for k in range(1, array.shape[dim]):
                total = self._each(_OF_NUMBERS["add"], (_as_array(total), _as_array(np.take(array, k, dim))), {})
            array = _as_array(total)
        return array.reshape(tuple(self._shape[:-2]))

    def _dim(self, array: Numbers, dim: int) -> int:
        dim %= array.ndim + 2
        if dim >= array.ndim:
            raise NotImplementedError("its derivative mixes units or batch rows")
        return dim


def _as_array(found: Any) -> Numbers:
    if isinstance(found, np.ndarray):
        return found
    array = np.empty((), dtype=object)
    array[()] = found
    return array
