"""Initialisation of recurrent layers, and a learned initial state.

Like ``torch.nn.init``, but for whole layers: each function changes the weights of ``module`` in place and returns it.
``module`` is a layer or a cell of this library or of torch.nn, or a model whose layers and cells must then all be of a
kind that the function supports. All layers and both directions are changed; if anything is refused, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .nn.freeze import is_frozen
from .nn.kinds import cell_of
from .nn.stack import Stack
from .ops.cells import BY_ID, CELLS, Cell

__all__ = ["InitialState", "chrono_", "forget_bias_", "identity_", "orthogonal_", "update_bias_"]


@torch.no_grad()
def forget_bias_(module: nn.Module, value: float) -> nn.Module:
    """LSTM: the forget gate starts at ``sigmoid(value)`` for all units; a value of 1, say, opens it and keeps memory.

    The gate sees the sum of two biases: bias_ih gets the value, bias_hh zero. (A parameter shared by both gets half.)
    """
    for block in _blocks("forget_bias_", module, _with_gate("forget"), _BIASES):
        block.set_bias("forget", value)
    return module


@torch.no_grad()
def update_bias_(module: nn.Module, value: float) -> nn.Module:
    """GRU: the update gate z starts at ``sigmoid(value)`` for all units; larger values keep memory longer.

    PyTorch's GRU keeps its state where z = 1: ``h = (1 - z) * n + z * h``. Textbooks that write ``h = z * n + (1 - z) *
    h`` call 1 - z their z: a bias of -2 there is ``value = 2`` here. Sets the sum of both biases, like
    :func:`forget_bias_`.
    """
    for block in _blocks("update_bias_", module, _with_gate("update"), _BIASES):
        block.set_bias("update", value)
    return module


@torch.no_grad()
def chrono_(module: nn.Module, longest: int, generator: torch.Generator | None = None) -> nn.Module:
    """LSTM and GRU: units start with time scales of different lengths, up to ``longest`` steps.

    The bias of the forget gate (LSTM) or of the update gate (GRU) is the logarithm of a number drawn uniformly from 1
    to ``longest - 1``, so that the unit decays to 1 / e in about as many steps. The LSTM's input gate gets the negative
    bias: units that keep much take in little. After Tallec and Ollivier, "Can recurrent neural networks warp time?"
    (2018).
    """
    if not longest >= 2:
        raise ValueError(f"chrono_: longest must be at least 2 steps, got {longest}")
    for block in _blocks("chrono_", module, _with_gate("forget", "update"), _BIASES):
        bias = torch.empty_like(block.part("bias_ih", 0)).uniform_(1, longest - 1, generator=generator).log_()
        if block.cell.gate("forget") is not None:
            block.set_bias("forget", bias)
            block.set_bias("input", -bias)
        else:
            block.set_bias("update", bias)
    return module


@torch.no_grad()
def orthogonal_(module: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> nn.Module:
    """Each gate's block ``[H, P]`` of every weight_hh becomes a random orthogonal matrix, times ``gain``.

    ``torch.nn.init.orthogonal_(layer.weight_hh_l0)`` would instead make the columns of the whole ``[G*H, P]``
    orthonormal, leaving no single gate's block orthogonal. With ``proj_size`` a block's columns are orthonormal.
    """
    for block in _blocks("orthogonal_", module, tuple(CELLS), ("weight_hh",)):
        for gate in range(block.cell.gates):
            weight = block.part("weight_hh", gate)
            dtype = torch.promote_types(weight.dtype, torch.float32)  # torch has no QR decomposition in 16 bits
            weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=dtype), gain, generator))
    return module


@torch.no_grad()
def identity_(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """ReLU RNN: every weight_hh becomes ``scale`` times the identity, every bias zero; weight_ih is unchanged.

    A unit then accumulates its input (at a scale of 1), and gradients pass through time unchanged while it is active.
    After Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear units" (2015).
    """
    for block in _blocks("identity_", module, ("rnn_relu",), ("weight_hh", *_BIASES)):
        nn.init.eye_(block.weights["weight_hh"]).mul_(scale)
        for bias in _BIASES:
            if bias in block.weights:
                block.weights[bias].zero_()
    return module


class InitialState(nn.Module):
    """A learned initial state, starting from zeros: ``module(input, initial(batch))``.

    Args: ``module``, a layer, a cell or a :class:`fused_rnn.Stack`. Only its sizes, dtype and device are used.

    Parameters: ``h_0 [L*D, 1, P]`` (a cell: ``[1, H]``); for the LSTM also ``c_0 [L*D, 1, H]`` (a cell: ``[1, H]``);
    for a stack those of each layer. After a reset by ``reset_mask`` the state is zero, not this one.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(InitialState, module.layers)) if isinstance(module, Stack) else None
        if self.layers is not None:
            return
        cell = cell_of(module)
        if cell is None:
            raise TypeError(f"InitialState is for a layer, a cell or a fused_rnn.Stack, got {type(module).__name__}")
        rows, width = (1,), module.hidden_size
        if isinstance(module, nn.RNNBase):
            rows, width = (module.num_layers * (1 + module.bidirectional), 1), module.proj_size or width
        like = next(module.parameters())
        self.h_0 = nn.Parameter(like.new_zeros(*rows, width))
        if cell.states == 2:
            self.c_0 = nn.Parameter(like.new_zeros(*rows, module.hidden_size))

    def forward(self, batch: int | None = None):
        """``hx`` for ``batch`` rows, as ``module`` takes it; None: for unbatched input."""
        if self.layers is not None:
            return tuple(layer(batch) for layer in self.layers)
        states = (self.h_0, self.c_0) if hasattr(self, "c_0") else (self.h_0,)
        if batch is None:
            states = tuple(state.squeeze(-2) for state in states)
        else:
            states = tuple(state.expand(*state.shape[:-2], batch, -1) for state in states)
        return states if len(states) == 2 else states[0]


