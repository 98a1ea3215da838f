"""How far back recurrent networks remember, and what: python examples/long_memory.py

Three tasks for a tanh RNN, a ReLU RNN, a GRU and an LSTM of the same size, each with a suitable initialisation:

- recall: the first step shows one of eight symbols, noise follows, and at the end the symbol is asked for;
- adding: each step has a number, two steps are marked, and at the end the sum of their numbers is asked for;
- agreement: is the subject of each verb singular or plural? In "The writer of the books is" the syntactically recent
  noun counts (writer), not the sequentially recent one (books). In training both mostly have the same number, so that
  the wrong rule is mostly right; the test has only sentences where it is always wrong.

Recall and adding are trained on sequences that grow longer, and tested at each length. The figure has accuracy against
distance, and beside it how much of a gradient comes that far back.
"""

from __future__ import annotations

import copy
import random
from typing import NamedTuple

import torch
from recipe import BLUE, GREEN, GREY, ORANGE, WIDTH, arguments, check, compare, picture, progress, ragged
from torch import Tensor, nn

import fused_rnn
from fused_rnn import init

# The LSTM's line is broad and lies below the others', as several cells are often right in 100%.
CELLS = {
    "LSTM": {"color": BLUE, "marker": "o", "lw": 3.5, "ms": 6.5, "alpha": 0.6},
    "GRU": {"color": GREEN, "marker": "s", "lw": 1.3, "ms": 3},
    "ReLU RNN": {"color": ORANGE, "marker": "^", "lw": 1.3, "ms": 4},
    "tanh RNN": {"color": GREY, "marker": "D", "lw": 1.3, "ms": 3},
}
SYMBOLS = 8
SHORTEST, ROWS = 10, 32
LONGEST_PHRASES = 6  # in training, between a noun and its verb, of three words each
ALIKE = 0.8  # probability in training that a noun has its subject's number; the nearer to 1, the better the wrong rule
LEAST, MOST = 1e-9, 1e6  # limits of the plot of gradients


class Size(NamedTuple):
    hidden: int
    longest: int  # steps
    steps: int  # of training
    steps_agreement: int


def layer_of(cell: str, layers, inputs: int, hidden: int, longest: int) -> nn.RNNBase:
    """The layer ``cell``, initialised to remember ``longest`` steps."""
    if cell == "tanh RNN":
        return init.orthogonal_(layers.RNN(inputs, hidden))
    if cell == "ReLU RNN":
        return init.identity_(layers.RNN(inputs, hidden, nonlinearity="relu"))
    return init.chrono_(getattr(layers, cell)(inputs, hidden), longest)


# ---- at a distance: recall and adding ----


class Last(nn.Module):
    """Answers after the last step."""

    def __init__(self, layer: nn.RNNBase, answers: int):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, answers)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][-1])


class Recall:
    inputs, answers = SYMBOLS + 2, SYMBOLS
    title, guessing = "recall", 1 / SYMBOLS

    @staticmethod
    def batch(steps: int, rows: int) -> tuple[Tensor, Tensor]:
        """``x [T, B, 10]``, a symbol, noise, a sign that it is asked for; ``symbol [B]``."""
        x, symbol = torch.zeros(steps, rows, SYMBOLS + 2), torch.randint(SYMBOLS, (rows,))
        x[0].scatter_(1, symbol[:, None], 1.0)
        x[1:-1, :, SYMBOLS] = torch.randn(steps - 2, rows)
        x[-1, :, SYMBOLS + 1] = 1
        return x, symbol

    @staticmethod
    def loss(answer: Tensor, symbol: Tensor) -> Tensor:
        return nn.functional.cross_entropy(answer, symbol)

    @staticmethod
    def right(answer: Tensor, symbol: Tensor) -> float:
        return (answer.argmax(-1) == symbol).float().mean().item()


