"""Recurrent reinforcement learning: a step of rollouts, and an epoch of training on rollouts with resets inside."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import fused_rnn

from .features import Feature, Run

STEPS, OBSERVED, ACTIONS, MINIBATCHES = 128, 64, 6, 4
BATCHES, HIDDEN = (8, 64, 256), (64, 256)
RESET_SHARE = 0.05
EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "rl"
PACKAGES = {"sb3-contrib": "sb3_contrib", "torchrl": "torchrl"}  # by distribution
Recurrence = Callable[[nn.Module, Tensor, tuple[Tensor, Tensor], Tensor], Tensor]


def versions() -> dict[str, str]:
    found = {name: importlib.util.find_spec(module) for name, module in PACKAGES.items()}
    return {name: importlib.metadata.version(name) if spec else "not installed" for name, spec in found.items()}


def features(full: bool = False) -> list[Feature]:
    """The lines of packages are left out where they are not installed."""
    found = []
    for hidden, batch in product(HIDDEN, BATCHES):
        name = f"rollout step, B{batch} H{hidden}"
        found.append(Feature(name, lambda b=batch, h=hidden: _steps(b, h)))
    for hidden, batch in product(HIDDEN, BATCHES):
        name = f"training epoch, T{STEPS} B{batch} H{hidden}"
        found.append(Feature(name, lambda b=batch, h=hidden: _epochs(b, h)))
    installed = [name for name, version in versions().items() if version != "not installed"]
    if "sb3-contrib" in installed:
        for batch, part in product((128, 8 * STEPS), ("epoch", "its LSTMs alone")):
            name = f"RecurrentPPO, minibatches of {batch}: {part}"
            build = lambda b=batch, p=part: _recurrent_ppo(b)[p != "epoch"]  # noqa: E731
            found.append(Feature(name, build, same_results=False))
    if "torchrl" in installed:
        for name, gru in (("LSTMModule", False), ("GRUModule", True)):
            found.append(Feature(f"{name}, T{STEPS} B8 H256: epoch", lambda g=gru: _modules(g), same_results=False))
    return found


# ---- an agent of each kind ----


class _Agent(nn.Module):
    """An LSTM, and the heads of policy and value."""

    def __init__(self, hidden: int):
        super().__init__()
        self.lstm = fused_rnn.LSTM(OBSERVED, hidden)
        self.actor, self.critic = nn.Linear(hidden, ACTIONS), nn.Linear(hidden, 1)

    def forward(self, run: Recurrence, x: Tensor, state: tuple[Tensor, Tensor], first: Tensor):
        output = run(self.lstm, x, state, first)
        return self.actor(output), self.critic(output).squeeze(-1)


def _one_call(lstm: nn.Module, x: Tensor, state: tuple[Tensor, Tensor], first: Tensor) -> Tensor:
    return lstm(x, state, reset_mask=first)[0]


def _masked_loop(lstm: nn.Module, x: Tensor, state: tuple[Tensor, Tensor], first: Tensor) -> Tensor:
    """A layer called for each step, states multiplied by zero where an episode begins."""
    outputs = []
    for x_t, kept in zip(x, ~first[:, None, :, None], strict=True):
        output, state = lstm(x_t[None], (state[0] * kept, state[1] * kept))
        outputs.append(output)
    return torch.cat(outputs)


def _cell_loop(cell: nn.Module, x: Tensor, state: tuple[Tensor, Tensor], first: Tensor) -> Tensor:
    """A cell called for each step."""
    h, c = state[0][0], state[1][0]
    outputs = []
    for x_t, kept in zip(x, ~first[..., None], strict=True):
        h, c = cell(x_t, (h * kept, c * kept))
        outputs.append(h)
    return torch.stack(outputs)


def _agents(hidden: int) -> dict[str, tuple[_Agent, Recurrence]]:
    """The same weights in each."""
    ours, looped, stepped = (_Agent(hidden) for _ in range(3))
    looped.lstm, stepped.lstm = nn.LSTM(OBSERVED, hidden), nn.LSTMCell(OBSERVED, hidden)
    weights = ours.state_dict()
    looped.load_state_dict(weights)
    stepped.load_state_dict({name.removesuffix("_l0"): weight for name, weight in weights.items()})
    loops = {"torch.nn masked loop": (looped, _masked_loop), "torch.nn step by step": (stepped, _cell_loop)}
    return {"ours": (ours, _one_call)} | loops


# ---- the lines ----


def _steps(batch: int, hidden: int) -> dict[str, Run]:
    """Heads and sampling included."""
    x, first, state = _data(1, batch, hidden)

    def step(agent: _Agent, run: Recurrence) -> list[Tensor]:
        with torch.inference_mode():
            logits, values = agent(run, x, state, first)
            policy = Categorical(logits=logits)
            policy.log_prob(policy.sample())
            return [logits, values]

    return {name: lambda a=agent, r=run: step(a, r) for name, (agent, run) in _agents(hidden).items()}


def _epochs(batch: int, hidden: int) -> dict[str, Run]:
    """PPO's loss, backward, clipping of the gradient, and Adam, for each minibatch of rows."""
    x, first, state = _data(STEPS, batch, hidden)
    actions = torch.randint(ACTIONS, (STEPS, batch))
    advantages, returns = torch.randn(2, STEPS, batch)
    before = torch.full((STEPS, batch), 1 / ACTIONS).log()

    def loss_of(agent: _Agent, run: Recurrence, rows: slice) -> Tensor:
        logits, values = agent(run, x[:, rows], tuple(part[:, rows] for part in state), first[:, rows])
        policy = Categorical(logits=logits)
        ratio = (policy.log_prob(actions[:, rows]) - before[:, rows]).exp()
        gain = torch.minimum(ratio * advantages[:, rows], ratio.clamp(0.8, 1.2) * advantages[:, rows])
        error = (values - returns[:, rows]).square()
        return (0.5 * error - gain - 0.01 * policy.entropy()).mean()

    def epoch(agent: _Agent, run: Recurrence, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        losses = []
        for start in range(0, batch, batch // MINIBATCHES):
            optimizer.zero_grad()
            losses.append(loss_of(agent, run, slice(start, start + batch // MINIBATCHES)))
            losses[-1].backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
        return [torch.stack(losses).detach()]

    sides = {}
    for name, (agent, run) in _agents(hidden).items():
        optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
        sides[name] = lambda a=agent, r=run, o=optimizer: epoch(a, r, o)
    return sides


def _data(steps: int, batch: int, hidden: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Features, where episodes begin, and states of before."""
    first = torch.rand(steps, batch) < RESET_SHARE
    return torch.randn(steps, batch, OBSERVED), first, (torch.randn(1, batch, hidden), torch.randn(1, batch, hidden))


def _recurrent_ppo(batch: int) -> tuple[dict[str, Run], dict[str, Run]]:
    whole, part = _example("recurrent_ppo_sb3").epochs(batch, STEPS, 256, seed=0)
    return _named(whole), _named(part)


def _modules(gru: bool) -> dict[str, Run]:
    example = _example("recurrent_torchrl")
    config = importlib.import_module("ppo_lstm").Config(envs=8, steps=STEPS, hidden=256, minibatches=1)
    return _named(example.epochs(example.KINDS[gru], config, seed=0))


def _named(runs: dict[str, Run]) -> dict[str, Run]:
    """As in the other lines; the examples name this library."""
    return {"ours" if name == "fused_rnn" else name: run for name, run in runs.items()}


def _example(name: str):
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)
