"""Serving many streams at once, one reading at a time: python examples/streaming.py

Each stream is a heart with its own period; an LSTM decides at each beat whether it came too early, for which it must
remember the stream's earlier beats. The server has a fixed number of slots. Streams start and end at different times,
and a new one takes over a slot that still holds another one's state: ``reset_mask`` clears it, in training (streams
concatenated in each row, without padding) as in serving (one step a call).

Shows that each stream gets the same answers as alone, in one call over its whole length; what a server without resets
would answer; and percentiles of a step's latency: this library's layer and Stream, torch.nn, ONNX Runtime if installed.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from recipe import BLUE, GREEN, GREY, ORANGE, WIDTH, arguments, check, compare, picture, progress, timed
from torch import Tensor, nn

import fused_rnn
from fused_rnn.tools.style import AMBER, SKY, keep_blanks

KNOWN_FROM = 3  # the first beats of a stream tell its period: none is early, and none is scored
LATER, SOON = range(KNOWN_FROM, 1000), range(KNOWN_FROM, KNOWN_FROM + 3)
PERCENTILES = [50, 90, 99, 99.9]
Engine = Callable[[Tensor, Tensor], Tensor]  # (readings [1, B, 1], first [1, B]) to logits [1, B, 1], the states inside


# ---- the streams ----


@dataclass
class Traffic:
    """The streams in B slots over T steps. Between two streams a slot is idle, and its answers are ignored."""

    readings: Tensor  # [T, B, 1]
    first: Tensor  # [T, B] bool: a stream's first reading
    beat: Tensor  # [T, B] bool: a beat
    before: Tensor  # [T, B] the number of beats of this stream before this reading
    soon: Tensor  # [T, B] bool: a beat at this reading would be early
    streams: list[tuple[int, slice]]  # (slot, steps) of each stream that ends within T

    def asked(self, beats: range) -> Tensor:
        """``[T, B]`` bool: the beats with these numbers in their streams, counted from 0."""
        return self.beat & (self.before >= beats.start) & (self.before < beats.stop)


def traffic(steps: int, slots: int) -> Traffic:
    first, beat, soon = torch.zeros(3, steps, slots, dtype=torch.bool)
    before = torch.zeros(steps, slots, dtype=torch.long)
    streams = []
    for slot in range(slots):
        now = int(torch.randint(0, 100, ()))  # slots are not in phase
        while now < steps:
            columns = heart()
            end = now + len(columns[0])
            first[now, slot] = True
            for kept, column in zip((beat, before, soon), columns, strict=True):
                kept[now:end, slot] = column[: steps - now]
            if end <= steps:
                streams.append((slot, slice(now, end)))
            now = end + int(torch.randint(0, 40, ()))
    return Traffic((beat + 0.1 * torch.randn(steps, slots))[..., None], first, beat, before, soon, streams)


def heart() -> tuple[Tensor, Tensor, Tensor]:
    """Of one stream of 10 to 30 beats, ``beat``, ``before`` and ``soon`` as in Traffic, ``[T]`` each."""
    beats = int(torch.randint(10, 31, ()))
    period = 8 + 16 * torch.rand(())
    early = torch.rand(beats) < 0.2
    early[:KNOWN_FROM] = False
    times = (period * torch.where(early, 0.5 + 0.2 * torch.rand(beats), 1 + 0.03 * torch.randn(beats))).cumsum(0)
    times = times.round().long()
    steps = torch.arange(int(times[-1]) + 1)
    before = torch.searchsorted(times, steps)
    since = steps - times[before - 1]
    return torch.isin(steps, times), before, (before > 0) & (since < 0.85 * period)


# ---- the model ----


class Watch(nn.Module):
    def __init__(self, layers, hidden: int):
        super().__init__()
        self.lstm = layers.LSTM(1, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, readings: Tensor, first: Tensor, states=None):
        """``readings [T, B, 1]`` and ``first [T, B]`` to logits ``[T, B, 1]`` of "a beat now is early", and states."""
        if isinstance(self.lstm, fused_rnn.LSTM):
            output, states = self.lstm(readings, states, reset_mask=first)
        else:
            output, states = step_by_step(self.lstm, readings, states, first)
        return self.head(output), states


def step_by_step(lstm: nn.LSTM, x: Tensor, states, first: Tensor):
    """``reset_mask`` for torch.nn: a call for each step, to clear states in between."""
    outputs = []
    for x_t, first_t in zip(x, first, strict=True):
        if states is not None:
            kept = ~first_t[:, None]
            states = (states[0] * kept, states[1] * kept)
        output, states = lstm(x_t[None], states)
        outputs.append(output)
    return torch.cat(outputs), states


def trainer(args, layers, steps: int, hidden: int, slots: int = 64, window: int = 100):
    """A model, and a training step: the next ``window`` readings of all slots, with states carried over."""
    model = Watch(layers, hidden).to(args.device)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps + 1)
    data, states, at = None, None, 0

    def step() -> Tensor:
        nonlocal data, states, at
        if data is None or at == len(data.readings):
            data, at = traffic(20 * window, slots), 0
        part = slice(at, at + window)
        at += window
        logits, states = model(data.readings[part].to(args.device), data.first[part].to(args.device), states)
        states = tuple(state.detach() for state in states)
        asked = (data.before[part] >= KNOWN_FROM).to(args.device)
        target = data.soon[part].to(args.device)[asked].float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits[asked, 0], target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return loss.detach()

    return model, step


def f1(logits: Tensor, data: Traffic, beats: range) -> float:
    """F1 score of the alarms at those beats of each stream."""
    asked = data.asked(beats)
    alarm, early = logits[asked, 0] > 0, data.soon[asked]
    return (2 * (alarm & early).sum() / (alarm.sum() + early.sum())).item()


# ---- engines ----


def engines(args, model: Watch, slots: int) -> dict[str, Engine]:
    """The same weights in each engine."""
    ours = fused_rnn.swap(copy.deepcopy(model)).eval()
    theirs = fused_rnn.restore(copy.deepcopy(model)).eval()
    found = {"fused_rnn": by_module(ours, slots), "torch.nn.LSTM": by_module(theirs, slots)}
    found["torch.nn.LSTMCell"] = by_cell(theirs, slots)
    if args.device.type == "cpu":
        found["fused_rnn.Stream"] = by_stream(ours, slots)
        if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
            found["ONNX Runtime"] = by_onnx_runtime(ours, slots)
    return found


def zeros(model: Watch, slots: int) -> tuple[Tensor, Tensor]:
    h = model.head.weight.new_zeros(1, slots, model.lstm.hidden_size)
    return h, h.clone()


def by_module(model: Watch, slots: int) -> Engine:
    states = zeros(model, slots)

    def step(readings: Tensor, first: Tensor) -> Tensor:
        nonlocal states
        logits, states = model(readings, first, states)
        return logits

    return step


def by_stream(model: Watch, slots: int) -> Engine:
    stream = fused_rnn.Stream(model.lstm, batch=slots)

    def step(readings: Tensor, first: Tensor) -> Tensor:
        if first.any():
            stream.reset(first[0])
        return model.head(stream.step(readings[0]))[None]

    return step


def by_cell(model: Watch, slots: int) -> Engine:
    cell = nn.LSTMCell(1, model.lstm.hidden_size).to(model.head.weight.device)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in model.lstm.state_dict().items()})
    h, c = (state[0] for state in zeros(model, slots))

    def step(readings: Tensor, first: Tensor) -> Tensor:
        nonlocal h, c
        kept = ~first[0, :, None]
        h, c = cell(readings[0], (h * kept, c * kept))
        return model.head(h)

    return step


class OneStep(nn.Module):
    """For ONNX, whose node has no resets: the states of new streams are cleared before it."""

    def __init__(self, model: Watch):
        super().__init__()
        self.model = model

    def forward(self, readings: Tensor, kept: Tensor, h: Tensor, c: Tensor):
        output, (h, c) = self.model.lstm(readings, (h * kept, c * kept))
        return self.model.head(output), h, c


def by_onnx_runtime(model: Watch, slots: int) -> Engine:
    import onnxruntime

    h, c = zeros(model, slots)
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            OneStep(model),
            (torch.zeros(1, slots, 1), torch.ones(1, slots, 1), h, c),
            input_names=["readings", "kept", "h", "c"],
            dynamo=True,
            custom_translation_table=fused_rnn.onnx.translations(),
            verbose=False,
        )
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    states = {"h": h.numpy(), "c": c.numpy()}

    def step(readings: Tensor, first: Tensor) -> Tensor:
        kept = (~first).float()[..., None]
        logits, states["h"], states["c"] = session.run(
            None, {"readings": readings.numpy(), "kept": kept.numpy(), **states}
        )
        return torch.from_numpy(logits)

    return step


# ---- the session ----


@torch.inference_mode()
def serve(args, model: Watch, data: Traffic, burst: int = 100) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each engine's answers ``[T, B, 1]``, and microseconds of its steps.

    The engines take turns, a burst of steps each, so that other load affects all of them. The first tenth of a burst is
    left out, with another engine's weights in the caches, and so is the first turn.
    """
    steps, slots = data.first.shape
    running = engines(args, model, slots)
    readings, first = data.readings.to(args.device), data.first.to(args.device)
    logits = {name: torch.empty(steps, slots, 1) for name in running}
    took = {name: [] for name in running}
    for turn in progress(math.ceil(steps / burst), f"serving, slots {slots}"):
        for name, step in running.items():
            for t in range(burst * (turn - 1), min(burst * turn, steps)):
                x_t, first_t = readings[t, None], first[t, None]
                start = time.perf_counter()
                answer = step(x_t, first_t)
                if args.device.type == "cuda":
                    torch.cuda.synchronize(args.device)
                took[name].append(1e6 * (time.perf_counter() - start))
                logits[name][t] = answer
    kept = [t for t in range(burst, steps) if t % burst >= burst // 10]
    return logits, {name: torch.tensor(us)[kept] for name, us in took.items()}


@torch.inference_mode()
def alone(args, model: Watch, data: Traffic, logits: Tensor) -> float:
    """The largest difference from the answers of each stream alone, in one call over its whole length."""
    nothing = torch.zeros(1, 1, dtype=torch.bool, device=args.device)
    worst = 0.0
    for slot, steps in data.streams[:: len(data.streams) // 100 + 1]:
        readings = data.readings[steps, slot].to(args.device)
        expected = model(readings[:, None], nothing.expand(len(readings), 1))[0][:, 0].sigmoid().cpu()
        worst = max(worst, (logits[steps, slot].sigmoid() - expected).abs().max().item())
    return worst


# ---- the picture ----


ENGINES = ("fused_rnn.Stream", "fused_rnn", "ONNX Runtime", "torch.nn.LSTMCell", "torch.nn.LSTM")
COLORS = dict(zip(ENGINES, (BLUE, SKY, GREEN, AMBER, ORANGE), strict=True))


def draw(args, data: Traffic, logits: Tensor, latency: dict[int, dict[str, list[float]]]) -> None:
    with picture(args, "streaming.svg", WIDTH, 5) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.2])
        draw_slot(top.subplots(), data, logits, slot=0, steps=min(900, len(data.readings)))
        panels = bottom.subplots(1, len(latency), sharey=True, squeeze=False)[0]
        for axes, (slots, rows) in zip(panels, latency.items(), strict=True):
            draw_latency(axes, {name: rows[name] for name in COLORS if name in rows})
            axes.set_title(f"{slots} stream{'s' * (slots > 1)}")
        handles = [axes.barh(0, 0, color=GREY), *axes.plot([], "|", color="black", ms=9, mew=1.5)]
        bottom.legend(handles, ["p50 (the median)", "p99"], loc="outside upper center", ncols=2)
        where = f"{args.device.type}, 1 thread of {fused_rnn.info()['processor']}"
        bottom.supxlabel(f"µs for a step that answers all streams ({where})", fontsize=9)


