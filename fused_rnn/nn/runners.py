"""Who runs a layer's calls: the operators alone, packed weights (``freeze``), or watched ones (``gradient_flow``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_

import torch
from torch import Tensor, nn

from ..autograd import functions, norms
from ..ops import torch_private
from ..ops.arguments import RunLayer, Runner
from ..ops.cells import BY_MODE, Cell
from ..ops.layer import TIME_MAJOR, Layer, stack_code

_THAW = "call fused_rnn.thaw(model) first"


class Frozen(Runner):
    """The packed weights of one module, what they were packed from, and the calls that may not use them."""

    infers = True

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
        if torch_private.in_transform() or torch_private.in_forward_mode():
            raise RuntimeError(f"fused_rnn: a frozen layer takes no part in torch.func's transforms; {_THAW}")
        tensors = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
        if torch.is_grad_enabled() and torch_private.need_gradient(tensors):
            raise RuntimeError(
                "fused_rnn: a frozen layer has no gradients. Call it under torch.no_grad() or "
                f"torch.inference_mode(), or {_THAW}"
            )

    def layers(self) -> RunLayer:
        if torch.compiler.is_exporting():  # for other processes, where what is packed here would be refused
            return functions.run_layer
        packed = iter(self.packed)

        def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):  # there is no gradient to clip
            self.check_call(layer)
            own = next(packed)
            with torch.no_grad():
                are_others = layer.weights[0].dtype != self.weights[0].dtype  # autocast's copies
                if cells or are_others:  # for cells `infer` has no place
                    output, h_n, c_n, all_cells, _ = layer.forward(save=False, cells=cells)
                    return output, h_n, c_n, all_cells
                results = _infer_layer(layer, own)
            return (*results, *[results[0].new_empty(0)] * (4 - len(results)))

        return run_layer


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


class Watched(Runner):
    """The layers of one module, watched: ``record((name, layer), norms)`` gets the norms of each backward pass.

    ``of_last``: as of :func:`fused_rnn.autograd.norms.run_layer`. ``steps``: the most that a compiled call will take.
    """

    infers = True  # without gradients there is nothing to see

    def __init__(self, record: Callable, of_last: bool, name: str, module: nn.Module, steps: int | None):
        self.record, self.of_last = record, of_last
        self.directions = 1 + module.bidirectional
        self.states = BY_MODE[module.mode].states
        self.keys = [(name, k) for k in range(module.num_layers)]
        self.places: list[Tensor] = []
        if steps is not None:  # one column more: it counts the calls
            weight = next(module.parameters())
            self.places = [self.place(k, steps + 1, weight) for k in range(module.num_layers)]

    def check(self, weights: Sequence[Tensor | None]) -> None:
        """Any weights will do."""

    def layers(self) -> RunLayer:
        keep_off = norms.are_refused()
        if keep_off is not None:
            raise NotImplementedError(f"fused_rnn.gradient_flow does not go with {keep_off}; make this call outside")
        layers = iter(range(len(self.keys)))

        def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):
            k = next(layers)
            tensors = [t for t in (layer.input, layer.h0, layer.c0, *layer.weights) if t is not None]
            if not (torch.is_grad_enabled() and torch_private.need_gradient(tensors)):
                return functions.run_layer(layer, cells, grad_clip)  # no backward pass will come by
            return norms.run_layer(layer, cells, self.place_for(k, layer), self.of_last, grad_clip)

        return run_layer

    def place_for(self, k: int, layer: Layer) -> Tensor:
        steps = norms.steps_of(layer)
        if not torch.compiler.is_compiling():
            return self.place(k, steps, layer.weights[0])
        # A compiled graph can give gradients only to leaves that it was given.
        if not self.places:
            raise RuntimeError("fused_rnn.gradient_flow needs steps=, the most a call takes, under torch.compile")
        if steps >= self.places[k].shape[-1]:
            raise RuntimeError("fused_rnn.gradient_flow: a compiled call takes more steps than steps= said")
        return self.places[k]

    def place(self, k: int, columns: int, like: Tensor) -> Tensor:
        """[D, kStates, columns]: a leaf whose gradient becomes a record of layer k."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        leaf = like.new_zeros(self.directions, self.states, columns, dtype=dtype).requires_grad_()
        record, key = self.record, self.keys[k]
        # A copy: the leaf keeps the gradient, and adds the next one to it.
        leaf.register_hook(lambda grad: record(key, grad.detach().clone()))
        return leaf
