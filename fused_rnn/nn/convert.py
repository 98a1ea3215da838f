"""``swap`` and ``restore``: convert a model to this library's layers and back, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn

from . import dynamo
from .freeze import thaw
from .kinds import OURS
from .loop_options import LoopOptions
from .recurrent import Recurrent
from .signatures import Model
from .stock import STOCK
from .subclasses import NotSwappable, ours_for, theirs_for


def swap(model: Model, *, report: Callable[[str], object] | None = None) -> Model:
    """Converts every ``nn.LSTM / GRU / RNN`` and cell of ``model``, itself included, to this library's.

    Only the modules' classes change: parameters, buffers, hooks, shared modules and optimizers' references to
    parameters stay. Subclasses, parametrized layers included, whose ``forward`` is torch.nn's own or calls
    ``super().forward`` keep their name, methods and attributes, and become instances of ``fused_rnn.LSTM`` and so on
    as well. Others are passed over: a warning names them, with the reason, and one says so if nothing was changed.

    Args:
        model: any module.
        report: called with a line of text, as ``print`` is, for every layer that was changed or passed over.

    Returns:
        ``model``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.GRU(10, 20))
        >>> fused_rnn.swap(model, report=print)
        swapped 0 (GRU)
        Sequential(
          (0): fused_rnn.GRU(10, 20)
        )
    """
    dynamo.admit(Recurrent)
    passed_over = []
    tell = report or (lambda line: None)
    for name, module in model.named_modules():
        if isinstance(module, tuple(OURS.values())) or not _is_recurrent(module):
            continue
        where = f"{name or 'the model itself'} ({_name_of(module)})"
        try:
            kind = _swapped_class(module)
        except NotSwappable as reason:
            passed_over.append(f"{where}: {reason}")
            tell(f"passed over {passed_over[-1]}")
        else:
            module.__class__ = kind
            tell(f"swapped {where}")
    if passed_over:
        warnings.warn("fused_rnn.swap passed over " + "; ".join(passed_over), stacklevel=2)
    elif not any(isinstance(module, tuple(OURS.values())) for module in model.modules()):
        tell("there is no recurrent layer or cell of torch.nn's in this model")
        warnings.warn(
            f"fused_rnn.swap changed nothing: {type(model).__name__} has no recurrent layer or cell of torch.nn's",
            stacklevel=2,
        )
    return model


def restore(model: Model) -> Model:
    """Undoes :func:`swap`: this library's layers become torch.nn's, thawed; returns ``model``.

    Layers that were created as ``fused_rnn.LSTM`` and so on become torch.nn's as well; subclasses of those, which have
    no counterpart in torch.nn, stay. So do layers with options that torch.nn has not, and a warning names them.

    Example:
        >>> fused_rnn.restore(fused_rnn.LSTM(10, 20))
        LSTM(10, 20)
    """
    passed_over = []
    for name, module in model.named_modules():
        kind = theirs_for(module)
        if kind is None:
            continue
        if isinstance(module, LoopOptions) and (given := module._given()):
            passed_over.append(f"{name or 'the model itself'}: torch.nn has no {' and no '.join(given)}")
            continue
        thaw(module)
        module.__class__ = kind
    if passed_over:
        warnings.warn("fused_rnn.restore passed over " + "; ".join(passed_over), stacklevel=2)
    return model


def _is_recurrent(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", None) in STOCK
    return isinstance(module, tuple(OURS))


def _name_of(module: nn.Module) -> str:
    return module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def _swapped_class(module: nn.Module) -> type[nn.Module]:
    if isinstance(module, torch.jit.ScriptModule):
        raise NotSwappable("it is compiled by TorchScript; swap before scripting or tracing")
    if "forward" in vars(module):
        raise NotSwappable("its forward was replaced, by accelerate perhaps; swap before that")
    return ours_for(type(module))
