"""Layers with zoneout, and their masks, drawn again."""

import math

import numpy as np
import pytest
import torch

import fused_rnn
from support import loop_options

CLASSES = {
    "lstm": (fused_rnn.LSTM, {"zoneout": (0.3, 0.6)}),
    "gru": (fused_rnn.GRU, {"zoneout": 0.4}),
    "rnn": (fused_rnn.RNN, {"zoneout": 0.4}),
}
every_class = pytest.mark.parametrize("kind", CLASSES)
in_both = pytest.mark.parametrize("training", [True, False])


def make(kind, *sizes, **options):
    made, own = CLASSES[kind]
    return loop_options.make(made, *sizes, **own | options)


def probabilities(layer):
    return layer.zoneout if isinstance(layer.zoneout, tuple) else (layer.zoneout,) * 2


def masks(layer, *rows, seed=1):
    """Those of a call in training after this seed, drawn again; of a call in evaluation the probabilities."""
    if not layer.training:
        return [probabilities(layer)] * layer.num_layers
    if seed is not None:
        torch.manual_seed(seed)
    states = 2 if layer.mode == "LSTM" else 1
    shape = (*rows, 1 + layer.bidirectional, states, layer.hidden_size)
    bounds = np.array(probabilities(layer)[:states]).reshape(-1, 1) * 65536
    drawn = []
    for _ in range(layer.num_layers):
        start = torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64).numpy().view(np.uint64)
        numbers = split_mix(start, -(-math.prod(shape) // 4)).view(np.int16)[: math.prod(shape)].reshape(shape)
        drawn.append(torch.from_numpy(numbers.astype(np.int64) + 32768 < bounds.round()))
    return drawn


def split_mix(start, count):
    z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
