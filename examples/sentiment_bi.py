"""Words whose sense depends on what follows, for which both directions are needed:  python examples/sentiment_bi.py

    "the plot was terribly , as my sister put it , exciting"    terribly praises here
    "the plot was terribly , as my sister put it , dull"        and blames there

Shows: a bidirectional LSTM over reviews of different lengths. Many-to-many: each word's sense (praise, blame, neither)
from its contextual representation, the two directions' states at that word. Many-to-one: the review's verdict, from the
two directions' final states, and from the states' mean over the review. Three models are trained: one reads forward,
one backward, one both ways. The first cannot know what "terribly" is going to mean, and the second cannot know that
there is a "not" before "exciting". The test reviews consist of pairs of words that are not in the training data.

Checks that the forward reader gets at most 60% of the words that depend on what follows, the backward reader at most
60% of those that depend on what precedes, and the reader of both at least 95% of each.
"""

from __future__ import annotations

import random

import recipe
import torch
from recipe import BLUE, GREEN, GREY, ORANGE, WIDTH
from torch import Tensor, nn

ADVERBS = ("terribly", "awfully", "insanely", "wickedly", "frighteningly", "unbelievably", "dreadfully", "painfully")
PRAISE = ("exciting", "brilliant", "moving", "funny", "clever", "charming", "gripping", "lovely")
BLAME = ("dull", "boring", "clumsy", "silly", "lifeless", "tedious", "flat", "lame")
NEGATIONS = ("not", "never", "hardly", "scarcely")
SUBJECTS = ("the plot", "the acting", "the music", "the ending", "every scene", "the dialogue", "her voice", "it all")
VERBS = ("was", "felt", "seemed", "became")
ASIDES = (
    *(", as my sister put it ,", ", to my mind ,", ", for a film of this length ,"),
    *(", from the first scene to the last ,", ", at least for me ,", ", and we saw it twice ,"),
)
LINKS = (".", "and", "but", ";")
PHRASES = (*ADVERBS, *PRAISE, *BLAME, *NEGATIONS, *SUBJECTS, *VERBS, *ASIDES, *LINKS)
WORDS = sorted({word for phrase in PHRASES for word in phrase.split()})
IDS = {word: i for i, word in enumerate(WORDS)}

BAD, NEITHER, GOOD = range(3)
KINDS = ("neutral words", "adjectives", "turned by what stands before", "decided by what follows")
NEUTRAL, PLAIN, LEFT, RIGHT = range(len(KINDS))
READERS = {"forward": slice(0, 1), "backward": slice(1, 2), "both": slice(0, 2)}  # the directions that each uses


def clause(source: random.Random, held_out: bool) -> tuple[list[tuple[str, int, int]], int]:
    """(word, sense, kind) of each word, and the clause's sense. Every fourth pair of words is held out of training."""

    def neutral(text: str) -> list[tuple[str, int, int]]:
        return [(word, NEITHER, NEUTRAL) for word in text.split()]

    while True:
        adjective, sense = source.choice([(PRAISE, GOOD), (BLAME, BAD)])
        i, kind = source.randrange(len(adjective)), source.choice((PLAIN, LEFT, RIGHT))
        before = {PLAIN: VERBS, LEFT: NEGATIONS, RIGHT: ADVERBS}[kind]
        j = source.randrange(len(before))
        if ((i + j) % 4 == 0) == held_out:
            break
    words = neutral(source.choice(SUBJECTS))
    words += neutral(before[j] if kind == PLAIN else source.choice(VERBS))
    if kind == RIGHT:
        words.append((before[j], sense, RIGHT))
    elif kind == LEFT:
        words += neutral(before[j])
        sense = GOOD + BAD - sense
    for _ in range(source.randrange(2)):
        words += neutral(source.choice(ASIDES))
    words.append((adjective[i], sense, LEFT if kind == LEFT else PLAIN))
    return words, sense


def review(source: random.Random, held_out: bool) -> tuple[list[tuple[str, int, int]], int]:
    """Three or five clauses, and the sense of most of them: 1 praise, 0 blame."""
    words, praised, count = [], 0, source.choice((3, 5))
    for k in range(count):
        more, sense = clause(source, held_out)
        words += [*more, (LINKS[0] if k == count - 1 else source.choice(LINKS), NEITHER, NEUTRAL)]
        praised += sense == GOOD
    return words, int(2 * praised > count)


