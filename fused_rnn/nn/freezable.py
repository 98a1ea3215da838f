"""``Freezable``: modules whose weights can be packed once, and are packed anew whenever torch replaces all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..ops.layer import WeightFormat
from .ours import Ours
from .runners import Frozen


class Freezable(Ours):
    """Classes derived from it pack their weights, by ``_pack(format)``, and name them, by ``_weight_names()``."""

    if TYPE_CHECKING:  # torch.nn.Module's
        _parameters: dict[str, Any]

    def _pack(self, format: WeightFormat = WeightFormat.OWN) -> Frozen:
        raise NotImplementedError

    def _weight_names(self) -> Sequence[str]:
        raise NotImplementedError

    def _thaw(self) -> WeightFormat | None:
        """Thaws the module; returns the format of its weights, None if it was not frozen."""
        if not isinstance(self._runner, Frozen):
            return None
        format = self._runner.format
        del self._runner
        return format

    def _freeze_again(self, format: WeightFormat | None) -> None:
        if format is not None:
            self._runner = self._pack(format)

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        if isinstance(self._runner, Frozen):
            parts.append("frozen")
            if self._runner.is_quantized:
                parts.append(self._runner.format.name.lower().replace("_", "-"))
        return ", ".join(parts)

    def _slow_forward(self, *args, **kwargs):
        if isinstance(self._runner, Frozen):
            self._runner.refuse_capture()
        return super()._slow_forward(*args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        if isinstance(self._runner, Frozen):
            self._runner.refuse_capture()
        return super().__prepare_scriptable__()

    def _apply(self, *args, **kwargs):
        format = self._thaw()
        module = super()._apply(*args, **kwargs)
        self._freeze_again(format)
        return module

    def _load_from_state_dict(self, *args, **kwargs):
        format = self._thaw()
        super()._load_from_state_dict(*args, **kwargs)
        self._freeze_again(format)

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        if isinstance(self._runner, Frozen):
            state["_frozen"] = int(self._runner.format)  # the packed copy is valid in this process only
        return state

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        format = self.__dict__.pop("_frozen", None)
        if format is not None:
            # Version 0.1's first pickles have True, of weights in the layer's own format.
            self._runner = self._pack(WeightFormat.OWN if format is True else WeightFormat(format))
