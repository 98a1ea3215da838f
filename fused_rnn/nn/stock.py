"""torch.nn's own recurrent classes, and the bindings of torch.nn's names (``fused_rnn.install`` rebinds them)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

from torch import nn

STOCK: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
}
NAMES_LOCK = threading.RLock()
_PLACES = (nn, nn.modules, nn.modules.rnn)

# The class bound to each name, in each module that has it.
Bindings = dict[tuple[ModuleType, str], type[nn.Module]]


def bindings_of(classes: Mapping[str, type[nn.Module]]) -> Bindings:
    """All of torch.nn's names, bound to ``classes``."""
    return {(place, name): kind for place in _PLACES for name, kind in classes.items()}


def bind(bindings: Bindings) -> Bindings:
    """Binds torch.nn's names; returns what they were bound to."""
    with NAMES_LOCK:
        before = {(place, name): getattr(place, name) for place, name in bindings}
        for (place, name), kind in bindings.items():
            setattr(place, name, kind)
    return before


@contextmanager
def stock_names() -> Iterator[None]:
    """Temporarily binds torch.nn's names to torch's own classes, in all threads."""
    with NAMES_LOCK:
        before = bind(bindings_of(STOCK))
        try:
            yield
        finally:
            bind(before)
