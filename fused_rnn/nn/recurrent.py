"""``Recurrent``: what ``LSTM``, ``GRU`` and ``RNN`` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

import torch
from torch import Tensor, nn

from ..autograd.functions import OPERATORS
from ..ops import arguments, plain
from ..ops.arguments import Runner
from ..ops.cells import BY_MODE
from ..ops.checks import NO_OPTIONS, form_of, known_form, options_of
from .runners import Frozen


class Recurrent(nn.RNNBase):
    # nn.RNNBase, not nn.LSTM and the like: torch.compile refuses all instances of those.

    # What runs the layers. Not in state dicts; of a pickled or copied layer only the fact that it was frozen is kept.
    _runner: Runner = OPERATORS

    def _run(
        self, input, hx=None, lengths=None, reset_mask=None, grad_clip=None, cells: bool = False, runner=None
    ) -> Sequence:
        """One call; returns what :func:`fused_rnn.ops.arguments.run` does. ``runner``: instead of the layer's own."""
        # From `_parameters`: updating `_flat_weights` would cost more than the rest of a small call.
        parameters = self._parameters
        weights = [parameters.get(name) for name in self._flat_weights_names]
        are_plain = plain.are_plain(weights)
        if not are_plain:
            weights = self._current_weights()
        own = self._runner
        if own is not OPERATORS:
            own.check(weights)
        form = (known_form if are_plain else form_of)(
            BY_MODE[self.mode], self.num_layers, self.bidirectional, self.batch_first, len(weights)
        )
        dropout = self.training and self.dropout
        if lengths is reset_mask is grad_clip is None and not (cells or dropout):
            options = NO_OPTIONS  # what options_of would return, without calling it
        else:
            options = options_of(dropout, lengths, reset_mask, grad_clip, cells)
        return arguments.run(runner or own, form, input, hx, weights, options, are_plain)

    def _current_weights(self) -> list[Tensor | None]:
        if torch.compiler.is_exporting():  # an export warns of assigned attributes
            return [getattr(self, name, None) for name in self._flat_weights_names]
        parameters = self._parameters
        # What `_update_flat_weights` checks, but cheaper: are these still the module's weights?
        if torch.compiler.is_compiling() or not all(
            map(is_, map(parameters.get, self._flat_weights_names), self._flat_weights)
        ):
            self._update_flat_weights()
        return self._flat_weights

    # ---- frozen weights: packed again wherever torch replaces a module's weights as a whole ----

    def _pack(self) -> Frozen:
        weights = [self._parameters[name] for name in self._flat_weights_names]
        return Frozen(BY_MODE[self.mode], bool(self.bias), self.bidirectional, self.num_layers, weights)

    def _thaw(self) -> bool:
        """Thaws the layer; returns whether it was frozen."""
        was_frozen = isinstance(self._runner, Frozen)
        if was_frozen:
            del self._runner
        return was_frozen

    def _apply(self, *args, **kwargs):
        was_frozen = self._thaw()
        module = super()._apply(*args, **kwargs)
        if was_frozen:
            self._runner = self._pack()
        return module

    def _load_from_state_dict(self, *args, **kwargs):
        was_frozen = self._thaw()
        super()._load_from_state_dict(*args, **kwargs)
        if was_frozen:
            self._runner = self._pack()

    def __getstate__(self):
        state = super().__getstate__()
        if isinstance(state.pop("_runner", None), Frozen):
            state["_frozen"] = True  # the packed copy is valid in this process only
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if self.__dict__.pop("_frozen", None):
            self._runner = self._pack()
