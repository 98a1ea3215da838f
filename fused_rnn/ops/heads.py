"""Heads: W_hh in blocks on its diagonal.

A cell computes each unit by itself, so the units of one block are a smaller layer of their own: a layer with K heads
runs as K members that share its input.
"""

from __future__ import annotations

from torch import Tensor

from .cells import BY_ID
from .layer import Layer, Wanted


def run(run_layer, heads: int, layer: Layer, cells: bool, **options) -> tuple[Tensor, ...]:
    """A layer whose W_hh is ``[G*H, H / heads]``; ``run_layer`` runs its members."""
    output, h_n, c_n, all_cells, *rest = run_layer(_members(layer, heads), cells, **options)
    directions, further = 1 + layer.bidirectional, BY_ID[layer.cell].states - 1
    return (
        _joined(output, directions),
        _joined(h_n, 1),
        _joined(c_n, further) if further else c_n,
        _joined(all_cells, directions * further) if cells else all_cells,
        *rest,
    )


def _members(layer: Layer, heads: int) -> Layer:
    cell, directions, hidden, *_ = layer.sizes
    mask, rows = layer.zoneout_mask, cell.gates * hidden
    shapes = {  # in the caller's words; the operator would speak of members
        Wanted.WEIGHT_IH: [rows, layer.weights[0].shape[-1]],
        Wanted.WEIGHT_HH: [rows, hidden // heads],
        Wanted.BIAS_IH: [rows],
        Wanted.BIAS_HH: [rows],
        Wanted.PARAMETERS: [cell.params, hidden],
    }
    if not cell.recurrent:
        raise ValueError(f"{cell.layer_name} has no W_hh, which heads={heads} acts on")

    def member_weights(weight: Tensor, kind: Wanted) -> Tensor:
        if list(weight.shape) != shapes[kind]:
            name = kind.name.lower()
            raise RuntimeError(f"fused_rnn: {name} must be {shapes[kind]} with {heads=}, got {list(weight.shape)}")
        if kind is Wanted.PARAMETERS:  # [params, H]
            return _split(weight, heads, 1)
        return weight.unflatten(0, (cell.gates, heads, -1)).transpose(0, 1).flatten(1, 2)

    return layer._replace(
        h0=None if layer.h0 is None else _split(layer.h0, heads, 1),
        c0=None if layer.c0 is None else _split(layer.c0, heads, cell.states - 1),
        h_factor=None if layer.h_factor is None else _split(layer.h_factor, heads, 1),
        zoneout_mask=None if mask is None else _split(mask, heads, directions * cell.states),
        weights=tuple(map(member_weights, layer.weights, layer.weight_kinds)),
    )


def _split(tensor: Tensor, heads: int, blocks: int) -> Tensor:
    """``[.., blocks * H]`` as ``[heads, .., blocks * H / heads]``."""
    return tensor.unflatten(-1, (blocks, heads, -1)).movedim(-2, 0).flatten(-2)


def _joined(tensor: Tensor, blocks: int) -> Tensor:
    """The inverse."""
    return tensor.unflatten(-1, (blocks, -1)).movedim(0, -2).flatten(-3)
