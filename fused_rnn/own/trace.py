"""The derivatives of a recorded formula, and all of it as one graph of a unit's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..ops import torch_private
from .graph import Graph, Node, evaluate, in_torch, under
from .lift import lift
from .record import ROWS, UNITS, Declaration, Record


@dataclass
class Formula:
    """A step of one unit and its gradients; nodes of one graph."""

    declared: Declaration
    graph: Graph
    x: list[Node]
    r: list[Node]
    state: list[Node]
    params: list[Node]
    gradient: list[Node]
    """Of the new states, from outside of the step."""
    state_next: list[Node]
    dx: list[Node]
    dr: list[Node]
    dstate: list[Node]
    dparams: list[Node]
    dstate_next: list[Node]
    """The whole gradients of the new states, what reaches them inside of the step included."""
    tangents: dict[Node, Node] = field(default_factory=dict)
    """The tangent of every number that a step may save, from those of x, r and the states."""


def trace(record: Record, declared: Declaration) -> Formula:
    graph = Graph()
    gates, states, params = declared.gates, len(declared.states), len(declared.params)
    x = [graph.input("x", k) for k in range(gates)]
    r = [graph.input("r", k) for k in range(gates * declared.recurrent)]
    state = [graph.input("state", k) for k in range(states)]
    own = [graph.input("params", k) for k in range(params)]
    gradient = [graph.input("gradient", k) for k in range(states)]
    for number, name in ((n, name) for n, name in zip(state + own, declared.states + declared.params, strict=True)):
        number.name = name

    inputs, gradients = record.inputs, [torch.ones_like(output) for output in record.outputs]
    zeros = [torch.zeros_like(output) for output in record.outputs]

    def joint(inputs, zeros, gradients):
        def formula(inputs, zeros):
            return _replayed(record, inputs, zeros)

        outputs, pull, inner = torch.func.vjp(formula, inputs, zeros, has_aux=True)
        return outputs, inner, pull(tuple(gradients))

    traced = _traced(joint, inputs, zeros, gradients)
    nothing = [_number(graph.constant(0.0)) for _ in state]
    given = [_numbers(x), *([_numbers(r)] if r else []), *map(_number, (*state, *own))]
    try:
        found = iter(lift(traced, [*given, *nothing, *map(_number, gradient)], graph))
    except NotImplementedError as error:  # torch adds lines of its graph
        raise NotImplementedError(f"{declared.name}: {str(error).splitlines()[0]}") from error
    state_next = [next(found).item() for _ in state]
    for call in record.calls:
        for result in call.results:
            _name(record, result, next(found))
    dx, dr = list(next(found)), list(next(found)) if r else []
    dstate, dparams, dstate_next = ([next(found).item() for _ in nodes] for nodes in (state, own, state))
    formula = Formula(declared, graph, x, r, state, own, gradient, state_next, dx, dr, dstate, dparams, dstate_next)
    _add_tangents(formula)
    return formula


def _traced(function: Any, *args: Any) -> torch.fx.GraphModule:
    """The graph of elementwise operations: without edits in place, and composed ones taken apart."""
    table = torch_private.elementary_decompositions()
    traced = make_fx(torch.func.functionalize(function), decomposition_table=table)(*args)
    traced.graph.eliminate_dead_code()
    return traced


def _replayed(record: Record, inputs: Sequence[Tensor], zeros: Sequence[Tensor]):
    """The formula's outputs and inner results; ``zeros`` are added to the outputs wherever these are used."""
    values: dict[int, Tensor] = {id(old): new for old, new in zip(record.inputs, inputs, strict=True)}
    waiting = {id(output): zero for output, zero in zip(record.outputs, zeros, strict=True)}

    def current(value: Any) -> Any:
        return torch_private.map_tensors(lambda tensor: values.get(id(tensor), tensor), value)

    added, inner = set(), []
    for call in record.calls:
        returned = call.operator(*current(call.args), **current(call.kwargs))
        results = returned if isinstance(returned, (tuple, list)) else [returned]
        for old, new in zip(call.results, results, strict=True):
            is_new = id(old) not in values
            values[id(old)] = new
            if is_new and id(old) in waiting and new.is_floating_point():
                values[id(old)] = new + waiting[id(old)]
                added.add(id(old))
            inner.append(values[id(old)])
    outputs, seen = [], set()
    for old, zero in zip(record.outputs, zeros, strict=True):
        # An output that is an input too, or another output, has a gradient of its own.
        is_own = id(old) in added and id(old) not in seen and waiting[id(old)] is zero
        outputs.append(values[id(old)] if is_own else values[id(old)] + zero)
        seen.add(id(old))
    return tuple(outputs), inner


def _name(record: Record, result: Tensor, array: Any) -> None:
    """Names a number by the variable that held it."""
    name = record.names.get(id(result))
    if name is not None and array.size == 1 and array.item().name is None and not array.item().is_constant:
        array.item().name = name


def _add_tangents(formula: Formula) -> None:
    graph, params = formula.graph, formula.params
    of = formula.x + formula.r + formula.state
    # What any of the results is made of, without the gradients: what a step may save.
    results = formula.state_next + formula.dx + formula.dr + formula.dstate + formula.dparams + formula.dstate_next
    plain = [node for node in under([*of, *results]) if not node.is_constant and not depends_on(node, formula.gradient)]
    formula.tangents = {node: graph.constant(0.0) for node in plain}
    plain = [node for node in plain if not node.is_mask]

    def tangents(values, directions, params):
        def numbers(*values):
            return tuple(evaluate(plain, dict(zip(of + formula.params, [*values, *params], strict=True)), in_torch))

        return torch.func.jvp(numbers, tuple(values), tuple(directions))[1]

    like = [[torch.full((ROWS, UNITS), 0.5, dtype=torch.float64) for _ in nodes] for nodes in (of, of, params)]
    moved = [graph.input(f"d{kind}", number) for kind, number in map(Node.place, of)]
    found = lift(_traced(tangents, *like), [_number(node) for node in of + moved + params], graph)
    formula.tangents |= {node: array.item() for node, array in zip(plain, found, strict=True)}


def depends_on(node: Node, inputs: Sequence[Node]) -> bool:
    wanted = set(inputs)
    return any(found in wanted for found in under([node]))


def _number(node: Node) -> np.ndarray:
    array = np.empty((), dtype=object)
    array[()] = node
    return array


def _numbers(nodes: Sequence[Node]) -> np.ndarray:
    array = np.empty(len(nodes), dtype=object)
    array[:] = nodes
    return array
