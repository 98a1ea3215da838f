"""The masks of the loop's own options, drawn by torch's generator for one layer of a call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import Options
from .layer import Layer, Wanted
from .plain import is_eager


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
    # A unit keeps its state if a number of 16 bits lies below the bound.
    bounds = [min(round(p * (1 << 16)) - (1 << 15), (1 << 15) - 1) for p in (p_h, p_c)]
    like = layer.weights[0]
    seed = torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device=like.device)
    if is_eager() and like.device.type == "cpu":
        mask = torch.ops.fused_rnn.zoneout_mask(seed, math.prod(rows) * directions, cell.states, hidden, *bounds)
        return layer._replace(zoneout_mask=mask.view(*rows, directions * cell.states * hidden))
    numbers = _sixteen_bits(seed, (*rows, directions, cell.states, hidden))
    # Filled on the device: CUDA graphs capture no copies of numbers from the host.
    of_states = zip((1, cell.states - 1), bounds, strict=True)
    below = torch.cat([torch.full((k, 1), bound, dtype=torch.int16, device=like.device) for k, bound in of_states])
    return layer._replace(zoneout_mask=(numbers < below).flatten(-3))


def _sixteen_bits(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The numbers of csrc/ops/random.cpp, for what it does not run: compiled, transformed and traced calls."""
    count = math.prod(shape)
    z = seed + torch.arange(1, (count + 3) // 4 + 1, device=seed.device) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shifted(z, 31)
    return z.view(torch.int16)[:count].view(shape)


def _signed(word: int) -> int:
    return word - (1 << 64)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (words >> bits) & ((1 << 64 - bits) - 1)
