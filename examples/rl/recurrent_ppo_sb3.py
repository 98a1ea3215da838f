"""sb3-contrib's RecurrentPPO with one call for each minibatch: python examples/rl/recurrent_ppo_sb3.py

RecurrentPPO cuts a minibatch into sequences where episodes begin, pads them to the longest, runs all layers on the
padding too, and calls the LSTM step by step to clear its states. ``ResetMaskPPO`` draws the same minibatches, lays the
same sequences end to end in a few rows, and runs each row in one call: ``reset_mask`` says where an episode begins.
The losses are means over the same steps, so policies are equal to rounding.

Trains both on the mazes of ppo_lstm.py from the same seed, draws both curves, and times an epoch at 128 steps of 8
environments with 256 units. Needs sb3-contrib: pip install ".[rl]" in a clone
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from curves import Curve, arguments, by_turns, compare_curves, draw, progress
from gymnasium import spaces
from ppo_lstm import TMaze
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples, RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

import fused_rnn

# ---- the adapter ----

PADDING = -1.0  # in the place of an episode start: behind the end of a row


class Unsupported(ValueError):
    """What :class:`ResetMaskPPO` cannot do; the message names it."""


class ResetMaskPPO(RecurrentPPO):
    """RecurrentPPO, the LSTM's part of it by fused_rnn: the same arguments, minibatches, losses and saved files."""

    def _setup_model(self) -> None:
        super()._setup_model()
        refuse(self)
        fused_rnn.swap(self.policy)
        self.policy._process_sequence = process_rows
        old = self.rollout_buffer
        spaces = (old.observation_space, old.action_space)
        sizes = (old.hidden_state_shape, old.device, old.gae_lambda, old.gamma, old.n_envs)
        self.rollout_buffer = RowBuffer(old.buffer_size, *spaces, *sizes)


@dataclass
class Rows:
    """Sequences laid end to end in R rows of at most T steps. Steps are numbered as in the minibatch."""

    order: np.ndarray  # the steps in the order of [T, R], without padding
    first: np.ndarray  # [R] the first step of each row
    starts: np.ndarray  # [T, R] 1 where an episode begins, 0 within one, PADDING behind a row's end

    @classmethod
    def of(cls, episode_starts: np.ndarray, env_change: np.ndarray) -> Rows:
        """The rows of a minibatch: ``[N]`` each, where an episode begins, and where another environment's steps do.

        A row is as long as the longest sequence. A sequence that goes on with a stored state has to be the first of
        a row; those that begin an episode begin with zeros, wherever they stand. The longest are placed first, each
        in the first row that has room.
        """
        cuts = (episode_starts > 0) | (env_change > 0)
        cuts[0] = True
        begins = cuts.nonzero()[0]
        lengths = np.diff(begins, append=len(cuts))
        goes_on = episode_starts[begins] == 0
        rows: list[list[int]] = []
        room: list[int] = []
        steps = int(lengths.max())
        for k in np.lexsort((-lengths, ~goes_on)):
            fits = () if goes_on[k] else (row for row, left in enumerate(room) if left >= lengths[k])
            row = next(iter(fits), len(rows))
            if row == len(rows):
                rows.append([])
                room.append(steps)
            rows[row].append(k)
            room[row] -= lengths[k]
        at = np.full((steps, len(rows)), -1)
        for row, members in enumerate(rows):
            own = np.concatenate([np.arange(begins[k], begins[k] + lengths[k]) for k in members])
            at[: len(own), row] = own
        real = at >= 0
        return cls(at[real], at[0], np.where(real, episode_starts[at], PADDING).astype(np.float32))


class RowBuffer(RecurrentRolloutBuffer):
    """Minibatches of the same steps as RecurrentRolloutBuffer's, in rows; ``episode_starts`` is ``[T, R]``."""

    def _get_samples(self, batch_inds: np.ndarray, env_change: np.ndarray, env=None) -> RecurrentRolloutBufferSamples:
        rows = Rows.of(self.episode_starts[batch_inds].ravel(), env_change[batch_inds].ravel())
        order, first = batch_inds[rows.order], batch_inds[rows.first]

        def states(*kinds: np.ndarray) -> tuple[Tensor, ...]:
            return tuple(self.to_torch(kind[first].swapaxes(0, 1)).contiguous() for kind in kinds)

        def flat(values: np.ndarray) -> Tensor:
            return self.to_torch(values[order]).flatten()

        return RecurrentRolloutBufferSamples(
            observations=self.to_torch(self.observations[order]),
            actions=self.to_torch(self.actions[order]),
            old_values=flat(self.values),
            old_log_prob=flat(self.log_probs),
            advantages=flat(self.advantages),
            returns=flat(self.returns),
            lstm_states=RNNStates(
                states(self.hidden_states_pi, self.cell_states_pi), states(self.hidden_states_vf, self.cell_states_vf)
            ),
            episode_starts=self.to_torch(rows.starts),
            mask=torch.ones(len(order), device=self.device),
        )


