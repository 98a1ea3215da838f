"""What a step saves for the backward pass: as few numbers as do, by a minimal cut of the graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .graph import Node, under
from .trace import Formula

_ENOUGH = 1 << 40


@dataclass
class _Needs:
    """Numbers that must follow from what is saved, and from what: states, and but for ``advance`` also parameters."""

    of_advance: list[Node]
    of_backward: list[Node]


def choose_saved(formula: Formula) -> list[Node]:
    """The numbers to save. From them and the states follow the new states; with the parameters and the new states, all
    that the gradients need; and the tangents of the saved numbers themselves."""
    needs = _Needs(formula.state_next, _needed(_all_gradients(formula), set(formula.gradient), formula))
    while True:
        saved = _pruned(_cut(formula, needs), formula, needs)
        more = [node for node in _tangent_needs(saved, formula) if not _follows(node, saved, formula)]
        if not more:
            return sorted(saved or _one(formula), key=lambda node: node.index)
        needs.of_backward += more


def _one(formula: Formula) -> list[Node]:
    """The engine keeps at least one number, needed or not."""
    return [formula.state_next[0] if not formula.state_next[0].is_constant else formula.x[0]]


def _all_gradients(formula: Formula) -> list[Node]:
    return formula.dx + formula.dr + formula.dstate + formula.dparams + formula.dstate_next


def _tangent_needs(saved: Collection[Node], formula: Formula) -> list[Node]:
    moved = {node for tangent in formula.tangents.values() for node in under([tangent]) if _is_tangent(node)}
    return _needed([formula.tangents[node] for node in saved], moved, formula)


def _is_tangent(node: Node) -> bool:
    return node.is_input and node.place()[0] in ("dx", "dr", "dstate")


def _needed(results: Iterable[Node], varying: set[Node], formula: Formula) -> list[Node]:
    """The numbers without gradients or tangents that results are directly made of."""
    varies: set[Node] = set(varying)
    needed: dict[Node, None] = {}
    results = list(results)
    for node in under(results):
        if any(arg in varies for arg in node.args):
            varies.add(node)
            needed |= {arg: None for arg in node.args if arg not in varies and not arg.is_constant}
    needed |= {node: None for node in results if node not in varies and not node.is_constant}
    return list(needed)


def _known_to(formula: Formula, saved: Collection[Node], advance: bool = False) -> set[Node]:
    """What ``backward`` is given, or ``advance``."""
    given = {*saved, *formula.state}
    return given if advance else {*given, *formula.params, *formula.state_next}


def _follows(node: Node, saved: Collection[Node], formula: Formula, advance: bool = False) -> bool:
    given = _known_to(formula, saved, advance)
    return all(
        found in given or found.is_constant or found.args for found in under([node], lambda found: found in given)
    )


def _pruned(saved: list[Node], formula: Formula, needs: _Needs) -> list[Node]:
    """Without those that the others make superfluous."""

    def suffices(some: list[Node]) -> bool:
        return all(_follows(node, some, formula, advance=True) for node in needs.of_advance) and all(
            _follows(node, some, formula) for node in needs.of_backward
        )

    for node in list(saved):
        rest = [other for other in saved if other is not node]
        if suffices(rest):
            saved = rest
    return saved


# ---- the cut ---------------------------------------------------------------------------------------------------------


def _cut(formula: Formula, needs: _Needs) -> list[Node]:
    """The fewest nodes between x, r and the parameters on one side and what is needed on the other, by a maximal flow.

    Of equal cuts, the one nearest to what is needed, so that least is computed again."""
    free = set(formula.state)
    # The new states need parameters that advance is not given; what follows from parameters alone is pruned later.
    ends = [*needs.of_advance, *(node for node in needs.of_backward if node not in set(formula.params))]
    network = _Network()
    own = set(under(formula.state_next))
    for node in under(ends, lambda node: node in free):
        if node.is_constant or node in free:
            continue
        # Numbers of the formula itself before those of its derivatives.
        network.add((node, 0), (node, 1), 1000 if node in own else 1001)
        for arg in node.args:
            if not arg.is_constant and arg not in free:
                network.add((arg, 1), (node, 0), _ENOUGH)
        if node.is_input:
            network.add("source", (node, 0), _ENOUGH)
    for node in ends:
        if node not in free and not node.is_constant:
            network.add((node, 1), "sink", _ENOUGH)
    network.saturate("source", "sink")
    near = network.reaching("sink")
    return [key[0] for key in network.nodes() if key[1] == 0 and key not in near and (key[0], 1) in near]


class _Network:
    """A network of pipes, and the largest flow through it."""

    def __init__(self) -> None:
        self._left: dict[object, dict[object, int]] = {"source": {}, "sink": {}}

    def add(self, start: object, end: object, most: int) -> None:
        self._left.setdefault(start, {})[end] = most
        self._left.setdefault(end, {}).setdefault(start, 0)

    def nodes(self) -> list[tuple[Node, int]]:
        return [key for key in self._left if isinstance(key, tuple)]

    def saturate(self, source: object, sink: object) -> None:
        while path := self._path(source, sink):
            most = min(self._left[a][b] for a, b in path)
            for a, b in path:
                self._left[a][b] -= most
                self._left[b][a] += most

    def _path(self, source: object, sink: object) -> list[tuple[object, object]]:
        before: dict[object, object] = {source: source}
        waiting = deque([source])
        while waiting and sink not in before:
            here = waiting.popleft()
            for there, left in self._left[here].items():
                if left and there not in before:
                    before[there] = here
                    waiting.append(there)
        path: list[tuple[object, object]] = []
        while sink in before and sink != source:
            path.append((before[sink], sink))
            sink = before[sink]
        return path

    def reaching(self, sink: object) -> set[object]:
        """From where something could still flow to the sink."""
        found, waiting = {sink}, [sink]
        while waiting:
            here = waiting.pop()
            for there in self._left[here]:  # every pipe has an entry at both ends
                if there not in found and self._left[there][here]:
                    found.add(there)
                    waiting.append(there)
        return found