class Adding:
    inputs, answers = 2, 1
    title, guessing = "adding (off by less than 0.1)", 0.19  # always answering 1 is that close this often

    @staticmethod
    def batch(steps: int, rows: int) -> tuple[Tensor, Tensor]:
        """``x [T, B, 2]``, numbers and marks, one mark in the first half, one in the second; ``sum [B]``."""
        x = torch.zeros(steps, rows, 2)
        x[..., 0] = torch.rand(steps, rows)
        half = steps // 2
        marked = torch.stack([torch.randint(half, (rows,)), torch.randint(half, steps, (rows,))])
        x[..., 1].scatter_(0, marked, 1.0)
        return x, (x[..., 0] * x[..., 1]).sum(0)

    @staticmethod
    def loss(answer: Tensor, total: Tensor) -> Tensor:
        return nn.functional.mse_loss(answer[:, 0], total)

    @staticmethod
    def right(answer: Tensor, total: Tensor) -> float:
        return ((answer[:, 0] - total).abs() < 0.1).float().mean().item()


def trainer(model: nn.Module, loss_of_step, steps: int, lr: float):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)

    def step(i: int) -> Tensor:
        loss = loss_of_step(i)
        optimizer.zero_grad()
        loss.backward()
        if nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():  # the ReLU RNN's explode
            optimizer.step()
        schedule.step()
        return loss.detach()

    return step


def train(what: str, steps: int, step) -> None:
    bar = progress(steps, what)
    for i in bar:
        loss = step(i)
        if i % 20 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")


def rate(cell: str) -> float:
    """Adam's learning rate. The tanh RNN learns nothing at that of the others."""
    return 1e-3 if cell == "tanh RNN" else 1e-2


def distance_trainer(args, layers, task, cell: str, size: Size):
    model = Last(layer_of(cell, layers, task.inputs, size.hidden, size.longest), task.answers).to(args.device)

    def loss_of_step(i: int) -> Tensor:
        """On sequences of log-uniformly random lengths, up to a limit that grows during most of the training."""
        limit = size.longest * min(1.0, (2 * SHORTEST / size.longest) ** (1 - i / (0.8 * size.steps)))
        length = round(SHORTEST * (limit / SHORTEST) ** random.random())
        x, target = task.batch(length, ROWS)
        return task.loss(model(x.to(args.device)), target.to(args.device))

    return model, trainer(model, loss_of_step, size.steps, rate(cell))


def at_longest(args, layers, size: Size):
    """A training step of the LSTM on the longest sequences, to compare libraries."""
    model = Last(layer_of("LSTM", layers, Recall.inputs, size.hidden, size.longest), Recall.answers).to(args.device)
    x, symbol = (tensor.to(args.device) for tensor in Recall.batch(size.longest, ROWS))
    step = trainer(model, lambda _: Recall.loss(model(x), symbol), 1000, rate("LSTM"))
    return lambda: step(1)


@torch.inference_mode()
def right_at(args, task, model: nn.Module, lengths: list[int]) -> list[float]:
    results = []
    for length in lengths:
        x, target = task.batch(length, 256)
        results.append(task.right(model(x.to(args.device)).cpu(), target))
    return results


# ---- in sentences: agreement ----


NOUNS = [
    ["writer", "book", "critic", "editor", "garden", "letter", "painter", "house"],
    ["writers", "books", "critics", "editors", "gardens", "letters", "painters", "houses"],
]
VERBS = [["likes", "knows", "sees", "needs"], ["like", "know", "see", "need"]]
BETWEEN = ["of", "near", "behind", "with"]
WORDS = ["the", "that", *BETWEEN, *NOUNS[0], *NOUNS[1], *VERBS[0], *VERBS[1]]
NUMBER = {word: i for i, word in enumerate(WORDS)}
NOT_ASKED = -100
Sentence = list[tuple[str, int]]  # words, each with whether the next one, a verb, is singular (0) or plural (1)


def subject(number: int, alike: float, phrases: int, depth: int) -> Sentence:
    """The words before a verb. Each noun in them has its subject's number with probability ``alike``."""

    def other() -> int:
        return number if random.random() < alike else 1 - number

    words = ["the", random.choice(NOUNS[number])]
    found = [(word, NOT_ASKED) for word in words]
    if depth:
        inner = other()
        found += [("that", NOT_ASKED), *subject(inner, alike, random.randint(0, 2), depth - 1)]
        found.append((random.choice(VERBS[inner]), NOT_ASKED))
    for _ in range(0 if depth else phrases):
        found += [(word, NOT_ASKED) for word in (random.choice(BETWEEN), "the", random.choice(NOUNS[other()]))]
    return [*found[:-1], (found[-1][0], number)]


