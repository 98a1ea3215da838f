"""Recognises the motion of a shape in a film, frame by frame and as a whole:  python examples/video.py

Shows: many-to-many and many-to-one at once, on features of a small CNN. A shape moves through clips of 14 to 24 frames;
now and then it rests, or is hidden for a frame. Each frame's label is the direction of its motion, which no single
frame tells. The clip's label is the whole path: straight on, to and fro, around to the right, around to the left.
Training is offline, whole clips of different lengths at once (``lengths``). Inference is online, one frame a call with
states carried over, and gives the same answers; the clip's label is available at any time.

Checks that 95% of the frames' labels and of the clips' labels are right on new clips, and fewer than half of the former
from single frames; and that online and offline agree in every label, and in their scores up to rounding.
"""

from __future__ import annotations

import random

import recipe
import torch
from recipe import BLUE, GREY, ORANGE
from torch import Tensor, nn

SIZE, MARGIN = 24, 3.5  # of a frame, in pixels; centres of shapes keep MARGIN from its edge
LONGEST, SHORTEST = 24, 14  # frames of a clip
WAYS = ("up", "right", "down", "left", "rest")
ARROWS = "↑→↓←·"
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))  # rows, columns
REST = WAYS.index("rest")
ACTIONS = {"straight on": 0, "to and fro": 2, "around to the right": 1, "around to the left": -1}  # quarters of a turn


def journey(source: random.Random, steps: int) -> tuple[list[tuple[float, float]], list[int], int]:
    """The shape's place and the way it has just moved, for each frame, and its action."""
    action = source.randrange(len(ACTIONS))
    turn, way, speed = list(ACTIONS.values())[action], source.randrange(4), source.uniform(0.6, 1.0)
    places, ways = [(0.0, 0.0)], [REST]
    while len(places) < steps:
        leg = [way] * source.randint(3, 6) + [REST] * source.choice((0, 0, 2, 3))
        for now in leg[: steps - len(places)]:
            (y, x), (dy, dx) = places[-1], MOVES[now]
            places.append((y + speed * dy, x + speed * dx))
            ways.append(now)
        way = (way + turn) % 4
    first = []
    for along in zip(*places, strict=True):  # rows, then columns: starts where the whole journey fits
        low, high = MARGIN - min(along), SIZE - 1 - MARGIN - max(along)
        if low > high:
            return journey(source, steps)
        first.append(source.uniform(low, high))
    return [(y + first[0], x + first[1]) for y, x in places], ways, action


def render(places: Tensor, kinds: Tensor) -> Tensor:
    """Frames ``[T, B, S, S]`` with a square, disc, ring or cross (``kinds [B]``) at places ``[T, B, 2]``."""
    y, x = ((torch.arange(SIZE) - places[..., i, None]).abs() for i in range(2))
    y, x = y.unsqueeze(-1), x.unsqueeze(-2)
    radius = (x * x + y * y).sqrt()
    inside = torch.stack(  # pixels from the shape's edge, for anti-aliasing
        [
            3 - torch.maximum(x, y),
            3.5 - radius,
            torch.minimum(3.5 - radius, radius - 1.5),
            torch.minimum(1.5 - torch.minimum(x, y), 3.5 - torch.maximum(x, y)),
        ]
    )
    return inside[kinds, :, torch.arange(len(kinds))].clamp(0, 1).transpose(0, 1)


def make_batch(size: int, seed: int, device: torch.device) -> tuple[Tensor, ...]:
    """Frames ``[T, B, S, S]``, lengths ``[B]``, ways ``[T, B]`` (-1 as padding) and actions ``[B]``."""
    source, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    lengths = [source.randint(SHORTEST, LONGEST) for _ in range(size)]
    places, ways, actions = zip(*(journey(source, length) for length in lengths), strict=True)
    places = nn.utils.rnn.pad_sequence([torch.tensor(place) for place in places])
    frames = render(places, torch.randint(4, (size,), generator=noise))
    hidden = torch.rand(*frames.shape[:2], 1, 1, generator=noise) < 0.05
    hidden[0] = False
    frames = frames.masked_fill(hidden, 0) + 0.05 * torch.randn(frames.shape, generator=noise)
    ways = nn.utils.rnn.pad_sequence([torch.tensor(way) for way in ways], padding_value=-1)
    return tuple(tensor.to(device) for tensor in (frames, torch.tensor(lengths), ways, torch.tensor(actions)))


