"""Runners other than the operators themselves: packed weights (``freeze``) and watched layers (``gradient_flow``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, is_
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..autograd import functions, norms
from ..ops import torch_private
from ..ops.arguments import RunLayer, Runner
from ..ops.cells import Cell
from ..ops.layer import TIME_MAJOR, Layer, WeightFormat, own_cell, stack_code
from . import int8_onnx

_THAW = "call fused_rnn.thaw(model) first"
_version_of = attrgetter("_version")


def _versions_of(tensors: Iterable[Tensor]) -> list[int]:
    return list(map(_version_of, tensors))


def _no_versions(_) -> tuple[int, ...]:
    return ()


class Fingerprint:
    """Tells in as few calls as there can be whether tensors are certain ones, in the versions that these had.

    ``tuple(some) == these and versions_of(tracked) == versions``, if ``works``; an exception means no, too. Tuples
    compare what is identical at once, and fail for other tensors: those of more than one element have no truth value.
    """

    def __init__(self, tensors: Sequence[Tensor], versions: Sequence[int] | None):
        self.works = len(tensors) > 1 and all(tensor.numel() > 1 for tensor in tensors)
        self.these = tuple(tensors)
        self.versions = tuple(versions or ())
        self.tracked = SimpleNamespace(**{f"t{i}": tensor for i, tensor in enumerate(tensors)})
        names = [f"{name}._version" for name in vars(self.tracked)]
        self.versions_of: Callable[[SimpleNamespace], tuple[int, ...]] = (
            attrgetter(*names) if versions else _no_versions
        )

    def fits(self, tensors: Iterable[Tensor | None]) -> bool:
        """False: perhaps not."""
        try:
            return self.works and tuple(tensors) == self.these and self.versions_of(self.tracked) == self.versions
        except Exception:  # as of tensors that cannot be compared
            return False


def _addresses_of(tensors: Iterable[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


class Frozen(Runner):
    """A module's packed weights, the weights they were packed from, and consistency checks."""

    infers = True

    def __init__(
        self,
        cell: Cell,
        bias: bool,
        bidirectional: bool,
        num_layers: int,
        weights: Sequence[Tensor],
        format: WeightFormat = WeightFormat.OWN,
    ):
        if weights[0].device.type != "cpu":
            raise RuntimeError(f"fused_rnn: weights are frozen on cpu, not on {weights[0].device.type}; {_THAW}")
        per_layer = len(weights) // num_layers
        spans = [list(weights[k * per_layer : (k + 1) * per_layer]) for k in range(num_layers)]
        with torch.no_grad():
            pack = torch.ops.fused_rnn.pack_weights
            self.packed = [pack(cell.id, bias, bidirectional, span, int(format)) for span in spans]
        self.format = format
        self._remember(weights)

    def _remember(self, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        # Tensors created under inference_mode have no versions.
        self.versions = None if any(w.is_inference() for w in weights) else _versions_of(weights)
        self.addresses = _addresses_of(weights)
        self.fingerprint = Fingerprint(self.weights, self.versions)
        # Weights are recognised by their addresses too, so their memory must not be reused meanwhile.
        self._memories = [weight.detach() for weight in weights]

    def check(self, weights: Sequence[Tensor | None]) -> None:
        """Raises if ``weights`` are known not to be those that were packed; `weight.data.copy_()` goes unnoticed."""
        if torch.compiler.is_dynamo_compiling():
            return  # Dynamo sees neither versions nor addresses; the operator checks the addresses
        if self.fingerprint.fits(weights) and _addresses_of(weights) == self.addresses:
            return
        given = weights
        if torch.compiler.is_compiling():  # torch.export gives fake tensors for what it finds in the module
            given = [torch_private.original_of(w, own) for w, own in zip(weights, self.weights, strict=True)]
        change = self.change_of(given)
        if change is not None:
            raise RuntimeError(f"fused_rnn: {change}; {_THAW}")

    def change_of(self, weights: Sequence[Tensor | None]) -> str | None:
        """How these weights differ from those that were packed, as far as that is known."""
        if not all(map(is_, weights, self.weights)) or _addresses_of(weights) != self.addresses:
            return "a weight of this frozen layer was replaced"
        if self.versions is not None and _versions_of(weights) != self.versions:
            return "a weight of this frozen layer was changed in place"
        return None

    def check_call(self, layer: Layer) -> None:
        """Raises for a call that needs derivatives or is made under a transform."""
        if torch_private.in_transform() or torch_private.in_forward_mode():
            raise RuntimeError(f"fused_rnn: a frozen layer takes no part in torch.func's transforms; {_THAW}")
        tensors = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
        if torch.is_grad_enabled() and torch_private.need_gradient(tensors):
            raise RuntimeError(
                "fused_rnn: a frozen layer has no gradients. Call it under torch.no_grad() or "
                f"torch.inference_mode(), or {_THAW}"
            )

    def layers(self) -> RunLayer:
        if functions.is_captured():  # packed weights are valid in this process only
            return self._exported_layers() if self.is_quantized else functions.run_layer
        packed = iter(self.packed)

        def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):  # no gradients, so nothing to clip
            self.check_call(layer)
            own = next(packed)
            with torch.no_grad():
                are_others = layer.weights[0].dtype != self.weights[0].dtype  # autocast's copies
                if are_others and self.is_quantized:
                    raise RuntimeError(
                        "fused_rnn: a layer with int8 weights computes in float32 and int8, not in autocast's dtype; "
                        f"call it outside of autocast, or {_THAW}"
                    )
                if are_others:
                    output, h_n, c_n, all_cells, _ = layer.forward(save=False, cells=cells)
                    return output, h_n, c_n, all_cells
                results = _infer_layer(layer, own, cells)
            return (*results, *[results[0].new_empty(0)] * (4 - len(results)))

        return run_layer

    def _exported_layers(self) -> RunLayer:
        """Layers of an LSTM as nodes of ONNX; raises for every other export or trace."""
        if not torch.onnx.is_in_onnx_export() or torch_private.is_tracing():
            self.refuse_capture()
        per_layer = len(self.weights) // len(self.packed)
        spans = iter([self.weights[k : k + per_layer] for k in range(0, len(self.weights), per_layer)])

        def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):
            self.check_call(layer)
            int8_onnx.check(layer, cells, self.format)
            results = int8_onnx.run_layer(layer, next(spans))
            return (*results, results[0].new_empty(0))

        return run_layer

    def refuse_capture(self) -> None:
        """Raises if the weights are int8, which most exporters would forget."""
        if self.is_quantized:
            raise RuntimeError(
                "fused_rnn: a layer with int8 weights is not exported, traced or scripted, except by "
                f"torch.onnx.export(model, args, dynamo=True); otherwise {_THAW}"
            )

    @property
    def is_quantized(self) -> bool:
        return self.format != WeightFormat.OWN