def draw_latency(axes, rows: dict[str, list[float]]) -> None:
    for place, (name, percentiles) in enumerate(rows.items()):
        p50, _, p99, _ = percentiles
        axes.barh(place, p50, 0.7, color=COLORS[name])
        axes.plot(p99, place, "|", color="black", ms=9, mew=1.5)
        axes.text(p99, place, keep_blanks(f"  {p50:.0f}, {p99:.0f}"), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.5 * axes.dataLim.xmax)
    axes.xaxis.get_major_locator().set_params(nbins=4)
    axes.grid(axis="x")


def draw_slot(axes, data: Traffic, logits: Tensor, slot: int, steps: int) -> None:
    axes.plot(data.readings[:steps, slot], color=GREY, lw=0.6)
    alarm, early = logits[:steps, slot, 0] > 0, data.soon[:steps, slot]
    asked = data.asked(LATER)[:steps, slot]
    for kind, where, marker, color in (
        ("early, and noticed", asked & early & alarm, "v", GREEN),
        ("early, but missed", asked & early & ~alarm, "v", ORANGE),
        ("false alarm", asked & ~early & alarm, "x", ORANGE),
    ):
        at = where.nonzero()[:, 0]
        axes.plot(at, torch.full(at.shape, 1.6), marker, color=color, ms=4, label=kind)
    for k, (_, span) in enumerate(part for part in data.streams if part[0] == slot and part[1].start < steps):
        stop = min(span.stop, steps)
        axes.axvspan(span.start, stop, color=BLUE, alpha=0.08, lw=0)
        if stop - span.start > 80:
            axes.text(span.start + 4, 2.0, f"stream {k + 1}", color=BLUE, va="center")
    axes.set_xlim(0, steps)
    axes.set_ylim(-0.5, 2.3)
    axes.set_yticks([])
    axes.set_xlabel("step")
    axes.set_title("one of the slots")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, columnspacing=1, handletextpad=0.1)


