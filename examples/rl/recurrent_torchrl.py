"""torchrl's LSTMModule and GRUModule, a whole rollout in one call: python examples/rl/recurrent_torchrl.py

In recurrent mode torchrl cuts ``[B, T]`` steps where ``is_init`` says that episodes begin, pads the pieces, packs them
for torch.nn's layer, and puts all back together. ``ResetMaskLSTM`` and ``ResetMaskGRU`` take the modules' places,
arguments and keys alike, and pass ``is_init`` on as ``reset_mask``.

Trains ppo_lstm.py's agent with both kinds of module from the same seed (``--gru``: GRUs), draws both curves, and times
an epoch. Needs torchrl: pip install ".[rl]" in a clone
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from curves import arguments, by_turns, compare_curves, draw
from ppo_lstm import QUICK, Config, Trainer, orthogonal, train
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.modules import GRU, LSTM, GRUModule, LSTMModule, set_recurrent_mode

import fused_rnn

# ---- the adapter ----


class Unsupported(ValueError):
    """What the modules cannot do; the message names it."""


class ResetMask:
    """In front of LSTMModule or GRUModule: recurrent mode in one call for each of the layer's layers.

    Where episodes begin in mid-row, torchrl starts them with the states stored there. These are zeros in what its
    collectors record, and that is what ``reset_mask`` does. Other states, bidirectional layers, torch.compile and
    single steps go torchrl's own way, with our layer inside; with ``python_based`` the layer is torchrl's too.
    """

    layer_name: str
    layer_class: type[nn.Module]
    python_class: type[nn.Module]

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        kind, layer = type(self).__name__, getattr(self, self.layer_name)
        if self.recurrent_backend not in ("pad", "auto"):
            backend = f"recurrent_backend={self.recurrent_backend!r}"
            raise Unsupported(f"{kind} with {backend}, which computes without the layer; expected 'pad' or 'auto'")
        if type(layer) is self.python_class:
            return
        expected = f"torch.nn.{self.layer_class.__name__}"
        if type(layer) not in (getattr(nn, self.layer_class.__name__), self.layer_class):
            raise Unsupported(f"{kind} around {type(layer).__module__}.{type(layer).__name__}; expected {expected}")
        fused_rnn.swap(layer)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        layer = getattr(self, self.layer_name)
        ours = type(layer) is self.layer_class and not layer.bidirectional
        if not (ours and self.recurrent_mode and tensordict.ndim) or torch.compiler.is_compiling():
            return super().forward(tensordict)
        rows = tensordict.reshape(-1, tensordict.shape[-1])
        value, *stored = (rows.get(key, None) for key in self.in_keys[:-1])
        begins = rows["is_init"].squeeze(-1).bool()
        resets = begins.clone()
        resets[:, 0] = False  # a row begins with the state stored there, whatever is_init says
        if value is None or any(kept is not None and kept[resets].any() for kept in stored):
            return super().forward(tensordict)

        ends = torch.cat([resets[:, 1:], torch.ones_like(resets[:, :1])], 1)[..., None, None]
        given = [None if kept is None else kept[:, 0].transpose(0, 1) for kept in stored]
        output, *states = run_layers(layer, value, given, resets if resets.any() else None)
        results = [output, *(state * ends for state in states)]  # torchrl keeps the states of episodes' last steps
        out = dict(zip(self.out_keys, results, strict=True))
        for key, result in out.items():
            tensordict.set(key, result.reshape(*tensordict.shape, *result.shape[2:]))
        return tensordict


class ResetMaskLSTM(ResetMask, LSTMModule):
    layer_name, layer_class, python_class = "lstm", fused_rnn.LSTM, LSTM


class ResetMaskGRU(ResetMask, GRUModule):
    layer_name, layer_class, python_class = "gru", fused_rnn.GRU, GRU


def run_layers(rnn: nn.RNNBase, x: Tensor, given: list[Tensor | None], resets: Tensor | None) -> list[Tensor]:
    """The output ``[B, T, H]``, and h, and an LSTM's c, of all layers after every step, ``[B, T, L, H]``.

    ``given``: h, and c, ``[L, B, H]`` before the first step, or None for zeros. The layers are called one by one, as a
    layer returns the states of its last one alone.
    """
    lstm, every = isinstance(rnn, nn.LSTM), []
    options = {"batch_first": True, "reset_mask": resets}
    for i, names in enumerate(rnn._all_weights):
        weights = [getattr(rnn, name) for name in names]
        state = None if given[0] is None else [kept[i : i + 1].contiguous() for kept in given]
        if lstm:
            x, _, cells = fused_rnn.functional.lstm(x, state and tuple(state), weights, return_cells=True, **options)
            every.append((x, cells))
        else:
            x, _ = fused_rnn.functional.gru(x, state and state[0], weights, **options)
            every.append((x,))
        if rnn.dropout and i + 1 < rnn.num_layers:
            x = nn.functional.dropout(x, rnn.dropout, rnn.training)
    return [x, *(torch.stack(states, 2) for states in zip(*every, strict=True))]


# ---- an agent ----

KINDS = {False: (ResetMaskLSTM, LSTMModule), True: (ResetMaskGRU, GRUModule)}


class ModuleAgent(nn.Module):
    """ppo_lstm.py's agent around a module of torchrl's, which is in recurrent mode for more than one step."""

    def __init__(self, kind: type[LSTMModule] | type[GRUModule], shape: tuple[int, ...], actions: int, hidden: int):
        super().__init__()
        self.states = ["h", "c"] if issubclass(kind, LSTMModule) else ["h"]
        self.hidden = hidden
        self.encoder = nn.Sequential(orthogonal(nn.Linear(shape[0], 64)), nn.Tanh())
        outputs = ["y", *(("next", name) for name in self.states)]
        self.rnn = kind(64, hidden, in_keys=["x", *self.states], out_keys=outputs)
        for name, parameter in self.rnn.named_parameters():
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        self.actor = orthogonal(nn.Linear(hidden, actions), gain=0.01)
        self.critic = orthogonal(nn.Linear(hidden, 1), gain=1)

    def initial_state(self, envs: int) -> tuple[Tensor, ...]:
        return tuple(self.actor.weight.new_zeros(1, envs, self.hidden) for _ in self.states)

    def forward(self, obs: Tensor, first: Tensor, state: tuple[Tensor, ...]):
        steps, rows = first.shape
        data = TensorDict({"x": self.encoder(obs.transpose(0, 1)), "is_init": first.T[..., None]}, [rows, steps])
        for name, kept in zip(self.states, state, strict=True):
            # The first step is that of a rollout, where torchrl's modules take the stored state: it has to be cleared.
            kept = kept.transpose(0, 1) * ~first[0, :, None, None]
            data[name] = torch.cat([kept[:, None], kept.new_zeros(rows, steps - 1, *kept.shape[1:])], 1)
        with set_recurrent_mode(steps > 1):
            data = self.rnn(data) if steps > 1 else self.rnn(data[:, 0]).unsqueeze(1)
        features = data["y"].transpose(0, 1)
        state = tuple(data["next", name][:, -1].transpose(0, 1) for name in self.states)
        return Categorical(logits=self.actor(features)), self.critic(features).squeeze(-1), state


def name_of(kind: type) -> str:
    return "torchrl" if kind in (LSTMModule, GRUModule) else "fused_rnn"


def trainers_of(kinds, config: Config, device: torch.device, seed: int) -> dict[str, Trainer]:
    return {name_of(kind): Trainer(partial(ModuleAgent, kind), config, device, seed) for kind in kinds}


def epochs(kinds, config: Config, seed: int) -> dict[str, Callable[[], None]]:
    """An epoch of each on a rollout, to be timed."""
    trainers = trainers_of(kinds, config, torch.device("cpu"), seed)
    return {name: partial(trainer.epoch, trainer.collect()) for name, trainer in trainers.items()}


def main() -> None:
    args = arguments(__doc__, {"--gru": {"action": "store_true", "help": "GRUs instead of LSTMs"}})
    kinds, config = KINDS[args.gru], QUICK if args.quick else Config()
    trainers = trainers_of(kinds, config, args.device, args.seed)
    curves = {name: train(trainer, name) for name, trainer in trainers.items()}
    compare_curves(curves, "turns the right way", at_least=0.9)
    draw(args, f"recurrent_torchrl{'_gru' if args.gru else ''}.svg", curves, "turns the right way")
    config = config if args.quick else Config(envs=8, hidden=256, minibatches=1)
    what = f"an epoch, T {config.steps}, {config.envs} environments, H {config.hidden}, {kinds[1].__name__}"
    by_turns(what, epochs(kinds, config, args.seed), rounds=2 if args.quick else 9)


if __name__ == "__main__":
    main()
