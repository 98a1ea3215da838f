"""The masks of the loop's own options, drawn by torch's generator for one layer of a call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import Options
from .layer import Layer, Wanted


def drawn(layer: Layer, options: Options) -> Layer:
    """The layer with masks of its own, as the options say."""
    if options.zoneout:
        layer = _with_zoneout(layer, options)
    if not options.recurrent_dropout:
        return layer
    cell, directions, _, width, _, _ = layer.sizes
    if not cell.recurrent:
        raise ValueError(f"{cell.layer_name} has no W_hh, which recurrent_dropout={options.recurrent_dropout} acts on")
    ones = layer.weights[0].new_ones(directions, _batch_of(layer), width)
    return layer._replace(h_factor=torch.dropout(ones, options.recurrent_dropout, True))


def _batch_of(layer: Layer) -> int:
    if layer.batch_sizes is None:
        return layer.sizes[-1][-1]
    return layer.h0.shape[-2] if layer.h0 is not None else int(layer.batch_sizes[0])


def _with_zoneout(layer: Layer, options: Options) -> Layer:
    p_h, p_c = options.zoneout or (0.0, 0.0)
    cell, directions, hidden, width, _, rows = layer.sizes
    if layer.weight_kinds[-1] is Wanted.WEIGHT_HR:
        raise ValueError(f"zoneout={options.zoneout} and proj_size={width} exclude each other")
    if not options.zoneout_draws:
        return layer._replace(zoneout_h=p_h, zoneout_c=p_c)
    shape, weight = (*rows, directions, cell.states, hidden), layer.weights[0]
    numbers = _sixteen_bits(shape, weight.device)
    # p * 2**16 of the 2**16 numbers lie below, rounded.
    least, most = -(1 << 15), (1 << 15) - 1
    p_first, *p_further = (min(round(p * (1 << 16)) + least, most) for p in (p_h, *[p_c] * (cell.states - 1)))
    if all(p == p_first for p in p_further):
        keeps = numbers < p_first
    else:
        bounds = torch.tensor([p_first, *p_further], dtype=torch.int16, device=weight.device)
        keeps = numbers < bounds.unsqueeze(-1)
    return layer._replace(zoneout_mask=keeps.flatten(-3))


def _sixteen_bits(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers of 16 bits: four times as fast as torch.bernoulli."""
    count = math.prod(shape)
    words = torch.randint(-(1 << 63), (1 << 63) - 1, ((count + 3) // 4,), dtype=torch.int64, device=device)
    return words.view(torch.int16)[:count].view(shape)
