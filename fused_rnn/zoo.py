"""Cells from the literature, each a few lines: ``fused_rnn.zoo.slstm.layer(64, 128)``.

Made by :func:`fused_rnn.cell`, so each is compiled when its first layer is made. Where a paper's gate acts on h before
the recurrent product, here it acts on the product, as torch's GRU has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from .own.cell import cell

__all__ = [
    "cifg_lstm",
    "indrnn",
    "janet",
    "ligru",
    "mgu",
    "min_gru",
    "min_lstm",
    "peephole_lstm",
    "qrnn",
    "slstm",
    "sru",
    "ugrnn",
]

Pair = tuple[Tensor, Tensor]


@cell(gates=4, states=("h", "c"), params=("p_i", "p_f", "p_o"))
def peephole_lstm(x: Any, r: Any, h: Tensor, c: Tensor, *, p_i: Tensor, p_f: Tensor, p_o: Tensor) -> Pair:
    """LSTM whose gates also see the unit's own c (Gers and Schmidhuber, 2000: Recurrent nets that time and count)."""
    i, f, g, o = x + r
    c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


@cell(gates=3, states=("h", "c"))
def cifg_lstm(x: Any, r: Any, h: Tensor, c: Tensor) -> Pair:
    """LSTM with coupled gates, i = 1 - f (Greff et al., 2017: LSTM: a search space odyssey)."""
    f, g, o = x + r
    f = torch.sigmoid(f)
    c = f * c + (1 - f) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell(gates=2, states=("h",))
def janet(x: Any, r: Any, h: Tensor) -> Tensor:
    """A forget gate alone (van der Westhuizen and Lasenby, 2018: The unreasonable effectiveness of the forget gate)."""
    f, g = x + r
    return torch.sigmoid(f) * h + (1 - torch.sigmoid(f - 1)) * torch.tanh(g)  # beta = 1, as in the paper


@cell(gates=2, states=("h",))
def mgu(x: Any, r: Any, h: Tensor) -> Tensor:
    """Minimal gated unit (Zhou et al., 2016: Minimal gated unit for recurrent neural networks).

    The gate acts behind the product, f * (W_hn h), where the paper has W_hn (f * h).
    """
    x_f, x_n = x
    r_f, r_n = r
    f = torch.sigmoid(x_f + r_f)
    return (1 - f) * h + f * torch.tanh(x_n + f * r_n)


@cell(gates=2, states=("h",))
def ugrnn(x: Any, r: Any, h: Tensor) -> Tensor:
    """Update gate RNN (Collins, Sohl-Dickstein and Sussillo, 2017: Capacity and trainability in recurrent networks)."""
    gate, candidate = x + r
    gate = torch.sigmoid(gate)
    return gate * h + (1 - gate) * torch.tanh(candidate)


@cell(gates=2, states=("h",))
def ligru(x: Any, r: Any, h: Tensor) -> Tensor:
    """Light GRU, its step without the batch norm (Ravanelli et al., 2018: Light gated recurrent units)."""
    candidate, z = x + r
    z = torch.sigmoid(z)
    return z * h + (1 - z) * torch.relu(candidate)


@cell(gates=1, states=("h",), params=("u",), recurrent=False, init={"u": nn.init.uniform_})
def indrnn(x: Any, h: Tensor, *, u: Tensor) -> Tensor:
    """Units that see their own h alone (Li et al., 2018: Independently recurrent neural network)."""
    return torch.relu(x[0] + u * h)


@cell(gates=4, states=("h", "c"), params=("v_f", "v_r"), recurrent=False)
def sru(x: Any, h: Tensor, c: Tensor, *, v_f: Tensor, v_r: Tensor) -> Pair:
    """Simple recurrent unit (Lei et al., 2018: Simple recurrent units for highly parallelizable recurrence).

    The highway's input is projected, the fourth gate, as the paper does where I and H differ.
    """
    z, f, gate, skip = x
    f = torch.sigmoid(f + v_f * c)
    gate = torch.sigmoid(gate + v_r * c)
    c = f * c + (1 - f) * z
    return gate * c + (1 - gate) * skip, c


@cell(gates=3, states=("h", "c"), recurrent=False)
def qrnn(x: Any, h: Tensor, c: Tensor) -> Pair:
    """QRNN's fo-pooling, of a window of one step (Bradbury et al., 2017: Quasi-recurrent neural networks)."""
    z, f, o = x
    f = torch.sigmoid(f)
    c = f * c + (1 - f) * torch.tanh(z)
    return torch.sigmoid(o) * c, c


def _positive(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


@cell(gates=2, states=("h",), recurrent=False)
def min_gru(x: Any, h: Tensor) -> Tensor:
    """minGRU (Feng et al., 2024: Were RNNs all we needed?), with the paper's positive candidates."""
    z, n = x
    z = torch.sigmoid(z)
    return (1 - z) * h + z * _positive(n)


@cell(gates=3, states=("h",), recurrent=False)
def min_lstm(x: Any, h: Tensor) -> Tensor:
    """minLSTM (Feng et al., 2024: Were RNNs all we needed?); f / (f + i) by way of logarithms, so never 0 / 0."""
    f, i, n = x
    share = torch.sigmoid(logsigmoid(f) - logsigmoid(i))
    return share * h + (1 - share) * _positive(n)


@cell(gates=4, states=("h", "c", "n", "m"), initial={"m": float("-inf")})
def slstm(x: Any, r: Any, h: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, ...]:
    """sLSTM: exponential input gate, normaliser n, stabiliser m (Beck et al., 2024: xLSTM)."""
    i, f, z, o = x + r
    log_f = logsigmoid(f) + m
    m = torch.maximum(log_f, i)
    forget, write = torch.exp(log_f - m), torch.exp(i - m)
    c = forget * c + write * torch.tanh(z)
    n = forget * n + write
    return torch.sigmoid(o) * c / n, c, n, m
