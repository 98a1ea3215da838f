"""Initialisation of recurrent layers, and a learned initial state.

Like ``torch.nn.init``, but for whole layers: each function changes the weights of ``module`` in place and returns it.
``module`` is a layer or a cell of this library or of torch.nn, or a model whose layers and cells must then all be of a
kind that the function supports. All layers and both directions are changed; if anything is refused, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .nn.freeze import is_frozen
from .nn.kinds import cell_of
from .nn.signatures import Model
from .nn.stack import Stack
from .ops.cells import CELLS, Cell

__all__ = ["InitialState", "chrono_", "forget_bias_", "identity_", "orthogonal_", "update_bias_"]


@torch.no_grad()
def forget_bias_(module: Model, value: float) -> Model:
    """LSTM: the forget gate starts at ``sigmoid(value)`` for all units; a value of 1, say, opens it and keeps memory.

    Args:
        module: an LSTM, an LSTMCell, or a model all of whose recurrent layers and cells are of that kind.
        value: the sum of the gate's two biases: ``bias_ih`` gets it, ``bias_hh`` becomes zero. (A parameter shared by
            both gets half.)

    Returns:
        ``module``.

    Example:
        >>> lstm = fused_rnn.init.forget_bias_(fused_rnn.LSTM(10, 20), 1.0)
        >>> lstm.bias_ih_l0[20:40].unique()  # the rows of i, then those of f
        tensor([1.], grad_fn=<Unique2Backward0>)
    """
    for block in _blocks("forget_bias_", module, _with_gate("forget"), _BIASES):
        block.set_bias("forget", value)
    return module


@torch.no_grad()
def update_bias_(module: Model, value: float) -> Model:
    """GRU: the update gate z starts at ``sigmoid(value)`` for all units; larger values keep memory longer.

    PyTorch's GRU keeps its state where z = 1: ``h = (1 - z) * n + z * h``. Textbooks that write ``h = z * n + (1 - z) *
    h`` call 1 - z their z: a bias of -2 there is ``value = 2`` here.

    Args:
        module: a GRU, a GRUCell, or a model all of whose recurrent layers and cells are of that kind.
        value: the sum of the gate's two biases, as in :func:`forget_bias_`.

    Returns:
        ``module``.

    Example:
        >>> gru = fused_rnn.init.update_bias_(fused_rnn.GRU(10, 20), 2.0)
    """
    for block in _blocks("update_bias_", module, _with_gate("update"), _BIASES):
        block.set_bias("update", value)
    return module


@torch.no_grad()
def chrono_(module: Model, longest: int, generator: torch.Generator | None = None) -> Model:
    """LSTM and GRU: units start with time scales of different lengths, up to ``longest`` steps.

    The bias of the forget gate (LSTM) or of the update gate (GRU) is the logarithm of a number drawn uniformly from 1
    to ``longest - 1``, so that the unit decays to 1 / e in about as many steps. The LSTM's input gate gets the negative
    bias: units that keep much take in little. After Tallec and Ollivier, "Can recurrent neural networks warp time?"
    (2018).

    Args:
        module: an LSTM, a GRU, one of their cells, or a model all of whose recurrent layers and cells are such.
        longest: the longest time scale in steps, at least 2: about the length of what has to be remembered.
        generator: where the random numbers come from; None: torch's default generator.

    Returns:
        ``module``.

    Example:
        >>> lstm = fused_rnn.init.chrono_(fused_rnn.LSTM(10, 20), longest=100)
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
def orthogonal_(module: Model, gain: float = 1.0, generator: torch.Generator | None = None) -> Model:
    """Each gate's block ``[H, P]`` of every weight_hh becomes a random orthogonal matrix, times ``gain``.

    ``torch.nn.init.orthogonal_(layer.weight_hh_l0)`` would instead make the columns of the whole ``[G*H, P]``
    orthonormal, leaving no single gate's block orthogonal. With ``proj_size`` a block's columns are orthonormal; with
    ``heads`` each head has a block of its own.

    Args:
        module: a recurrent layer or cell of any kind, or a model that has some.
        gain: what all singular values of the block become.
        generator: where the random numbers come from; None: torch's default generator.

    Returns:
        ``module``.

    Example:
        >>> rnn = fused_rnn.init.orthogonal_(fused_rnn.RNN(10, 20))
        >>> torch.testing.assert_close(rnn.weight_hh_l0 @ rnn.weight_hh_l0.T, torch.eye(20))
    """
    for block in _blocks("orthogonal_", module, tuple(CELLS), ("weight_hh",)):
        for gate in range(block.cell.gates):
            for weight in block.part("weight_hh", gate).chunk(block.heads):
                dtype = torch.promote_types(weight.dtype, torch.float32)  # torch has no QR decomposition in 16 bits
                weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=dtype), gain, generator))
    return module


