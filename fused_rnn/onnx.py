"""Export to ONNX: each layer becomes one LSTM, GRU or RNN node, of one direction or both.

``torch.onnx.export(model, args, dynamo=True)`` finds the translation by itself, once ``fused_rnn`` is imported;
``translations()`` is the table for programs that pass one. Layers with int8 weights need none: ``nn/int8_onnx.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from .ops import torch_private
from .ops.calls import ForwardCall
from .ops.cells import known
from .ops.late_import import after_import
from .ops.layer import Layer, Wanted

__all__ = ["translations"]


def translations() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The ``custom_translation_table`` for ``torch.onnx.export``.

    Returns:
        The translation of each operator of this library that can be exported.

    Raises:
        ImportError: onnx or onnxscript is missing.

    Example:
        ::

            torch.onnx.export(model, (x,), "model.onnx", dynamo=True, custom_translation_table=translations())
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("export to ONNX needs onnx and onnxscript: pip install onnx onnxscript") from error
    return {torch.ops.fused_rnn.layer_forward.default: _translate}


def _translate(*args):
    """Translates a call of the operator, with ONNX values in place of tensors, to nodes; returns the five outputs."""
    import onnx_ir
    from onnxscript import opset18 as op

    call = ForwardCall(*args)
    layer = call.layer
    _check(layer, call.cells, onnx_ir)
    if layer.input.dtype == onnx_ir.DataType.INT64:  # ids: ONNX's layers do not take them
        off_and_on = op.CastLike(op.Constant(value_floats=[0.0, 1.0]), layer.weights[0])
        depth = op.Constant(value_int=layer.weights[0].shape[1])
        layer = layer._replace(input=op.OneHot(layer.input, depth, off_and_on, axis=-1))
    cell = known(layer.cell)
    order, attributes = [cell.gate(name) for name in cell.onnx.gates], cell.onnx.attributes
    directions = 1 + layer.bidirectional
    input_size, hidden = layer.weights[0].shape[1], layer.weights[1].shape[1]
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * directions}

    def stack(tensors, *shape):
        by_gate = op.Reshape(op.Concat(*tensors, axis=0), [len(tensors), len(order), -1])
        return op.Reshape(op.Gather(by_gate, order, axis=1), [directions, *shape])

    per_direction = len(layer.weights) // directions
    weight_ih, weight_hh = (stack(layer.weights[k::per_direction], -1, n) for k, n in enumerate((input_size, hidden)))
    bias = stack([w for w in layer.weights if len(w.shape) == 1], -1) if layer.bias else None
    lengths = None if layer.lengths is None else op.Cast(layer.lengths, to=onnx_ir.DataType.INT32)
    states = (layer.h0, layer.c0)[: cell.states]
    output, *finals = getattr(op, cell.onnx.name)(
        layer.input,
        weight_ih,
        weight_hh,
        bias,
        lengths,
        *states,
        direction="bidirectional" if layer.bidirectional else "forward",
        hidden_size=hidden,
        **attributes,
    )
    if layer.bidirectional:  # [T, D, B, H] to [T, B, D*H]
        output = op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), [0, 0, directions * hidden])
    else:
        output = op.Squeeze(output, [1])
    if lengths is not None and layer.h0 is not None:
        # The final state of an empty row is its initial one; ONNX does not specify it, and runtimes return zero.
        empty = op.Reshape(op.Equal(layer.lengths, 0), [-1, 1])
        finals = [op.Where(empty, *pair) for pair in zip(states, finals, strict=True)]
    unused = [onnx_ir.Value() for _ in range(4 - len(finals))]  # no node produces them, since none reads them
    return (output, *finals, *unused)


def _check(layer: Layer, cells: bool, onnx_ir) -> None:
    """Raises for what ONNX's nodes cannot compute."""
    cell = known(layer.cell)
    if cell.onnx is None:
        raise NotImplementedError(f"fused_rnn: ONNX has no node for the cell {cell.name}")
    lacking = {
        "reset_mask": layer.reset_mask is not None,
        "recurrent_dropout (call eval())": layer.h_factor is not None,
        "zoneout": layer.zones_out,
        "PackedSequence (pass padded input and lengths)": layer.batch_sizes is not None,
        "proj_size": layer.weight_kinds[-1] is Wanted.WEIGHT_HR,
        "heads and no vmap over weights": len(layer.weights[0].shape) == 3,
        "the LSTM's cell state after every step": cells,
        "bfloat16 (export model.float())": layer.weights[0].dtype == onnx_ir.DataType.BFLOAT16,
    }
    for what, given in lacking.items():
        if given:
            raise NotImplementedError(f"fused_rnn: ONNX's {cell.onnx.name} node has no {what}")


def _register(registry: ModuleType) -> None:
    if not torch_private.register_onnx(registry, torch.ops.fused_rnn.layer_forward.default, _translate):
        warnings.warn(
            "this torch's ONNX exporter does not find the translation of fused_rnn's layers by itself; call "
            "torch.onnx.export(..., custom_translation_table=fused_rnn.onnx.translations())",
            stacklevel=2,
        )


after_import(torch_private.ONNX_REGISTRY, _register)
