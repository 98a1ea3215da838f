"""A language model of characters that reads Python and writes it:  python examples/char_lm.py

Shows: "hello" first, the smallest such model (after h, e, l, l come e, l, l, o); then the source files of Python's
standard library, which are always available. Characters enter as integers, which the layer looks up (no one-hot rows,
no embedding). Training is truncated backpropagation through time with states carried over (``fused_rnn.tbptt``), on
many streams of files side by side, reset where a file begins (``reset_mask``). Half-way the model is saved, and
training resumes from the file, as it does with ``--resume``. Text is sampled one step a call, at several temperatures.

Checks that on held-out files it needs fewer bits per character than the best of several n-gram models of the same
training text.
"""

from __future__ import annotations

import argparse
import math
import random
import sysconfig
import time
from itertools import pairwise
from pathlib import Path

import recipe
import torch
from recipe import BLUE, GREY, ORANGE, WIDTH
from torch import Tensor, nn

import fused_rnn
from fused_rnn.tools.style import keep_blanks

VOCABULARY = 128  # ASCII; other characters become 127
OTHER = 127
HELD_OUT_STREAMS = 8
CHUNK = 64  # characters between two updates of the weights, and how far gradients go back
CHECKPOINT = recipe.OUT / "char_lm.pt"


def hello() -> str:
    """The output of a tiny trained network for "hell": "ello"."""
    text = "hello"
    letters = sorted(set(text))
    ids = torch.tensor([letters.index(letter) for letter in text])
    rnn, head = fused_rnn.RNN(len(letters), 16), nn.Linear(16, len(letters))
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.02)
    for _ in range(100):
        scores = head(rnn(ids[:-1])[0])  # h e l l: after the first l another is right, after the second an o
        loss = nn.functional.cross_entropy(scores, ids[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return "".join(letters[i] for i in scores.argmax(-1))


def library_files() -> tuple[list[Path], list[Path]]:
    """The standard library's modules in random order: nine tenths to train on, the others to test on."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    return files[len(files) // 10 :], files[: len(files) // 10]


def read(files: list[Path], limit: int) -> tuple[Tensor, Tensor]:
    """The files' concatenated characters ``[N]``, at most ``limit``, and where a file begins, bool ``[N]``."""
    texts = [torch.frombuffer(bytearray(file.read_bytes() or b"\n"), dtype=torch.uint8) for file in files]
    starts = torch.zeros(sum(map(len, texts)), dtype=torch.bool)
    starts[torch.tensor([0, *map(len, texts[:-1])]).cumsum(0)] = True
    return torch.cat(texts).long().clamp(max=OTHER)[:limit], starts[:limit]


def held_out(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The text that the model and the n-grams are compared on, as of :func:`read`."""
    return read(library_files()[1], 60_000 if args.quick else 250_000)


def chunks(text: Tensor, starts: Tensor, batch: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The text in ``batch`` parallel streams: ``(characters, next characters, starts)``, each ``[CHUNK, B]``."""
    steps = (len(text) - 1) // (batch * CHUNK) * CHUNK

    def streams(of: Tensor) -> Tensor:
        return of[: steps * batch].view(batch, steps).T.contiguous().to(device)

    parts = (streams(text), streams(text[1:]), streams(starts))
    return list(zip(*(part.split(CHUNK) for part in parts), strict=True))


class CharLM(nn.Module):
    def __init__(self, layers, hidden: int):
        super().__init__()
        self.gru = layers.GRU(VOCABULARY, hidden)
        self.head = nn.Linear(hidden, VOCABULARY)

    def states(self, ids: Tensor, state: Tensor | None, reset_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states at all steps ``[T, B, H]`` of ids ``[T, B]``, and the last one ``[1, B, H]``."""
        if isinstance(self.gru, fused_rnn.GRU):
            return self.gru(ids, state, reset_mask=reset_mask)
        one_hot = nn.functional.one_hot(ids, VOCABULARY).to(self.head.weight.dtype)
        if reset_mask is None:
            return self.gru(one_hot, state)
        # torch.nn: a call up to each step where a file begins in any row.
        stops = [0, *(reset_mask.any(1).nonzero().flatten().tolist()), len(ids)]
        if state is None:
            state = one_hot.new_zeros(1, ids.shape[1], self.gru.hidden_size)
        outputs = []
        for start, end in pairwise(stops):
            if start < end:
                output, state = self.gru(one_hot[start:end], state.masked_fill(reset_mask[start].unsqueeze(-1), 0))
                outputs.append(output)
        return torch.cat(outputs), state

    def forward(self, ids: Tensor, state: Tensor | None = None, reset_mask: Tensor | None = None):
        """Scores of the next character ``[T, B, V]``, and the state to continue from."""
        output, state = self.states(ids, state, reset_mask)
        return self.head(output), state


def nats(scores: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())


class Training:
    """A model and the whole state of its training, which can be saved and resumed."""

    def __init__(self, layers, hidden: int, updates: int, device: torch.device):
        self.hidden, self.updates, self.device = hidden, updates, device
        self.model = CharLM(layers, hidden).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.state: Tensor | None = None  # at the end of the last chunk
        self.curve: list[tuple[int, float]] = []  # (characters read, bits per character on the held-out files)

    def _rate(self, update: int) -> float:
        """Linear warm-up over the first 5% of updates, then cosine decay."""
        done = update / self.updates
        return min(1.0, 20 * done + 0.01) / self.hidden * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    @property
    def update(self) -> int:
        return self.schedule.last_epoch

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        torch.save(kept | {name: getattr(self, name) for name in ("hidden", "updates", "state", "curve")}, path)

    @classmethod
    def load(cls, path: Path, layers, device: torch.device) -> Training:
        kept = torch.load(path, map_location=device)
        training = cls(layers, kept["hidden"], kept["updates"], device)
        for name in ("model", "optimizer", "schedule"):
            getattr(training, name).load_state_dict(kept[name])
        training.state, training.curve = kept["state"], kept["curve"]
        return training

    def run(self, until: int, parts: list, watched: list) -> None:
        """Trains up to update number ``until``, cycling through the chunks ``parts``."""
        bar = recipe.progress(until - self.update, "training")
        ticks, every = iter(bar), max(1, self.updates // 20)
        while self.update < until:
            position = self.update % len(parts)
            if position == 0:  # the beginning of the text
                self.state = None
            left = parts[position : position + until - self.update]
            for chunk in fused_rnn.tbptt(self.model, nats, left, self.state, show_progress=False):
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.schedule.step()
                self.state = chunk.state
                next(ticks, None)
                if self.update % every == 0 or self.update == self.updates:
                    self.curve.append((self.update * parts[0][0].numel(), bits_per_character(self.model, watched)))
                    bar.set_postfix(bits=self.curve[-1][1])


@torch.no_grad()
def bits_per_character(model: CharLM, parts: list) -> float:
    """On consecutive chunks, with states carried over."""
    losses = [chunk.loss for chunk in fused_rnn.tbptt(model, nats, parts, backward=None, show_progress=False)]
    return torch.stack(losses).mean().item() / math.log(2)


class NGrams:
    """The baseline: n-gram models counted in ``text [N]``, n up to ``longest``.

    Witten-Bell interpolation: the more different characters followed a context, the more weight its next shorter
    context has. Characters have 7 bits, so n of them are one number of 7 * n bits.
    """

    def __init__(self, text: Tensor, longest: int):
        self.tables = []
        for n in range(1, longest + 1):
            grams, counts = self._grams(text, n).unique(return_counts=True)
            contexts, which, followers = (grams >> 7).unique(return_inverse=True, return_counts=True)
            totals = torch.zeros_like(followers).index_add_(0, which, counts)
            self.tables.append((grams, counts, contexts, totals, followers))

    @staticmethod
    def _grams(text: Tensor, n: int) -> Tensor:
        """For each character the number ``[N]`` of the n characters that end with it."""
        grams = torch.zeros_like(text)
        for back in range(n):
            grams[back:] += text[: len(text) - back] << (7 * back)
        return grams

    def bits_per_character(self, text: Tensor) -> list[float]:
        """For n = 1, 2, ..."""
        chance, bits = torch.full(text.shape, 1 / VOCABULARY, dtype=torch.float64), []

        def look_up(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
            place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            return torch.where(keys[place] == wanted, values[place], 0)

        for n, (grams, counts, contexts, totals, followers) in enumerate(self.tables, 1):
            wanted = self._grams(text, n)
            count = look_up(grams, counts, wanted)
            total, distinct = (look_up(contexts, values, wanted >> 7) for values in (totals, followers))
            chance = torch.where(total > 0, (count + distinct * chance) / (total + distinct).clamp(min=1), chance)
            bits.append(-chance.log2().mean().item())
        return bits


@torch.no_grad()
def write(model: CharLM, beginning: str, length: int, temperatures: list[float]) -> list[str]:
    """Text sampled from the model, one for each temperature."""
    heat = torch.tensor(temperatures, device=model.head.weight.device).unsqueeze(-1)
    ids = torch.tensor([*beginning.encode()], device=heat.device).unsqueeze(-1).expand(-1, len(temperatures))
    scores, state = model(ids)
    written = [ids]
    start = time.perf_counter()
    for _ in range(length):
        ids = torch.multinomial((scores[-1] / heat).softmax(-1), 1).T
        written.append(ids)
        scores, state = model(ids, state)
    spent = 1e6 * (time.perf_counter() - start) / length
    print(f"drawing text: {spent:.0f} us a character, {len(temperatures)} texts side by side")
    return [bytes(text.tolist()).decode("ascii") for text in torch.cat(written).T]


def draw(args: argparse.Namespace, curve: list, ngrams: list[float], texts: dict[float, str]) -> None:
    with recipe.picture(args, "char_lm.svg", WIDTH, 6.8) as figure:
        bits, text = figure.subplots(2, 1, height_ratios=[3, 4])
        characters, values = zip(*curve, strict=True)
        millions = [count / 1e6 for count in characters]
        bits.plot(millions, values, color=BLUE, marker=".")
        bits.annotate(f"{values[-1]:.2f}", (millions[-1], values[-1]), (5, 0), textcoords="offset points", color=BLUE)
        top = 1.6 * min(ngrams)
        shown = sorted((value, n) for n, value in enumerate(ngrams, 1) if value < top)
        heights = apart([value for value, _ in shown], 0.06 * (top - min(values)))
        for (value, n), height in zip(shown, heights, strict=True):
            best = value == min(ngrams)
            style = {"color": ORANGE if best else GREY}
            bits.axhline(value, lw=1.2 if best else 0.7, ls=":", **style)
            style |= {"xycoords": ("axes fraction", "data"), "fontsize": 8, "va": "center"}
            bits.annotate(f"{n}-gram {value:.2f}", (1.01, height), **style)
        bits.set(xlabel="million characters read", ylim=(None, 1.03 * top), xlim=(0, 1.09 * millions[-1]))
        bits.set_title("bits per character on held-out files, the same for the model and the n-grams")
        text.axis("off")
        text.set_title("drawn from the model, by temperature")
        for k, (temperature, written) in enumerate(texts.items()):
            top = 0.98 - 0.345 * k
            text.text(0, top, f"{temperature}", color=BLUE, va="top", transform=text.transAxes)
            lines = keep_blanks("\n".join(line[:78] for line in written.split("\n")[:7]))
            style = {"family": "monospace", "fontsize": 8, "va": "top", "parse_math": False}
            text.text(0.06, top, lines, transform=text.transAxes, **style)


def apart(heights: list[float], least: float) -> list[float]:
    """Ascending heights, moved up where they would be less than ``least`` apart."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + least) if found else height)
    return found


def trained(args: argparse.Namespace, checkpoint: Path, resume: bool = False) -> tuple[Training, Tensor, list]:
    """A trained model, saved half-way and at the end; its training text ``[N]``, and the chunks."""
    hidden, updates, batch, limit = (128, 2500, 8, 400_000) if args.quick else (320, 7000, 16, 2_000_000)
    text, starts = read(library_files()[0], limit)
    parts = chunks(text, starts, batch, args.device)
    watched = chunks(*held_out(args), HELD_OUT_STREAMS, args.device)
    with recipe.timed(f"training, {updates} updates of {batch} x {CHUNK} characters, from {len(text):,}"):
        if not resume:
            training = Training(args.layers, hidden, updates, args.device)
            training.run(updates // 2, parts, watched)
            training.save(checkpoint)
        training = Training.load(checkpoint, args.layers, args.device)
        training.run(updates, parts, watched)
        training.save(checkpoint)
    return training, text, parts


def main() -> None:
    args = recipe.arguments(__doc__, {"--resume": {"action": "store_true", "help": f"go on from {CHECKPOINT}"}})
    said = hello()
    print(f"hell -> {said}")
    if said != "ello":
        raise SystemExit(f'missed: after "hell" it says "{said}", expected "ello"')

    training, text, parts = trained(args, args.out / CHECKPOINT.name if args.quick else CHECKPOINT, args.resume)
    longest = 5 if args.quick else 7
    ngrams = NGrams(text, longest).bits_per_character(held_out(args)[0])
    temperatures = [0.4, 0.7, 1.0]
    texts = write(training.model, "\n\nclass ", 400, temperatures)
    draw(args, training.curve, ngrams, dict(zip(temperatures, (text.strip() for text in texts), strict=True)))
    for temperature, written in zip(temperatures, texts, strict=True):
        print(f"---- temperature {temperature}\n{written.strip()}")
    print("---- n-grams on held-out files, bits per character:")
    print(", ".join(f"{n}: {bits:.3f}" for n, bits in enumerate(ngrams, 1)))
    recipe.check("bits per character on held-out files", training.curve[-1][1], at_most=round(min(ngrams), 4))

    def training_of(layers):
        model = CharLM(layers, training.hidden).to(args.device)
        optimizer = torch.optim.Adam(model.parameters())
        ids, target, starts = next(part for part in parts if part[2][1:].any())

        def step() -> None:
            optimizer.zero_grad()
            nats(model(ids, reset_mask=starts)[0], target).backward()
            optimizer.step()

        return step

    recipe.compare(args, training_of)


if __name__ == "__main__":
    main()
