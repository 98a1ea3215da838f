"""Why recurrent networks forget: gradients on their way back through time.

    python examples/gradient_flow.py            T up to 2000, a minute; draws examples/figures/gradient_flow.svg
    python examples/gradient_flow.py --quick    T up to 50

First the textbook experiment, in numpy: a gradient of ones is multiplied by the same matrix repeatedly. Then real
layers: how much of a gradient of ones at the last of T steps reaches the first one? Needs matplotlib and tqdm.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

import fused_rnn

FIGURE = Path(__file__).parent / "figures" / "gradient_flow.svg"
INPUTS, BATCH = 8, 4
LOWEST, HIGHEST = 1e-12, 1e10  # limits of the plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small layers, T up to 50")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="where the figure goes")
    args = parser.parse_args()
    lengths, hidden = (5, 20, 50), 8
    if not args.quick:
        lengths, hidden = (20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1400, 2000), 64

    powers = {scale: textbook(scale) for scale in (1.0, 0.5)}
    for scale, (norms, radius) in powers.items():
        print(f"W * {scale}, spectral radius {radius:.3f}: {norms[0]:.4f} after one step, {norms[-1]:.3g} after 20")

    layers, shares = layers_and_theory(hidden), {}
    for name, (layer, _) in tqdm(layers.items(), disable=None, leave=False):
        shares[name] = [share_that_arrives(layer, steps) for steps in tqdm(lengths, name, disable=None, leave=False)]
    print(f"\nreaches the first of T steps {''.join(f'{steps:>9}' for steps in lengths)}")
    for name, found in shares.items():
        print(f"{name:28} {''.join(f'{share:9.1e}' for share in found)}")
    draw(powers, layers, lengths, shares, args.figure)
    print(f"\ndrawn: {args.figure}")


# ---- the textbook --------------------------------------------------------------------------------------------------


def textbook(scale: float, steps: int = 20, batch: int = 2, hidden: int = 3) -> tuple[list[float], float]:
    """Norms of dh ``[N, H]``, ones at first, after 1, 2, .. products with W_h^T; and the spectral radius of W_h."""
    w_h = np.random.RandomState(3).randn(hidden, hidden) * scale
    dh, norms = np.ones((batch, hidden)), []
    for _ in range(steps):
        dh = dh @ w_h.T
        norms.append(float(np.sqrt(np.sum(dh**2)) / batch))
    return norms, float(max(abs(np.linalg.eigvals(w_h))))


# ---- real layers ----------------------------------------------------------------------------------------------------


def layers_and_theory(hidden: int) -> dict[str, tuple[nn.Module, float | None]]:
    """Each layer, and a bound of a gradient's growth in one step back; None for gated cells."""
    torch.manual_seed(0)
    make = {"dtype": torch.float64}
    tanh, relu = (fused_rnn.RNN(INPUTS, hidden, nonlinearity=name, **make) for name in ("tanh", "relu"))
    with torch.no_grad():
        nn.init.orthogonal_(tanh.weight_hh_l0, gain=0.99)
        relu.weight_hh_l0.copy_(1.01 * torch.eye(hidden))
        relu.bias_ih_l0.fill_(0.5)  # keeps all units off the flat side, where gradients vanish
    layers = {
        "tanh RNN, 0.99 orthogonal": (tanh, fused_rnn.spectrum(tanh).blocks[0].singular_values[0]),
        "ReLU RNN, 1.01 identity": (relu, fused_rnn.spectrum(relu).blocks[0].singular_values[0]),
    }
    for bias in (0.0, 1.0, 3.0):
        lstm = fused_rnn.LSTM(INPUTS, hidden, **make)
        with torch.no_grad():
            for each in (lstm.bias_ih_l0, lstm.bias_hh_l0):
                each[hidden : 2 * hidden] = bias / 2  # the gate gets the sum of both biases
        layers[f"LSTM, forget bias {bias:g}"] = lstm, None
    layers["GRU"] = fused_rnn.GRU(INPUTS, hidden, **make), None
    return layers


def share_that_arrives(layer: nn.Module, steps: int) -> float:
    x = 0.3 * torch.randn(steps, BATCH, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with fused_rnn.gradient_flow(layer) as flow:
        layer(x)[0].sum().backward()
    layer.zero_grad()
    (line,) = flow.summary().lines
    return line.ratio


def draw(powers, layers, lengths, shares, path: Path) -> None:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gradient_flow", "font.size": 9}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 3])
        for color, (scale, (norms, radius)) in zip(("C3", "C0"), powers.items(), strict=True):
            back = range(1, len(norms) + 1)
            left.plot(back, norms, "o", ms=3.5, color=color, label=f"W * {scale:g}")
            theory = [norms[-1] * radius ** (k - len(norms)) for k in back]
            left.plot(back, theory, "--", color=color, lw=1, label=f"powers of its spectral radius, {radius:.2f}")
        left.set_title("One matrix, again and again", loc="left", fontsize=10)
        left.set_xlabel("steps back")
        left.set_ylabel("norm of dh / N")
        left.xaxis.get_major_locator().set_params(integer=True)
        for i, (name, (_, factor)) in enumerate(layers.items()):
            found = np.clip(shares[name], 1e-300, None)  # the line leaves the plot instead of ending
            right.plot(lengths, found, "o-", ms=3.5, lw=1.2, color=f"C{i}", label=name)
            if factor is not None:
                fine = np.geomspace(lengths[0], lengths[-1], 200)
                right.plot(fine, factor ** (fine - 1), "--", color=f"C{i}", lw=0.9)
        right.plot(
            [],
            [],
            "--",
            color="grey",
            lw=0.9,
            label="most that $W_{hh}$ can do:\nits largest singular\nvalue to the power of T - 1",
        )
        right.set_title("What reaches the first of T steps", loc="left", fontsize=10)
        right.set_xscale("log")
        right.set_ylim(LOWEST, HIGHEST)
        right.set_xlabel("T")
        right.set_ylabel("norm at the first step / at the last")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e4e4e4", lw=0.7)
        left.legend(frameon=False, fontsize=8)
        figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    if path.suffix == ".svg":  # matplotlib leaves trailing blanks
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


if __name__ == "__main__":
    main()
