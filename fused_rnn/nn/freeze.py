"""``freeze`` and ``thaw``: weights put into the engine's own layout once, not on every call.

Only ever when asked for: ``weight.data.copy_()`` leaves no trace, so a copy that the library kept by itself could go
stale without anyone's knowledge.
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

    Returns ``model``. Cells are left as they are. For calls without gradients only: others raise until :func:`thaw`.
    So does a call after a weight was replaced or changed in place; a change through ``weight.data`` or of memory shared
    with it is not seen, so freeze again after one. ``load_state_dict`` and conversions such as ``half()`` pack anew by
    themselves, as copies and unpickled models do. State dicts have nothing of it.
    """
    frozen, passed_over = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, Recurrent):
            continue
        if all(isinstance(module._parameters.get(weight), Tensor) for weight in module._flat_weights_names):
            frozen[module] = module._pack()
        else:
            passed_over.append(name or "the model itself")
    for module, packed in frozen.items():  # only now, when none has raised
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
    """Undoes :func:`freeze`, and gives the packed copies' memory back; returns ``model``."""
    for module in model.modules():
        if isinstance(module, Recurrent):
            module._thaw()
    return model
