"""Lets torch.compile trace this library's layers, although Dynamo refuses instances of nn.LSTM, nn.GRU and nn.RNN.

It refuses them because it would unroll torch's own time loop. ``torch._dynamo.config.allow_rnn`` would let all of them
in, torch's too; here it is set only while Dynamo looks at one of our layers, so stock layers compile as they always do.
Nothing happens before the first of our layers is made, and torch._dynamo, slow to import, is not imported for it.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import nn

from ..ops import torch_private
from ..ops.late_import import after_import
from .stock import STOCK, stock_names


def admit(layers: type[nn.Module]) -> None:
    """From now on Dynamo traces instances of ``layers``."""
    if layers not in _admitted:
        if not _admitted:
            after_import(torch_private.DYNAMO_BUILDER, _patch)
        _admitted.append(layers)


_admitted: list[type[nn.Module]] = []


def _patch(builder: ModuleType) -> None:
    kind, name = torch_private.dynamo_entry(builder)
    wrap = getattr(kind, name)

    @functools.wraps(wrap)
    def wrap_module(self, module):
        if isinstance(module, tuple(_admitted)):
            with torch._dynamo.config.patch(allow_rnn=True):
                return wrap(self, module)
        if isinstance(module, tuple(STOCK.values())):
            with stock_names():  # Dynamo looks them up, to refuse torch's layers
                return wrap(self, module)
        return wrap(self, module)

    setattr(kind, name, wrap_module)
