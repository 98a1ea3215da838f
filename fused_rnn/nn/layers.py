"""``LSTM``, ``GRU`` and ``RNN``: torch.nn's layers on this library's operators.

Constructors, parameters, state dicts and errors are those of ``torch.nn``. ``forward`` takes more, keyword-only:
``lengths``, ``reset_mask`` and ``grad_clip``, and an LSTM's ``return_cells``.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import functional
from ..ops import arguments, checks
from ..ops.cells import CELLS
from ..ops.layer import BATCH_FIRST, TIME_MAJOR
from . import inference
from .runners import Frozen, Watch

__all__ = ["GRU", "LSTM", "RNN"]


_CELLS = {"LSTM": CELLS["lstm"], "GRU": CELLS["gru"], "RNN_TANH": CELLS["rnn_tanh"], "RNN_RELU": CELLS["rnn_relu"]}


class _Recurrent(nn.RNNBase):
    # nn.RNNBase, not nn.LSTM and its like: torch.compile refuses every instance of the public three.

    _frozen: Frozen | None = None  # what freeze.freeze made; not in state dicts, pickled as a mark
    _watch: Watch | None = None  # while gradient_flow looks on; neither pickled nor copied

    def _short_way(self, input, hx, lengths, reset_mask, grad_clip):
        """The results of a plain call: output, h_n and, of an LSTM, c_n; None: go the complete way."""
        if grad_clip is not None:
            checks.checked_grad_clip(grad_clip)
            if torch.is_grad_enabled():
                return None
        if self.training and self.dropout:
            return None
        # From where parameters live: `_flat_weights` costs more to bring up to date than the rest of this call.
        parameters = self._parameters
        weights = [parameters.get(name) for name in self._flat_weights_names]
        if torch.is_grad_enabled():
            if self._frozen is not None or self._watch is not None or lengths is not None or reset_mask is not None:
                return None
            layer = (self.num_layers, self.bidirectional, self.bias, self.batch_first)
            return inference.train(_CELLS[self.mode], input, hx, weights, *layer)
        packed = None
        if self._frozen is not None:
            self._frozen.check(weights)
            packed = self._frozen.packed
        return inference.infer(
            _CELLS[self.mode],
            input,
            hx,
            weights,
            BATCH_FIRST if self.batch_first else TIME_MAJOR,
            self.num_layers,
            self.bidirectional,
            self.bias,
            packed,
            lengths,
            reset_mask,
        )

    def _own_way(self):
        """``run(stack, input, hx, options)``, where layers are not simply run."""
        special = self._frozen or self._watch
        return special and special.run

    def _options(self, lengths, reset_mask, grad_clip=None) -> dict:
        weights = self._current_weights()
        if self._frozen is not None:
            self._frozen.check(weights)
        return {
            "weights": weights,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "training": self.training,
            "lengths": lengths,
            "reset_mask": reset_mask,
            "grad_clip": grad_clip,
        }

    def _current_weights(self) -> list[Tensor | None]:
        if torch.compiler.is_exporting():  # which warns of attributes that are assigned
            return [getattr(self, name, None) for name in self._flat_weights_names]
        parameters = self._parameters
        # As `_update_flat_weights` asks, but at the price of a look: are these weights still the module's?
        if torch.compiler.is_compiling() or not all(
            map(is_, map(parameters.get, self._flat_weights_names), self._flat_weights)
        ):
            self._update_flat_weights()
        return self._flat_weights

    # ---- frozen weights: where torch changes the weights of a module as a whole, they are packed anew ----

    def _pack(self) -> Frozen:
        weights = [self._parameters[name] for name in self._flat_weights_names]
        return Frozen(_CELLS[self.mode], self.bias, self.bidirectional, self.num_layers, weights)

    def _apply(self, *args, **kwargs):
        was_frozen = self.__dict__.pop("_frozen", None) is not None
        module = super()._apply(*args, **kwargs)
        if was_frozen:
            self._frozen = self._pack()
        return module

    def _load_from_state_dict(self, *args, **kwargs):
        was_frozen = self.__dict__.pop("_frozen", None) is not None
        super()._load_from_state_dict(*args, **kwargs)
        if was_frozen:
            self._frozen = self._pack()

    def __getstate__(self):
        state = super().__getstate__()
        state.pop("_watch", None)
        if self._frozen is not None:
            state["_frozen"] = True  # the packed copy is this process's and this processor's
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if self.__dict__.pop("_frozen", None):
            self._frozen = self._pack()


class LSTM(_Recurrent):
    """Long short-term memory, in place of ``torch.nn.LSTM``.

    Args: those of ``torch.nn.LSTM``, in its order: input_size (I), hidden_size (H), num_layers (L), bias, batch_first,
    dropout, bidirectional (D = 2), proj_size (P; H when 0), device, dtype.
    """

    # What nn.LSTM adds to nn.RNNBase's public helpers, for code that calls them.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
        return_cells: bool = False,
    ) -> tuple:
        """``output [T, B, D*P], (h_n [L*D, B, P], c_n [L*D, B, H])``; see :func:`fused_rnn.functional.lstm`.

        With ``return_cells`` a third result: the last layer's c after every step, ``[T, B, D*H]``.
        """
        short = None if return_cells else self._short_way(input, hx, lengths, reset_mask, grad_clip)
        if short is not None:
            return short[0], (short[1], short[2])
        options = self._options(lengths, reset_mask, grad_clip) | {"return_cells": return_cells}
        run = self._own_way()
        if run is not None:
            return run(arguments.lstm, input, hx, options)
        return functional.lstm(input, hx, **options)


class GRU(_Recurrent):
    """Gated recurrent unit, in place of ``torch.nn.GRU``.

    Args: those of ``torch.nn.GRU``, in its order: input_size (I), hidden_size (H), num_layers (L), bias, batch_first,
    dropout, bidirectional (D = 2), device, dtype.
    """

    def __init__(self, *args, **kwargs) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """``output [T, B, D*H], h_n [L*D, B, H]``; see :func:`fused_rnn.functional.lstm` for the options."""
        short = self._short_way(input, hx, lengths, reset_mask, grad_clip)
        if short is not None:
            return short[0], short[1]
        options = self._options(lengths, reset_mask, grad_clip)
        run = self._own_way()
        if run is not None:
            return run(arguments.gru, input, hx, options)
        return functional.gru(input, hx, **options)


class RNN(_Recurrent):
    """Elman network, in place of ``torch.nn.RNN``.

    Args: those of ``torch.nn.RNN``, in its order: input_size (I), hidden_size (H), num_layers (L), nonlinearity ("tanh"
    or "relu"), bias, batch_first, dropout, bidirectional (D = 2), device, dtype.
    """

    def __init__(self, *args, **kwargs) -> None:
        _refuse_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity, args = args[3], (*args[:3], *args[4:])
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        if self.nonlinearity not in modes:
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(modes[self.nonlinearity], *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """``output [T, B, D*H], h_n [L*D, B, H]``; see :func:`fused_rnn.functional.lstm` for the options."""
        short = self._short_way(input, hx, lengths, reset_mask, grad_clip)
        if short is not None:
            return short[0], short[1]
        options = self._options(lengths, reset_mask, grad_clip)
        run = self._own_way()
        if run is not None:
            return run(arguments.rnn, input, hx, options)
        return functional.rnn(input, hx, **options)

    def _options(self, lengths, reset_mask, grad_clip=None) -> dict:
        # From `mode`, not `nonlinearity`: layers pickled by old versions of torch have no such attribute.
        nonlinearity = "relu" if self.mode == "RNN_RELU" else "tanh"
        return super()._options(lengths, reset_mask, grad_clip) | {"nonlinearity": nonlinearity}


def _refuse_projection(kwargs: dict) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
