"""The header of a cell: C++ under the contract of csrc/cells/cells.h."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Collection, Sequence

from ..ops.library import CellTraits
from .graph import FUNCTIONS, Node, inputs_of, under
from .partition import choose_saved
from .record import Declaration
from .trace import Formula

_WIDTH = 112
_RESERVED = """
alignas alignof and asm auto bool break case catch char class compl concept const constexpr continue default
delete do double else enum explicit export extern false final float for friend goto if inline int long mutable
namespace new noexcept not nullptr operator or override private protected public register requires return short
signed sizeof static struct switch template this throw true try typedef typeid typename union unsigned using
virtual void volatile while xor x r state params state_next saved dstate_next dx dr dstate dparams to T Own
fused_rnn forward advance backward tangent reciprocal positive dsigmoid dtanh drelu linux unix NAN HUGE_VAL
INFINITY M_PI"""
_OPERATORS = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_TIGHT = 3


def header(formula: Formula, initial: Sequence[float]) -> tuple[str, CellTraits]:
    """The text of the header, and what it promises."""
    saved = choose_saved(formula)
    declared = formula.declared
    shared = 0
    while shared < declared.gates and (not formula.r or formula.dx[shared] is formula.dr[shared]):
        shared += 1
    traits = CellTraits(
        gates=declared.gates,
        states=len(formula.state),
        saved=len(saved),
        params=len(formula.params),
        shared_gates=shared,
        recurrent=declared.recurrent,
        reads_h="state[0]" in inputs_of(formula.state_next),
        projectable=False,
        one_gate_gradient=shared == declared.gates,
    )
    return "\n".join(_Header(formula, saved, traits, initial).lines()) + "\n", traits


class _Header:
    def __init__(self, formula: Formula, saved: list[Node], traits: CellTraits, initial: Sequence[float]):
        self.formula, self.saved, self.traits, self.initial = formula, saved, traits, initial
        self.names = _names(formula)

    def lines(self) -> list[str]:
        formula, traits = self.formula, self.traits
        yes = {True: "true", False: "false"}
        initial = ", ".join(_text(value) for value in self.initial)
        declared = formula.declared
        return [
            "#pragma once",
            '#include "cells/math.h"',
            "",
            "namespace fused_rnn {",
            "namespace {",
            "",
            f"// {_described(declared)}",
            "struct Own {",
            f"  static constexpr int kGates = {traits.gates};",
            f"  static constexpr int kStates = {traits.states};",
            f"  static constexpr int kSaved = {traits.saved};",
            f"  static constexpr int kParams = {traits.params};",
            f"  static constexpr bool kRecurrent = {yes[traits.recurrent]};",
            f"  static constexpr int kSharedGates = {traits.shared_gates};",
            f"  static constexpr bool kReadsH = {yes[traits.reads_h]};",
            "  static constexpr bool kProjectable = false;",
            f"  static constexpr double kInitial[kStates] = {{{initial}}};",
            "",
            *self._forward(),
            "",
            *self._advance(),
            "",
            *self._tangent(),
            "",
            *self._backward(),
            "};",
            "",
            "}  // namespace",
            "}  // namespace fused_rnn",
        ]

    def _forward(self) -> list[str]:
        formula = self.formula
        given = _given(x=formula.x, r=formula.r, state=formula.state, params=formula.params)
        body = _Body(self.names, given)
        body.compute(self.saved)
        body.store("saved", self.saved)
        body.add("advance(saved, state, state_next);")
        arguments = ("const T* x", "const T* r", "const T* state", "const T* params", "T* state_next", "T* saved")
        return body.function("forward", arguments)

    def _advance(self) -> list[str]:
        formula = self.formula
        body = _Body(self.names, _given(saved=self.saved, state=formula.state))
        body.compute(formula.state_next)
        body.store("state_next", formula.state_next)
        return body.function("advance", ("const T* saved", "const T* state", "T* state_next"))

    def _tangent(self) -> list[str]:
        formula = self.formula
        graph, given = formula.graph, _given(saved=self.saved, state=formula.state, params=formula.params)
        moved = {"dx": formula.x, "dr": formula.r, "dstate": formula.state}
        for kind, nodes in moved.items():
            name = "dstate" if kind == "dstate" else kind[1:]
            given |= {graph.input(kind, k): f"{name}[{k}]" for k in range(len(nodes))}
        body = _Body(self.names, given)
        tangents = [formula.tangents[node] for node in self.saved]
        body.compute(tangents)
        body.store("to", tangents)
        arguments = ("const T* saved", "const T* state", "const T* params", "const T* x", "const T* r")
        return body.function("tangent", (*arguments, "const T* dstate", "T* to"))

    def _backward(self) -> list[str]:
        formula = self.formula
        given = _given(saved=self.saved, state=formula.state, params=formula.params, state_next=formula.state_next)
        given |= _given(dstate_next=formula.gradient)
        body = _Body(self.names, given)
        gradients: dict[str, Sequence[Node | None]] = {
            "dx": formula.dx,
            "dr": formula.dr,
            "dstate": formula.dstate,
            "dparams": formula.dparams,
            "dstate_next": formula.dstate_next,
        }
        pairs = list(zip(formula.dx, formula.dr, strict=True)) if formula.dr else []
        both = [x if x is r else None for x, r in pairs] or [None] * len(formula.dx)
        gradients["dx"] = [None if one is not None else x for x, one in zip(formula.dx, both, strict=True)]
        gradients["dr"] = [None if one is not None else r for (_, r), one in zip(pairs, both, strict=False)]
        outside = zip(formula.dstate_next, formula.gradient, strict=True)
        gradients["dstate_next"] = [None if node is before else node for node, before in outside]
        body.compute([node for nodes in (both, *gradients.values()) for node in nodes if node is not None])
        for k, node in enumerate(both):
            if node is not None:
                body.add(f"dx[{k}] = dr[{k}] = {body.expression(node, 0)};")
        for array, nodes in gradients.items():
            body.store(array, nodes)
        arguments = ("const T* saved", "const T* state", "const T* state_next", "const T* params", "T* dstate_next")
        return body.function("backward", (*arguments, "T* dx", "T* dr", "T* dstate", "T* dparams"))


def _described(declared: Declaration) -> str:
    parts = [f"{_identifier(declared.name)}: states {', '.join(map(_identifier, declared.states))}"]
    if declared.params:
        parts.append(f"parameters {', '.join(map(_identifier, declared.params))}")
    return "; ".join(parts) + "."


def _given(**arrays: Sequence[Node]) -> dict[Node, str]:
    """Where nodes are found: those of earlier arrays first."""
    found: dict[Node, str] = {}
    for array, nodes in arrays.items():
        for k, node in enumerate(nodes):
            found.setdefault(node, f"{array}[{k}]")
    return found


# ---- one function ----------------------------------------------------------------------------------------------------


class _Body:
    """Statements that compute nodes from arrays."""

    def __init__(self, names: dict[Node, str], given: dict[Node, str]):
        self.names, self.given = names, given
        self.statements: list[str] = []
        self.variables: dict[Node, str] = {}
        self.taken: set[str] = set()

    def add(self, statement: str) -> None:
        self.statements.append(statement)

    def compute(self, results: Collection[Node]) -> None:
        """Loads what is given and needed, and computes what has a name or is used more than once."""
        nodes = under(results, lambda node: node in self.given)
        uses: dict[Node, int] = {}
        for node in nodes:
            if node not in self.given:
                for arg in node.args:
                    uses[arg] = uses.get(arg, 0) + 1
        for node in results:
            uses[node] = uses.get(node, 0) + 1
        arrays: dict[str, list[str]] = {}
        for node in nodes:
            if node in self.given and not node.is_constant:
                place = self.given[node]
                # Gradients are overwritten, so they are read first.
                if uses[node] > 1 or node.name is not None or place.startswith("dstate_next"):
                    arrays.setdefault(place.split("[")[0], []).append(f"{self._variable(node)} = {place}")
                else:
                    self.variables[node] = self.given[node]
        for loads in arrays.values():
            self.add(f"const T {', '.join(loads)};")
        for node in nodes:
            if node not in self.given and node.args and (uses[node] > 1 or node.name is not None or _is_long(node)):
                value = self.expression(node, 0, is_root=True)
                self.add(f"const T {self._variable(node)} = {value};")

    def _variable(self, node: Node) -> str:
        name = self.names.get(node, "number")
        while name in self.taken:
            stem, _, number = name.rpartition("_")
            name = f"{stem}_{int(number) + 1}" if stem and number.isdigit() else f"{name}_2"
        self.taken.add(name)
        self.variables[node] = name
        return name

    def store(self, array: str, nodes: Sequence[Node | None]) -> None:
        for k, node in enumerate(nodes):
            if node is not None:
                self.add(f"{array}[{k}] = {self.expression(node, 0)};")

    def expression(self, node: Node, binding: int, is_root: bool = False) -> str:
        """C++ for a node; in brackets if its operator binds less tightly than ``binding``."""
        if not is_root and node in self.variables:
            return self.variables[node]
        if node.is_constant:
            text = f"T({_text(node.value)})"
            return text
        if node.op in _OPERATORS:
            sign, own = _OPERATORS[node.op]
            right = own + 1 if node.op in ("sub", "div") else own
            if node.op in ("add", "mul"):
                right = own + 1  # as torch adds: from the left
            text = f"{self.expression(node.args[0], own)} {sign} {self.expression(node.args[1], right)}"
            return f"({text})" if own < binding else text
        if node.op == "neg":
            text = f"-{self.expression(node.args[0], _TIGHT)}"
            return f"({text})" if binding else text
        assert node.op in FUNCTIONS, node.op
        return f"{node.op}({', '.join(self.expression(arg, 0) for arg in node.args)})"

    def function(self, name: str, arguments: Sequence[str]) -> list[str]:
        body = " ".join(self.statements)
        named = [
            argument if re.search(rf"\b{argument.split()[-1]}\b", body) else argument.rpartition(" ")[0]
            for argument in arguments
        ]
        lines = _wrapped(f"FUSED_RNN_FN static void {name}(", named, ") {")
        return ["  template <class T>", *(f"  {line}" for line in lines), *self._indented(), "  }"]

    def _indented(self) -> list[str]:
        return [f"    {line}" for statement in self.statements for line in _broken(statement)]


def _is_long(node: Node) -> bool:
    return len(under([node])) > 12 and node.op in ("add", "sub")


def _text(value: float | str | None) -> str:
    number = float(value)  # type: ignore[arg-type]
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "HUGE_VAL" if number > 0 else "-HUGE_VAL"
    return str(int(number)) if number.is_integer() and abs(number) < 1e6 else repr(number)


def _wrapped(head: str, arguments: Sequence[str], tail: str) -> list[str]:
    lines, line = [], head
    for k, argument in enumerate(arguments):
        piece = argument + (tail if k + 1 == len(arguments) else ",")
        if len(line) + len(piece) + 1 > _WIDTH:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += ("" if line.endswith("(") or not line.strip() else " ") + piece
    return [*lines, line]


def _broken(statement: str) -> list[str]:
    """A statement in lines of at most the width, broken at spaces."""
    lines, line = [], ""
    for word in statement.split(" "):
        if line and len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


# ---- names -----------------------------------------------------------------------------------------------------------


def _identifier(name: str) -> str:
    """The name as a C++ identifier: plain letters, digits and single underscores, no word of the language."""
    name = re.sub(r"_{2,}", "_", re.sub(r"[^A-Za-z0-9_]", "_", name)).strip("_")
    if not name or name[0].isdigit():
        name = f"v_{name}".rstrip("_")
    if name in _RESERVED.split() or name in FUNCTIONS or keyword.iskeyword(name) or re.match(r"[A-Z][A-Z0-9_]*$", name):
        name += "_v"
    return name


def _names(formula: Formula) -> dict[Node, str]:
    """Names of numbers: the user's variable; else what is computed of which variable; of states, which."""
    names: dict[Node, str] = {}
    for kind, nodes in (("x", formula.x), ("r", formula.r)):
        for k, node in enumerate(nodes):
            names[node] = _identifier(node.name) if node.name else f"{kind}_{k}"
    states = [_identifier(name) for name in formula.declared.states]
    for node, name in zip(formula.state, states, strict=True):
        names[node] = name
    for node, name in zip(formula.state_next, states, strict=True):
        names.setdefault(node, f"{name}_next")
    for node, name in zip(formula.gradient, states, strict=True):
        names[node] = f"d_{name}"
    for node, name in zip(formula.dstate_next, states, strict=True):
        names.setdefault(node, f"d_{name}_whole")
    for node, name in zip(formula.params, formula.declared.params, strict=True):
        names[node] = _identifier(name)
    for k, node in enumerate(formula.dx):
        names.setdefault(node, f"d_{_gate_name(formula, names, k)}")
    for moved in (
        (f"d{kind}", nodes) for kind, nodes in (("x", formula.x), ("r", formula.r), ("state", formula.state))
    ):
        for k, node in enumerate(moved[1]):
            names[formula.graph.input(moved[0], k)] = f"d_{names[node]}"
    for node in under([*names, *_everything(formula)]):
        if node not in names and node.name is not None:
            names[node] = _identifier(node.name)
        elif node not in names and node.args:
            first = next((names[arg] for arg in node.args if arg in names), "")
            word = {"add": "sum", "sub": "difference", "mul": "product", "div": "quotient"}.get(node.op, node.op)
            stem = re.sub(r"^(sum|difference|product|quotient)_", "", first)
            names[node] = f"{word}_{stem}" if stem and len(stem) < 16 else word + "_"
            names[node] = names[node].rstrip("_") + ("" if stem and len(stem) < 16 else "_v")
    return names


def _gate_name(formula: Formula, names: dict[Node, str], gate: int) -> str:
    """The variable of x + r, if there is one, or that of x."""
    for node in under(formula.state_next) if formula.r else ():
        if node.name is not None and set(node.args) == {formula.x[gate], formula.r[gate]}:
            return _identifier(node.name)
    return names[formula.x[gate]]


def _everything(formula: Formula) -> list[Node]:
    gradients = formula.dx + formula.dr + formula.dstate + formula.dparams + formula.dstate_next
    return [*formula.state_next, *gradients, *formula.tangents.values()]