def main() -> None:
    args = arguments(__doc__)
    hidden, steps, served = (32, 400, 1000) if args.quick else (128, 1000, 10_000)
    model, step = trainer(args, args.layers, steps, hidden)
    with timed("training"):
        bar = progress(steps, "training")
        for i in bar:
            loss = step()
            if i % 20 == 0:
                bar.set_postfix(loss=f"{loss:.3f}")
    compare(args, lambda layers: trainer(args, layers, 1000, hidden)[1])

    torch.set_num_threads(1)  # a step is too small for a second thread
    latency = {}
    for slots in [1, 16] if args.quick else [1, 16, 64]:
        logits, took = serve(args, model, data := traffic(served, slots))
        latency[slots] = {name: own.quantile(torch.tensor(PERCENTILES) / 100).tolist() for name, own in took.items()}
        print_latency(latency[slots], f"slots {slots}, streams {len(data.streams)}, units {hidden}")
    draw(args, data, logits["fused_rnn"], latency)

    answers = [engine.sigmoid() for engine in logits.values()]
    apart = max((a - answers[0]).abs().max().item() for a in answers)
    check(f"probabilities by {', '.join(logits)} differ by", apart, at_most=1e-3)
    check("and from those of each stream alone by", alone(args, model, data, logits["fused_rnn"]), at_most=1e-3)
    check_alarms(args, model, data, logits["fused_rnn"])


