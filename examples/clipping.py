"""Clipping the gradient's norm: what it prevents, and why.

    python examples/clipping.py            half a minute
    python examples/clipping.py --quick    a few seconds, no figure

A ReLU network counts the ones of a random sequence. Plain SGD without clipping diverges to NaN within a few steps; with
``clip_grad_norm_`` the same network learns from the same sequences.

The figure shows why, on one unit that learns the mean of its input: h_t = relu(w * h_(t-1) + u * x_t). Its loss is a
valley with a wall: where w is above 1, h grows exponentially with time, and so does the gradient. On the wall a step is
as long as the gradient is large; clipped, it is short, in the same direction. (After Pascanu, Mikolov and Bengio, "On
the difficulty of training recurrent neural networks", 2013.)
"""

import argparse
import math
import sys

import torch
from recipe import BLUE, GREY, ORANGE, add_out, picture
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import fused_rnn
from fused_rnn import functional

# ---- training ------------------------------------------------------------------------------------------------------


class Counter(nn.Module):
    def __init__(self, hidden: int = 64):
        super().__init__()
        self.rnn = fused_rnn.init.identity_(fused_rnn.RNN(1, hidden, nonlinearity="relu"))
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A number for each row of ``x [T, B, 1]``."""
        _, h_n = self.rnn(x)
        return self.head(h_n[0]).squeeze(-1)


def train(max_norm: float | None, updates: int, steps: int = 60, batch: int = 32, lr: float = 0.01) -> list[float]:
    """The loss of each update, until one is not finite. Always predicting the mean has a loss of 1."""
    torch.manual_seed(0)
    model, losses = Counter(), []
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for update in range(updates):
        x = torch.randint(2, (steps, batch, 1)).float()
        target = (x.sum((0, 2)) - steps / 2) / math.sqrt(steps / 4)  # mean 0, variance 1
        loss = nn.functional.mse_loss(model(x), target)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        if max_norm is not None:
            clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        report(f"update {update + 1} of {updates}, loss {losses[-1]:.3f}")
    report("")
    return losses


def report(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


# ---- the surface of one unit's loss --------------------------------------------------------------------------------

DOUBLE = torch.float64


def make_sequences(steps: int = 25, batch: int = 8) -> Tensor:
    return torch.rand(steps, batch, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def loss_of(point: Tensor, x: Tensor) -> Tensor:
    """Of the unit with ``point`` = (w, u), on ``x [T, B, 1]``."""
    w, u = point.reshape(2, 1, 1)
    _, h_n = functional.rnn(x / len(x), None, [u, w], nonlinearity="relu")
    return nn.functional.mse_loss(h_n[0], x.mean(0))


def descend(max_norm: float | None, x: Tensor, updates: int = 150, lr: float = 0.1) -> Tensor:
    """The points ``[updates + 1, 2]`` of gradient descent."""
    point = torch.tensor([0.4, 0.3], dtype=DOUBLE, requires_grad=True)
    optimizer, path = torch.optim.SGD([point], lr), [point.detach().clone()]
    for _ in range(updates):
        optimizer.zero_grad()
        loss_of(point, x).backward()
        if max_norm is not None:
            clip_grad_norm_([point], max_norm)
        optimizer.step()
        path.append(point.detach().clone())
    return torch.stack(path)


def draw(args, curves: dict[str, list[float]], paths: dict[str, Tensor], x: Tensor) -> None:
    with picture(args, "clipping.png", 8.5, 3.6) as figure:
        surface, training = figure.subplots(1, 2)
        draw_surface(figure, surface, paths, x)
        colors, top = {"without clipping": ORANGE, "clipped": BLUE}, 20
        for name, values in curves.items():
            finite = [value for value in values if math.isfinite(value)]
            training.plot(range(1, len(finite) + 1), finite, color=colors[name], lw=0.8, label=name)
            if len(finite) < len(values):
                text = f"update {len(finite)}: loss {finite[-1]:.0e}; then NaN"
                training.annotate(text, (len(finite), top), (12, -14), textcoords="offset points", color=colors[name])
        training.axhline(1, color=GREY, lw=0.8, ls="--", label="always saying the mean")
        training.set(yscale="log", ylim=(0.1, top), xlabel="update", ylabel="loss")
        training.set_title("64 ReLU units learn to count, T = 60")
        training.legend(loc="center right", bbox_to_anchor=(1, 0.7), fontsize=8)


def draw_surface(figure, axes, paths: dict[str, Tensor], x: Tensor) -> None:
    w, u = torch.linspace(0, 1.3, 260, dtype=DOUBLE), torch.linspace(-0.3, 1.8, 210, dtype=DOUBLE)
    grid = torch.cartesian_prod(u, w).flip(-1)
    losses = torch.vmap(lambda point: loss_of(point, x))(grid)  # all networks at once, in one call of the kernel
    losses = losses.reshape(len(u), len(w))
    image = axes.pcolormesh(w.numpy(), u.numpy(), losses.numpy(), norm="log", vmin=1e-4, vmax=1e3, cmap="viridis")
    figure.colorbar(image, label="loss", extend="both")
    for name, color in (("without clipping", ORANGE), ("clipped", "white")):
        axes.plot(*paths[name].T.numpy(), ".-", color=color, lw=0.9, ms=3, label=name)
    axes.plot(*paths["clipped"][0].numpy(), "o", color="black", ms=6, label="start")
    axes.set(xlim=(0, 1.3), ylim=(-0.3, 1.8), xlabel="w, recurrent weight", ylabel="u, input weight")
    axes.set_title("One ReLU unit: steps of gradient descent")
    axes.legend(loc="upper left", fontsize=8, facecolor="lightgray", frameon=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few updates, no figure")
    parser.add_argument("--max-norm", type=float, default=0.1, help="of the gradient in training (%(default)s)")
    add_out(parser)
    args = parser.parse_args()

    updates = 150 if args.quick else 600
    curves = {"without clipping": train(None, updates), "clipped": train(args.max_norm, updates)}
    x = make_sequences()
    paths = {"without clipping": descend(None, x), "clipped": descend(0.25, x)}
    for name, losses in curves.items():
        last = losses[-50:] if math.isfinite(losses[-1]) else losses[-1:]
        print(f"{name:17} {len(losses):4} updates, loss {sum(last) / len(last):.4f}")
    for name, points in paths.items():
        w, u = points[-1]
        print(f"{name:17} one unit ends at w {w:.2f}, u {u:.2f}, loss {loss_of(points[-1], x):.4f}")
    if not args.quick:
        draw(args, curves, paths, x)


if __name__ == "__main__":
    main()
