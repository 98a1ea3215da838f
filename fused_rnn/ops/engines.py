"""Choosing the engine: torch.nn's kernels, ours, or whichever is faster."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from . import library

_VARIABLE, _OLD_VARIABLE = "FUSED_RNN_ENGINE", "FUSED_RNN_CUDA_ENGINE"

_within: str | None = None  # the innermost context's; of all threads, since gradients are computed in others
_of_environment: str | None = None


hands_over: bool | None = None
"""Whether torch.nn's kernels may be the ones to run calls; None: of inputs on CUDA alone. Tested by every call."""


def check_engine(name: str) -> None:
    if name not in library.ENGINES:
        raise ValueError(f"the engine must be one of {', '.join(library.ENGINES)}, got {name!r}")


def engine_for(device: str) -> str:
    """The engine of calls on this type of device: what was asked for, or the default."""
    name = _within or _of_environment
    if name is None:
        return "auto" if device == "cuda" else "ours"
    check_engine(name)  # the variable's
    return name


def read_environment() -> None:
    """Reads the variables, as is done once when this module is imported."""
    global _of_environment
    _of_environment = os.environ.get(_VARIABLE) or os.environ.get(_OLD_VARIABLE) or None
    if os.environ.get(_OLD_VARIABLE) and not os.environ.get(_VARIABLE):
        message = f"{_OLD_VARIABLE} will go away in the next version: use {_VARIABLE}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    _note_change()


def _note_change() -> None:
    global hands_over
    name = _within or _of_environment
    if name is None or name == "ours":  # on CUDA both go by what was measured
        hands_over = None if library.cuda_archs() else False
    else:  # an unknown name too: then the call raises
        hands_over = name not in library.CUDA_ENGINES


def set_engine(name: str | None) -> str | None:
    """For all later calls of this process; None: as the environment says. Returns the previous setting."""
    global _within
    before, _within = _within, name
    if library.cuda_archs():
        library.compiled.fused_rnn_set_engine(-1 if name is None else library.ENGINES.index(name))
    _note_change()
    return before


def engine(name: str) -> AbstractContextManager[None]:
    """A context manager: layers and cells run on this engine, whatever ``FUSED_RNN_ENGINE`` says.

    It applies to all threads, since gradients are computed in other threads; a backward pass has to run inside the
    context too. Contexts may be nested.

    Args:
        name: ``"torch"`` for torch.nn's kernels, where they can run the call; ``"ours"``; ``"auto"`` for the faster of
            these, as measured; or one engine of ours on CUDA: ``"stepwise"``, ``"persistent"`` and so on, of which
            none hands a call to another, so that what it cannot run raises.

    Raises:
        RuntimeError: it is an engine on CUDA, and this library was built without.
        ValueError: there is no engine of that name; the message lists them.

    Example:
        >>> lstm = fused_rnn.LSTM(10, 20)
        >>> with fused_rnn.engine("torch"):
        ...     output, state = lstm(torch.randn(5, 3, 10))
    """
    check_engine(name)
    if name in library.CUDA_ENGINES and not library.cuda_archs():
        raise RuntimeError(f"this fused_rnn was built without CUDA: it has no engine {name!r}")
    return set_within(name)


def cuda_engine(name: str) -> AbstractContextManager[None]:
    """The former name of :func:`engine`, which it will be known by alone in the next version."""
    warnings.warn(
        "fused_rnn.cuda_engine will go away in the next version: use fused_rnn.engine", DeprecationWarning, stacklevel=2
    )
    return engine(name)


def ours_on(device: str) -> AbstractContextManager[None]:
    """A context in which no call is handed over to torch.nn's kernels: the engine that was asked for, else ``ours``."""
    name = engine_for(device)
    return set_within("ours" if name in ("auto", "torch") else name)


@contextmanager
def set_within(name: str) -> Iterator[None]:
    """:func:`engine` for a name that is known to be right."""
    before = set_engine(name)
    try:
        yield
    finally:
        set_engine(before)


read_environment()
