"""Exchanges torch.nn's classes for ours and back, also under subclasses and parametrized layers."""

from __future__ import annotations

import inspect
from functools import cache

from torch import nn

from .kinds import OURS

_STOCK = {ours: theirs for theirs, ours in OURS.items()}
_NOT_COPIED = ("__dict__", "__weakref__")

# Methods that torch.nn's forward calls and ours does not.
_CALLED_BY_FORWARD = (
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
    "_update_flat_weights",
)


class NotSwappable(Exception):
    """The reason why a class cannot be swapped."""


def ours_for(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that takes the place of torch.nn's ``kind``, or of this subclass of one."""
    if kind in OURS:
        return OURS[kind]
    if _is_parametrized(kind):
        return _rebased(kind, ours_for(kind.__base__))
    return _mixed(kind)


def theirs_for(module: nn.Module) -> type[nn.Module] | None:
    """The class that ``module`` had before; None for other modules."""
    return _before(type(module))


def new_swapped(kind: type[nn.Module]) -> nn.Module:
    """An empty module of the class that takes the place of ``kind``, for pickle and copy."""
    swapped = ours_for(kind)
    return swapped.__new__(swapped)


def _leads_to_stock(kind: type[nn.Module], stock: type[nn.Module]) -> bool:
    """Whether every forward before torch.nn's in the MRO calls ``super().forward``, which will be ours."""
    before = kind.__mro__[: kind.__mro__.index(stock)]
    for forward in (vars(base)["forward"] for base in before if "forward" in vars(base)):
        code = getattr(inspect.unwrap(forward), "__code__", None)
        if code is None or not {"super", "forward"}.issubset(code.co_names) or "__class__" not in code.co_freevars:
            return False
        if stock.__name__ in code.co_names:  # torch.nn.LSTM.forward(self, ...)
            return False
    return True


@cache
def _mixed(kind: type[nn.Module]) -> type[nn.Module]:
    """The user's subclass with our class inserted before torch.nn's in its MRO: ``super().forward`` is then ours."""
    stock = next(base for base in kind.__mro__ if base in OURS)
    if not _leads_to_stock(kind, stock):
        raise NotSwappable(f"its forward is not torch.nn.{stock.__name__}'s, nor calls it by super().forward")
    for name in _CALLED_BY_FORWARD:
        if getattr(kind, name, None) is not getattr(stock, name, None):
            raise NotSwappable(f"it has a {name} of its own, which only torch.nn's forward calls")

    def reduce(self, protocol):
        return new_swapped, (kind,), self.__getstate__()

    own = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "_class_before_swap": kind,
    }
    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        own["__reduce_ex__"] = reduce
    try:
        return type(kind)(kind.__name__, (kind, OURS[stock]), own)
    except TypeError as error:
        raise NotSwappable(f"Python makes no common class of it and ours: {error}") from error


def _rebased(kind: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """The class that torch.nn.utils.parametrize made for a module, on another base."""
    own = {name: value for name, value in vars(kind).items() if name not in (*_NOT_COPIED, "_class_before_swap")}
    return type(kind)(f"Parametrized{base.__name__}", (base,), own | {"_class_before_swap": kind})


def _before(kind: type[nn.Module]) -> type[nn.Module] | None:
    if kind in _STOCK:
        return _STOCK[kind]
    before = vars(kind).get("_class_before_swap")
    if not _is_parametrized(kind):
        return before
    base = _before(kind.__base__)
    if base is None:
        return None
    same = before is not None and _parametrized(before) == _parametrized(kind) and before.__base__ is base
    return before if same else _rebased(kind, base)


def _is_parametrized(kind: type[nn.Module]) -> bool:
    """Whether torch made the class for a parametrized module: a property for each parametrized tensor."""
    return kind.__name__ == f"Parametrized{kind.__base__.__name__}" and bool(_parametrized(kind))


def _parametrized(kind: type[nn.Module]) -> set[str]:
    return {name for name, value in vars(kind).items() if isinstance(value, property)}
