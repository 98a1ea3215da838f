"""LSTM layers with int8 weights in ONNX: one node of ONNX Runtime's DynamicQuantizeLSTM each.

Its weights are integers of 8 bits with a scale for each row, as here. The input is quantized over all steps and rows
at once, and h over all rows of a step: more coarsely than here, where each row of each step has a scale of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import torch_private
from ..ops.cells import BY_ID
from ..ops.layer import Layer, Wanted, WeightFormat

_NODE = "com.microsoft::DynamicQuantizeLSTM"
_THAW = "export after fused_rnn.thaw(model)"


def run_layer(layer: Layer, weights: Sequence[Tensor]) -> list[Tensor]:
    """Records the node in the graph that is exported: output, h_n and c_n. ``weights``: with numbers in them."""
    directions, hidden = 1 + layer.bidirectional, weights[1].shape[1]
    with torch_private.without_modes(), torch.no_grad():
        given = _weights_of_node(layer, weights)
    input, lengths = layer.with_numbers().input, layer.lengths
    steps, batch, _ = input.shape
    matrices, bias, scales = given[:2], given[2], given[3:]
    seen = None if lengths is None else lengths.int()
    output, *finals = torch.onnx.ops.symbolic_multi_out(
        _NODE,
        (input, *matrices, bias, seen, layer.h0, layer.c0, None, *scales),
        {"direction": "bidirectional" if layer.bidirectional else "forward", "hidden_size": hidden},
        dtypes=[input.dtype] * 3,
        shapes=[[steps, directions, batch, hidden], *[[directions, batch, hidden]] * 2],
        version=1,
    )
    if lengths is not None:  # the runtime returns zeros for a row without steps
        finals = [_kept(state, final, lengths) for state, final in zip((layer.h0, layer.c0), finals, strict=True)]
    return [output.transpose(1, 2).flatten(2), *finals]


def check(layer: Layer, cells: bool, format: WeightFormat) -> None:
    """Raises for what the node cannot compute."""
    cell = BY_ID[layer.cell]
    refused = {
        'weights="int8-weights-only"': format != WeightFormat.INT8,
        cell.layer_name: cell.name != "lstm",
        "proj_size": layer.weight_kinds[-1] is Wanted.WEIGHT_HR,
        "reset_mask": layer.reset_mask is not None,
        "PackedSequence (pass padded input and lengths)": layer.batch_sizes is not None,
        "return_cells": cells,
    }
    for what, is_given in refused.items():
        if is_given:
            raise NotImplementedError(
                f'fused_rnn: ONNX has a node with int8 weights for LSTM alone, freeze(model, weights="int8"), and it '
                f"has no {what}; {_THAW}"
            )


def _weights_of_node(layer: Layer, weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """W [D, I, 4H] and R [D, H, 4H] as integers, bias [D, 8H] or None, then scale and zero point [D, 4H] of each."""
    directions = 1 + layer.bidirectional
    per_direction = len(weights) // directions
    order = [BY_ID[layer.cell].gate(name) for name in BY_ID[layer.cell].onnx.gates]

    def stacked(kind: int) -> Tensor:
        """[D, 4H, ...], in ONNX's order of gates."""
        return torch.stack([w.unflatten(0, (4, -1))[order].flatten(0, 1) for w in weights[kind::per_direction]])

    matrices, scales = [], []
    for kind in range(2):
        integers, scale = _integers(stacked(kind))
        matrices.append(integers.mT.contiguous())
        scales += [scale.squeeze(-1), torch.zeros_like(scale.squeeze(-1), dtype=torch.int8)]
    bias = torch.cat([stacked(2), stacked(3)], 1) if layer.bias else None
    return *matrices, bias, *scales


def _integers(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as integers in [-127, 127], and its scale: those of csrc/cpu/gemm/int8.h."""
    largest = rows.abs().amax(-1, keepdim=True)
    scaled = torch.where(largest >= 1e-36, rows * (127 / largest), 0.0)  # below, 127 / largest may be infinite
    return scaled.round().to(torch.int8), largest / 127


def _kept(state: Tensor | None, final: Tensor, lengths: Tensor) -> Tensor:
    """The final states, where a row without steps has its initial one."""
    return final if state is None else torch.where((lengths == 0).unsqueeze(-1), state, final)
