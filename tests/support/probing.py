"""Generated headers compiled by themselves, and what torch.func says of their formulas."""

import ctypes
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fused_rnn.own.emit import header
from fused_rnn.own.record import Declaration, call, record
from fused_rnn.own.trace import trace

from .paths import ROOT, TESTS

CXX = shlex.split(os.environ.get("CXX", "g++"))


@dataclass
class Probed:
    """A formula, its header and the compiled header."""

    function: Callable
    declared: Declaration
    text: str
    compiled: Callable

    @property
    def moving(self) -> int:
        return 2 * self.declared.gates + 2 * len(self.declared.states)

    def inputs(self, draw: Callable[..., Tensor], rows: int) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and their tangents, [rows, count] each: x, r, states, parameters, gradients."""
        counts = [self.declared.gates] * 2 + [len(n) for n in (self.declared.states, self.declared.params)]
        counts.append(len(self.declared.states))
        values = [draw(rows, count).double() for count in counts]
        moves = [torch.randn(rows, count).double() for count in counts]
        moves[3].zero_()
        if not self.declared.recurrent:
            values[1].zero_()
            moves[1].zero_()
        return values, moves

    def run(self, values: Sequence[Tensor], moves: Sequence[Tensor], wide: bool) -> tuple[Tensor, Tensor]:
        """The results of the header, [rows, count], and their tangents; advance's behind forward's."""
        given = torch.cat([*values, *(move for k, move in enumerate(moves) if k != 3)], 1).contiguous()
        states, gates = len(self.declared.states), self.declared.gates
        count = 4 * states + 2 * gates + len(self.declared.params)
        found = torch.full((len(given), 2 * count), torch.nan, dtype=torch.float64)
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (given, found))
        self.compiled(*pointers, len(given), given.shape[1], 2 * count, int(wide))
        return found[:, :count], found[:, count:]

    def expected(self, values: Sequence[Tensor], moves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same but for advance and the whole gradients, by torch.func."""

        def all_of(x, r, state, params, gradient):
            def step(x, r, state, params):
                given = [x, *([r] if self.declared.recurrent else []), *state, *params]
                new = call(self.function, self.declared, given)
                return torch.stack(list(new)) if isinstance(new, (tuple, list)) else new.unsqueeze(0)

            new, pull = torch.func.vjp(step, x, r, state, params)
            return torch.cat([new, *pull(gradient)])

        columns = [value.T.contiguous() for value in values], [move.T.contiguous() for move in moves]
        results, tangents = torch.func.jvp(all_of, *map(tuple, columns))
        return results.T, tangents.T

    def compared(self, results: Tensor) -> Tensor:
        """Of the header's results those that are expected, in that order."""
        states = len(self.declared.states)
        kept = results[:, : results.shape[1] - states]
        return torch.cat([kept[:, :states], kept[:, 2 * states :]], 1)

    def advanced(self, results: Tensor) -> tuple[Tensor, Tensor]:
        states = len(self.declared.states)
        return results[:, :states], results[:, states : 2 * states]


def generate(function: Callable, declared: Declaration, initial: Sequence[float] | None = None) -> str:
    formula = trace(record(function, declared), declared)
    return header(formula, initial or [0.0] * len(declared.states))[0]


def probe(
    folder: Path, formulas: Sequence[tuple[Callable, Declaration]], texts: Sequence[str] | None = None
) -> list[Probed]:
    """All of them compiled at once. ``texts``: headers in place of those that are generated."""
    texts = [generate(*formula) for formula in formulas] if texts is None else texts
    lines = [f'#include "{TESTS / "own/probe.h"}"']
    for k, text in enumerate(texts):
        (folder / f"cell_{k}.h").write_text(text.replace("#pragma once", ""))  # equal files would be one
        lines += [f"#define Own Own{k}", f'#include "cell_{k}.h"', "#undef Own", f"FUSED_RNN_PROBE(probe_{k}, Own{k})"]
    source, library = folder / "probe.cpp", folder / "probe.so"
    source.write_text("\n".join(lines) + "\n")
    strict = ["-std=c++20", "-O0", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    command = [*CXX, *strict, f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    found = []
    for k, (function, declared) in enumerate(formulas):
        compiled = getattr(loaded, f"probe_{k}")
        compiled.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 3 + [ctypes.c_int]
        compiled.restype = None
        found.append(Probed(function, declared, texts[k], compiled))
    return found
