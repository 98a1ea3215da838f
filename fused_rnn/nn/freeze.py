"""``freeze`` and ``thaw``: pack weights into the engine's layout once instead of on every call.

Only on request: ``weight.data.copy_()`` leaves no trace, so an automatic cache could silently go stale.
"""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from .recurrent import Recurrent
from .runners import Frozen


def is_frozen(module: nn.Module) -> bool:
    return isinstance(getattr(module, "_runner", None), Frozen)


def freeze(model: nn.Module) -> nn.Module:
    """Packs the weights of every ``fused_rnn.LSTM / GRU / RNN`` of ``model``, itself included, once, for inference.

    Returns ``model``. Cells are not changed. Frozen layers run without gradients only: other calls raise until
    :func:`thaw`, and so does a call after a weight was replaced or changed in place. Changes through ``weight.data`` or
    shared memory go unnoticed: freeze again after those. After ``load_state_dict`` and conversions such as ``half()``,
    in copies and in unpickled models, weights are packed again automatically. State dicts do not change.
    """
    frozen, passed_over = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, Recurrent):
            continue
        if all(isinstance(module._parameters.get(weight), Tensor) for weight in module._flat_weights_names):
            frozen[module] = module._pack()
        else:
            passed_over.append(name or "the model itself")
    for module, packed in frozen.items():  # only after all checks have passed
        module._runner = packed
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
    """Undoes :func:`freeze` and frees the packed copies; returns ``model``."""
    for module in model.modules():
        if isinstance(module, Recurrent):
            module._thaw()
    return model