def make_batch(size: int, source: random.Random, device: torch.device, held_out: bool = False) -> tuple[Tensor, ...]:
    """Word ids ``[T, B]``, lengths ``[B]``, senses and kinds ``[T, B]`` (-1 as padding), verdicts ``[B]``."""
    reviews = [review(source, held_out) for _ in range(size)]

    def padded(rows: list[list[int]], padding: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], padding_value=padding).to(device)

    return (
        padded([[IDS[word] for word, _, _ in words] for words, _ in reviews], 0),
        torch.tensor([len(words) for words, _ in reviews], device=device),
        padded([[sense for _, sense, _ in words] for words, _ in reviews], -1),
        padded([[kind for _, _, kind in words] for words, _ in reviews], -1),
        torch.tensor([verdict for _, verdict in reviews], device=device),
    )


class Reader(nn.Module):
    """Reads both ways; the answers come from ``directions``."""

    def __init__(self, layers, directions: slice = READERS["both"], hidden: int = 64, embedding: int = 32):
        super().__init__()
        self.directions, self.hidden = directions, hidden
        self.embedding = nn.Embedding(len(WORDS), embedding)
        self.dropout = nn.Dropout(0.2)  # otherwise it memorises pairs of words
        self.lstm = layers.LSTM(embedding, hidden, bidirectional=True)
        width = hidden * (directions.stop - directions.start)
        self.sense = nn.Linear(width, 3)
        self.verdict_of_final = nn.Linear(width, 2)
        self.verdict_of_mean = nn.Linear(width, 2)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of each word's sense ``[T, B, 3]``, of the verdict from final and from pooled states ``[B, 2]``."""
        output, (h_n, _) = recipe.ragged(self.lstm, self.dropout(self.embedding(ids)), lengths)
        states = output.unflatten(-1, (2, self.hidden))[..., self.directions, :].flatten(-2)  # [T, B, 1 or 2 * H]
        final = h_n[self.directions].transpose(0, 1).flatten(1)  # each direction's last state, at the end of each row
        mean = states.sum(0) / lengths.unsqueeze(-1)  # states of padding are zero
        return self.sense(states), self.verdict_of_final(final), self.verdict_of_mean(mean)


def loss_of(model: Reader, ids: Tensor, lengths: Tensor, senses: Tensor, _, verdicts: Tensor) -> Tensor:
    words, final, mean = model(ids, lengths)
    loss = nn.functional.cross_entropy(words.flatten(0, 1), senses.flatten(), ignore_index=-1)
    return loss + 0.5 * sum(nn.functional.cross_entropy(verdict, verdicts) for verdict in (final, mean))


Results = tuple[list[float], list[float]]  # of :func:`accuracies`


