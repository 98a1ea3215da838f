"""``spectrum``: singular values and eigenvalues of the recurrent weights, and what they mean for gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from ..nn.kinds import cell_of
from . import figure, html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Block", "Spectrum", "spectrum"]


@dataclass(frozen=True)
class Block:
    """One gate's rows of one layer's and direction's W_hh, ``[H, P]``."""

    name: str
    singular_values: tuple[float, ...]
    """In descending order."""
    eigenvalues: tuple[complex, ...]
    """Those of the block or, with a projection, of W_hr times the block, which maps h to h."""
    bound: str | None = None
    """For a vanilla RNN: what the largest singular value implies for gradients. In gated cells gradients depend on the
    gates just as much, so that the weights alone imply nothing."""

    @property
    def spectral_radius(self) -> float:
        """The largest modulus of the eigenvalues."""
        return max(map(abs, self.eigenvalues), default=0.0)

    def __repr__(self) -> str:
        largest, smallest = self.singular_values[0], self.singular_values[-1]
        values = f"singular values {largest:.3g} to {smallest:.3g}, spectral radius {self.spectral_radius:.3g}"
        return f"Block({self.name}: {values})"


@dataclass(frozen=True)
class Spectrum:
    """What :func:`spectrum` found; ``str()`` is a table."""

    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        width = max(4, *(len(block.name) for block in self.blocks))
        rows = [f"{'gate':{width}} {'largest':>8} {'smallest':>8} {'radius':>8}"]
        for block in self.blocks:
            largest, smallest = block.singular_values[0], block.singular_values[-1]
            numbers = f"{block.name:{width}} {largest:8.3f} {smallest:8.3f} {block.spectral_radius:8.3f}"
            rows.append(numbers if block.bound is None else f"{numbers}  {block.bound}")
        return "\n".join(rows)

    def __repr__(self) -> str:
        largest = [f"{block.name} {block.singular_values[0]:.3g}" for block in self.blocks]
        return f"Spectrum(largest singular values: {html.shortened(largest)})"

    def _repr_html_(self) -> str:
        rows = [
            (
                block.name,
                f"{block.singular_values[0]:.3f}",
                f"{block.singular_values[-1]:.3f}",
                f"{block.spectral_radius:.3f}",
                block.bound or "",
            )
            for block in self.blocks
        ]
        return html.table(("gate", "largest", "smallest", "radius", "gradients"), rows, "singular values of W_hh")

    def to_dict(self) -> dict[str, Any]:
        """For JSON; eigenvalues as [real part, imaginary part]."""
        return {
            "blocks": [
                {
                    "name": block.name,
                    "singular_values": list(block.singular_values),
                    "eigenvalues": [[z.real, z.imag] for z in block.eigenvalues],
                    "spectral_radius": block.spectral_radius,
                    "bound": block.bound,
                }
                for block in self.blocks
            ]
        }

    @overload
    def plot(self, path: None = None) -> Figure: ...

    @overload
    def plot(self, path: str | Path) -> Path: ...

    def plot(self, path: str | Path | None = None) -> Figure | Path:
        """Plots the singular values, and the eigenvalues with the unit circle.

        Args:
            path: the file to write, in the format of its suffix; None: nothing is written.

        Returns:
            The path, or the matplotlib figure if there is none.
        """
        made, (values, plane) = figure.figure(9, 4, panels=2)
        for block, style in zip(self.blocks, figure.styles(), strict=False):
            numbers = range(1, len(block.singular_values) + 1)
            values.plot(numbers, block.singular_values, **style, marker=".", ms=4, label=block.name)
            plane.plot(
                [z.real for z in block.eigenvalues], [z.imag for z in block.eigenvalues], ".", color=style["color"]
            )
        values.axhline(1, color="black", lw=0.8)
        values.set_xlabel("from the largest on")
        values.xaxis.get_major_locator().set_params(integer=True)
        values.set_ylabel("singular value")
        circle = [2 * math.pi * k / 200 for k in range(201)]
        plane.plot([math.cos(a) for a in circle], [math.sin(a) for a in circle], color="black", lw=0.8)
        plane.set_aspect("equal", adjustable="datalim")
        plane.set_xlabel("real part of the eigenvalues")
        plane.set_ylabel("imaginary part")
        made.legend(loc="outside right upper", frameon=False)
        return made if path is None else figure.save(made, path)


def spectrum(module: nn.Module) -> Spectrum:
    """Singular values and spectral radius of each gate's block of W_hh, of each layer and direction.

    For a vanilla RNN the largest singular value bounds what a step can do to a gradient, as tanh and relu have a slope
    of at most 1: below 1 the gradient must vanish, at least as fast as its powers; above 1 it may explode, but need
    not. Costs an SVD and an eigenvalue decomposition of each block in float64.

    Args:
        module: an LSTM, GRU, RNN or a cell, of this library or of torch.nn.

    Returns:
        :class:`fused_rnn.Spectrum`; print it for a table.

    Example:
        >>> rnn = fused_rnn.init.orthogonal_(fused_rnn.RNN(10, 20), gain=0.9)
        >>> fused_rnn.spectrum(rnn)
        Spectrum(largest singular values: l0 h 0.9)
    """
    cell = cell_of(module)
    if cell is None:
        raise TypeError(
            f"fused_rnn.spectrum takes an LSTM, GRU, RNN or one of their cells, got {type(module).__name__}"
        )
    if not isinstance(module, nn.RNNBase):  # a cell
        weights: dict[str, tuple[Any, Any]] = {"": (module.weight_hh, None)}
    else:
        layers, directions = range(module.num_layers), ("", "_reverse")[: 1 + module.bidirectional]
        suffixes = [f"l{k}{direction}" for k in layers for direction in directions]
        weights = {
            suffix.replace("_", " ") + " ": (
                getattr(module, f"weight_hh_{suffix}"),
                getattr(module, f"weight_hr_{suffix}") if module.proj_size else None,
            )
            for suffix in suffixes
        }
    blocks, heads = [], getattr(module, "heads", 1)
    for prefix, (w_hh, w_hr) in weights.items():
        for gate, block in zip(cell.named_gates, w_hh.detach().double().cpu().chunk(cell.gates), strict=True):
            whole = torch.block_diag(*block.chunk(heads)) if heads > 1 else block
            blocks.append(_block(prefix + gate.name, whole, w_hr, bounded=cell.gates == 1))
    return Spectrum(tuple(blocks))


def _block(name: str, block: Tensor, w_hr: Tensor | None, bounded: bool) -> Block:
    if not block.isfinite().all():
        raise ValueError(f"fused_rnn.spectrum: the recurrent weights of {name} are not all finite")
    once = block if w_hr is None else w_hr.detach().double().cpu() @ block
    singular_values = tuple(torch.linalg.svdvals(block).tolist())
    bound = _bound(singular_values[0]) if bounded else None
    return Block(name, singular_values, tuple(torch.linalg.eigvals(once).tolist()), bound)


def _bound(largest: float) -> str:
    if largest < 1:
        return f"must vanish: a step leaves at most {largest:.3g} of a gradient"
    return f"may explode, need not: a step can stretch a gradient {largest:.3g} times"
