"""Why recurrent networks forget: gradients on their way back through time.

    python examples/gradient_flow.py            T up to 2000, a minute
    python examples/gradient_flow.py --quick    T up to 50

First the textbook experiment, in numpy: a gradient of ones is multiplied by the same matrix repeatedly. Then real
layers: how much of a gradient of ones at the last of T steps reaches the first one? Needs matplotlib and tqdm.
"""

import argparse

import numpy as np
import torch
from recipe import BLUE, GREEN, GREY, ORANGE, WIDTH, add_out, picture
from torch import nn
from tqdm import tqdm

import fused_rnn
from fused_rnn.tools.style import AMBER, PURPLE, SKY

INPUTS, BATCH = 8, 4
LOWEST, HIGHEST = 1e-12, 1e10  # limits of the plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small layers, T up to 50")
    add_out(parser)
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
    draw(args, powers, layers, lengths, shares)


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


def draw(args, powers, layers, lengths, shares) -> None:
    with picture(args, "gradient_flow.svg", WIDTH, 7) as figure:
        above, below = figure.subplots(2, 1, height_ratios=[2, 3])
        for color, (scale, (norms, radius)) in zip((ORANGE, BLUE), powers.items(), strict=True):
            back = range(1, len(norms) + 1)
            above.plot(back, norms, "o", ms=3.5, color=color, label=f"times the matrix W * {scale:g}")
            theory = [norms[-1] * radius ** (k - len(norms)) for k in back]
            above.plot(back, theory, "--", color=color, lw=1, label=f"powers of its spectral radius, {radius:.2f}")
        above.set_title("Textbook: a gradient of ones, multiplied by one matrix again and again")
        above.set_xlabel("steps back in time")
        above.set_ylabel("norm of the gradient,\ndivided by the rows of the batch")
        above.xaxis.get_major_locator().set_params(integer=True)
        colors = (BLUE, ORANGE, SKY, PURPLE, GREEN, AMBER)
        for color, (name, (_, factor)) in zip(colors, layers.items(), strict=True):
            found = np.clip(shares[name], 1e-300, None)  # the line leaves the plot instead of ending
            below.plot(lengths, found, "o-", ms=3.5, lw=1.4, color=color, label=name)
            if factor is not None:
                fine = np.geomspace(lengths[0], lengths[-1], 200)
                below.plot(fine, factor ** (fine - 1), "--", color=color, lw=1)
        bound = "most that $W_{hh}$ can do: its largest\nsingular value to the power of T - 1"
        below.plot([], [], "--", color=GREY, lw=1, label=bound)
        below.set_title("Real layers: what is left at the first of T steps of the gradient at the last")
        below.set_xscale("log")
        below.xaxis.set_major_formatter("{x:g}")
        below.set_ylim(LOWEST, HIGHEST)
        below.set_xlabel("T, steps of the sequence")
        below.set_ylabel("norm of the gradient at the first step,\ndivided by that at the last")
        for axes in (above, below):
            axes.set_yscale("log")
            axes.grid()
        above.legend(fontsize=8)
        figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


if __name__ == "__main__":
    main()
