"""``freeze`` and ``thaw``: weights put into the engine's own layout once, not on every call.

Only ever when asked for: ``weight.data.copy_()`` leaves no trace, so a copy that the library kept by itself could go
stale without anyone's knowledge.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import is_

import torch
from torch import Tensor, nn

from . import _autograd, _private
from ._cells import Cell
from ._ops import TIME_MAJOR, Layer, stack_code

_THAW = "call fused_rnn.thaw(model) first"


class Frozen:
    """The packed weights of one module, what they were packed from, and the calls that may not use them."""

    def __init__(self, cell: Cell, bias: bool, bidirectional: bool, num_layers: int, weights: Sequence[Tensor]):
        if weights[0].device.type != "cpu":
            raise RuntimeError(f"fused_rnn: weights are frozen on cpu, not on {weights[0].device.type}; {_THAW}")
        per_layer = len(weights) // num_layers
        spans = [list(weights[k * per_layer : (k + 1) * per_layer]) for k in range(num_layers)]
        with torch.no_grad():
            pack = torch.ops.fused_rnn.pack_weights
            self.packed = [pack(cell.id, bias, bidirectional, span) for span in spans]
        self.weights = list(weights)
        # Weights made under inference_mode keep no versions.
        self.versions = None if any(w.is_inference() for w in weights) else [w._version for w in weights]
        # While these memories are held no other tensor lies where the weights lay, and the operator tells them by that.
        self._memories = [weight.detach() for weight in weights]

    def check(self, weights: Sequence[Tensor | None]) -> None:
        """Raises where it shows that ``weights`` are not what was packed. `weight.data.copy_()` does not show."""
        if torch.compiler.is_compiling():
            return  # Dynamo sees no versions; that the memory is the same one the operator checks
        if not all(map(is_, weights, self.weights)):
            raise RuntimeError(f"fused_rnn: a weight of this frozen layer was replaced; {_THAW}")
        if self.versions is not None and self.versions != [weight._version for weight in weights]:
            raise RuntimeError(f"fused_rnn: a weight of this frozen layer was changed in place; {_THAW}")

    def check_call(self, layer: Layer) -> None:
        """Raises for a call that wants derivatives, or is made under a transform."""
        if _private.in_transform() or _private.in_forward_mode():
            raise RuntimeError(f"fused_rnn: a frozen layer takes no part in torch.func's transforms; {_THAW}")
        tensors = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
        if torch.is_grad_enabled() and _private.need_gradient(tensors):
            raise RuntimeError(
                "fused_rnn: a frozen layer has no gradients. Call it under torch.no_grad() or "
                f"torch.inference_mode(), or {_THAW}"
            )

    def run(self, stack, input, hx, options: dict):
        """``stack``, a function of :mod:`fused_rnn._stack`, on the packed weights: the complete way of a call."""
        if torch.compiler.is_exporting():  # for other processes, where what is packed here would be refused
            return stack(_autograd.run_layer, input, hx, **options)
        packed = iter(self.packed)

        def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):  # there is no gradient to clip
            self.check_call(layer)
            own = next(packed)
            with torch.no_grad():
                are_others = layer.weights[0].dtype != self.weights[0].dtype  # autocast's copies
                if cells or are_others:  # for cells `infer` has no place
                    return layer.forward(save=False, cells=cells)[:4]
                results = _infer_layer(layer, own)
            return (*results, *[results[0].new_empty(0)] * (4 - len(results)))

        return stack(run_layer, input, hx, **options)


def _infer_layer(layer: Layer, packed: Tensor) -> list[Tensor]:
    return torch.ops.fused_rnn.infer(
        stack_code(layer.cell, 1, layer.bias, layer.bidirectional, TIME_MAJOR),
        layer.input,
        layer.h0,
        layer.c0,
        list(layer.weights),
        [packed],
        layer.lengths,
        layer.batch_sizes,
        layer.reset_mask,
    )


def freeze(model: nn.Module) -> nn.Module:
    """Packs the weights of every ``fused_rnn.LSTM / GRU / RNN`` of ``model``, itself included, once, for inference.

    Returns ``model``. Cells are left as they are. For calls without gradients only: others raise until :func:`thaw`.
    So does a call after a weight was replaced or changed in place; a change through ``weight.data`` or of memory shared
    with it is not seen, so freeze again after one. ``load_state_dict`` and conversions such as ``half()`` pack anew by
    themselves, as copies and unpickled models do. State dicts have nothing of it.
    """
    from .modules import _Recurrent

    frozen, passed_over = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, _Recurrent):
            continue
        if all(isinstance(module._parameters.get(weight), Tensor) for weight in module._flat_weights_names):
            frozen[module] = module._pack()
        else:
            passed_over.append(name or "the model itself")
    for module, packed in frozen.items():  # only now, when none has raised
        module._frozen = packed
    if passed_over:
        warnings.warn(
            f"fused_rnn.freeze passed over layers whose weights are computed: {', '.join(passed_over)}", stacklevel=2
        )
    elif not frozen:
        warnings.warn(
            "fused_rnn.freeze found no layer of this library; fused_rnn.swap(model) replaces torch.nn's", stacklevel=2
        )
    return model


def thaw(model: nn.Module) -> nn.Module:
    """Undoes :func:`freeze`, and gives the packed copies' memory back; returns ``model``."""
    for module in model.modules():
        module.__dict__.pop("_frozen", None)
    return model
