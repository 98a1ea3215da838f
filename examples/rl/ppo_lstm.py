"""PPO with an LSTM, in one file: python examples/rl/ppo_lstm.py

The network of CleanRL's ppo_atari_lstm (encoder, LSTM, heads of policy and value, orthogonal weights) in mazes that
cannot be left well without memory: a sign, seen in the first step alone, says which way to turn where the corridor
ends. Episodes end inside of rollouts. The update passes where they begin to the layer as ``reset_mask``, so that a
rollout is one call; torch.nn's layer has to be called step by step, to clear states in between.

Trains with both libraries from the same seed, and draws both curves. ``--pixels``: pictures, and the convolutions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from curves import BOTH, Curve, arguments, compare_curves, draw, progress
from torch import Tensor, nn
from torch.distributions import Categorical

import fused_rnn


@dataclass
class Config:
    envs: int = 64
    steps: int = 128  # of a rollout
    iterations: int = 150  # rollouts, each followed by an update
    epochs: int = 4
    minibatches: int = 4  # each takes whole rows: envs / minibatches of them
    hidden: int = 128
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_norm: float = 0.5
    corridor: tuple[int, int] = (5, 15)  # the shortest and the longest
    pixels: bool = False


QUICK = Config(32, 24, iterations=20, minibatches=2, hidden=32, learning_rate=5e-3, corridor=(1, 3))

# ---- the environment ----


class TMaze:
    """Corridors of random lengths side by side, each ending in a junction. Actions: 0 ahead, 1 up, 2 down.

    The first observation of an episode shows a sign, up or down. Turning at the junction as it said is worth 1, the
    other way 0, and the episode ends; running into a wall costs 0.05. Episodes are also ended when they take too long.
    """

    actions = 3

    def __init__(self, envs: int, corridor: tuple[int, int], pixels: bool, seed: int):
        self.envs, self.corridor, self.pixels = envs, corridor, pixels
        self.longest = 4 * corridor[1]
        self.shape = (1, 36, 36) if pixels else (4,)
        self.random = np.random.default_rng(seed)
        self.sign, self.length, self.at, self.age = np.zeros((4, envs), dtype=np.int64)

    def reset(self) -> np.ndarray:
        """Begins all episodes; the first observations, ``[envs, *shape]``."""
        self._begin(np.ones(self.envs, dtype=bool))
        return self._observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, and ``first [envs]``: whether the observation is that of a new episode."""
        junction, turns = self.at == self.length, actions > 0
        rewards = np.where(junction & turns, 1.0 * (actions == self.sign), -0.05 * (junction != turns))
        self.at += ~junction & ~turns
        self.age += 1
        first = (junction & turns) | (self.age >= self.longest)
        self._begin(first)
        return self._observe(), rewards.astype(np.float32), first

    def _begin(self, which: np.ndarray) -> None:
        self.at[which] = self.age[which] = 0
        self.sign[which] = self.random.integers(1, 3, which.sum())
        self.length[which] = self.random.integers(self.corridor[0], self.corridor[1] + 1, which.sum())

    def _observe(self) -> np.ndarray:
        junction, begins = self.at == self.length, self.age == 0
        signs = [begins & (self.sign == way) for way in (1, 2)]
        if not self.pixels:
            return np.stack([*signs, ~junction, junction], -1).astype(np.float32)
        frames = np.zeros((self.envs, *self.shape), dtype=np.float32)
        frames[:, :, 14:22] = 0.5  # the corridor from the left
        frames[junction, :, :, 14:22] = 0.5
        frames[junction, :, 14:22, 22:] = 0
        for sign, row in zip(signs, (4, 26), strict=True):
            frames[sign, :, row : row + 6, 4:12] = 1
        return frames


# ---- the network ----


