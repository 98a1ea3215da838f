"""Which CUDA engine runs, where a program says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from . import library

CUDA_ENGINES = library.cuda_engines()


def check_cuda_engine(name: str) -> None:
    if name not in CUDA_ENGINES:
        raise ValueError(f"the CUDA engine must be one of {', '.join(CUDA_ENGINES)}, got {name!r}")


def set_cuda_engine(name: str | None) -> str | None:
    """For all calls of this process from now on; None: what the environment says. Returns what was set before."""
    before = library.compiled.fused_rnn_set_cuda_engine(-1 if name is None else CUDA_ENGINES.index(name))
    return None if before < 0 else CUDA_ENGINES[before]


def cuda_engine(name: str) -> AbstractContextManager[None]:
    """A context in which layers on CUDA run on this engine, whatever FUSED_RNN_CUDA_ENGINE says; names are the same.

    ``with fused_rnn.cuda_engine("persistent"): ...`` It holds for all threads, as gradients are computed in others, and
    for a backward pass only if that too runs inside. What the engine cannot do raises. Contexts may be nested.
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
