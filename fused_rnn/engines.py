"""Which CUDA engine runs, where a program says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from . import _library


def cuda_engine(name: str) -> AbstractContextManager[None]:
    """A context in which layers on CUDA run on this engine, whatever FUSED_RNN_CUDA_ENGINE says; names are the same.

    ``with fused_rnn.cuda_engine("persistent"): ...`` It holds for all threads, as gradients are computed in others, and
    for a backward pass only if that too runs inside. What the engine cannot do raises. Contexts may be nested.
    """
    _library.check_cuda_engine(name)
    if not _library.cuda_archs():
        raise RuntimeError("this fused_rnn was built without CUDA: it has no CUDA engine to choose")
    return _set_within(name)


@contextmanager
def _set_within(name: str) -> Iterator[None]:
    before = _library.set_cuda_engine(name)
    try:
        yield
    finally:
        _library.set_cuda_engine(before)