class Watcher(nn.Module):
    def __init__(self, layers, hidden: int = 96, features: int = 64):
        super().__init__()
        self.cnn = nn.Sequential(
            *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(16 * (SIZE // 4) ** 2, features), nn.ReLU()),
        )
        self.gru = layers.GRU(features, hidden)
        self.way = nn.Linear(hidden, len(WAYS))
        self.action = nn.Linear(hidden, len(ACTIONS))
        self.way_alone = nn.Linear(features, len(WAYS))  # from single frames, as a baseline

    def see(self, frames: Tensor) -> Tensor:
        """Features ``[T, B, F]`` of frames ``[T, B, S, S]``: the CNN sees single frames."""
        return self.cnn(frames.flatten(0, 1).unsqueeze(1)).unflatten(0, frames.shape[:2])

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of each frame's way ``[T, B, 5]``, of the clip's action ``[B, 4]``, and of the ways frame by frame."""
        features = self.see(frames)
        output, h_n = recipe.ragged(self.gru, features, lengths)
        return self.way(output), self.action(h_n[-1]), self.way_alone(features)

    def step(self, frame: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Online: for one frame ``[B, S, S]``, scores of its way and of the action so far, and the next state."""
        output, state = self.gru(self.see(frame.unsqueeze(0)), state)
        return self.way(output[0]), self.action(output[0]), state


def loss_of(model: Watcher, frames: Tensor, lengths: Tensor, ways: Tensor, actions: Tensor) -> Tensor:
    of_frames, of_clips, alone = model(frames, lengths)
    loss = nn.functional.cross_entropy(of_clips, actions)
    for scores in (of_frames, alone):
        loss = loss + nn.functional.cross_entropy(scores.flatten(0, 1), ways.flatten(), ignore_index=-1)
    return loss


def train(model: Watcher, steps: int, batch: int, args) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    bar = recipe.progress(steps, "training")
    for step in bar:
        loss = loss_of(model, *make_batch(batch, 1000 * (args.seed + 1) + step, args.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=loss.item())


@torch.no_grad()
def watch(model: Watcher, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Online, frame by frame: scores of ways ``[T, B, 5]`` and of actions ``[T, B, 4]`` after each frame."""
    ways, actions, state = [], [], None
    for frame in frames:
        way, action, state = model.step(frame, state)
        ways.append(way)
        actions.append(action)
    return torch.stack(ways), torch.stack(actions)


def percent(right: Tensor) -> float:
    return 100 * right.float().mean().item()


def draw(args, frames, lengths, ways, actions, of_frames, so_far) -> None:
    """Two clips as film strips, and how soon actions are recognised. ``so_far [T, B, 4]``: scores after each frame."""
    with recipe.picture(args, "video.png", 11, 4.4) as figure:
        films, known = figure.subfigures(2, 1, height_ratios=[5, 4])
        shown, names = 20, list(ACTIONS)
        clips = [next(i for i in range(len(actions)) if actions[i] == k and lengths[i] >= shown) for k in (1, 2)]
        panels = films.subplots(len(clips), shown)
        for clip, row in zip(clips, panels, strict=True):
            for t, axes in enumerate(row):
                axes.imshow(frames[t, clip].cpu(), cmap="gray_r", vmin=0, vmax=1.3)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(True)
                axes.spines[:].set_color("#cccccc")
                way = int(of_frames[t, clip].argmax())
                axes.set_title(ARROWS[way], color=BLUE if way == ways[t, clip] else ORANGE, weight="bold", fontsize=13)
                axes.set_xlabel(str(t + 1), fontsize=7, color=GREY)
            row[0].set_ylabel(names[int(so_far[lengths[clip] - 1, clip].argmax())].replace(" to", "\nto"))
        films.suptitle(
            "each frame with the way that is recognised (orange: wrong); beside it the clip's action", fontsize=9
        )
        axes = known.subplots()
        running = torch.arange(len(frames), device=lengths.device).unsqueeze(1) < lengths
        right = so_far.argmax(-1) == actions
        share = [percent(right[t, running[t]]) for t in range(len(frames))]
        axes.plot(range(1, len(frames) + 1), share, color=BLUE, marker=".")
        axes.set(xlabel="frames seen", ylim=(0, 104), xlim=(0.5, len(frames) + 0.5))
        axes.set_title("actions recognised so far, online, % of the clips that still run", loc="left", fontsize=9)


def main() -> None:
    args = recipe.arguments(__doc__)
    steps, batch, tested = (400, 32, 300) if args.quick else (2000, 32, 2000)
    model = Watcher(args.layers).to(args.device)
    with recipe.timed(f"training, {steps} steps of {batch} clips"):
        train(model, steps, batch, args)

    frames, lengths, ways, actions = make_batch(tested, args.seed, args.device)
    with torch.no_grad():
        of_frames, of_clips, alone = model.eval()(frames, lengths)
    online_ways, so_far = watch(model, frames)
    ends = so_far[lengths - 1, torch.arange(tested, device=args.device)]  # online, at the end of each clip
    draw(args, frames, lengths, ways, actions, online_ways, so_far)

    running = ways != -1
    recipe.check(
        "ways of frames right, from a frame alone, %", percent((alone.argmax(-1) == ways)[running]), at_most=50
    )
    ways_right = percent((of_frames.argmax(-1) == ways)[running])
    recipe.check("ways of frames right, %", ways_right, at_least=90 if args.quick else 95)
    recipe.check("actions of clips right, %", percent(of_clips.argmax(-1) == actions), at_least=95)
    difference = max((online_ways - of_frames)[running].abs().max().item(), (ends - of_clips).abs().max().item())
    recipe.check("largest difference of a score, online from offline", difference, at_most=1e-3)
    same = torch.cat(
        [(online_ways.argmax(-1) == of_frames.argmax(-1))[running], ends.argmax(-1) == of_clips.argmax(-1)]
    )
    recipe.check("labels that agree, online and offline, %", percent(same), at_least=100)

    def training(layers):
        model = Watcher(layers).to(args.device)
        clips = make_batch(batch, 0, args.device)
        return recipe.plain_step(model, lambda: loss_of(model, *clips))

    recipe.compare(args, training)


if __name__ == "__main__":
    main()
