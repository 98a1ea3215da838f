"""``Stream``: layers called one step at a time, on states and buffers of their own, for serving and control loops."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops import streams
from ..ops.cells import BY_MODE
from ..ops.checks import states_of
from .recurrent import Recurrent
from .runners import Frozen
from .stack import Stack

__all__ = ["Stream"]

_PLAIN = (Tensor, nn.Parameter)
_is_grad_enabled = torch.is_grad_enabled
# Multiply-adds of a step up to which it keeps Python's lock: after giving it up, a thread may wait for it for 5 ms.
_SHORT = 1_000_000


class _Part(NamedTuple):
    """One module of the stream: its weights as packed, and the states of its layers."""

    module: Recurrent
    weights: Frozen
    states: tuple[Tensor, ...]
    """h ``[L, B, P]`` and, if the cell has a second state, c ``[L, B, H]``."""

    @property
    def name(self) -> str:
        return BY_MODE[self.module.mode].layer_name

    def watch(self) -> Callable[[], bool]:
        """Makes the test of each step, in as few calls as there can be: whether the module has the weights that were
        packed, in the versions that were packed."""
        if not self.weights.fingerprint.works:
            return lambda: self.change() is None
        parameters, get = self.module._parameters, itemgetter(*self.module._flat_weights_names)
        known = self.weights.fingerprint
        these, tracked, versions, versions_of = known.these, known.tracked, known.versions, known.versions_of

        def are_same() -> bool:
            try:
                return get(parameters) == these and versions_of(tracked) == versions
            except Exception:  # KeyError: a parametrized weight is no parameter
                return False

        def four_are_same() -> bool:
            """The same for one layer with biases, 0.1 us sooner."""
            try:
                return (
                    get(parameters) == these
                    and a._version == p
                    and b._version == q
                    and c._version == r
                    and d._version == s
                )
            except Exception:  # as above
                return False

        if len(these) != len(versions) or len(these) != 4:
            return are_same
        (a, b, c, d), (p, q, r, s) = these, versions
        return four_are_same

    def change(self) -> str | None:
        return self.weights.change_of(list(map(self.module._parameters.get, self.module._flat_weights_names)))


class Stream:
    """Steps of a layer or stack, one call each, with the states kept inside: for inference on the CPU.

    Args:
        model: a ``fused_rnn.LSTM``, ``GRU`` or ``RNN`` in one direction, of any number of layers, or a
            ``fused_rnn.Stack`` of these without skip connections. A frozen one's packed weights are used; those of
            another are packed for the stream, which leaves ``model`` as it is. Dropout does not act.
        batch: B, the number of rows, each a sequence of its own.

    A step computes, bit by bit, what the frozen model does for an input of one step; it allocates no memory, except for
    the first steps, and does not pass torch's dispatcher: autograd, autocast, transforms, hooks, traces and
    ``torch.compile`` do not see it. ``fused_rnn.explain(stream)`` says what a step runs on.

    One thread at a time may use a stream; different streams, of the same model too, may be used at once. A copy, by
    ``copy`` or ``pickle``, has the model's copy, or with ``copy.copy`` the model itself, and states of its own.

    Example:
        >>> stream = fused_rnn.Stream(fused_rnn.GRU(10, 20), batch=3)
        >>> with torch.inference_mode():
        ...     for x in torch.randn(5, 3, 10):  # five readings of three sensors
        ...         output = stream.step(x)
        ...     stream.reset(rows=1)  # the second sensor starts anew
        >>> output.shape, stream.state.shape
        (torch.Size([3, 20]), torch.Size([1, 3, 20]))
        >>> stream.state[:, 1].count_nonzero().item()
        0
    """

    def __init__(self, model: nn.Module, batch: int = 1) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int):
            raise TypeError(f"Stream: batch must be an int, got {type(batch).__name__}")
        if batch < 1:
            raise ValueError(f"Stream: batch must be at least 1, got {batch}")
        self.model: nn.Module = model
        self.batch: int = batch
        modules = _layers_of(model)
        first, last = modules[0], modules[-1]
        weight = first._parameters["weight_ih_l0"]
        self._dtype, self._width = weight.dtype, last.proj_size or last.hidden_size
        self._input_size, self._input_shape = first.input_size, torch.Size([batch, first.input_size])
        self._output_shape, self._ids_shape = torch.Size([batch, self._width]), torch.Size([batch])
        with torch.inference_mode(False), torch.no_grad():
            self._parts = [_part_of(module, batch) for module in modules]
            self._refuse_changes()  # of frozen weights, before the stream is there to see them
            self._output = weight.new_zeros(self._output_shape)
        self._output_address = self._output.data_ptr()
        packed = [packed for part in self._parts for packed in part.weights.packed]
        h, c = zip(
            *(_addresses(states) for part in self._parts for states in zip(*part.states, strict=True)), strict=True
        )
        self._stream = streams.open_stream([(p.data_ptr(), p.numel()) for p in packed], batch, h, c)
        weakref.finalize(self, streams.close_stream, self._stream)
        watches = [part.watch() for part in self._parts]
        self._has_its_weights = watches[0] if len(watches) == 1 else lambda: all(are_same() for are_same in watches)
        streams.watch_weights(self._stream, [weight for part in self._parts for weight in part.weights.weights])
        work = batch * sum(weight.numel() for part in self._parts for weight in part.weights.weights)
        self._step, self._step_ids, self._step_bound = streams.steps(releases_gil=work > _SHORT)

    def step(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Takes one step of each row.

        Args:
            x: the next input ``[B, I]``, or ids ``[B]``, int64. It may be the previous output.
            out: ``[B, P]``, contiguous, where the output is written. Else it is in a buffer of the stream's, which the
                next step overwrites: clone it to keep it.

        Returns:
            The output ``[B, P]``: ``out`` if that is given.
        """
        if not self._has_its_weights():
            raise self._failure()
        step = self._step_for(x)
        in_grad_mode = _is_grad_enabled()
        if in_grad_mode:
            self._refuse_gradients(x, out)
        if not x.is_contiguous() or x.is_neg():
            x = x.clone(memory_format=torch.contiguous_format)
        if out is None:
            out, address = self._output, self._output_address
        else:
            address = self._checked_out(out).data_ptr()
        if step(self._stream, x.data_ptr(), address):
            raise self._failure()
        if in_grad_mode:
            torch.autograd.graph.increment_version(out)
        return out

    def bind(self, x: Tensor, out: Tensor | None = None) -> Callable[[], Tensor]:
        """Makes a step of two tensors that stay the same, whose checks are then done once, here.

        Args:
            x: as of :meth:`step`, and contiguous: each call reads what it then holds.
            out: as of :meth:`step`.

        Returns:
            A function without arguments that takes the step ``step(x, out)`` and returns its outputs.
        """
        in_grad_mode = _is_grad_enabled()
        with torch.no_grad():
            self._step_for(x)
            if not x.is_contiguous() or x.is_neg():
                raise ValueError("Stream: a bound x must be contiguous, as it is read where it is")
            out = self._output if out is None else self._checked_out(out)
        if in_grad_mode:
            self._refuse_gradients(x, out)
        bound, has_its_weights = streams.bind(self._stream, x, out), self._has_its_weights
        step, is_negated = self._step_bound, x.is_neg

        def run() -> Tensor:
            if not has_its_weights():
                raise self._failure()
            in_grad_mode = _is_grad_enabled()
            if in_grad_mode:
                self._refuse_gradients(x, out)
            if is_negated():
                raise RuntimeError("Stream: a bound x became a negated view; bind it again")
            if step(bound):
                raise self._failure()
            if in_grad_mode:
                torch.autograd.graph.increment_version(out)
            return out

        weakref.finalize(run, streams.unbind, bound)
        return run

    @property
    def state(self) -> Any:
        """A copy of the states, as the model returns and takes them.

        ``h [L, B, P]``, or ``(h, c [L, B, H])`` of an LSTM, or a tuple of each layer's of a ``Stack``. May be set to
        such states, or to None, for zeros.
        """
        states = [tuple(state.clone() for state in part.states) for part in self._parts]
        found = tuple(own if len(own) > 1 else own[0] for own in states)
        return found if isinstance(self.model, Stack) else found[0]

    @state.setter
    def state(self, hx: Any) -> None:
        if hx is None:
            return self.reset()
        of_parts = hx if isinstance(self.model, Stack) else (hx,)
        if not isinstance(of_parts, (tuple, list)) or len(of_parts) != len(self._parts):
            raise TypeError(f"Stream: state must be a tuple of {len(self._parts)} states, one for each layer")
        given = [_checked_states(part, own) for part, own in zip(self._parts, of_parts, strict=True)]
        with torch.no_grad():
            for part, states in zip(self._parts, given, strict=True):
                for own, state in zip(part.states, states, strict=True):
                    own.copy_(state)

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Sets states to zero, where a row starts a new sequence.

        Args:
            rows: a row's number, several numbers, or a mask ``[B]`` of bools; None: all rows.
        """
        where = slice(None) if rows is None else self._checked_rows(rows)
        with torch.no_grad():
            for part in self._parts:
                for state in part.states:
                    state[:, where] = 0

    def __repr__(self) -> str:
        return f"fused_rnn.Stream({self.model!r}, batch={self.batch})"

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "batch": self.batch, "state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Stream.__init__(self, state["model"], state["batch"])
        self.state = state["state"]

    # ---- checks, in as few calls as there can be ----

    def _step_for(self, x: Tensor) -> streams.Step:
        if type(x) not in _PLAIN or not x.is_cpu:
            raise self._refusal_of(x)
        if x.dtype is self._dtype:
            step, fits = self._step, x.shape == self._input_shape
        else:
            step, fits = self._step_ids, x.dtype is torch.int64 and x.shape == self._ids_shape
        if not fits:
            raise self._refusal_of(x)
        return step

    # ---- refusals ----

    def _refuse_changes(self) -> None:
        for part in self._parts:
            if (change := part.change()) is not None:
                raise RuntimeError(f"fused_rnn: {change}; make another Stream, or call fused_rnn.thaw(model) first")

    def _failure(self) -> Exception:
        self._refuse_changes()
        return streams.error_of(self._stream)

    def _refusal_of(self, x) -> Exception:
        if not isinstance(x, Tensor):
            return TypeError(f"Stream: x must be a Tensor, got {type(x).__name__}")
        if type(x) not in _PLAIN:
            return TypeError(f"Stream: x must be a plain tensor, got a {type(x).__name__}")
        if not x.is_cpu:
            return RuntimeError(f"Stream: x must be on cpu, got {x.device}")
        shape, dtype = list(x.shape), x.dtype
        if dtype not in (self._dtype, torch.int64):
            return ValueError(
                f"Stream: x dtype ({dtype}) does not match weight dtype ({self._dtype}), and ids are torch.int64"
            )
        wanted = f"{list(self._ids_shape)} for ids" if dtype == torch.int64 else list(self._input_shape)
        return RuntimeError(f"Stream: x must be {wanted}, got {shape}")

    def _refuse_gradients(self, x: Tensor, out: Tensor | None) -> None:
        weights = (weight for part in self._parts for weight in part.weights.weights)
        if x.requires_grad or (out is not None and out.requires_grad) or any(w.requires_grad for w in weights):
            raise RuntimeError(
                "fused_rnn: a Stream has no gradients. Call step under torch.no_grad() or torch.inference_mode()"
            )

    def _checked_out(self, out) -> Tensor:
        if type(out) not in _PLAIN:
            raise TypeError(f"Stream: out must be a plain Tensor, got {type(out).__name__}")
        fits = out.is_cpu and out.dtype is self._dtype and out.shape == self._output_shape
        if not fits or not out.is_contiguous() or out.is_neg():
            raise RuntimeError(
                f"Stream: out must be {self._dtype} {list(self._output_shape)}, contiguous, on cpu, got {out.dtype} "
                f"{list(out.shape)} on {out.device}, strides {list(out.stride())}"
            )
        return out

    def _checked_rows(self, rows) -> Tensor:
        where = torch.as_tensor([rows] if isinstance(rows, int) and not isinstance(rows, bool) else rows)
        if where.dtype == torch.bool:
            if where.shape != self._ids_shape:
                raise RuntimeError(f"Stream: a mask of rows must be {list(self._ids_shape)}, got {list(where.shape)}")
            return where.cpu()
        if where.numel() == 0:
            return where.long().reshape(-1).cpu()
        if where.is_floating_point() or where.is_complex() or where.dim() != 1:
            raise TypeError("Stream: rows must be an int, ints, a 1-D tensor of ints or a mask of bools")
        if where.min() < 0 or where.max() >= self.batch:
            raise IndexError(f"Stream: rows must lie between 0 and {self.batch - 1}, got {where.tolist()}")
        return where.long().cpu()


def _layers_of(model) -> list[Recurrent]:
    """The modules that steps run, in order; raises for a model that a stream cannot run."""
    modules = list(model.layers) if isinstance(model, Stack) else [model]
    if not modules or not all(isinstance(module, Recurrent) for module in modules):
        raise TypeError(
            "Stream: model must be a fused_rnn.LSTM, GRU or RNN, or a fused_rnn.Stack of these, got "
            f"{type(model).__name__}; fused_rnn.swap(model) replaces torch.nn's layers"
        )
    if isinstance(model, Stack) and model.skip is not None:
        raise NotImplementedError(f"Stream: a Stack with skip={model.skip!r} is not supported")
    for module in modules:
        weights = [module._parameters.get(name) for name in module._flat_weights_names]
        if module.bidirectional:
            raise ValueError("Stream: a bidirectional layer reads sequences from their end, too, so it has no steps")
        if not all(isinstance(weight, Tensor) for weight in weights):
            raise RuntimeError("Stream: a layer's weights are computed (parametrized); make them plain parameters")
        if weights[0].device.type != "cpu":
            raise RuntimeError(f"Stream: runs on cpu, but the model is on {weights[0].device}")
    return modules


def _part_of(module: Recurrent, batch: int) -> _Part:
    runner = module._runner
    weights = runner if isinstance(runner, Frozen) else module._pack()
    widths = (module.proj_size or module.hidden_size, module.hidden_size)[: BY_MODE[module.mode].states]
    like = weights.weights[0]
    return _Part(module, weights, tuple(like.new_zeros(module.num_layers, batch, width) for width in widths))


def _addresses(states: Sequence[Tensor]) -> tuple[int, int | None]:
    """Of one layer's h and c."""
    h, c = (*states, None)[:2]
    return h.data_ptr(), None if c is None else c.data_ptr()


def _checked_states(part: _Part, hx) -> tuple[Tensor, ...]:
    states = states_of(hx, "Stream", BY_MODE[part.module.mode])
    for i, (own, state) in enumerate(zip(part.states, states, strict=True)):
        if state.shape != own.shape:
            raise RuntimeError(f"Stream: Expected hidden[{i}] size {list(own.shape)}, got {list(state.shape)}")
        if state.dtype != own.dtype:
            raise RuntimeError(f"Stream: hx dtype ({state.dtype}) does not match weight dtype ({own.dtype})")
    return states