def orthogonal(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self, layers, shape: tuple[int, ...], actions: int, hidden: int):
        super().__init__()
        if len(shape) == 3:
            convolutions = [
                *(orthogonal(nn.Conv2d(shape[0], 32, 8, stride=4)), nn.ReLU()),
                *(orthogonal(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU()),
                *(orthogonal(nn.Conv2d(64, 64, 3)), nn.ReLU(), nn.Flatten()),
            ]
            with torch.no_grad():
                width = nn.Sequential(*convolutions)(torch.zeros(1, *shape)).shape[1]
            self.encoder = nn.Sequential(*convolutions, orthogonal(nn.Linear(width, 512)), nn.ReLU())
            width = 512
        else:
            width = 64
            self.encoder = nn.Sequential(orthogonal(nn.Linear(shape[0], width)), nn.Tanh())
        self.lstm = layers.LSTM(width, hidden)
        for name, parameter in self.lstm.named_parameters():
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        self.actor = orthogonal(nn.Linear(hidden, actions), gain=0.01)
        self.critic = orthogonal(nn.Linear(hidden, 1), gain=1)

    def initial_state(self, envs: int) -> tuple[Tensor, Tensor]:
        h = self.actor.weight.new_zeros(1, envs, self.lstm.hidden_size)
        return h, h.clone()

    def forward(self, obs: Tensor, first: Tensor, state):
        """``obs [T, B, *shape]`` and ``first [T, B]`` to the policy's distribution, values ``[T, B]``, and states."""
        features = self.encoder(obs.flatten(0, 1)).unflatten(0, first.shape)
        if isinstance(self.lstm, fused_rnn.LSTM):
            features, state = self.lstm(features, state, reset_mask=first)
        else:
            features, state = step_by_step(self.lstm, features, state, first)
        return Categorical(logits=self.actor(features)), self.critic(features).squeeze(-1), state


def step_by_step(lstm: nn.LSTM, x: Tensor, state, first: Tensor):
    """``reset_mask`` for torch.nn: a call for each step, and states multiplied by zero where an episode begins."""
    outputs = []
    for x_t, kept in zip(x, ~first[:, None, :, None], strict=True):
        output, state = lstm(x_t[None], (state[0] * kept, state[1] * kept))
        outputs.append(output)
    return torch.cat(outputs), state


# ---- PPO ----


@dataclass
class Rollout:
    """``[T, B]`` each. ``first[t]`` says that ``obs[t]`` begins an episode; states of before are discarded there."""

    obs: Tensor  # [T, B, *shape]
    first: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    state: tuple[Tensor, Tensor]  # [1, B, H] before the first step
    advantages: Tensor

    def rows(self, which: Tensor) -> Rollout:
        """Whole rows, so that the LSTM sees their steps in order."""
        per_step = ("obs", "first", "actions", "log_probs", "values", "rewards", "advantages")
        state = tuple(part[:, which] for part in self.state)
        return Rollout(**{name: getattr(self, name)[:, which] for name in per_step}, state=state)


class Trainer:
    """``make(shape, actions, hidden)`` returns an Agent for observations of that shape."""

    def __init__(self, make: Callable[[tuple[int, ...], int, int], nn.Module], config: Config, device, seed: int):
        torch.manual_seed(seed)
        self.config, self.device, self.seed = config, device, seed
        self.envs = TMaze(config.envs, config.corridor, config.pixels, seed)
        self.agent = make(self.envs.shape, self.envs.actions, config.hidden).to(device)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=config.learning_rate, eps=1e-5)
        self.obs = self._tensor(self.envs.reset())
        self.first = torch.ones(config.envs, dtype=torch.bool, device=device)
        self.state = self.agent.initial_state(config.envs)  # [1, B, H] each, of what the agent carries on
        self.successes: list[float] = []  # of the last rollout's episodes: 1 where the agent turned the right way

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Plays T steps in all environments."""
        config, self.successes = self.config, []
        steps, begin = [], self.state
        for _ in range(config.steps):
            policy, values, self.state = self.agent(self.obs[None], self.first[None], self.state)
            actions = policy.sample()
            obs, rewards, first = self.envs.step(actions[0].cpu().numpy())
            chosen = (actions[0], policy.log_prob(actions)[0], values[0])
            steps.append((self.obs, self.first, *chosen, self._tensor(rewards)))
            self.successes += (rewards[first] == 1).tolist()
            self.obs, self.first = self._tensor(obs), self._tensor(first)
        columns = [torch.stack(column) for column in zip(*steps, strict=True)]
        _, last, _ = self.agent(self.obs[None], self.first[None], self.state)
        return Rollout(*columns, begin, self._advantages(*columns, last[0]))

    def _advantages(self, _obs, first, _actions, _log_probs, values, rewards, last: Tensor) -> Tensor:
        """Generalized advantage estimation; nothing flows back over the beginning of an episode."""
        config, carried = self.config, torch.zeros_like(last)
        advantages = torch.zeros_like(rewards)
        next_values = torch.cat([values[1:], last[None]])
        goes_on = ~torch.cat([first[1:], self.first[None]])
        for t in reversed(range(config.steps)):
            delta = rewards[t] + config.gamma * next_values[t] * goes_on[t] - values[t]
            carried = delta + config.gamma * config.gae_lambda * carried * goes_on[t]
            advantages[t] = carried
        return advantages

    def loss(self, part: Rollout) -> Tensor:
        config = self.config
        policy, values, _ = self.agent(part.obs, part.first, part.state)
        ratio = (policy.log_prob(part.actions) - part.log_probs).exp()
        advantages = (part.advantages - part.advantages.mean()) / (part.advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        value_loss = (values - part.advantages - part.values).square().mean() / 2
        return policy_loss + config.value * value_loss - config.entropy * policy.entropy().mean()

    def epoch(self, rollout: Rollout) -> None:
        """One pass over the rollout."""
        for which in torch.randperm(self.config.envs, device=self.device).chunk(self.config.minibatches):
            self.optimizer.zero_grad()
            self.loss(rollout.rows(which)).backward()
            nn.utils.clip_grad_norm_(self.agent.parameters(), self.config.max_norm)
            self.optimizer.step()


def train(trainer: Trainer, name: str) -> Curve:
    torch.manual_seed(trainer.seed)
    config, curve = trainer.config, Curve()
    bar = progress(config.iterations, f"PPO, {name}")
    for i in bar:
        trainer.optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - (i - 1) / config.iterations)
        start = time.perf_counter()
        rollout = trainer.collect()
        collected = time.perf_counter()
        for _ in range(config.epochs):
            trainer.epoch(rollout)
        seconds = (collected - start, time.perf_counter() - collected)
        curve.add(trainer.agent, config.envs * config.steps, np.mean(trainer.successes), *seconds)
        bar.set_postfix(right=f"{curve.values[-1]:.2f}")
    return curve


def main() -> None:
    args = arguments(__doc__, {"--pixels": {"action": "store_true", "help": "observations are pictures"}})
    config = Config(pixels=args.pixels)
    if args.quick:
        config = replace(QUICK, pixels=args.pixels)
    trainers = {kind.__name__: Trainer(partial(Agent, kind), config, args.device, args.seed) for kind in BOTH}
    curves = {name: train(trainer, name) for name, trainer in trainers.items()}
    compare_curves(curves, "turns the right way", at_least=0.95)
    draw(args, "ppo_lstm.svg", curves, "turns the right way")


if __name__ == "__main__":
    main()
