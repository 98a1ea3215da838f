"""``Ours``: how layers and cells interact with code that knows torch.nn's: print, TorchScript, fx, ONNX, torch.ao,
Opacus.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils import parametrize

from ..autograd.operators import OPERATORS
from ..ops import torch_private
from ..ops.arguments import Runner
from .opacus import take_over
from .stock import STOCK

_BETWEEN = ("torch", "fused_rnn", "typing_extensions")


def _level_of_user() -> int:
    """For a warning: the stacklevel, seen from the caller, of the code that called torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    return level


def _is_given(option) -> bool:
    """Whether an option is not at its default, None or False, which an exporter may have made a tensor of."""
    if isinstance(option, Tensor):
        return option.dim() > 0 or bool(option)
    return option is not None and option is not False


class Ours:
    """A base before torch.nn's own class."""

    # Runs the calls. Not in state dicts; pickles and copies only record whether the layer was frozen.
    _runner: Runner = OPERATORS

    def register_forward_hook(self, hook: Any, **options: Any) -> Any:
        return take_over(self, hook) or super().register_forward_hook(hook, **options)

    def register_full_backward_hook(self, hook: Any, prepend: bool = False) -> Any:
        return take_over(self, hook) or super().register_full_backward_hook(hook, prepend)

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        state.pop("_runner", None)
        return state

    def _get_name(self) -> str:
        name, module = type(self).__name__, type(self).__module__
        return f"fused_rnn.{name}" if module == "fused_rnn" else f"{name}[fused_rnn]"

    def _call_module_node(self, input: Proxy, **options) -> Proxy:
        """For ``torch.fx.symbolic_trace``: a call of this module, which is a leaf as torch.nn's layers are."""
        if self._has_own_forward():
            raise NotImplementedError(
                f"torch.fx cannot see into the forward of {self._get_name()}; let the Tracer's is_leaf_module keep it"
            )
        given = {name: option for name, option in options.items() if _is_given(option)}
        tracer = next(arg for arg in (input, options["hx"]) if isinstance(arg, Proxy)).tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)

    def _slow_forward(self, *args, **kwargs):
        """What torch.jit.trace calls for ``forward``."""
        if not torch_private.in_onnx_trace():
            return super()._slow_forward(*args, **kwargs)
        # By torch.nn's operators, which that exporter knows.
        if self._has_own_forward():
            own, self.__class__ = type(self), self._class_for("torch.onnx.export(dynamo=False)")
            try:
                return self.forward(*args, **kwargs)
            finally:
                self.__class__ = own
        # For a single layer the exporter passes the defaults of all options, by position.
        hx = kwargs.pop("hx", None) if len(args) < 2 else args[1]
        if any(map(_is_given, (*args[2:], *kwargs.values()))):
            raise NotImplementedError(
                f"torch.onnx.export(dynamo=False) cannot export the options of {self._get_name()}; dynamo=True exports "
                "lengths"
            )
        return self._stock_class().forward(self, args[0], hx)

    def _class_for(self, exporter: str) -> type[nn.Module]:
        """torch.nn's equivalent class, or the user's subclass of it, for code that does not know our classes."""
        kind = vars(type(self)).get("_class_before_swap")
        if kind is None and self._has_own_forward():
            kind, own = self._stock_class().__name__, self._public_class().__name__
            raise NotImplementedError(
                f"{exporter} cannot compile {type(self).__name__}, whose own forward calls that of fused_rnn.{own}. "
                f"Derive it from torch.nn.{kind}, or use torch.jit.trace"
            )
        return kind or self._stock_class()

    def _has_own_forward(self) -> bool:
        return type(self).forward is not self._public_class().forward

    def _public_class(self) -> type[nn.Module]:
        return next(base for base in type(self).__mro__ if base.__module__ == "fused_rnn")

    def _stock_class(self) -> type[nn.Module]:
        return next(base for base in type(self).__mro__ if base in STOCK.values())

    def __prepare_scriptable__(self) -> nn.Module:
        """torch.nn's layer or cell with the same parameters, as TorchScript cannot compile ours."""
        kind = self._class_for("torch.jit.script")
        if parametrize.is_parametrized(self):
            raise NotImplementedError(
                "torch.jit.script cannot compile parametrized layers; make them plain ones by "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
        warnings.warn(
            f"torch.jit.script replaces {self._get_name()} by torch.nn.{self._stock_class().__name__}, in the model "
            "itself too: the same parameters, torch.nn's speed, and no lengths, reset_mask or other options. "
            "fused_rnn.restore(model) before it does the same without this warning; torch.jit.trace and torch.export "
            "keep fused_rnn's layers",
            stacklevel=_level_of_user(),
        )
        stock = kind.__new__(kind)
        stock.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_runner"})
        if isinstance(stock, nn.RNNBase):
            stock._flat_weights = [getattr(stock, name, None) for name in stock._flat_weights_names]
        return stock

    # torch.ao.quantization matches torch.nn's exact classes, silently skips ours, and sets `qconfig` on all modules
    # that it skips.

    @property
    def qconfig(self) -> Any:
        if "qconfig" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute 'qconfig'")
        return self.__dict__["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        self.__dict__["qconfig"] = value
        asked = torch_private.types_to_quantize() & set(STOCK.values())
        if value is not None or any(isinstance(self, kind) for kind in asked):
            warnings.warn(
                f"torch.ao.quantization does not know {self._get_name()}, which stays as it is; "
                'fused_rnn.freeze(model, weights="int8") quantizes it. To quantize torch.nn\'s layer in its place, '
                "call fused_rnn.restore(model) before",
                stacklevel=_level_of_user(),
            )

    @qconfig.deleter
    def qconfig(self) -> None:
        if "qconfig" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute 'qconfig'")
        del self.__dict__["qconfig"]
