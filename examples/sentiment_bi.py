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
from recipe import BLUE, GREEN, GREY, ORANGE
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
KINDS = ("neutral words", "adjectives", "turned by what\nstands before", "decided by\nwhat follows")
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


def train(model: Reader, name: str, steps: int, batch: int, args) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=steps)
    source = random.Random(args.seed)
    bar = recipe.progress(steps, f"training, {name}")
    for _ in bar:
        loss = loss_of(model, *make_batch(batch, source, args.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=loss.item())


@torch.no_grad()
def accuracies(model: Reader, batch: tuple[Tensor, ...]) -> tuple[list[float], list[float]]:
    """Accuracies in percent: of the words of each kind, and of the verdicts from final and from pooled states."""
    ids, lengths, senses, kinds, verdicts = batch
    words, *reviews = model(ids, lengths)
    right = (words.argmax(-1) == senses).float()
    of_words = [100 * right[kinds == kind].mean().item() for kind in range(len(KINDS))]
    return of_words, [100 * (scores.argmax(-1) == verdicts).float().mean().item() for scores in reviews]


SHOWN = (
    "the plot was terribly , to my mind , exciting ; it all felt terribly dull ; "
    "her voice seemed not , at least for me , dull ."
)


@torch.no_grad()
def draw(args, models: dict[str, Reader], results: dict[str, tuple[list[float], list[float]]]) -> None:
    colors = dict(zip(models, (ORANGE, GREEN, BLUE), strict=True))
    with recipe.picture(args, "sentiment_bi.svg", 9.5, 4.2) as figure:
        axes = figure.subplot_mosaic(
            [["words", "reviews"], ["text", "text"]], width_ratios=[2, 1], height_ratios=[3, 1]
        )
        for k, name in enumerate(models):
            for panel, shares in zip(("words", "reviews"), results[name], strict=True):
                places = [place + 0.28 * (k - 1) for place in range(len(shares))]
                bars = axes[panel].bar(places, shares, 0.26, color=colors[name], label=name)
                axes[panel].bar_label(bars, fmt="%.0f", fontsize=7)
        for panel, labels in (("words", KINDS), ("reviews", ("from final states", "from pooled states"))):
            axes[panel].set_xticks(range(len(labels)), labels)
            axes[panel].set_ylim(0, 110)
            axes[panel].set_yticks([0, 50, 100])
        axes["words"].set_title("senses of words right, %, by what decides them", loc="left", fontsize=9)
        axes["reviews"].set_title("verdicts right, %", loc="left", fontsize=9)
        handles, labels = axes["words"].get_legend_handles_labels()
        figure.legend(handles, [f"reads {name}" for name in labels], loc="outside upper right", ncols=3, frameon=False)

        words = SHOWN.split()
        ids = torch.tensor([[IDS[word]] for word in words], device=args.device)
        axes["text"].set(xlim=(0, 136), ylim=(-2.7, 0.5))
        axes["text"].axis("off")
        axes["text"].set_title("how each colours a review: praise blue, blame orange", loc="left", fontsize=9)
        for row, (name, model) in enumerate(models.items()):
            axes["text"].text(0, -row, name, color=GREY, va="center")
            column = 11
            for word, sense in zip(words, model(ids, torch.tensor([len(words)]))[0][:, 0].argmax(-1), strict=True):
                color = (ORANGE, "black", BLUE)[sense]
                weight = "normal" if sense == NEITHER else "bold"
                style = {"family": "monospace", "fontsize": 8, "va": "center", "color": color, "weight": weight}
                axes["text"].text(column, -row, word, **style)
                column += len(word) + 1


def main() -> None:
    args = recipe.arguments(__doc__)
    steps, batch, tested = (250, 64, 500) if args.quick else (1000, 64, 4000)
    models, results = {}, {}
    test = make_batch(tested, random.Random(args.seed + 1), args.device, held_out=True)
    with recipe.timed(f"training three readers, {steps} steps of {batch} reviews each"):
        for name, directions in READERS.items():
            models[name] = Reader(args.layers, directions).to(args.device)
            train(models[name], name, steps, batch, args)
            results[name] = accuracies(models[name].eval(), test)
    draw(args, models, results)
    print("percent right on unseen pairs of words:")
    for name, (of_words, of_reviews) in results.items():
        kinds = ", ".join(f"{' '.join(kind.split())} {share:.1f}" for kind, share in zip(KINDS, of_words, strict=True))
        print(f"  {name:>8}: {kinds}; verdict from final states {of_reviews[0]:.1f}, from pooled {of_reviews[1]:.1f}")
    recipe.check("forward, words decided by what follows, %", results["forward"][0][RIGHT], at_most=60)
    recipe.check("backward, words turned by what stands before, %", results["backward"][0][LEFT], at_most=60)
    for kind in (RIGHT, LEFT):
        recipe.check(f"both, words {' '.join(KINDS[kind].split())}, %", results["both"][0][kind], at_least=95)
    for share, states in zip(results["both"][1], ("final", "pooled"), strict=True):
        recipe.check(f"both, verdict from {states} states, %", share, at_least=80 if args.quick else 95)

    def training(layers):
        model = Reader(layers).to(args.device)
        rows = make_batch(batch, random.Random(0), args.device)
        return recipe.plain_step(model, lambda: loss_of(model, *rows))

    recipe.compare(args, training)


if __name__ == "__main__":
    main()
