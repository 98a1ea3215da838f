"""``Recurrent``: what ``LSTM``, ``GRU`` and ``RNN`` have in common."""

from __future__ import annotations

import functools
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..autograd.operators import OPERATORS
from ..ops import arguments, plain
from ..ops.cells import BY_MODE
from ..ops.checks import NO_OPTIONS, form_of, known_form, options_of
from ..ops.layer import WeightFormat
from . import dynamo
from .freezable import Freezable
from .loop_options import NAMES, LoopOptions
from .runners import Frozen
from .signatures import Declared


def torch_constructor(declaration: Declared) -> Declared:
    """Makes a constructor of its declaration: torch.nn's own, whose refusals and messages it keeps.

    torch.nn's takes ``*args, **kwargs``; help, signatures and type checkers show the declaration.
    """

    @functools.wraps(declaration)
    def __init__(self, *args, **kwargs) -> None:
        Recurrent.__init__(self, *args, **kwargs)

    return __init__  # type: ignore[return-value]


class Recurrent(LoopOptions, Freezable, nn.RNNBase):
    """A base before torch.nn.LSTM and the like: their constructors and helpers, our calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        states = 2 if isinstance(self, nn.LSTM) else 1
        hidden = args[1] if len(args) > 1 else kwargs.get("hidden_size")
        given = {name: kwargs.pop(name) for name in NAMES if name in kwargs}
        of_loop = self._checked_options(states, hidden, given)
        dynamo.admit(Recurrent)
        super().__init__(*args, **kwargs)
        self.__dict__.update(of_loop)
        for name in self._flat_weights_names if self.heads > 1 else ():
            if name.startswith("weight_hh"):
                blocks = getattr(self, name).detach()[:, : self.hidden_size // self.heads]
                setattr(self, name, nn.Parameter(blocks.clone()))
        if self.layer_norm:
            self._add_norms(BY_MODE[self.mode], self.weight_ih_l0)

    def reset_parameters(self) -> None:
        """Draws all weights again, as torch.nn does; the gains of norms become 1, their biases 0."""
        super().reset_parameters()
        self._reset_norms(BY_MODE[self.mode])

    def flatten_parameters(self) -> None:
        """As torch.nn's does for cuDNN, which knows no heads."""
        if self.heads == 1:
            super().flatten_parameters()

    def _run(
        self, input, hx=None, lengths=None, reset_mask=None, grad_clip=None, cells: bool = False, runner=None
    ) -> Any:
        """One call; returns what ``forward`` does. ``runner``: instead of the layer's own."""
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            masks = {"lengths": lengths, "reset_mask": reset_mask, "grad_clip": grad_clip, "return_cells": cells}
            return self._call_module_node(input, hx=hx, **masks)
        # From `_parameters`: updating `_flat_weights` would cost more than a small call.
        parameters = self._parameters
        weights = list(map(parameters.get, self._flat_weights_names))
        are_plain = plain.are_plain(weights)
        if not are_plain:
            weights = self._current_weights()
        own = self._runner
        if own is not OPERATORS:
            own.check(weights)
        if self.training and self.weight_dropout:
            weights = self._drop_weights(weights, self._flat_weights_names)
        form = (known_form if are_plain else form_of)(
            BY_MODE[self.mode], self.num_layers, self.bidirectional, self.batch_first, len(weights)
        )
        dropout = self.training and self.dropout
        if lengths is reset_mask is grad_clip is None and not (cells or dropout):
            options = NO_OPTIONS  # what options_of would return, without calling it
        else:
            options = options_of(dropout, lengths, reset_mask, grad_clip, cells)
        if self.recurrent_dropout or self.zoneout or self.heads > 1 or self.checkpoint is not None or self.layer_norm:
            options = self._with_loop_options(options, form.cell)
        results = arguments.run(runner or own, form, input, hx, weights, options, are_plain)
        if form.cell.states == 1:
            return tuple(results)
        if len(results) == 3:
            output, h_n, c_n = results
            return output, (h_n, c_n)
        output, h_n, c_n, cells = results
        return output, (h_n, c_n), cells

    def _weight_names(self) -> list[str]:
        return self._flat_weights_names

    def _current_weights(self) -> list[Tensor | None]:
        if torch.compiler.is_exporting():  # an export warns of assigned attributes
            return [getattr(self, name, None) for name in self._flat_weights_names]
        parameters = self._parameters
        # Whether these are still the module's weights: cheaper than `_update_flat_weights`.
        if torch.compiler.is_compiling() or not all(
            map(is_, map(parameters.get, self._flat_weights_names), self._flat_weights)
        ):
            self._update_flat_weights()
        return self._flat_weights

    def _pack(self, format: WeightFormat = WeightFormat.OWN) -> Frozen:
        self._refuse_packing()
        weights = [self._parameters[name] for name in self._flat_weights_names]
        return Frozen(BY_MODE[self.mode], bool(self.bias), self.bidirectional, self.num_layers, weights, format)

    def __setstate__(self, state: Any) -> None:
        dynamo.admit(Recurrent)
        super().__setstate__(state)
