"""Training on sequences that are too long for backpropagation through the whole of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any, NamedTuple

from torch import Tensor

from ..ops.torch_private import map_tensors
from .progress import progress

__all__ = ["Chunk", "tbptt"]


class Chunk(NamedTuple):
    """The results of one chunk, detached: keeping them does not keep the graph alive."""

    loss: Tensor
    output: Any
    state: Any
    """The model's state at the end of the chunk, from which another call can continue."""


def tbptt(
    model: Callable[..., tuple[Any, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    chunks: Iterable[tuple[Any, ...]],
    state: Any = None,
    *,
    backward: Callable[[Tensor], object] | None = Tensor.backward,
    total: int | None = None,
    show_progress: bool = True,
) -> Iterator[Chunk]:
    """Truncated backpropagation through time: the state is carried from chunk to chunk, gradients are not.

    When the loop's body runs, the gradients of the chunk's loss have been accumulated into the parameters' ``grad``. A
    step in each iteration, as above, trains chunk by chunk; one after the loop trains on the sum over all chunks. A
    shorter last chunk counts as much as the others if ``loss_fn`` takes a mean.

    Memory does not grow with the number of chunks, provided that ``chunks`` is lazy.

    Args:
        model: called as ``model(input, state)``, or as ``model(input, state, reset_mask=reset_mask)`` where the chunk
            has a mask; returns its output and its state: a tensor, or nested tuples, lists and dicts of tensors.
            Any unidirectional layer works, torch.nn's too (without masks). To pass options, use
            ``functools.partial(model, grad_clip=1.0)``.
        loss_fn: called as ``loss_fn(output, target)``; returns a scalar.
        chunks: ``(input, target)`` or ``(input, target, reset_mask)`` each, in temporal order. The mask, bool
            ``[t, B]``, is true where a row starts a new sequence; see :func:`fused_rnn.functional.lstm`.
        state: the initial state. Gradients of the first chunk reach it, so it may be learned; None: the model's
            default, zeros for layers.
        backward: called with the loss, for example ``lambda loss: scaler.scale(loss).backward()``. None: no backward
            pass, to evaluate under ``torch.no_grad()``.
        total: the number of chunks, for the progress bar, if ``chunks`` has no length.
        show_progress: draw a progress bar when stderr is a terminal.

    Yields:
        :class:`fused_rnn.Chunk`, a named tuple of loss, output and state.

    Example:
        >>> model = fused_rnn.LSTM(10, 20)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> x, y = torch.randn(200, 3, 10), torch.randn(200, 3, 20)  # [T, B, ...]
        >>> starts = torch.rand(200, 3) < 0.01  # where a row starts a new sequence
        >>> chunks = zip(x.split(50), y.split(50), starts.split(50))  # or a generator that reads from a file
        >>> for loss, output, state in fused_rnn.tbptt(model, torch.nn.functional.mse_loss, chunks):
        ...     norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> output.shape
        torch.Size([50, 3, 20])
    """
    loss = None

    def describe(_: object) -> str:
        return "" if loss is None else f"loss {loss:.4g}"

    for chunk in progress(chunks, total or length_hint(chunks) or None, describe, show_progress):
        if not isinstance(chunk, (tuple, list)) or len(chunk) not in (2, 3):
            got = (
                f"{type(chunk).__name__} of {len(chunk)}" if isinstance(chunk, (tuple, list)) else type(chunk).__name__
            )
            raise TypeError(f"tbptt: each chunk must be (input, target) or (input, target, reset_mask), got {got}")
        input, target, reset_mask = (*chunk, None)[:3]
        results = model(input, state) if reset_mask is None else model(input, state, reset_mask=reset_mask)
        if not isinstance(results, (tuple, list)) or len(results) != 2:
            raise TypeError(f"tbptt: the model must return (output, state), got {type(results).__name__}")
        loss = loss_fn(results[0], target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"tbptt: loss_fn must return a tensor of one number, got {got}")
        if backward is not None:
            backward(loss)
        loss, output, state = map_tensors(Tensor.detach, (loss, *results))
        del results  # frees the graph before the next chunk needs memory
        yield Chunk(loss, output, state)
