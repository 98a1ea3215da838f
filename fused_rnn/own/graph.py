"""Graphs of numbers of one hidden unit: constants, inputs and elementwise operations, each distinct one once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

# Operations of two numbers whose order does not matter.
_COMMUTATIVE = frozenset(("add", "mul", "maximum", "minimum", "equal"))

# Functions that a header may call, by the names of csrc/cells/math.h, beside + - * / and the sign.
_WORDS = """abs cos equal erf exp expm1 less less_equal log log1p maximum minimum pow relu select sigmoid sign sin sqrt
tanh"""
FUNCTIONS = frozenset(_WORDS.split())
_NAMES_IN_TORCH = {"select": "where", "less": "lt", "less_equal": "le", "equal": "eq"}


class Node:
    """A number: ``op`` of ``args``, or an input or a constant. Compared by identity."""

    __slots__ = ("args", "index", "name", "op", "value")

    def __init__(self, index: int, op: str, args: tuple[Node, ...], value: float | str | None):
        self.index = index
        """In the order of creation: arguments come before what is made of them."""
        self.op = op
        self.args = args
        self.value = value
        """Of a constant its number; of an input its kind and number, "x[0]"."""
        self.name: str | None = None
        """The user's variable, if one had this value."""

    @property
    def is_constant(self) -> bool:
        return self.op == "constant"

    @property
    def is_input(self) -> bool:
        return self.op == "input"

    @property
    def is_mask(self) -> bool:
        """Whether it is 0 or 1 by construction."""
        if self.op in ("mul", "maximum"):
            return all(arg.is_mask for arg in self.args)
        if self.op == "sub":
            return self.args[0].value == 1.0 and self.args[1].is_mask
        return self.op in ("less", "less_equal", "equal")

    def place(self) -> tuple[str, int]:
        """Of an input, its kind and number."""
        kind, number = str(self.value)[:-1].split("[")
        return kind, int(number)

    def __repr__(self) -> str:
        return str(self.value) if not self.args else f"{self.op}({', '.join(map(repr, self.args))})"


class Graph:
    """Makes nodes: equal ones are the same node, and sums with 0, products with 1 and the like are simplified."""

    def __init__(self) -> None:
        self._known: dict[tuple, Node] = {}

    def __len__(self) -> int:
        return len(self._known)

    def constant(self, value: float) -> Node:
        value = float(value)
        return self._node("constant", (), value, (value, math.copysign(1.0, value)) if value == value else "nan")

    def input(self, kind: str, number: int = 0) -> Node:
        return self._node("input", (), f"{kind}[{number}]", f"{kind}[{number}]")

    def make(self, op: str, *args: Node | float) -> Node:
        nodes = tuple(arg if isinstance(arg, Node) else self.constant(arg) for arg in args)
        if all(node.is_constant for node in nodes):
            numbers = (torch.tensor(node.value, dtype=torch.float64) for node in nodes)
            return self.constant(in_torch(op, *numbers).item())
        simple = self._simplified(op, nodes)
        return simple if simple is not None else self._make(op, nodes)

    def _make(self, op: str, nodes: tuple[Node, ...]) -> Node:
        key = tuple(node.index for node in nodes)
        return self._node(op, nodes, None, tuple(sorted(key)) if op in _COMMUTATIVE else key)

    def _node(self, op: str, args: tuple[Node, ...], value: float | str | None, key: object) -> Node:
        found = self._known.get((op, key))
        if found is None:
            found = self._known[op, key] = Node(len(self._known), op, args, value)
        return found

    def _simplified(self, op: str, nodes: tuple[Node, ...]) -> Node | None:
        """The same number with fewer operations; None if there is no shorter way. Nothing that could hide a NaN."""
        first, second = (*nodes, nodes[0])[:2]
        if op == "add":
            for one, other in ((first, second), (second, first)):
                if one.value == 0.0:
                    return other
                if one.op == "neg":
                    return self.make("sub", other, one.args[0])
            return None
        if op == "sub":
            if first.value == 0.0:
                return self.make("neg", second)
            if second.op == "neg":
                return self.make("add", first, second.args[0])
            return first if second.value == 0.0 else None
        if op == "mul":
            for one, other in ((first, second), (second, first)):
                if one.value == 1.0:
                    return other
                if one.value == -1.0:
                    return self.make("neg", other)
            return None
        if op == "div" and second.is_constant and second.value:
            inverse = 1.0 / second.value
            is_exact = abs(math.frexp(second.value)[0]) == 0.5 and math.isfinite(inverse)
            return self.make("mul", first, inverse) if is_exact else None
        if op == "neg" and first.op == "neg":
            return first.args[0]
        if op == "pow" and second.is_constant:
            return self._power(first, second.value)
        if op == "select":
            if first.is_constant:
                return nodes[1] if first.value else nodes[2]
            if first.is_mask and (nodes[1].value, nodes[2].value) in ((1.0, 0.0), (0.0, 1.0)):
                return first if nodes[1].value else self.make("sub", 1.0, first)
            return nodes[1] if nodes[1] is nodes[2] else None
        return None

    def _power(self, base: Node, exponent: float) -> Node | None:
        if exponent in (1.0, 2.0, 3.0):
            square = base if exponent == 1.0 else self.make("mul", base, base)
            return square if exponent < 3.0 else self.make("mul", square, base)
        if exponent == 0.5:
            return self.make("sqrt", base)
        if exponent in (-1.0, -2.0, -0.5):
            return self.make("div", 1.0, self.make("pow", base, -exponent))
        return self.constant(1.0) if exponent == 0.0 else None


def under(roots: Iterable[Node], stop: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """What the roots are made of, themselves included, arguments first; not what a node is made of at which to stop."""
    found: dict[int, Node] = {}
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node.index not in found:
            found[node.index] = node
            if not stop(node):
                waiting += node.args
    return [found[index] for index in sorted(found)]


def inputs_of(roots: Iterable[Node]) -> set[str]:
    return {str(node.value) for node in under(roots) if node.is_input}


def evaluate(roots: Iterable[Node], known: dict[Node, object], function: Callable) -> Iterator[object]:
    """The roots' values: ``function(op, *values)`` of every node that is not known; constants are passed as numbers."""
    roots = list(roots)
    values = dict(known)
    for node in under(roots, lambda node: node in known):
        if node not in values:
            values[node] = node.value if node.is_constant else function(node.op, *(values[arg] for arg in node.args))
    return (values[root] for root in roots)


def in_torch(op: str, *values: Any) -> Tensor:
    """An operation on tensors and numbers; masks are of bools."""
    if op == "pow":
        return torch.pow(*values)
    like = next(value for value in values if isinstance(value, Tensor))
    tensors = [value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for value in values]
    if op == "sub" and like.dtype == torch.bool:
        return torch.logical_not(like)
    if op == "select" and tensors[0].dtype != torch.bool:
        tensors[0] = tensors[0] != 0
    return getattr(torch, _NAMES_IN_TORCH.get(op, op))(*tensors)
