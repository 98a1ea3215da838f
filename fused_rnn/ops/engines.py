"""Choosing the CUDA engine from Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from . import library


def check_cuda_engine(name: str) -> None:
    if name not in library.CUDA_ENGINES:
        raise ValueError(f"the CUDA engine must be one of {', '.join(library.CUDA_ENGINES)}, got {name!r}")


def set_cuda_engine(name: str | None) -> str | None:
    """For all later calls of this process; None: as the environment says. Returns the previous setting."""
    before = library.compiled.fused_rnn_set_cuda_engine(-1 if name is None else library.CUDA_ENGINES.index(name))
    return None if before < 0 else library.CUDA_ENGINES[before]


def cuda_engine(name: str) -> AbstractContextManager[None]:
    """A context manager: layers on CUDA run on this engine, overriding FUSED_RNN_CUDA_ENGINE, whose names it takes.

    ``with fused_rnn.cuda_engine("persistent"): ...`` It applies to all threads, since gradients are computed in other
    threads; a backward pass has to run inside the context too. Raises for what the engine cannot run. May be nested.
    """
    check_cuda_engine(name)
    if not library.cuda_archs():
        raise RuntimeError("this fused_rnn was built without CUDA: it has no CUDA engine to choose")
    return _set_within(name)


@contextmanager
def _set_within(name: str) -> Iterator[None]:
    before = set_cuda_engine(name)
    try:
        yield
    finally:
        set_cuda_engine(before)
