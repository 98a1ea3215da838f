"""Captions for pictures, from one picture to many words: python examples/captioning.py

A small convolutional network learns to name single shapes. Without its last layers it turns a picture into features,
which enter an LSTM at every step beside the previous word, through a matrix of their own: the last columns of
``weight_ih``. Captions begin after <START> and end with <END>. One in ten pairs of shapes is held out of training, and
the captions that are scored are of those pairs.

Then the other way round, a picture as a sequence: an LSTM reads it patch by patch, as one reads a page, and names the
shape after each.

Shows pictures with their generated captions, wrong ones too, and how many shapes are recognised after each patch.
"""

from __future__ import annotations

import torch
from recipe import BLUE, GREY, ORANGE, arguments, check, compare, picture, progress, ragged, timed
from torch import Tensor, nn

SIDE, PATCH = 32, 8  # pixels
COLOURS = {
    "red": (0.9, 0.2, 0.2),
    "green": (0.2, 0.8, 0.3),
    "blue": (0.25, 0.4, 1.0),
    "yellow": (0.95, 0.9, 0.3),
    "purple": (0.65, 0.3, 0.8),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ["circle", "square", "triangle", "cross", "ring"]
SIZES = {"small": 4.5, "large": 7.0}  # radius
START, END = "<START>", "<END>"
WORDS = [START, END, "a", "above", "left", "of", *SIZES, *COLOURS, *SHAPES]
NUMBER = {word: i for i, word in enumerate(WORDS)}
CLASSES = len(COLOURS) * len(SHAPES)
CHANNELS = 32
FEATURES = CHANNELS * (SIDE // 8) ** 2


# ---- pictures and their captions ----


def paint(kinds: Tensor, middles: Tensor) -> Tensor:
    """``[N, 3, SIDE, SIDE]`` with shapes ``kinds [N, K, 3]`` (size, colour, shape) at ``middles [N, K, 2]`` (x, y)."""
    radius = torch.tensor(list(SIZES.values()))[kinds[..., 0], None, None]  # [N, K, 1, 1]
    colour = torch.tensor(list(COLOURS.values()))[kinds[..., 1], :, None, None]  # [N, K, 3, 1, 1]
    at = torch.arange(SIDE, dtype=torch.float)
    x, y = (at - middles[..., :1])[..., None, :] / radius, (at - middles[..., 1:])[..., :, None] / radius
    far, near = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    distance = x.square() + y.square()
    covers = {
        "circle": distance < 1,
        "square": far < 0.85,
        "triangle": (y < 0.8) & (x.abs() < 0.55 * (y + 1)),
        "cross": (far < 1) & (near < 0.3),
        "ring": (distance < 1) & (distance > 0.3),
    }
    covered = torch.stack([covers[shape] for shape in SHAPES], 2)  # [N, K, shapes, SIDE, SIDE]
    own = kinds[..., 2, None, None, None].expand(-1, -1, 1, SIDE, SIDE)
    mask = covered.gather(2, own)  # [N, K, 1, SIDE, SIDE]
    pictures = 0.1 + 0.05 * torch.randn(len(kinds), 3, SIDE, SIDE)
    for k in range(kinds.shape[1]):
        pictures = torch.where(mask[:, k], colour[:, k], pictures)
    return pictures + 0.05 * torch.randn_like(pictures)


def random_kinds(*shape: int) -> Tensor:
    """``[*shape, 3]``: size, colour and shape, each as a number."""
    return torch.stack([torch.randint(len(names), shape) for names in (SIZES, COLOURS, SHAPES)], -1)


def single(count: int) -> tuple[Tensor, Tensor]:
    """Pictures of one shape somewhere, and its class, colour and shape, ``[N]``."""
    kinds = random_kinds(count, 1)
    middles = SIDE / 2 + 12 * torch.rand(count, 1, 2) - 6
    return paint(kinds, middles), kinds[:, 0, 1] * len(SHAPES) + kinds[:, 0, 2]


def scenes(count: int, new: bool) -> tuple[Tensor, list[str]]:
    """Pictures and captions. ``new``: all of two shapes, in held-out pairs; otherwise one in five of a single shape."""
    kinds = random_kinds(20 * count if new else 4 * count, 2)
    number = (kinds * torch.tensor([len(COLOURS) * len(SHAPES), len(SHAPES), 1])).sum(-1)  # of each shape's combination
    kept_out = (7 * number[:, 0] + number[:, 1]) % 10 == 0
    kinds = kinds[kept_out == new][:count]
    upright = torch.rand(count) < 0.5  # one above the other, or side by side
    along = torch.tensor([8.5, 23.5]) + 2 * torch.rand(count, 2) - 1
    across = SIDE / 2 + 10 * torch.rand(count, 1) - 5 + 4 * torch.rand(count, 2) - 2
    middles = torch.stack([along, across], -1)
    middles[upright] = middles[upright].flip(-1)
    names = [[f"a {phrase(kind)}" for kind in pair] for pair in kinds.tolist()]
    captions = [
        f" {'above' if up else 'left of'} ".join(pair) for pair, up in zip(names, upright.tolist(), strict=True)
    ]
    pictures = paint(kinds, middles)
    if not new:
        alone = count // 5
        pictures[:alone] = paint(kinds[:alone, :1], 8 + (SIDE - 16) * torch.rand(alone, 1, 2))
        captions[:alone] = [pair[0] for pair in names[:alone]]
    return pictures, captions


def phrase(kind: list[int]) -> str:
    size, colour, shape = kind
    return f"{list(SIZES)[size]} {list(COLOURS)[colour]} {SHAPES[shape]}"


def to_numbers(captions: list[str]) -> tuple[Tensor, Tensor]:
    """``words [T + 1, B]`` from <START> to <END>, and ``lengths [B]``, how many of them are predicted."""
    rows = [[NUMBER[word] for word in [START, *caption.split(), END]] for caption in captions]
    words = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], padding_value=NUMBER[END])
    return words, torch.tensor([len(row) - 1 for row in rows])