def process_rows(features: Tensor, lstm_states, episode_starts: Tensor, lstm: fused_rnn.LSTM):
    """In place of RecurrentActorCriticPolicy's ``_process_sequence``: features ``[N, F]`` to ``[N, H]``, and states.

    ``episode_starts`` is that of :class:`Rows`, or ``[R]`` for a single step of R environments.
    """
    starts = episode_starts.reshape(-1, lstm_states[0].shape[1])
    if episode_starts.dim() == 1 and len(starts) != 1:
        raise Unsupported(f"sequences of {len(starts)} steps, as padded by sb3-contrib; expected rows of RowBuffer")
    resets = starts > 0
    if len(features) == starts.numel():
        output, states = lstm(features.unflatten(0, starts.shape), lstm_states, reset_mask=resets)
        return output.flatten(0, 1), states
    real = starts != PADDING
    at = real.flatten().nonzero()[:, 0]
    x = features.new_zeros(starts.numel(), features.shape[1]).index_copy(0, at, features)
    x = x.unflatten(0, starts.shape)
    output, states = lstm(x, lstm_states, lengths=real.sum(0), reset_mask=resets)
    return output.flatten(0, 1).index_select(0, at), states


def refuse(agent: RecurrentPPO) -> None:
    """Raises :class:`Unsupported` where results would not be those of RecurrentPPO."""
    policy, kind = agent.policy, type(agent.policy).__name__
    for name in ("_process_sequence", "evaluate_actions"):
        if getattr(type(policy), name) is not getattr(RecurrentActorCriticPolicy, name):
            raise Unsupported(f"{kind}.{name} is not sb3-contrib's: it may reset states in another way")
    for name in ("lstm_actor", "lstm_critic"):
        lstm = getattr(policy, name)
        if lstm is None:
            continue
        if type(lstm) is not nn.LSTM and type(lstm) is not fused_rnn.LSTM:
            raise Unsupported(f"{kind}.{name} is a {type(lstm).__name__}; expected torch.nn.LSTM")
        options = [option for option in ("bidirectional", "batch_first", "proj_size") if getattr(lstm, option)]
        if options:
            raise Unsupported(f"{kind}.{name} with {options[0]}; expected an LSTM that runs forward, [T, B, I]")
    for name, module in policy.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise Unsupported(f"{kind}.{name} is a {type(module).__name__}, whose statistics depend on padding")
    if type(agent.rollout_buffer) is not RecurrentRolloutBuffer:
        found = type(agent.rollout_buffer).__name__
        raise Unsupported(
            f"{found}: expected RecurrentRolloutBuffer; dictionaries of observations, burn-in before a sequence and "
            "other cuts are not supported"
        )


# ---- the mazes for sb3 ----