def random_subject() -> Sentence:
    return subject(random.randint(0, 1), ALIKE, random.randint(0, LONGEST_PHRASES), random.choice([0, 0, 1, 2]))


def by_last_noun(sentences: list[Sentence]) -> float:
    """Accuracy of the wrong rule, that the verb agrees with the last noun."""
    right, asked = 0, 0
    for sentence in sentences:
        last = 0
        for word, answer in sentence:
            last = 1 if word in NOUNS[1] else 0 if word in NOUNS[0] else last
            right += answer == last
            asked += answer != NOT_ASKED
    return right / asked


def to_tensors(sentences: list[Sentence]) -> tuple[Tensor, Tensor, Tensor]:
    """``words [T, B]``, ``answers [T, B]`` and ``lengths [B]``."""
    words = [torch.tensor([NUMBER[word] for word, _ in sentence]) for sentence in sentences]
    answers = [torch.tensor([answer for _, answer in sentence]) for sentence in sentences]
    pad = nn.utils.rnn.pad_sequence
    return pad(words), pad(answers, padding_value=NOT_ASKED), torch.tensor([len(row) for row in words])


class Agreement(nn.Module):
    """Predicts after each word whether a verb that follows is singular or plural."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), layer.input_size)
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        return self.head(ragged(self.layer, self.embedding(words), lengths)[0])


def agreement_trainer(args, layers, cell: str, size: Size, sentences: list[Sentence]):
    model = Agreement(layer_of(cell, layers, 16, size.hidden, longest=50)).to(args.device)

    def loss_of_step(_: int) -> Tensor:
        words, answers, lengths = to_tensors(random.sample(sentences, 64))
        logits = model(words.to(args.device), lengths)
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), answers.flatten().to(args.device), ignore_index=NOT_ASKED
        )

    return model, trainer(model, loss_of_step, size.steps_agreement, rate(cell))


def opposed(phrases: int, depth: int, count: int = 500) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences in which no noun has the number of its subject; only the last verb is tested."""
    sentences = []
    for _ in range(count):
        sentence = subject(random.randint(0, 1), 0.0, phrases, depth)
        sentences.append([*((word, NOT_ASKED) for word, _ in sentence[:-1]), sentence[-1]])
    return to_tensors(sentences)


@torch.inference_mode()
def right_opposed(args, model: Agreement, phrases: int, depth: int) -> float:
    words, answers, lengths = opposed(phrases, depth)
    guess = model(words.to(args.device), lengths).argmax(-1).cpu()
    asked = answers != NOT_ASKED
    return (guess[asked] == answers[asked]).float().mean().item()


# ---- gradients ----


def arriving(model: nn.Module, *inputs: Tensor) -> list[float]:
    """The gradient's norm by steps back, relative to that at the last step's state."""
    model = fused_rnn.swap(copy.deepcopy(model))
    with fused_rnn.gradient_flow(model) as flow:
        model(*inputs).sum().backward()
    ((_, norms),) = flow.norms()
    back = norms[0].norm(dim=0).flip(0)  # of h and, in the LSTM, c together
    return (back / back[0]).tolist()


# ---- the picture ----


def draw(args, panels: dict[str, dict]) -> None:
    with picture(args, "long_memory.svg", WIDTH, 7.6) as figure:
        grid = figure.subplots(len(panels), 2, sharex="row", sharey="col")
        for (title, panel), (left, right) in zip(panels.items(), grid, strict=True):
            for cell, style in CELLS.items():
                left.plot(panel["at"], [100 * share for share in panel["right"][cell]], label=cell, **style)
                share = torch.tensor(panel["flow"][cell])[1:]
                right.plot(range(1, len(share) + 1), share, **(style | {"marker": ""}))
            left.axhline(100 * panel["guessing"], color="black", lw=0.8, ls=":")
            left.set_title(title)
            right.annotate(not_to_be_seen(panel["flow"]), (0.02, 0.97), xycoords="axes fraction", va="top", fontsize=8)
            right.set_yscale("log")
            right.set_ylim(LEAST, MOST)
            if panel["at"][-1] > 100:
                left.set_xscale("log")
                left.set_xlim(SHORTEST, 1.1 * panel["at"][-1])
                left.xaxis.set_major_formatter("{x:g}")
            for axes in (left, right):
                axes.grid()
                axes.set_xlabel(panel["distance"])
        grid[0, 0].set_ylim(-3, 106)
        for left, right in grid:
            left.set_ylabel("% right\n(dotted: by guessing)")
            right.set_ylabel("share of the gradient")
        grid[0, 1].set_title("how much of the gradient comes back")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def not_to_be_seen(flow: dict[str, list[float]]) -> str:
    """A line for each cell whose curve is not in the plot of gradients, or leaves it."""
    found = []
    for cell, shares in flow.items():
        share = torch.tensor(shares)[1:]
        outside = ~((share >= LEAST) & (share <= MOST))
        if outside.any():
            step = int(outside.float().argmax())
            how = "too small" if share[step] < LEAST else "too large" if share[step].isfinite() else "not finite"
            found.append(f"{cell}: {how} from {step + 1} on")
    return "\n".join(found)