@torch.no_grad()
def identity_(module: Model, scale: float = 1.0) -> Model:
    """ReLU RNN: every weight_hh becomes ``scale`` times the identity, every bias zero; weight_ih is unchanged.

    A unit then accumulates its input (at a scale of 1), and gradients pass through time unchanged while it is active.
    After Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear units" (2015).

    Args:
        module: an RNN or RNNCell with ``nonlinearity="relu"``, or a model all of whose recurrent layers are such.
        scale: the diagonal of weight_hh.

    Returns:
        ``module``.

    Example:
        >>> rnn = fused_rnn.init.identity_(fused_rnn.RNN(10, 20, nonlinearity="relu"))
        >>> torch.equal(rnn.weight_hh_l0, torch.eye(20))
        True
    """
    for block in _blocks("identity_", module, ("rnn_relu",), ("weight_hh", *_BIASES)):
        for weight in block.weights["weight_hh"].chunk(block.heads):
            nn.init.eye_(weight).mul_(scale)
        for bias in _BIASES:
            if bias in block.weights:
                block.weights[bias].zero_()
    return module


class InitialState(nn.Module):
    """A learned initial state, starting from zeros: ``module(input, initial(batch))``.

    Args:
        module: a layer, a cell or a :class:`fused_rnn.Stack`. Only its sizes, dtype and device are used.

    It has the parameters ``h_0 [L*D, 1, P]`` (for a cell ``[1, H]``) and, for an LSTM, ``c_0 [L*D, 1, H]`` (for a cell
    ``[1, H]``); for a stack those of each layer. After a reset by ``reset_mask`` the state is zero, not this one.

    Example:
        >>> lstm = fused_rnn.LSTM(10, 20)
        >>> initial = fused_rnn.init.InitialState(lstm)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10), initial(3))
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layers: nn.ModuleList | None = (
            nn.ModuleList(map(InitialState, module.layers)) if isinstance(module, Stack) else None
        )
        if self.layers is not None:
            return
        cell = cell_of(module)
        if cell is None:
            raise TypeError(f"InitialState is for a layer, a cell or a fused_rnn.Stack, got {type(module).__name__}")
        rows: tuple[int, ...] = (1,)
        hidden: Any = module.hidden_size
        width = hidden
        if isinstance(module, nn.RNNBase):
            rows, width = (module.num_layers * (1 + module.bidirectional), 1), module.proj_size or hidden
        like = next(module.parameters())
        self.h_0: nn.Parameter = nn.Parameter(like.new_zeros(*rows, width))
        if cell.states == 2:
            self.c_0: nn.Parameter = nn.Parameter(like.new_zeros(*rows, hidden))

    def forward(self, batch: int | None = None) -> Any:
        """``hx`` for ``batch`` rows, as ``module`` takes it; None: for unbatched input."""
        if self.layers is not None:
            return tuple(layer(batch) for layer in self.layers)
        states: tuple[Tensor, ...] = (self.h_0, self.c_0) if hasattr(self, "c_0") else (self.h_0,)
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
    heads: int
    weights: dict[str, Tensor]

    def part(self, name: str, gate: Any) -> Tensor:
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
    return tuple(cell.name for cell in CELLS.values() if any(cell.gate(name) is not None for name in names))


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
            blocks.append(_Block(cell, getattr(layer, "heads", 1), weights))
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
