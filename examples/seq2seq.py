"""An encoder and a decoder that read dates in any of ten notations and write them in one:  python examples/seq2seq.py

    "wednesday, the 4th of march 1987"  ->  "4 march 1987"          "iii/4 87"  ->  "4 march 1987"

Shows: sequence to sequence with two GRUs. The encoder reads rows of different lengths (``lengths``, neither sorted nor
packed), in both directions; its final states are the context. A feed-forward layer turns it into the decoder's initial
state, and it also enters the decoder at every step. Training uses teacher forcing; afterwards the decoder reads its own
output, one step a call, greedily or by beam search. Whether 03/04/1987 is in March or in April cannot be known: both
readings are trained, and the beam holds both.

Checks that 95% of held-out dates are written exactly, by greedy decoding and by beam search.
"""

from __future__ import annotations

import argparse
import random
from datetime import date, timedelta

import recipe
import torch
from recipe import BLUE, GREEN, GREY, ORANGE, WIDTH
from torch import Tensor, nn

MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")


def ordinal(n: int) -> str:
    ending = "th" if 10 < n < 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def written(day: date) -> str:
    """The decoder's target."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


NOTATIONS = {
    "1987-03-04": lambda d: d.isoformat(),
    "19870304": lambda d: f"{d:%Y%m%d}",
    "4.3.1987": lambda d: f"{d.day}.{d.month}.{d.year}",
    "4 mar 87": lambda d: f"{d.day} {MONTHS[d.month - 1][:3]} {d:%y}",
    "iii/4 87": lambda d: f"{ROMAN[d.month - 1]}/{d.day} {d:%y}",
    "march 4, 1987": lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    "the 4th of march": lambda d: f"{WEEKDAYS[d.weekday()]}, the {ordinal(d.day)} of {MONTHS[d.month - 1]} {d.year}",
    "1987, day 4 of": lambda d: f"{d.year}, day {d.day} of {MONTHS[d.month - 1][:3]}",
}
DAY_FIRST, MONTH_FIRST = (lambda d: f"{d:%d/%m/%Y}"), (lambda d: f"{d:%m/%d/%Y}")
TRAINED = (*NOTATIONS.values(), DAY_FIRST, MONTH_FIRST)

PAD, START, END = range(3)
CHARACTERS = " ,-./0123456789abcdefghijklmnopqrstuvwxyz"
TOKENS = {character: i + 3 for i, character in enumerate(CHARACTERS)}
VOCABULARY = len(CHARACTERS) + 3
LONGEST = len("30 september 2049") + 1  # with END


def random_dates(count: int, seen: bool, source: random.Random) -> list[date]:
    """From 1950 to 2049, so that two digits determine the year. Every tenth day is held out of training."""
    first, days = date(1950, 1, 1), []
    while len(days) < count:
        day = first + timedelta(source.randrange(36525))
        if (day.toordinal() % 10 != 0) == seen:
            days.append(day)
    return days


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids ``[T, B]``, padded with PAD, and the texts' lengths ``[B]``."""
    rows = [torch.tensor([TOKENS[character] for character in text]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, padding_value=PAD), torch.tensor([len(row) for row in rows])


def decode(tokens: Tensor) -> str:
    """The text of one row of tokens, up to its END."""
    text = ""
    for token in tokens.tolist():
        if token == END:
            break
        text += CHARACTERS[token - 3] if token > END else "?"
    return text


class Translator(nn.Module):
    def __init__(self, layers, hidden: int, embedding: int = 32):
        super().__init__()
        self.source_embedding = nn.Embedding(VOCABULARY, embedding)
        self.target_embedding = nn.Embedding(VOCABULARY, embedding)
        self.encoder = layers.GRU(embedding, hidden, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.decoder = layers.GRU(embedding + 2 * hidden, hidden)
        self.head = nn.Linear(hidden, VOCABULARY)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The context ``[B, 2H]`` of source ``[T, B]``, and from it the decoder's first state ``[1, B, H]``."""
        _, h_n = recipe.ragged(self.encoder, self.source_embedding(source), lengths)  # h_n: each row's own end
        context = torch.cat([h_n[0], h_n[1]], -1)
        return context, self.bridge(context).tanh().unsqueeze(0)

    def decode(self, previous: Tensor, context: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[T, B, V]`` of the characters after ``previous [T, B]``, and the state ``[1, B, H]`` then."""
        embedded = self.target_embedding(previous)
        everywhere = context.expand(len(previous), *context.shape)
        output, state = self.decoder(torch.cat([embedded, everywhere], -1), state)
        return self.head(output), state

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """The loss of target ``[T, B]``, which ends with END and then PAD. Teacher forcing: it is the input too."""
        context, state = self.encode(source, lengths)
        previous = torch.cat([torch.full_like(target[:1], START), target[:-1]])
        scores, _ = self.decode(previous, context, state)
        return nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten(), ignore_index=PAD)

    @torch.no_grad()
    def greedy(self, source: Tensor, lengths: Tensor) -> Tensor:
        """Tokens ``[LONGEST, B]``: at each step the likeliest one, which is the next step's input."""
        context, state = self.encode(source, lengths)
        tokens = [torch.full_like(source[:1], START)]
        for _ in range(LONGEST):
            scores, state = self.decode(tokens[-1], context, state)
            tokens.append(scores.argmax(-1))
        return torch.cat(tokens[1:])

    @torch.no_grad()
    def beam_search(self, source: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The ``width`` (K) best texts found for each row, best first.

        Returns:
            tokens ``[B, K, LONGEST]``, END behind their end, and their log probabilities ``[B, K]``.
        """
        context, state = self.encode(source, lengths)
        batch, device = len(context), context.device
        context, state = (
            context.repeat_interleave(width, 0),
            state.repeat_interleave(width, 1),
        )  # row b, beam k: b*K + k
        tokens = torch.full((batch, width, 1), START, device=device)
        # The beams of a row begin alike: only the first one may be continued, or all would stay alike.
        total = torch.tensor([0.0] + [float("-inf")] * (width - 1), device=device).repeat(batch, 1)
        ended = torch.zeros(batch, width, dtype=torch.bool, device=device)
        only_end = torch.full((VOCABULARY,), float("-inf"), device=device)
        only_end[END] = 0.0
        for _ in range(LONGEST):
            scores, state = self.decode(tokens[..., -1].reshape(1, -1), context, state)
            gained = scores.log_softmax(-1).view(batch, width, VOCABULARY)
            gained = torch.where(ended.unsqueeze(-1), only_end, gained)
            total, best = (total.unsqueeze(-1) + gained).flatten(1).topk(width)
            beam, token = best // VOCABULARY, best % VOCABULARY
            tokens = torch.cat([tokens.gather(1, beam.unsqueeze(-1).expand_as(tokens)), token.unsqueeze(-1)], -1)
            ended = ended.gather(1, beam) | (token == END)
            rows = (beam + width * torch.arange(batch, device=device).unsqueeze(-1)).flatten()
            state = state[:, rows]
        return tokens[..., 1:], total


def make_batch(days: list[date], notations: list, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Source ``[T, B]``, its lengths ``[B]``, target ``[T', B]``."""
    source, lengths = encode([notation(day) for notation, day in zip(notations, days, strict=True)])
    target, ends = encode([written(day) for day in days])
    target = torch.cat([target, torch.full_like(target[:1], PAD)])
    target[ends, torch.arange(len(days))] = END
    return source.to(device), lengths.to(device), target.to(device)


def training_batch(size: int, source: random.Random, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return make_batch(random_dates(size, True, source), source.choices(TRAINED, k=size), device)


def share_exact(model: Translator, days: list[date], notation, device: torch.device, width: int = 0) -> float:
    """The share of days written exactly, greedily or with a beam of ``width``."""
    source, lengths, _ = make_batch(days, [notation] * len(days), device)
    tokens = model.beam_search(source, lengths, width)[0][:, 0] if width else model.greedy(source, lengths).T
    return sum(decode(row) == written(day) for row, day in zip(tokens, days, strict=True)) / len(days)


Curve = list[tuple[int, list[float]]]  # steps of training, and % of unseen dates written exactly in each notation


def train(model: Translator, args: argparse.Namespace, steps: int, batch: int, watched: int) -> Curve:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    source, curve = random.Random(args.seed), []
    days = random_dates(watched, False, random.Random(1))
    bar = recipe.progress(steps, "training")
    for step in bar:
        loss = model(*training_batch(batch, source, args.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % (steps // 25) == 0:
            curve.append((step, [100 * share_exact(model, days, way, args.device) for way in NOTATIONS.values()]))
            bar.set_postfix(loss=loss.item(), exact=f"{sum(curve[-1][1]) / len(NOTATIONS):.0f}%")
    return curve


def both_readings(model: Translator, device: torch.device, width: int) -> float:
    """How often the best two of the beam are the two readings, for unseen dates written like 03/04/1987."""
    days = [d for d in random_dates(500, False, random.Random(3)) if d.day <= 12 and d.day != d.month]
    source, lengths, _ = make_batch(days, [DAY_FIRST] * len(days), device)
    tokens, _ = model.beam_search(source, lengths, width)
    found = [{decode(beam) for beam in beams[:2]} for beams in tokens]
    readings = [{written(day), written(day.replace(day=day.month, month=day.day))} for day in days]
    return sum(map(set.__eq__, found, readings)) / len(days)


def draw(args, model: Translator, curve: Curve, width: int, watched: int) -> None:
    least = 50 / watched  # % wrong, where none is: half of one date, as a logarithm has no zero
    with recipe.picture(args, "seq2seq.svg", WIDTH, 5.2) as figure:
        learning, below = figure.subfigures(2, 1, height_ratios=[3, 2])
        axes = learning.subplots()
        steps, shares = zip(*curve, strict=True)
        styles = [{"color": color, "ls": dash} for dash in ("-", "--") for color in (BLUE, ORANGE, GREEN, GREY)]
        for name, line, style in zip(NOTATIONS, zip(*shares, strict=True), styles, strict=True):
            axes.plot(steps, [max(100 - share, least) for share in line], lw=1.3, label=name, **style)
        axes.set(xlabel="steps of training", ylabel="% wrong", yscale="log", ylim=(0.8 * least, 130))
        axes.set_yticks([least, 1, 10, 100], [f"none of {watched}", "1", "10", "100"])
        axes.minorticks_off()
        axes.grid()
        axes.set_title("unseen dates not written exactly, by notation")
        learning.legend(loc="outside right center")
        texts = {"03/04/1987": "two readings", "31/04/1987": "no such day", "4 mar 87": "one reading"}
        source, lengths = (x.to(args.device) for x in encode([*texts]))
        tokens, logarithms = model.beam_search(source, lengths, width)
        below.suptitle(f"the best three of a beam of {width}, and their probabilities", x=0.01, ha="left", fontsize=10)
        for i, (panel, (text, remark)) in enumerate(zip(below.subplots(1, 3), texts.items(), strict=True)):
            chances = logarithms[i, :3].exp().tolist()
            panel.barh(range(3), chances, color=[ORANGE if chance > 0.05 else GREY for chance in chances], height=0.25)
            for k, chance in enumerate(chances):
                panel.text(0, k - 0.25, f"{chance:.3f}  {decode(tokens[i, k])}", va="bottom")
            panel.set(xlim=(0, 1), ylim=(2.4, -0.9), yticks=[], xticks=[])
            panel.spines[["left", "bottom"]].set_visible(False)
            panel.set_title(f"{text}: {remark}", fontsize=9, color=BLUE)


def main() -> None:
    args = recipe.arguments(__doc__)
    hidden, batch, steps, watched, tested = (96, 128, 400, 64, 300) if args.quick else (192, 128, 1000, 500, 2000)
    width = 5
    model = Translator(args.layers, hidden).to(args.device)
    with recipe.timed(f"training, {steps} steps of {batch} dates"):
        curve = train(model, args, steps, batch, watched)

    days = random_dates(tested, False, random.Random(2))
    exact = {name: share_exact(model, days, notation, args.device) for name, notation in NOTATIONS.items()}
    by_beam = [share_exact(model, days[: tested // 4], notation, args.device, width) for notation in NOTATIONS.values()]
    draw(args, model, curve, width, watched)
    for name, share in exact.items():
        print(f"  {name:<18}{100 * share:5.1f}%")
    recipe.check("unseen dates written exactly, greedy, %", 100 * sum(exact.values()) / len(exact), at_least=95)
    recipe.check("with a beam of 5, %", 100 * sum(by_beam) / len(by_beam), at_least=95)
    both = 100 * both_readings(model, args.device, width)
    recipe.check("ambiguous dates whose two readings lead the beam, %", both, at_least=40 if args.quick else 90)

    def training(layers):
        model = Translator(layers, hidden).to(args.device)
        optimizer = torch.optim.Adam(model.parameters())
        rows = training_batch(batch, random.Random(0), args.device)

        def step() -> None:
            optimizer.zero_grad()
            model(*rows).backward()
            optimizer.step()

        return step

    recipe.compare(args, training)


if __name__ == "__main__":
    main()