def show(title: str, at: list[int], right: dict[str, list[float]]) -> None:
    print(f"{title:32}" + "".join(f"{a:>7}" for a in at))
    for cell, row in right.items():
        print(f"  {cell:30}" + "".join(f"{100 * r:6.1f}%" for r in row), flush=True)


def at_a_distance(args, task, size: Size, at: list[int]) -> dict:
    right, flow = {}, {}
    for cell in CELLS:
        model, step = distance_trainer(args, args.layers, task, cell, size)
        train(f"{task.title}, {cell}", size.steps, step)
        right[cell] = right_at(args, task, model, at)
        flow[cell] = arriving(model, task.batch(at[-1], ROWS)[0].to(args.device))
    show(f"{task.title}: right after steps", at, right)
    return {"at": at, "right": right, "flow": flow, "guessing": task.guessing, "distance": "steps back"}


def in_sentences(args, size: Size) -> dict:
    sentences = [random_subject() for _ in range(20_000)]
    print(f"agreement: in training the last noun has the verb's number in {by_last_noun(sentences):.0%}")
    phrases, depths = list(range(1, 2 * LONGEST_PHRASES + 1)), [1, 2, 3]
    right, flow, nested = {}, {}, {}
    for cell in CELLS:
        model, step = agreement_trainer(args, args.layers, cell, size, sentences)
        train(f"agreement, {cell}", size.steps_agreement, step)
        right[cell] = [right_opposed(args, model, count, depth=0) for count in phrases]
        nested[cell] = [right_opposed(args, model, 0, depth) for depth in depths]
        words, _, lengths = opposed(phrases[-1], depth=0, count=ROWS)
        flow[cell] = arriving(model, words.to(args.device), lengths)
    show("agreement: opposed nouns between", phrases, right)
    show("agreement: clauses in one another", depths, nested)
    at = [3 * n for n in phrases]
    distance = "words from noun to verb"
    return {"at": at, "right": right, "flow": flow, "guessing": 0.5, "distance": distance, "nested": nested}


def main() -> None:
    args = arguments(__doc__)
    random.seed(args.seed)
    size = Size(32, 100, 600, 300) if args.quick else Size(32, 2000, 4000, 2500)
    at = [20, 50, 100] if args.quick else [20, 50, 100, 200, 500, 1000, 2000]
    recall, adding = (at_a_distance(args, task, size, at) for task in (Recall, Adding))
    agreement = in_sentences(args, size)
    titles = [Recall.title, Adding.title, f"agreement (trained on up to {3 * LONGEST_PHRASES} words)"]
    draw(args, dict(zip(titles, (recall, adding, agreement), strict=True)))
    check("agreement past a clause, LSTM", agreement["nested"]["LSTM"][0], at_least=0.9)
    for cell in ("LSTM", "GRU"):
        check(f"recall, {cell}, longest distance", recall["right"][cell][-1], at_least=0.95)
    check("adding, GRU, 50 steps", adding["right"]["GRU"][at.index(50)], at_least=0.4 if args.quick else 0.9)
    if not args.quick:
        check("agreement, LSTM, longest of training", agreement["right"]["LSTM"][LONGEST_PHRASES - 1], at_least=0.95)
        check("adding, LSTM, 1000 steps", adding["right"]["LSTM"][at.index(1000)], at_least=0.8)
    compare(args, lambda layers: at_longest(args, layers, size))


if __name__ == "__main__":
    main()