# ---- the weights of a module -----------------------------------------------------------------------------------------

_BIASES = ("bias_ih", "bias_hh")


class _Block(NamedTuple):
    """The weights of one direction of one layer, or of a cell, by their names in a cell, such as "weight_hh"."""

    cell: Cell
    weights: dict[str, Tensor]

    def part(self, name: str, gate: int) -> Tensor:
        """One gate's part of a weight or bias: a view."""
        return self.weights[name].chunk(self.cell.gates)[gate]

    def set_bias(self, gate: str, value: float | Tensor) -> None:
        """Sets the sum of the gate's two biases."""
        bias_ih, bias_hh = (self.part(name, self.cell.gate(gate)) for name in _BIASES)
        bias_ih[:] = value
        if self.weights["bias_ih"] is self.weights["bias_hh"]:
            bias_ih.div_(2)
        else:
            bias_hh.zero_()


def _with_gate(*names: str) -> tuple[str, ...]:
    """The cells that have one of these gates."""
    return tuple(cell.name for cell in BY_ID if any(cell.gate(name) is not None for name in names))


def _blocks(function: str, module: nn.Module, allowed: tuple[str, ...], wanted: tuple[str, ...]) -> list[_Block]:
    """The blocks of all layers of ``module`` with the ``wanted`` weights; raises if one of them cannot be set."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}: module must be a torch.nn.Module, got {type(module).__name__}")
    layers = [(name, layer, cell) for name, layer in module.named_modules() if (cell := cell_of(layer)) is not None]
    if not layers:
        raise TypeError(f"{function}: {type(module).__name__} is no recurrent layer or cell, and has none")
    blocks = []
    for name, layer, cell in layers:
        who = f"{name} ({type(layer).__name__})" if name else f"this {type(layer).__name__}"
        if cell.name not in allowed:
            raise TypeError(f"{function} is for cells of kind {' and '.join(allowed)}, but {who} is {cell.name}")
        if is_frozen(layer):
            raise RuntimeError(f"{function}: {who} is frozen; call fused_rnn.thaw(model) first")
        if not layer.bias and wanted == _BIASES:
            raise ValueError(f"{function}: {who} has no biases (bias=False)")
        names = [weight for weight in wanted if layer.bias or weight not in _BIASES]
        for suffix in _suffixes(layer):
            weights = {weight: layer._parameters.get(weight + suffix) for weight in names}
            for weight, parameter in weights.items():
                if parameter is None:
                    raise RuntimeError(
                        f"{function}: {weight}{suffix} of {who} is no parameter but computed from others; initialise "
                        "first, then parametrize or prune"
                    )
            blocks.append(_Block(cell, weights))
    return blocks


def _suffixes(module: nn.Module) -> Iterator[str]:
    """The suffixes of weights' names by layer and direction: _l0, _l0_reverse ...; empty for a cell."""
    if not isinstance(module, nn.RNNBase):
        yield ""
        return
    for k in range(module.num_layers):
        yield f"_l{k}"
        if module.bidirectional:
            yield f"_l{k}_reverse"
