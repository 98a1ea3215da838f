"""torch.nn's own recurrent classes, and what torch.nn's names are bound to (``fused_rnn.install`` binds them anew)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

STOCK: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
}
NAMES_LOCK = threading.RLock()
_PLACES = (nn, nn.modules, nn.modules.rnn)


def bind(classes: Mapping[str, type[nn.Module]]) -> dict[str, type[nn.Module]]:
    """Binds torch.nn's names to these classes; returns those that they were bound to."""
    with NAMES_LOCK:
        before = {name: getattr(nn, name) for name in classes}
        for place in _PLACES:
            for name, kind in classes.items():
                setattr(place, name, kind)
    return before


@contextmanager
def stock_names() -> Iterator[None]:
    """torch.nn's names stand for torch's own classes here, in all threads."""
    with NAMES_LOCK:
        before = bind(STOCK)
        try:
            yield
        finally:
            bind(before)
