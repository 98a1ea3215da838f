"""The cells by name. Their numbers come from the compiled library, so that they are written down once."""

from __future__ import annotations

from dataclasses import dataclass

from . import library

# In the order of the ids in csrc/cells/cells.h.
_NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Cell:
    """One cell as ``csrc/cells/cells.h`` describes it."""

    name: str
    id: int
    gates: int
    states: int
    saved: int
    params: int
    recurrent: bool
    projectable: bool
    one_gate_gradient: bool


def _read(name: str, cell_id: int) -> Cell:
    *counts, recurrent, projectable, one_gate_gradient = library.cell_traits(cell_id)
    return Cell(name, cell_id, *counts, bool(recurrent), bool(projectable), bool(one_gate_gradient))


if len(_NAMES) != library.cell_count():
    raise ImportError(
        f"fused_rnn's Python files know {len(_NAMES)} cells, its compiled library {library.cell_count()}. "
        "They come from different versions; reinstall with: pip install --no-build-isolation --force-reinstall ."
    )

CELLS = {name: _read(name, cell_id) for cell_id, name in enumerate(_NAMES)}
BY_ID = tuple(CELLS.values())
