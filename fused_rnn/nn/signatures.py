"""What calls of the layers take and return, for type checkers; nothing here runs.

``Module.__call__`` is untyped in torch. Each class therefore declares its own, which is ``forward``'s signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Declared = TypeVar("Declared", bound=Callable[..., None])
Model = TypeVar("Model", bound=nn.Module)


class CallOfLSTM(Protocol):
    """Of a layer with two states."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: Literal[True],
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence]: ...

    @overload
    def __call__(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: bool,
    ) -> tuple[Any, ...]: ...


class CallOfGRU(Protocol):
    """Of a layer with one state: a GRU or an RNN."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...


class CallOfStack(Protocol):
    """Of a stack of layers, with a state for each."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Sequence[Any] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Sequence[Any] | None = None,
        *,
        lengths: None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[PackedSequence, tuple[Any, ...]]: ...
