"""Clearer errors for calls that failed on an unsupported kind of tensor.

Used only after a failure: inspecting every tensor of every call would cost time.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, strided
from torch.nn.utils.rnn import PackedSequence


def raised_by(check, *args) -> Exception | None:
    """The exception that ``check(*args)`` raises, if any, with a better message than the operator's."""
    try:
        check(*args)
    except Exception as error:
        return error
    return None


def explain(error: Exception, name: str, input, **others) -> None:
    """Raises a clearer error if an argument is of such a kind; otherwise returns, to keep ``error``."""
    device = next((tensor.device for tensor in _tensors_of(input)), None)
    if device is None:
        return
    for what, argument in {"input": input, **others}.items():
        for tensor in _tensors_of(argument):
            kind = _kind_of(tensor, what)
            if kind is not None:
                raise RuntimeError(f"{name}: {what} must be a plain dense tensor, got {kind}") from error
            if tensor.device.type == "meta" != device.type and isinstance(error, NotImplementedError):  # copying it
                raise RuntimeError(f"{name}: {what} is on meta, so it has no data; the input is on {device}") from error


def _tensors_of(argument) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, PackedSequence):
        yield argument.data
    elif isinstance(argument, (tuple, list)):
        for part in argument:
            yield from _tensors_of(part)


def _kind_of(tensor: Tensor, what: str) -> str | None:
    if tensor.is_nested:
        return f"a nested one. Pad it, torch.nested.to_padded_tensor({what}, 0.0); a layer also takes lengths"
    if hasattr(tensor, "full_tensor"):  # a DTensor, recognised without the slow import of torch.distributed
        return f"a {type(tensor).__name__}. Pass {what}.to_local(), this process's share, or {what}.full_tensor()"
    if tensor.is_quantized:
        return f"a quantized one ({tensor.dtype}). Pass {what}.dequantize()"
    if tensor.layout is not strided:
        return f"layout {tensor.layout}. Pass {what}.to_dense()"
    return None
