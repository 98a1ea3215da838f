"""Runs a formula once and keeps its operations, or refuses it: what one unit does must depend on that unit alone."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from ..ops import torch_private

ROWS, UNITS = 13, 11
"""Sizes of a run, unlike any number of gates."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# By name, without the overload: what a formula may consist of.
_OF_NUMBERS = _words(
    """abs add clamp clamp_max clamp_min div elu eq erf erfc exp exp2 expm1 ge gelu gt hardsigmoid hardswish hardtanh
    le leaky_relu lerp log log10 log1p log2 log_sigmoid_forward logaddexp logical_and logical_not logical_or
    bitwise_and bitwise_not bitwise_or lt masked_fill maximum minimum mish mul ne neg pow reciprocal relu rsqrt rsub
    sgn sigmoid sign silu sin cos softplus sqrt square sub tan tanh where addcmul addcdiv"""
)
_OF_SHAPES = _words(
    """alias cat clone detach expand full full_like lift_fresh lift_fresh_copy new_full new_ones new_zeros ones
    ones_like scalar_tensor select slice split squeeze stack unbind unsqueeze view zeros zeros_like"""
)
_RANDOM = ("bernoulli", "dropout", "multinomial", "normal", "poisson", "rand", "uniform", "exponential")
_MIXING = _words(
    """addbmm addmm addmv amax amin any all argmax argmin baddbmm bmm convolution cummax cumprod cumsum dot flip gather
    index index_select linear logsumexp max mean median min mm mv native_layer_norm norm permute prod roll scatter
    sort std sum t take topk transpose unfold var var_mean linalg_vector_norm _softmax _log_softmax embedding"""
)
_HIDING = ("torch.detach", "torch.Tensor.detach", "torch.Tensor.detach_", "torch.Tensor.data.__get__")
# Of more than one number these raise, or return what is no Tensor, before any operator is called.
_READING = _words(
    "__bool__ __float__ __int__ __complex__ __index__ __contains__ __array__ __dlpack__ item tolist numpy"
)
_MOVING = _words("cuda cpu")
_HELP = "a cell's formula may use + - * / pow, exp, log, sqrt, sigmoid, tanh, relu and the like, where, comparisons"


class Call(NamedTuple):
    """An operation of a formula."""

    operator: Any
    args: tuple
    kwargs: dict[str, Any]
    results: list[Tensor]
    place: str
    """The public function and the line of the formula."""


class Record(NamedTuple):
    """The operations of a formula in order, and where their numbers come from and go."""

    inputs: list[Tensor]
    calls: list[Call]
    outputs: list[Tensor]
    names: dict[int, str]
    """By id of a tensor: the variable that held it first."""


class Declaration(NamedTuple):
    """What is known of a cell besides its formula."""

    name: str
    gates: int
    states: tuple[str, ...]
    params: tuple[str, ...] = ()
    recurrent: bool = True


def example_inputs(declared: Declaration, dtype: torch.dtype, sizes: Sequence[int]) -> list[Tensor]:
    """x, r (if there is one), the states and the parameters, of any numbers."""
    shapes = [(declared.gates, *sizes)] * (1 + declared.recurrent)
    shapes += [tuple(sizes)] * (len(declared.states) + len(declared.params))
    source = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=source, dtype=dtype) for shape in shapes]


def call(function: Callable, declared: Declaration, inputs: Sequence[Tensor]) -> Any:
    before = len(inputs) - len(declared.params)
    return function(*inputs[:before], **dict(zip(declared.params, inputs[before:], strict=True)))


def record(function: Callable, declared: Declaration) -> Record:
    """The formula's operations; raises, with the operation and the line, if a cell cannot have them."""
    inputs = example_inputs(declared, torch.float64, (ROWS, UNITS))
    found = _run(function, declared, inputs)
    again = _run(function, declared, example_inputs(declared, torch.float32, (ROWS + 1, UNITS + 1)))
    first, second = _signature(found), _signature(again)
    if first != second:
        pairs = zip_longest(first, second)
        number = next(k for k, (one, other) in enumerate(pairs) if one != other)
        calls = found.calls if number < len(found.calls) else again.calls
        raise ValueError(
            f"{declared.name}: two calls of the formula computed differently, so it depends on sizes, dtypes, random "
            "numbers or something else outside; it may depend on its arguments alone. They differ from "
            f"{calls[number].place} on"
        )
    _refuse_hidden_derivatives(function, declared, inputs)
    return found