def _infer_layer(layer: Layer, packed: Tensor, cells: bool) -> list[Tensor]:
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
        cells,
        own_cell(layer.cell),
    )


class Watched(Runner):
    """Watches one module: calls ``record((name, layer), norms)`` in each backward pass.

    ``of_last``: as in :func:`fused_rnn.autograd.norms.run_layer`. ``steps``: an upper bound for compiled calls.
    """

    infers = True  # without gradients there is nothing to watch
    watches = "gradient_flow"

    def __init__(self, record: Callable, of_last: bool, name: str, module: nn.Module, cell: Cell, steps: int | None):
        self.record, self.of_last = record, of_last
        self.directions = 1 + module.bidirectional
        self.states = cell.states
        self.keys = [(name, k) for k in range(module.num_layers)]
        self.places: list[Tensor] = []
        if steps is not None:  # one more column, to count calls
            weight = next(module.parameters())
            self.places = [self.place(k, steps + 1, weight) for k in range(module.num_layers)]

    def check(self, weights: Sequence[Tensor | None]) -> None:
        """Accepts any weights."""

    def layers(self) -> RunLayer:
        keep_off = norms.are_refused()
        if keep_off is not None:
            raise NotImplementedError(f"fused_rnn.gradient_flow does not go with {keep_off}; make this call outside")
        layers = iter(range(len(self.keys)))

        def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):
            k = next(layers)
            tensors = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
            if not (torch.is_grad_enabled() and torch_private.need_gradient(tensors)):
                return functions.run_layer(layer, cells, grad_clip)  # there will be no backward pass
            return norms.run_layer(layer, cells, self.place_for(k, layer), self.of_last, grad_clip)

        return run_layer

    def place_for(self, k: int, layer: Layer) -> Tensor:
        steps = norms.steps_of(layer)
        if not torch.compiler.is_compiling():
            return self.place(k, steps, layer.weights[0])
        # A compiled graph only computes gradients of leaves that are its inputs.
        if not self.places:
            raise RuntimeError("fused_rnn.gradient_flow needs steps=, the most a call takes, under torch.compile")
        if steps >= self.places[k].shape[-1]:
            raise RuntimeError("fused_rnn.gradient_flow: a compiled call takes more steps than steps= said")
        return self.places[k]

    def place(self, k: int, columns: int, like: Tensor) -> Tensor:
        """[D, kStates, columns]: a leaf whose gradient is recorded for layer k."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        leaf = like.new_zeros(self.directions, self.states, columns, dtype=dtype).requires_grad_()
        record, key = self.record, self.keys[k]
        # A copy, since the leaf keeps the gradient and accumulates into it.
        leaf.register_hook(lambda grad: record(key, grad.detach().clone()))
        return leaf
