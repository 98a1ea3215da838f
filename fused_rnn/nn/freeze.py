"""``freeze`` and ``thaw``: pack weights into the engine's layout once instead of on every call, also in 8 bits.

Only on request: ``weight.data.copy_()`` leaves no trace, so an automatic cache could silently go stale.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from ..ops.layer import WeightFormat
from .freezable import Freezable
from .runners import Frozen
from .signatures import Model

FORMATS = {
    None: WeightFormat.OWN,
    "int8": WeightFormat.INT8,
    "int8-weights-only": WeightFormat.INT8_WEIGHTS_ONLY,
}


def is_frozen(module: nn.Module) -> bool:
    return isinstance(getattr(module, "_runner", None), Frozen)


def weights_of(module: nn.Module) -> str | None:
    """What ``freeze`` was told for a frozen module's weights."""
    runner: Any = module._runner
    return next(name for name, format in FORMATS.items() if format == runner.format)


def freeze(model: Model, *, weights: str | None = None) -> Model:
    """Packs the weights of every layer and cell of this library in ``model``, itself included, once, for inference.

    Returns ``model``. Frozen layers run without gradients only: other calls raise until :func:`thaw`, and so does a
    call after a weight was replaced or changed in place. Changes through ``weight.data`` or shared memory go unnoticed:
    freeze again after those. After ``load_state_dict`` and conversions such as ``half()``, in copies and in unpickled
    models, weights are packed again automatically. State dicts do not change.

    Args:
        weights: None keeps the layer's dtype. "int8" makes integers of 8 bits of them, with a scale for each row; the
            input and h are quantized too, row by row and step by step, and products are exact: two to four times as
            fast. "int8-weights-only" computes in float32 with such weights, which pays where reading them is what a
            step costs (one row, 256 units or more). Both are for float32 layers; biases, cells and states stay float32.
            ``torch.onnx.export`` takes "int8" LSTMs to ONNX Runtime; other exports are refused.

    Example:
        >>> model = fused_rnn.freeze(fused_rnn.LSTM(10, 20))
        >>> with torch.inference_mode():
        ...     output, state = model(torch.randn(5, 3, 10))
        >>> print(model)
        fused_rnn.LSTM(10, 20, frozen)
    """
    if weights not in FORMATS:
        known = ", ".join(f'"{name}"' for name in FORMATS if name)
        raise ValueError(f"freeze: weights must be None or one of {known}, got {weights!r}")
    frozen, passed_over = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, Freezable):
            continue
        if all(isinstance(module._parameters.get(weight), Tensor) for weight in module._weight_names()):
            frozen[module] = _packed(module, name, FORMATS[weights])
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


def thaw(model: Model) -> Model:
    """Undoes :func:`freeze` and frees the packed copies; returns ``model``.

    Example:
        >>> model = fused_rnn.freeze(fused_rnn.LSTM(10, 20))
        >>> output, state = fused_rnn.thaw(model)(torch.randn(5, 3, 10))
        >>> output.requires_grad
        True
    """
    for module in model.modules():
        if isinstance(module, Freezable):
            module._thaw()
    return model


def _packed(module: Freezable, name: str, format: WeightFormat) -> Frozen:
    try:
        return module._pack(format)
    except RuntimeError as error:
        if format == WeightFormat.OWN or not name:
            raise
        raise RuntimeError(f"{error} (in {name})") from None
