"""What ``torch.utils.flop_counter``, fvcore and ptflops count for a layer: its matrix products, as for torch's own."""

from __future__ import annotations

import math
from types import ModuleType

import torch

from .calls import BackwardCall, ForwardCall, NormedBackwardCall, NormedCall
from .late_import import after_import
from .layer import Layer, Wanted, stack_of, weight_kinds_of


def _products(layer: Layer, wanted: int | None = None) -> int:
    """The products of the forward pass, or of the gradients ``wanted`` and the recurrent ones."""
    cell, directions, hidden, width, members, rows = layer.sizes
    gates = cell.gates * hidden
    input_size = 0 if layer.reads_tokens else layer.input.shape[-1]  # ids are looked up
    recurrent = width if cell.recurrent else 0
    projected = layer.weight_kinds[-1] is Wanted.WEIGHT_HR
    multiplied = {
        Wanted.WEIGHT_IH: gates * input_size,
        Wanted.WEIGHT_HH: gates * recurrent,
        Wanted.WEIGHT_HR: hidden * width if projected else 0,
    }
    if wanted is None:
        each = sum(multiplied.values())
    else:
        to_weights = sum(size for kind, size in multiplied.items() if wanted & kind)
        to_input = multiplied[Wanted.WEIGHT_IH] if wanted & Wanted.INPUT else 0
        each = to_weights + to_input + multiplied[Wanted.WEIGHT_HH] + multiplied[Wanted.WEIGHT_HR]
    return 2 * each * directions * math.prod(members) * math.prod(rows)


def _forward(*args, out_val=None, **kwargs) -> int:
    return _products(ForwardCall(*args, **kwargs).layer)


def _backward(*args, out_val=None, **kwargs) -> int:
    call = BackwardCall(*args, **kwargs)
    return _products(call.layer, call.wanted)


def _normed_forward(*args, out_val=None, **kwargs) -> int:
    return _products(NormedCall(*args, **kwargs).layer)


def _normed_backward(*args, out_val=None, **kwargs) -> int:
    call = NormedBackwardCall(*args, **kwargs)
    return _products(call.layer, call.wanted)


def _infer(code, input, h0, c0, weights, *others, own_cell=None, out_val=None, **_) -> int:
    *_, own_cell = (own_cell, *others[5:])  # the last argument
    cell, num_layers, bias, bidirectional, _ = stack_of(code, own_cell)
    per_layer, count = len(weights) // num_layers, 0
    rows = input
    for k in range(num_layers):
        own = tuple(weights[k * per_layer : (k + 1) * per_layer])
        layer = Layer.plain(cell, bias, bidirectional, rows, None, None, own)
        count += _products(layer)
        _, directions, _, width, _, sizes = layer.sizes
        rows = own[0].new_empty((*sizes, directions * width), device="meta")
    return count


def _infer_layer(code, input, h0, c0, *weights, out_val=None) -> int:
    return _infer(code, input, h0, c0, [weight for weight in weights if weight is not None])


def _step(stack, input, h0, c0, weights) -> Layer:
    cell, _, bias, bidirectional, _ = stack_of(stack)
    return Layer.plain(cell, bias, bidirectional, input.unsqueeze(0), h0, c0, tuple(weights))


def _step_forward(*args, out_val=None) -> int:
    return _products(_step(*args))


def _step_backward(stack, grad_h, grad_c, input, h0, c0, weights, saved, wanted, out_val=None) -> int:
    return _products(_step(stack, input, h0, c0, weights), wanted)


def _register(counter: ModuleType) -> None:
    operators = torch.ops.fused_rnn
    formulas = {
        operators.layer_forward: _forward,
        operators.layer_backward: _backward,
        operators.infer: _infer,
        operators.infer_layer: _infer_layer,
        operators.normed_forward: _normed_forward,
        operators.normed_backward: _normed_backward,
        operators.step_forward: _step_forward,
        operators.step_backward: _step_backward,
    }
    for operator, formula in formulas.items():
        counter.register_flop_formula(operator, get_raw=True)(formula)


def _products_of_trace(inputs: list, outputs: list) -> int:
    """The same for ``layer_forward`` in a trace; fvcore counts a multiply-add as one."""
    call = ForwardCall(*inputs)
    input_shape, *weights = (value.type().sizes() for value in (call.input, *call.weights.node().inputs()))
    reads_tokens = call.input.type().dtype() == torch.int64
    rows = math.prod(input_shape if reads_tokens else input_shape[:-1])
    kinds = weight_kinds_of(call.cell.toIValue(), call.bidirectional.toIValue(), len(weights))
    looked_up = {Wanted.WEIGHT_IH} if reads_tokens else set()
    multiplied = {Wanted.WEIGHT_IH, Wanted.WEIGHT_HH, Wanted.WEIGHT_HR} - looked_up
    return rows * sum(math.prod(shape) for kind, shape in zip(kinds, weights, strict=True) if kind in multiplied)


def _register_trace(fvcore: ModuleType) -> None:
    getattr(fvcore, "_DEFAULT_SUPPORTED_OPS", {})["fused_rnn::layer_forward"] = _products_of_trace


def _register_dispatched(ptflops: ModuleType) -> None:
    """Registers for ptflops' backend "aten", which counts as fvcore does."""

    def halved(formula):
        return lambda args, outputs: formula(*args) // 2

    operators = torch.ops.fused_rnn
    formulas = {operators.layer_forward: halved(_forward), operators.infer: halved(_infer)}
    getattr(ptflops, "ATEN_OPS_MAPPING", {}).update(formulas)


after_import("torch.utils.flop_counter", _register)
after_import("fvcore.nn.flop_count", _register_trace)
after_import("ptflops.aten_ops", _register_dispatched)