# ---- the networks ----


class Namer(nn.Module):
    """Names the colour and shape of a single shape. ``body``: without the last layers."""

    def __init__(self, channels: int):
        super().__init__()

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

        self.body = nn.Sequential(*block(3, channels), *block(channels, 2 * channels), *block(2 * channels, CHANNELS))
        self.last = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.last(self.body(pictures))


class Captioner(nn.Module):
    def __init__(self, layers, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 32)
        self.lstm = layers.LSTM(32 + FEATURES, hidden)
        self.head = nn.Linear(hidden, len(WORDS))

    def forward(self, features: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        """``features [B, F]`` and ``words [T, B]`` to logits ``[T, B, words]`` of the next word."""
        return self.head(ragged(self.lstm, self.at_every_step(features, words), lengths)[0])

    def at_every_step(self, features: Tensor, words: Tensor) -> Tensor:
        return torch.cat([self.embedding(words), features.expand(len(words), -1, -1)], -1)

    @torch.inference_mode()
    def write(self, features: Tensor, longest: int = 30) -> list[str]:
        """Greedy decoding, until the last caption of the batch has ended."""
        count = len(features)
        word = torch.full((count,), NUMBER[START], device=features.device)
        ended, states, written = torch.zeros_like(word, dtype=torch.bool), None, []
        for _ in range(longest):
            output, states = self.lstm(self.at_every_step(features, word[None]), states)
            word = self.head(output[0]).argmax(-1)
            written.append(word)
            ended |= word == NUMBER[END]
            if ended.all():
                break
        rows = torch.stack(written, 1).tolist()
        return [" ".join(WORDS[i] for i in row).split(f" {END}")[0] for row in rows]


class Reader(nn.Module):
    """Reads a picture's patches one after the other."""

    def __init__(self, layers, hidden: int):
        super().__init__()
        self.lstm = layers.LSTM(3 * PATCH**2, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``[T, B, classes]`` after each of the T patches."""
        patches = nn.functional.unfold(pictures, PATCH, stride=PATCH)  # [B, numbers of a patch, T], row by row
        return self.head(self.lstm(patches.permute(2, 0, 1))[0])


# ---- training ----


def train(what: str, steps: int, model: nn.Module, loss_of_batch) -> None:
    step = trainer(model, loss_of_batch, steps)
    with timed(what):
        bar = progress(steps, what)
        for i in bar:
            loss = step()
            if i % 20 == 0:
                bar.set_postfix(loss=f"{loss:.3f}")


def trainer(model: nn.Module, loss_of_batch, steps: int, lr: float = 1e-2):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)

    def step() -> Tensor:
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return loss.detach()

    return step


def naming_loss(args, model: nn.Module, batch: int):
    """For the Namer, and for the Reader, which answers after every patch."""
    pictures, names = (tensor.to(args.device) for tensor in single(batch))
    logits = model(pictures)
    return nn.functional.cross_entropy(logits.flatten(0, -2), names.expand(logits.shape[:-1]).flatten())


def caption_loss(args, body: nn.Module, model: Captioner, batch: int) -> Tensor:
    pictures, captions = scenes(batch, new=False)
    words, lengths = to_numbers(captions)
    logits = model(features_of(body, pictures, args), words[:-1].to(args.device), lengths)
    target = words[1:].masked_fill(torch.arange(len(words) - 1)[:, None] >= lengths, -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten().to(args.device), ignore_index=-100)


@torch.no_grad()
def features_of(body: nn.Module, pictures: Tensor, args) -> Tensor:
    return body(pictures.to(args.device)).flatten(1)


# ---- the picture ----


def draw(args, pictures: Tensor, written: list[str], true: list[str], known: Tensor, known_by_namer: float) -> None:
    right = [i for i in range(len(true)) if written[i] == true[i]][:6]
    wrong = [i for i in range(len(true)) if written[i] != true[i]][:4]
    with picture(args, "captioning.png", 9, 6.2) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.8, 1])
        for axes, i in zip(top.subplots(2, 5).flat, right + wrong, strict=False):
            axes.imshow(pictures[i].permute(1, 2, 0).clamp(0, 1))
            axes.axis("off")
            axes.set_title(wrapped(written[i]), fontsize=7.5, color="black" if written[i] == true[i] else ORANGE)
            if written[i] != true[i]:
                below = {"transform": axes.transAxes, "ha": "center", "va": "top", "fontsize": 7.5}
                axes.text(0.5, -0.04, f"it is\n{wrapped(true[i])}", **below)
        draw_reading(bottom.subplots(), known, known_by_namer)


def draw_reading(axes, known: Tensor, known_by_namer: float) -> None:
    axes.plot(range(1, len(known) + 1), 100 * known, color=BLUE)
    axes.axhline(100 * known_by_namer, color=GREY, lw=1, ls="--")
    axes.text(1.2, 100 * known_by_namer - 3, "the convolutional network", color=GREY, va="top")
    for row in range(SIDE // PATCH, len(known), SIDE // PATCH):
        axes.axvline(row, color="#dddddd", lw=0.7)
    axes.set_xlim(1, len(known))
    axes.set_ylim(0, 103)
    axes.set_xlabel(f"patches of {PATCH} x {PATCH} pixels read (a line after each row of them)")
    axes.set_ylabel("% of the shapes known")
    axes.set_title("a picture read as a sequence", loc="left", fontsize=10)


def wrapped(caption: str) -> str:
    return caption.replace(" above ", "\nabove ").replace(" left of ", "\nleft of ")


def main() -> None:
    args = arguments(__doc__)
    full = not args.quick
    batch, hidden = 128 if full else 64, 128

    namer = Namer(channels=16 if full else 8).to(args.device)
    train("the convolutional network", 600 if full else 120, namer, lambda: naming_loss(args, namer, batch))
    namer.eval()
    body = namer.body.requires_grad_(False)

    def captioning(layers):
        model = Captioner(layers, hidden).to(args.device)
        return model, lambda: caption_loss(args, body, model, batch)

    captioner, loss = captioning(args.layers)
    train("captions", 1200 if full else 300, captioner, loss)
    compare(args, lambda layers: trainer(*captioning(layers), steps=100))

    reader = Reader(args.layers, hidden).to(args.device)
    train("reading patches", 1500 if full else 300, reader, lambda: naming_loss(args, reader, batch))

    with torch.inference_mode():
        pictures, names = single(2000)
        known = (reader(pictures.to(args.device)).argmax(-1).cpu() == names).float().mean(1)
        known_by_namer = (namer(pictures.to(args.device)).argmax(-1).cpu() == names).float().mean().item()
    pictures, true = scenes(2000, new=True)
    written = captioner.write(features_of(body, pictures, args))
    draw(args, pictures, written, true, known, known_by_namer)

    exact = sum(w == t for w, t in zip(written, true, strict=True)) / len(true)
    check("shapes that the convolutional network names", known_by_namer, at_least=0.95 if full else 0.7)
    check("captions without a fault, of pairs never seen", exact, at_least=0.95 if full else 0.4)
    check("shapes known after the last patch", known[-1].item(), at_least=0.9 if full else 0.3)


if __name__ == "__main__":
    main()
