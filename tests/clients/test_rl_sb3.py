"""``examples/rl/recurrent_ppo_sb3.py``: rows against sb3-contrib's padded sequences, and what the adapter refuses."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from support.clients import client, quiet
from support.paths import EXAMPLES
from support.processes import run_python

pytestmark = pytest.mark.filterwarnings("ignore")
client("sb3_contrib")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "rl")
    with quiet():
        return importlib.import_module("recurrent_ppo_sb3")


def test_both_libraries_learn_alike(tmp_path):
    printed = run_python(EXAMPLES / "rl" / "recurrent_ppo_sb3.py", "--quick", "--out", tmp_path)
    assert "largest difference of a weight after the first update" in printed
    assert printed.count("turns the right way") == 2
    assert (tmp_path / "recurrent_ppo_sb3.svg").stat().st_size > 1000


SIZES = {"n_steps": 24, "batch_size": 40, "n_epochs": 2}  # a last minibatch of 32, and sequences that go on


def agents(example, **options):
    """After a rollout and its update, and a second rollout, whose first episodes go on."""
    sizes = {"lstm_hidden_size": 8, "net_arch": [6]} | options
    found = []
    for kind in example.KINDS.values():
        mazes = example.Mazes(3, (1, 4))
        agent = kind("MlpLstmPolicy", mazes, seed=0, device="cpu", policy_kwargs=sizes, **SIZES)
        agent.learn(2 * 3 * SIZES["n_steps"])
        found.append(agent)
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"n_lstm_layers": 2}, {"shared_lstm": True, "enable_critic_lstm": False}, {"enable_critic_lstm": False}],
    ids=str,
)
def test_policies_are_equal_to_rounding(example, options):
    ours, theirs = agents(example, **options)
    for name, weight in theirs.policy.state_dict().items():
        torch.testing.assert_close(ours.policy.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    losses = [
        {k: float(v) for k, v in a.logger.name_to_value.items() if "loss" in k or "kl" in k} for a in (ours, theirs)
    ]
    assert losses[0].keys() >= {"train/value_loss", "train/policy_gradient_loss"}
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-6)


def test_minibatches_are_the_same_steps(example):
    """In another order, without padding; and values and gradients are those of sb3-contrib's way."""
    ours, theirs = agents(example)
    results = []
    for agent in (ours, theirs):
        np.random.seed(0)
        agent.policy.load_state_dict(theirs.policy.state_dict())
        for batch in agent.rollout_buffer.get(40):
            values, log_probs, _ = agent.policy.evaluate_actions(
                batch.observations, batch.actions.long().flatten(), batch.lstm_states, batch.episode_starts
            )
            real = batch.mask > 0
            agent.policy.zero_grad()
            values.flatten()[real].square().mean().backward()
            gradient = agent.policy.lstm_critic.weight_hh_l0.grad.clone()
            columns = (batch.returns, batch.old_values, values.detach().flatten(), log_probs.detach())
            results.append((torch.stack([column[real] for column in columns], 1), len(real), gradient))
    half = len(results) // 2
    padded = 0
    for (found, length, gradient), (expected, padded_length, other) in zip(results[:half], results[half:], strict=True):
        padded += padded_length - length
        order, other_order = (np.lexsort(rows.double().round(decimals=4).numpy().T) for rows in (found, expected))
        torch.testing.assert_close(found[order], expected[other_order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
    assert padded > 0, "sb3-contrib padded nothing: nothing was compared"


def test_rows_hold_every_step_once(example):
    random = np.random.default_rng(0)
    for _ in range(50):
        n = int(random.integers(1, 60))
        starts, change = (random.random(n) < share for share in (0.2, 0.1))
        rows = example.Rows.of(starts.astype(np.float32), change.astype(np.float32))
        assert sorted(rows.order) == list(range(n))
        assert (rows.starts != example.PADDING).sum() == n
        at = np.full(rows.starts.shape, -1)
        at[rows.starts != example.PADDING] = rows.order
        assert (at[0] == rows.first).all()
        for before, after, start in zip(at[:-1].ravel(), at[1:].ravel(), rows.starts[1:].ravel(), strict=True):
            if after >= 0:
                assert starts[after] == start
                assert start == 1 or (after == before + 1 and not change[after]), "a state goes on where it did not"


def test_saving_and_loading(example, tmp_path):
    ours, _ = agents(example)
    ours.save(tmp_path / "agent.zip")
    loaded = example.ResetMaskPPO.load(tmp_path / "agent.zip")
    assert loaded.policy._process_sequence is example.process_rows
    obs = np.eye(4, dtype=np.float32)
    for agent in (ours, loaded):
        agent.policy.set_training_mode(False)
    found, expected = (agent.predict(obs, episode_start=np.ones(4), deterministic=True) for agent in (loaded, ours))
    assert (found[0] == expected[0]).all()
    np.testing.assert_array_equal(found[1][0], expected[1][0])


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(example, policy="MlpLstmPolicy", mazes=None, **sizes):
    with pytest.raises(example.Unsupported) as raised:
        example.ResetMaskPPO(policy, mazes or example.Mazes(2, (1, 2)), policy_kwargs=sizes, device="cpu")
    return str(raised.value)


def test_a_policy_that_resets_otherwise_is_refused(example):
    class Decaying(example.RecurrentActorCriticPolicy):
        @staticmethod
        def _process_sequence(features, lstm_states, episode_starts, lstm):
            return lstm(features, lstm_states)

    assert "Decaying._process_sequence is not sb3-contrib's" in refused(example, Decaying)


def test_other_layers_are_refused(example):
    class Attention(example.RecurrentActorCriticPolicy):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.lstm_actor = nn.GRU(4, 256)

    assert "lstm_actor is a GRU; expected torch.nn.LSTM" in refused(example, Attention)
    assert "with bidirectional" in refused(example, lstm_kwargs={"bidirectional": True})
    assert "with batch_first" in refused(example, lstm_kwargs={"batch_first": True})


def test_statistics_over_padding_are_refused(example):
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Normed(BaseFeaturesExtractor):
        def __init__(self, space):
            super().__init__(space, 4)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, obs):
            return self.norm(obs)

    assert "features_extractor.norm is a BatchNorm1d" in refused(example, features_extractor_class=Normed)


def test_other_buffers_are_refused(example):
    class BurnIn(example.RecurrentRolloutBuffer):
        pass

    agent = example.RecurrentPPO("MlpLstmPolicy", example.Mazes(2, (1, 2)), device="cpu")
    example.refuse(agent)
    agent.rollout_buffer.__class__ = BurnIn
    with pytest.raises(example.Unsupported, match=r"BurnIn: expected RecurrentRolloutBuffer.*burn-in"):
        example.refuse(agent)


def test_padded_sequences_are_refused(example):
    lstm = nn.LSTM(3, 5)
    states = (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    with pytest.raises(example.Unsupported, match="sequences of 4 steps, as padded by sb3-contrib"):
        example.process_rows(torch.zeros(8, 3), states, torch.zeros(8), lstm)