class Mazes(VecEnv):
    """TMaze as sb3 wants it. ``successes``: 1 for each episode since the last look that ended the right way, else 0."""

    def __init__(self, envs: int, corridor: tuple[int, int], seed: int = 0):
        self.mazes = TMaze(envs, corridor, pixels=False, seed=seed)
        self.successes: list[float] = []
        super().__init__(envs, spaces.Box(0, 1, self.mazes.shape), spaces.Discrete(self.mazes.actions))

    def reset(self) -> np.ndarray:
        return self.mazes.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.chosen = actions

    def step_wait(self):
        obs, rewards, first = self.mazes.step(self.chosen)
        self.successes += (rewards[first] == 1).tolist()
        return obs, rewards, first, [{} for _ in first]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name, indices=None):
        return [getattr(self.mazes, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError(f"set_attr({attr_name!r}): all mazes are one object")

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError(f"env_method({method_name!r}): all mazes are one object")

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


# ---- training ----


def make(kind: type[RecurrentPPO], hidden: int, mazes: Mazes, seed: int, **options) -> RecurrentPPO:
    """Agents of both libraries. Their heads are one matrix each; else sb3-contrib's defaults, but for ``options``."""
    sizes = {"lstm_hidden_size": hidden, "net_arch": []}
    return kind("MlpLstmPolicy", mazes, policy_kwargs=sizes, seed=seed, device="cpu", **options)


class Watch(BaseCallback):
    """Fills a curve: rollouts end with an update."""

    def __init__(self, curve: Curve, bar):
        super().__init__()
        self.curve, self.bar = curve, iter(bar)
        self.began = self.collected = 0.0

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        if self.collected:
            self._add(now)
        self.began = now
        next(self.bar, None)

    def _on_rollout_end(self) -> None:
        self.collected = time.perf_counter()

    def _on_training_end(self) -> None:
        self._add(time.perf_counter())
        next(self.bar, None)

    def _add(self, now: float) -> None:
        mazes = self.training_env
        steps = mazes.num_envs * self.model.n_steps
        right = np.mean(mazes.successes) if mazes.successes else 0.0
        mazes.successes = []
        self.curve.add(self.model.policy, steps, right, self.collected - self.began, now - self.collected)

    def _on_step(self) -> bool:
        return True


def train(agent: RecurrentPPO, iterations: int) -> Curve:
    curve = Curve()
    agent.set_random_seed(agent.seed)
    steps = iterations * agent.n_steps * agent.n_envs
    agent.learn(steps, callback=Watch(curve, progress(iterations, type(agent).__name__)))
    return curve


KINDS = {"fused_rnn": ResetMaskPPO, "sb3-contrib": RecurrentPPO}


def epochs(batch: int, steps: int, hidden: int, seed: int) -> tuple[dict, dict]:
    """Of both, to be timed: an epoch on a rollout of 8 environments, and the LSTMs' part of it."""
    sizes = {"n_steps": steps, "batch_size": batch, "n_epochs": 1}
    agents = {name: make(kind, hidden, Mazes(8, (10, 40), seed), seed, **sizes) for name, kind in KINDS.items()}
    for agent in agents.values():
        agent.learn(8 * steps)
    return {name: agent.train for name, agent in agents.items()}, {name: lstms(agent) for name, agent in agents.items()}


def lstms(agent: RecurrentPPO) -> Callable[[], None]:
    """Forward and backward of the LSTMs of actor and critic, on an epoch's minibatches."""
    layers = (agent.policy.lstm_actor, agent.policy.lstm_critic)
    batches = list(agent.rollout_buffer.get(agent.batch_size))

    def run() -> None:
        for batch in batches:
            for states, lstm in zip(batch.lstm_states, layers, strict=True):
                x = batch.observations.flatten(1)
                output, _ = agent.policy._process_sequence(x, states, batch.episode_starts, lstm)
                torch.autograd.grad(output.sum(), list(lstm.parameters()))

    return run


def main() -> None:
    args = arguments(__doc__)
    hidden, envs, corridor = (32, 32, (1, 3)) if args.quick else (64, 16, (5, 15))
    steps, iterations, rate, minibatches = (24, 20, 5e-3, 2) if args.quick else (128, 150, 1e-3, 4)
    sizes = {"n_steps": steps, "batch_size": steps * envs // minibatches, "n_epochs": 4}
    curves = {}
    for name, kind in KINDS.items():
        agent = make(kind, hidden, Mazes(envs, corridor, args.seed), args.seed, learning_rate=rate, **sizes)
        curves[name] = train(agent, iterations)
    compare_curves(curves, "turns the right way", at_least=0.9)
    draw(args, "recurrent_ppo_sb3.svg", curves, "turns the right way")
    steps, hidden, rounds = (16, 16, 2) if args.quick else (128, 256, 7)
    for batch in (128,) if args.quick else (128, 8 * steps):  # sb3-contrib's default, and all steps
        what = f"T {steps}, 8 environments, H {hidden}, minibatches of {batch}"
        whole, part = epochs(batch, steps, hidden, args.seed)
        by_turns(f"an epoch, {what}", whole, rounds)
        by_turns(f"its LSTMs alone, {what}", part, rounds)


if __name__ == "__main__":
    main()
