"""Converting a model to this library's layers and back, in place."""

from __future__ import annotations

import warnings

from torch import nn

from .freeze import thaw
from .kinds import OURS


def swap(model: nn.Module) -> nn.Module:
    """Converts every ``nn.LSTM / GRU / RNN`` and cell of ``model``, itself included, to this library's.

    Returns ``model``.

    Only the modules' classes change: parameters, buffers, hooks, shared modules and optimizers' references to
    parameters stay. Subclasses of those layers are skipped with a warning, since their ``forward`` may be their own; so
    are parametrized layers: swap first, then parametrize.
    """
    passed_over = []
    for name, module in model.named_modules():
        if type(module) in OURS:
            module.__class__ = OURS[type(module)]
        elif isinstance(module, tuple(OURS)):
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
    back = {ours: theirs for theirs, ours in OURS.items()}
    for module in model.modules():
        if type(module) in back:
            thaw(module)
            module.__class__ = back[type(module)]
    return model
