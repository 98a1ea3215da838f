"""Which cell a module computes, this library's or torch.nn's."""

from __future__ import annotations

from torch import nn

from ..ops.cells import BY_MODE, CELLS, Cell
from . import cells, layers
from .stock import STOCK

# torch.nn's classes and ours.
OURS: dict[type[nn.Module], type[nn.Module]] = {
    STOCK[kind.__name__]: kind
    for kind in (layers.LSTM, layers.GRU, layers.RNN, cells.LSTMCell, cells.GRUCell, cells.RNNCell)
}


def cell_of(module: nn.Module) -> Cell | None:
    """The cell of a layer or of a single-step module; None for any other module."""
    if isinstance(module, nn.RNNBase):
        return BY_MODE.get(module.mode)
    for theirs, ours in OURS.items():
        if isinstance(module, theirs):
            nonlinearity = getattr(module, "nonlinearity", None)
            return next(
                (c for c in CELLS.values() if c.step_name == ours.__name__ and c.nonlinearity == nonlinearity), None
            )
    return None
