"""The registry of cells: one row each, with everything that the Python side knows about a cell.

The numbers of gates, states and saved values come from the compiled library, the one place where they are defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from . import library


class NamedGate(NamedTuple):
    """A gate and the range of its values."""

    name: str
    low: float
    high: float


class OnnxNode(NamedTuple):
    """ONNX's operator for a cell, the order of its gates, and further attributes."""

    name: str
    gates: tuple[str, ...]
    attributes: dict


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, which is fast
class Row:
    """What only Python knows about a cell. A cell without a layer class needs only a ``name``."""

    name: str
    layer: str | None = None
    """Name of the layer class; the cell class is ``layer + "Cell"``, the function ``layer.lower()``."""
    nonlinearity: str | None = None
    """The constructor argument that selects this cell, where one class has several."""
    named_gates: tuple[NamedGate, ...] = ()
    """In torch's order, that of the row blocks of weight_ih and weight_hh."""
    onnx: OnnxNode | None = None
    state_names: tuple[str, ...] = ()
    """Of messages; empty: h and c."""
    initial: tuple[float, ...] = ()
    """What the states are before the first step and after a reset, as its header says too; empty: zeros."""


def _sigmoid(name: str) -> NamedGate:
    return NamedGate(name, 0.0, 1.0)


def _tanh(name: str) -> NamedGate:
    return NamedGate(name, -1.0, 1.0)


def _relu(name: str) -> NamedGate:
    return NamedGate(name, 0.0, math.inf)


# In the order of the ids in csrc/cells/cells.h.
_ROWS = (
    Row(
        "lstm",
        "LSTM",
        named_gates=(_sigmoid("input"), _sigmoid("forget"), _tanh("cell"), _sigmoid("output")),
        onnx=OnnxNode("LSTM", ("input", "output", "forget", "cell"), {}),
    ),
    Row(
        "gru",
        "GRU",
        named_gates=(_sigmoid("reset"), _sigmoid("update"), _tanh("new")),
        # Torch's reset gate acts after the recurrent product.
        onnx=OnnxNode("GRU", ("update", "reset", "new"), {"linear_before_reset": 1}),
    ),
    Row(
        "rnn_tanh",
        "RNN",
        nonlinearity="tanh",
        named_gates=(_tanh("h"),),
        onnx=OnnxNode("RNN", ("h",), {"activations": ["Tanh"]}),
    ),
    Row(
        "rnn_relu",
        "RNN",
        nonlinearity="relu",
        named_gates=(_relu("h"),),
        onnx=OnnxNode("RNN", ("h",), {"activations": ["Relu"]}),
    ),
)


@dataclass(frozen=True, eq=False)
class Cell(Row):
    """A row together with the cell's id and its traits from the compiled library."""

    id: int = 0
    gates: int = 0
    states: int = 0
    saved: int = 0
    params: int = 0
    shared_gates: int = 0
    recurrent: bool = True
    reads_h: bool = False
    projectable: bool = False
    one_gate_gradient: bool = False
    output_gate: bool = False

    @property
    def beginning(self) -> tuple[float, ...]:
        """``initial``, zeros included."""
        return self.initial or (0.0,) * self.states

    @property
    def mode(self) -> str | None:
        """The value of ``torch.nn.RNNBase.mode``."""
        if self.layer is None or self.nonlinearity is None:
            return self.layer
        return f"{self.layer}_{self.nonlinearity.upper()}"

    @property
    def layer_name(self) -> str:
        """The layer's name in messages."""
        return self.layer or self.name

    @property
    def step_name(self) -> str:
        """A single step's name in messages."""
        return f"{self.layer_name}Cell"

    def gate(self, name: str) -> int | None:
        """A gate's position in torch's order; None if the cell has no gate of that name."""
        return next((k for k, gate in enumerate(self.named_gates) if gate.name == name), None)


if len(_ROWS) != library.cell_count():
    raise ImportError(
        f"fused_rnn's Python files know {len(_ROWS)} cells, its compiled library {library.cell_count()}. "
        "They come from different versions; reinstall with: pip install --no-build-isolation --force-reinstall ."
    )

BY_ID = {
    cell_id: Cell(**vars(row), id=cell_id, **library.cell_traits(cell_id)._asdict())
    for cell_id, row in enumerate(_ROWS)
}
CELLS = {cell.name: cell for cell in BY_ID.values()}
"""The library's own, by name."""
BY_MODE = {cell.mode: cell for cell in CELLS.values() if cell.layer is not None}


# ---- cells that are registered at run time ---------------------------------------------------------------------------

_followers: list[Callable[[Cell], None]] = []


def follow(add: Callable[[Cell], None]) -> None:
    """Calls ``add`` for every cell, and for those that are registered later."""
    for cell in BY_ID.values():
        add(cell)
    _followers.append(add)


def register(row: Row, cell_id: int, traits: library.CellTraits) -> Cell:
    """The cell of this row. One that is registered twice stays what it is; another one of its id is refused."""
    known = BY_ID.get(cell_id)
    if known is not None:
        found = library.CellTraits(*(getattr(known, field) for field in traits._fields))
        if found != traits or known.beginning != (row.initial or (0.0,) * traits.states):
            raise ValueError(f"{row.name}: its id, {cell_id}, belongs to another cell, {known.name}")
        return known
    cell = Cell(**vars(row), id=cell_id, **traits._asdict())
    if len(cell.beginning) != cell.states:
        raise ValueError(f"{row.name}: initial must have {cell.states} numbers, got {len(cell.initial)}")
    for add in _followers:
        add(cell)
    BY_ID[cell_id] = cell
    return cell


def known(cell_id: int) -> Cell:
    """The cell of an id in an operator's arguments."""
    cell = BY_ID.get(cell_id)
    if cell is None:
        raise RuntimeError(
            f"fused_rnn: no cell with the id {cell_id} is loaded: define it (fused_rnn.cell) before you load or run "
            "this graph"
        )
    return cell