def _run(function: Callable, declared: Declaration, inputs: list[Tensor]) -> Record:
    watch = _Watch(declared, inputs)
    with torch.no_grad(), _Keep(watch), _See(watch):
        try:
            returned = call(function, declared, inputs)
        except (ValueError, IndexError) as error:
            if watch.refused is error:
                raise
            raise ValueError(
                f"{declared.name}: {error}; x{' and r' if declared.recurrent else ''} of the formula hold gates="
                f"{declared.gates} tensors{_where(_last_frame(error))}"
            ) from error
    outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    name, states = declared.name, declared.states
    if len(outputs) != len(states):
        raise ValueError(f"{name}: the formula must return {_counted(states)}, got {len(outputs)} values")
    for state, output in zip(states, outputs, strict=True):
        if not isinstance(output, Tensor):
            raise TypeError(f"{name}: the new {state} must be a Tensor, got {type(output).__name__}")
        if output.shape != inputs[-1].shape:
            expected, got = "[B, H]", watch.described(output.shape)
            hint = "; a gate is x[0], not x" if output.shape[1:] == inputs[-1].shape else ""
            raise ValueError(f"{name}: the new {state} must have the shape {expected} of a state, got {got}{hint}")
        if output.dtype != inputs[-1].dtype:
            raise ValueError(f"{name}: the new {state} must have the input's dtype, got {output.dtype}")
        if id(output) not in watch.known:
            raise ValueError(f"{name}: the new {state} is no result of the formula, but a tensor from outside")
    return Record(inputs, watch.calls, outputs, watch.names)


def _counted(states: tuple[str, ...]) -> str:
    return f"the new {states[0]}" if len(states) == 1 else f"{len(states)} new states ({', '.join(states)})"


def _signature(record: Record) -> list:
    """Of every call: its operator, arguments and constants."""

    def plain(value: Any, of_shapes: bool) -> Any:
        if isinstance(value, Tensor):
            return value.dim() if value.dim() else None
        if isinstance(value, (tuple, list)):
            return [plain(part, of_shapes) for part in value]
        if of_shapes and isinstance(value, int) and abs(value) in (ROWS, ROWS + 1, UNITS, UNITS + 1):
            return "size"
        return None if isinstance(value, torch.dtype) else repr(value)  # by text, since NaN differs from itself

    def constants(call: Call) -> list[str]:
        return [repr(result.item()) for result in call.results if not result.dim() and result.numel() == 1]

    return [
        [str(call.operator), plain(call.args, _name_of(call.operator) in _OF_SHAPES), constants(call)]
        for call in record.calls
    ]


