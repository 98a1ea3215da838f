"""Streams of the compiled library (csrc/ops/stream.cpp), by addresses; :mod:`fused_rnn.nn.stream` owns the tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .library import PATH

Step = Callable[[int, int, int], int]  # (stream, address of the input, address of the output) -> 0, or see error_of
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


def _declared(kind: type[ctypes.CDLL]) -> ctypes.CDLL:
    library = kind(str(PATH))
    pointers, reason = ctypes.POINTER(_POINTER), [ctypes.c_char_p, _INT]
    library.fused_rnn_open_stream.argtypes = [_INT, pointers, ctypes.POINTER(_INT), _INT, pointers, pointers, *reason]
    library.fused_rnn_open_stream.restype = _POINTER
    library.fused_rnn_close_stream.argtypes, library.fused_rnn_close_stream.restype = [_POINTER], None
    library.fused_rnn_stream_error.argtypes, library.fused_rnn_stream_error.restype = [_POINTER], ctypes.c_char_p
    for step in (library.fused_rnn_step_stream, library.fused_rnn_step_stream_ids):
        step.argtypes, step.restype = [_POINTER] * 3, ctypes.c_int
    library.fused_rnn_step_bound.argtypes, library.fused_rnn_step_bound.restype = [_POINTER], ctypes.c_int
    library.fused_rnn_unbind_stream.argtypes, library.fused_rnn_unbind_stream.restype = [_POINTER], None
    return library


_RELEASING, _HOLDING = map(_declared, (ctypes.CDLL, ctypes.PyDLL))


def steps(releases_gil: bool) -> tuple[Step, Step, Callable[[int], int]]:
    """The functions that make a step: on numbers, on ids, and on tensors that were bound."""
    library = _RELEASING if releases_gil else _HOLDING
    return library.fused_rnn_step_stream, library.fused_rnn_step_stream_ids, library.fused_rnn_step_bound


def bind(stream: int, input: Tensor, output: Tensor) -> int:
    """What ``fused_rnn_step_bound`` takes, for as long as ``unbind`` has not been called for it."""
    return torch.ops.fused_rnn.bind_stream(stream, input, output)


def unbind(bound: int) -> None:
    _RELEASING.fused_rnn_unbind_stream(bound)


def open_stream(packed: Sequence[tuple[int, int]], batch: int, h: Sequence[int], c: Sequence[int | None]) -> int:
    """``packed``: (address, bytes) of each layer's packed weights; ``h``, ``c``: addresses of its states."""
    pointers, sizes = _POINTER * len(packed), _INT * len(packed)
    error = ctypes.create_string_buffer(512)
    weights = pointers(*(address for address, _ in packed)), sizes(*(size for _, size in packed))
    states = pointers(*h), pointers(*c)
    stream = _RELEASING.fused_rnn_open_stream(len(packed), *weights, batch, *states, error, len(error))
    if not stream:
        raise RuntimeError(error.value.decode())
    return stream


def watch_weights(stream: int, weights: Sequence[Tensor]) -> None:
    """Has its steps refused once the memory of a weight is another."""
    torch.ops.fused_rnn.watch_weights(stream, weights)


def close_stream(stream: int) -> None:
    _RELEASING.fused_rnn_close_stream(stream)


def error_of(stream: int) -> RuntimeError:
    """Why the last step failed."""
    return RuntimeError(_RELEASING.fused_rnn_stream_error(stream).decode())