def print_latency(rows: dict[str, list[float]], what: str) -> None:
    print(f"{what}, 1 thread: µs that this share of the steps stays below; medians against torch.nn.LSTM's")
    print(f"{'':20}" + "".join(f"{p:>9g}%" for p in PERCENTILES))
    for name, row in sorted(rows.items(), key=lambda item: item[1]):
        ratio = rows["torch.nn.LSTM"][0] / row[0]
        print(f"{name:20}" + "".join(f"{us:10.1f}" for us in row) + f"{ratio:10.2f}x")


def check_alarms(args, model: Watch, data: Traffic, logits: Tensor) -> None:
    share = data.soon[data.asked(LATER)].float().mean().item()
    print(f"who alarms at every beat has an F1 of {2 * share / (1 + share):.3f}")
    check("F1 of the alarms", f1(logits, data, LATER), at_least=0.8 if args.quick else 0.95)
    with torch.inference_mode():
        mixed = model(data.readings.to(args.device), torch.zeros_like(data.first).to(args.device))[0].cpu()
    first_beats, without = f1(logits, data, SOON), f1(mixed, data, SOON)
    print(f"at the beats {SOON.start + 1} to {SOON.stop} of a stream: {first_beats:.3f}, without resets {without:.3f}")
    check("lost without resets", first_beats - without, at_least=0.05)


if __name__ == "__main__":
    main()