class _KeepsGradients(TorchFunctionMode):
    """Refuses calls that are made without gradients."""

    def __init__(self, watch: _Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not torch.is_grad_enabled() and func is not torch_private.switch_gradients:
            frame = _frame_of_user()
            self.watch.frame, self.watch.function = frame, resolve_name(func) or str(func)
            raise self.watch.refuse(
                "is called without gradients, under torch.no_grad() or in an autograd function; a cell's derivatives "
                "are those of its operations"
            )
        return func(*args, **(kwargs or {}))


def _refuse_hidden_derivatives(function: Callable, declared: Declaration, inputs: list[Tensor]) -> None:
    """``torch.no_grad()`` and autograd functions change the derivative, which the operations do not show."""
    with torch.enable_grad(), _KeepsGradients(_Watch(declared, inputs)):
        call(function, declared, [tensor.clone().requires_grad_() for tensor in inputs])


def _name_of(operator: Any) -> str:
    return operator._schema.name.removeprefix("aten::")


class _Watch:
    """What a run has seen so far."""

    def __init__(self, declared: Declaration, inputs: list[Tensor]):
        self.declared = declared
        self.sizes, self.dtype = tuple(inputs[0].shape[1:]), inputs[0].dtype
        self.known = {id(tensor): tensor for tensor in inputs}  # also keeps their ids from being given again
        self.calls: list[Call] = []
        self.names: dict[int, str] = {}
        self.frame: FrameType | None = None
        self.function = ""
        self.refused: ValueError | None = None

    def refuse(self, reason: str, operator: str = "") -> ValueError:
        self.refused = ValueError(f"{self.declared.name}: {self.function or operator} {reason}{self.line()}")
        return self.refused

    def line(self) -> str:
        return _where(None if self.frame is None else (self.frame.f_code.co_filename, self.frame.f_lineno))

    def described(self, shape: Sequence[int]) -> str:
        letters = {self.sizes[0]: "B", self.sizes[1]: "H"}
        named = [letters.get(size, str(size)) for size in shape]
        if len(shape) > 2 and shape[0] == self.declared.gates:
            named[0] = "gates"
        return f"[{', '.join(named)}]"


class _See(TorchFunctionMode):
    """Notes the line and the public function that is called there, and the variables of that moment."""

    def __init__(self, watch: _Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        watch, frame = self.watch, _frame_of_user()
        outer = watch.frame, watch.function
        watch.frame, watch.function = frame, resolve_name(func) or getattr(func, "__name__", str(func))
        for name, value in list(frame.f_locals.items()) if frame is not None else ():
            if isinstance(value, Tensor):
                watch.names.setdefault(id(value), name)
        name = watch.function.removeprefix("torch.Tensor.")
        if name in _READING:
            raise watch.refuse("needs a value while the formula is read, and values differ: write torch.where")
        if name in _MOVING:
            raise watch.refuse("changes dtype or device, which a formula leaves to the layer")
        if watch.function in _HIDING:
            raise watch.refuse("hides a value from the derivative, which second derivatives would not see")
        result = func(*args, **(kwargs or {}))
        watch.frame, watch.function = outer
        return result


class _Keep(torch_private.TorchDispatchMode):
    """Checks and keeps the operations that are run."""

    def __init__(self, watch: _Watch):
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._check(func, args, kwargs)
        returned = func(*args, **kwargs)
        results = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        for result in results:
            self._check_result(func, result)
            self.watch.known[id(result)] = result
        place = f"{self.watch.function or _name_of(func)}{self.watch.line()}"
        self.watch.calls.append(Call(func, args, kwargs, results, place))
        return returned

    def _check(self, func, args, kwargs) -> None:
        watch, name = self.watch, _name_of(func)
        if name in ("_local_scalar_dense", "item", "is_nonzero", "equal"):
            raise watch.refuse("needs a value while the formula is read, and values differ: write torch.where", name)
        if func._schema.is_mutable:
            raise watch.refuse("edits in place; make a new tensor", name)
        if name in ("_to_copy", "to") or kwargs.get("dtype") not in (None, watch.dtype, torch.bool, torch.float32):
            raise watch.refuse("changes dtype or device, which a formula leaves to the layer", name)
        if any(part in name for part in _RANDOM):
            raise watch.refuse("draws random numbers", name)
        if name in _MIXING:
            raise watch.refuse("mixes units, batch rows or steps; a unit sees its own numbers alone", name)
        if name not in _OF_NUMBERS | _OF_SHAPES or "mode" in func._overloadname:
            raise watch.refuse(f"is not among a cell's operations; {_HELP}", name)
        for tensor in torch_private.tensors_in((args, kwargs)):
            if id(tensor) not in watch.known and name not in ("lift_fresh", "lift_fresh_copy"):
                raise watch.refuse("reads a tensor from outside; name it in params, or write a number", name)

    def _check_result(self, func, result: Tensor) -> None:
        watch, name = self.watch, _name_of(func)
        if tuple(result.shape[-2:]) != watch.sizes and result.dim():
            raise watch.refuse(
                f"makes a tensor {watch.described(result.shape)}, which mixes units or batch rows; [..., B, H] is "
                "what a formula works on",
                name,
            )
        if result.dim() and result.dtype not in (watch.dtype, torch.bool):
            raise watch.refuse(f"makes a tensor of dtype {result.dtype}, not the input's", name)


def _where(place: tuple[str, int] | None) -> str:
    """File, line and the text there, in brackets."""
    if place is None:
        return ""
    text = linecache.getline(*place).strip()
    return f" ({os.path.basename(place[0])}, line {place[1]}{': ' + text if text else ''})"


def _last_frame(error: Exception) -> tuple[str, int] | None:
    found = None
    step = error.__traceback__
    while step is not None:
        if not _is_inside(step.tb_frame):
            found = step.tb_frame.f_code.co_filename, step.tb_lineno
        step = step.tb_next
    return found


_INSIDE = (os.path.dirname(torch.__file__) + os.sep, __file__)


def _is_inside(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_INSIDE)


def _frame_of_user() -> FrameType | None:
    frame = sys._getframe(2)
    while frame is not None and _is_inside(frame):
        frame = frame.f_back
    return frame