def train(model: Reader, name: str, steps: int, batch: int, watched: tuple[Tensor, ...], args) -> dict[int, Results]:
    """The accuracies on ``watched`` after 1, 2, 3, 5, 8 ... steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=steps)
    source, curve = random.Random(args.seed), {}
    wanted = {round(steps ** (k / 24)) for k in range(25)}
    bar = recipe.progress(steps, f"training, {name}")
    for step in bar:
        loss = loss_of(model, *make_batch(batch, source, args.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=loss.item())
        if step in wanted:
            curve[step] = accuracies(model.eval(), watched)
            model.train()
    return curve


@torch.no_grad()
def accuracies(model: Reader, batch: tuple[Tensor, ...]) -> Results:
    """Accuracies in percent: of the words of each kind, and of the verdicts from final and from pooled states."""
    ids, lengths, senses, kinds, verdicts = batch
    words, *reviews = model(ids, lengths)
    right = (words.argmax(-1) == senses).float()
    of_words = [100 * right[kinds == kind].mean().item() for kind in range(len(KINDS))]
    return of_words, [100 * (scores.argmax(-1) == verdicts).float().mean().item() for scores in reviews]


SHOWN = (
    "the plot was terribly , to my mind , exciting ;",
    "it all felt terribly dull ; her voice seemed not , at least for me , dull .",
)


@torch.no_grad()
def draw(args, models: dict[str, Reader], curves: dict[str, dict[int, Results]]) -> None:
    colors = dict(zip(models, (ORANGE, GREEN, BLUE), strict=True))
    with recipe.picture(args, "sentiment_bi.svg", WIDTH, 6.6) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=[3, 1])
        panels = above.subplots(2, 2, sharex=True, sharey=True)
        what = [f"words {KINDS[kind]}" if kind != PLAIN else KINDS[kind] for kind in (PLAIN, LEFT, RIGHT)]
        for axes, kind, title in zip(
            panels.flat, (PLAIN, LEFT, RIGHT, None), [*what, "the review's verdict"], strict=True
        ):
            for name, curve in curves.items():
                right = [of_reviews[1] if kind is None else of_words[kind] for of_words, of_reviews in curve.values()]
                style = {"color": colors[name], "lw": 3.5 if name == "both" else 1.5, "label": f"reads {name}"}
                axes.plot([*curve], [100 - share for share in right], alpha=0.6 if name == "both" else 1, **style)
            axes.set_title(title)
            axes.set(xscale="log", ylim=(-3, 103))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.grid()
        for axes in panels[:, 0]:
            axes.set_ylabel("% wrong")
        for axes in panels[-1]:
            axes.set_xlabel("steps of training")
        handles, labels = axes.get_legend_handles_labels()
        above.legend(handles, labels, loc="outside upper center", ncols=3)
        below.suptitle("how each colours a review: praise blue, blame orange", x=0.01, ha="left", fontsize=10)
        show_review(args, below.subplots(), models)


def show_review(args, axes, models: dict[str, Reader]) -> None:
    lines = [text.split() for text in SHOWN]
    words = [word for line in lines for word in line]
    ids = torch.tensor([[IDS[word]] for word in words], device=args.device)
    axes.set(xlim=(0, 88), ylim=(-2.9 * len(models), 0.6))
    axes.axis("off")
    for i, (name, model) in enumerate(models.items()):
        senses = iter(model(ids, torch.tensor([len(words)]))[0][:, 0].argmax(-1).tolist())
        axes.text(0, -2.9 * i, name, color=GREY, va="center")
        for row, line in enumerate(lines):
            column = 11
            for word in line:
                sense = next(senses)
                style = {"color": (ORANGE, "black", BLUE)[sense], "weight": "normal" if sense == NEITHER else "bold"}
                axes.text(column, -2.9 * i - 1.15 * row, word, family="monospace", fontsize=8, va="center", **style)
                column += len(word) + 1


def main() -> None:
    args = recipe.arguments(__doc__)
    steps, batch, tested = (250, 64, 500) if args.quick else (1000, 64, 4000)
    models, curves, results = {}, {}, {}
    watched = make_batch(tested // 4, random.Random(args.seed + 2), args.device, held_out=True)
    test = make_batch(tested, random.Random(args.seed + 1), args.device, held_out=True)
    with recipe.timed(f"training three readers, {steps} steps of {batch} reviews each"):
        for name, directions in READERS.items():
            models[name] = Reader(args.layers, directions).to(args.device)
            curves[name] = train(models[name], name, steps, batch, watched, args)
            results[name] = accuracies(models[name].eval(), test)
    draw(args, models, curves)
    print("percent right on unseen pairs of words:")
    for name, (of_words, of_reviews) in results.items():
        kinds = ", ".join(f"{kind} {share:.1f}" for kind, share in zip(KINDS, of_words, strict=True))
        print(f"  {name:>8}: {kinds}; verdict from final states {of_reviews[0]:.1f}, from pooled {of_reviews[1]:.1f}")
    recipe.check("forward, words decided by what follows, %", results["forward"][0][RIGHT], at_most=60)
    recipe.check("backward, words turned by what stands before, %", results["backward"][0][LEFT], at_most=60)
    for kind in (RIGHT, LEFT):
        recipe.check(f"both, words {KINDS[kind]}, %", results["both"][0][kind], at_least=95)
    for share, states in zip(results["both"][1], ("final", "pooled"), strict=True):
        recipe.check(f"both, verdict from {states} states, %", share, at_least=80 if args.quick else 95)

    def training(layers):
        model = Reader(layers).to(args.device)
        rows = make_batch(batch, random.Random(0), args.device)
        return recipe.plain_step(model, lambda: loss_of(model, *rows))

    recipe.compare(args, training)


if __name__ == "__main__":
    main()
