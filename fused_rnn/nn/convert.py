"""Moving a model to this library's layers and back, in place."""

from __future__ import annotations

import warnings

from torch import nn

from . import cells, layers
from .freeze import thaw

_SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: layers.LSTM,
    nn.GRU: layers.GRU,
    nn.RNN: layers.RNN,
    nn.LSTMCell: cells.LSTMCell,
    nn.GRUCell: cells.GRUCell,
    nn.RNNCell: cells.RNNCell,
}


def swap(model: nn.Module) -> nn.Module:
    """Turns every ``nn.LSTM / GRU / RNN`` and cell of ``model``, itself included, into this library's.

    Returns ``model``.

    Each module only changes its class: parameters, buffers, hooks, sharing between modules and optimizers that hold the
    parameters all stay. A subclass of those layers is passed over with a warning, since its ``forward`` may be its own;
    so is one with parametrizations: swap first, then parametrize.
    """
    passed_over = []
    for name, module in model.named_modules():
        if type(module) in _SWAPS:
            module.__class__ = _SWAPS[type(module)]
        elif isinstance(module, tuple(_SWAPS)):
            passed_over.append(f"{name or 'the model itself'} ({type(module).__name__})")
    if passed_over:
        warnings.warn(
            "fused_rnn.swap passed over subclasses of torch.nn's recurrent layers, whose forward may be their own: "
            + ", ".join(passed_over),
            stacklevel=2,
        )
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes :func:`swap`: layers of exactly this library's classes become torch.nn's, thawed; returns ``model``."""
    back = {ours: theirs for theirs, ours in _SWAPS.items()}
    for module in model.modules():
        if type(module) in back:
            thaw(module)
            module.__class__ = back[type(module)]
    return model
