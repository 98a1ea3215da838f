"""``install`` and ``uninstall``: bind torch.nn's names to this library's layers."""

from __future__ import annotations

import copyreg
from typing import Any

from torch import nn

from . import dynamo
from .kinds import OURS
from .recurrent import Recurrent
from .stock import NAMES_LOCK, STOCK, Bindings, bind, bindings_of

_before: Bindings = {}  # what the names were bound to; empty unless installed


class Installation:
    """What :func:`install` returns; as a context manager it undoes that call, if it was the one that installed."""

    def __init__(self, is_first: bool):
        self._is_first = is_first

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_first:
            uninstall()

    def __repr__(self) -> str:
        return f"fused_rnn is {'installed' if _before else 'not installed'}"


def install() -> Installation:
    """From now on ``torch.nn.LSTM``, ``GRU``, ``RNN`` and their cells are this library's, until :func:`uninstall`.

    Packages imported afterwards create and subclass our layers, and models that they load or unpickle contain them.
    Names imported before, by ``from torch.nn import LSTM``, keep their classes, and classes derived before must not
    name ``torch.nn.LSTM`` in their methods (``super()`` is fine): install first, or use :func:`swap`.
    Layers created meanwhile keep working after :func:`uninstall`. A second call has no effect.

    Returns:
        An object that may be used as a context manager, which uninstalls at its end.

    Example:
        >>> with fused_rnn.install():
        ...     model = torch.nn.Sequential(torch.nn.LSTM(10, 20))  # or a package's own way to build or load a model
        >>> model
        Sequential(
          (0): fused_rnn.LSTM(10, 20)
        )
        >>> torch.nn.LSTM(10, 20)
        LSTM(10, 20)
    """
    with NAMES_LOCK:
        if _before:
            return Installation(is_first=False)
        dynamo.admit(Recurrent)
        _before.update(bind(bindings_of({kind.__name__: ours for kind, ours in OURS.items()})))
        for kind in STOCK.values():
            copyreg.dispatch_table.setdefault(kind, _reduce_stock)  # pickling them by name would find ours
    return Installation(is_first=True)


def uninstall() -> None:
    """Undoes :func:`install`: torch.nn's names stand for torch's own classes again.

    Example:
        >>> fused_rnn.install()
        fused_rnn is installed
        >>> fused_rnn.uninstall()
        >>> torch.nn.LSTM.__module__
        'torch.nn.modules.rnn'
    """
    with NAMES_LOCK:
        bind(_before)
        _before.clear()
        for kind in STOCK.values():
            if copyreg.dispatch_table.get(kind) is _reduce_stock:
                del copyreg.dispatch_table[kind]


def _reduce_stock(module: nn.Module) -> tuple[Any, ...]:
    return new_stock, (type(module).__name__,), module.__getstate__()


def new_stock(name: str) -> nn.Module:
    """An empty layer of torch's own class, for pickle."""
    return STOCK[name].__new__(STOCK[name])
