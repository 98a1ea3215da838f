"""``Recurrent``: what ``LSTM``, ``GRU`` and ``RNN`` have in common."""

from __future__ import annotations

from operator import is_

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.cells import BY_MODE
from ..ops.layer import BATCH_FIRST, TIME_MAJOR
from . import inference
from .runners import Frozen, Watch


class Recurrent(nn.RNNBase):
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
            return inference.train(BY_MODE[self.mode], input, hx, weights, *layer)
        packed = None
        if self._frozen is not None:
            self._frozen.check(weights)
            packed = self._frozen.packed
        return inference.infer(
            BY_MODE[self.mode],
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
        return Frozen(BY_MODE[self.mode], self.bias, self.bidirectional, self.num_layers, weights)

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
