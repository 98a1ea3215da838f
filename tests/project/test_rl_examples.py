"""``examples/rl/ppo_lstm.py``: the mazes, the agent with either library, and what a quick run promises."""

import importlib

import numpy as np
import pytest
import torch

import fused_rnn
from support.paths import EXAMPLES
from support.processes import run_python

pytest.importorskip("tqdm", reason="the examples draw progress bars with tqdm")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "rl")
    return importlib.import_module("ppo_lstm")


def test_both_libraries_learn_alike(tmp_path):
    pytest.importorskip("matplotlib", reason="the examples draw with matplotlib")
    printed = run_python(EXAMPLES / "rl" / "ppo_lstm.py", "--quick", "--out", tmp_path)
    assert "largest difference of a weight after the first update" in printed
    assert printed.count("turns the right way") == 2
    assert (tmp_path / "ppo_lstm.svg").stat().st_size > 1000


# ---- the mazes -------------------------------------------------------------------------------------------------------


def rewards_of(maze, choose, steps=200) -> np.ndarray:
    """Of episodes' last steps, when ``choose(obs)`` acts."""
    obs, found = maze.reset(), []
    for _ in range(steps):
        obs, rewards, first = maze.step(choose(obs))
        found.append(rewards[first])
    return np.concatenate(found)


def test_a_remembered_sign_is_worth_1_and_forgetting_it_half(example):
    signs = np.zeros(64, dtype=int)

    def remember(obs):
        signs[obs[:, 0] == 1], signs[obs[:, 1] == 1] = 1, 2
        return np.where(obs[:, 3] == 1, signs, 0)

    maze = example.TMaze(64, (2, 6), pixels=False, seed=0)
    assert (rewards_of(maze, remember) == 1).all()
    assert rewards_of(maze, lambda obs: 1 * (obs[:, 3] == 1)).mean() == pytest.approx(0.5, abs=0.03)


def test_walls_cost_and_long_episodes_end(example):
    maze = example.TMaze(1, (3, 3), pixels=False, seed=0)
    maze.reset()
    taken = [maze.step(np.array([1])) for _ in range(maze.longest)]
    assert [float(rewards[0]) for _, rewards, _ in taken] == pytest.approx([-0.05] * maze.longest)
    assert [bool(first[0]) for *_, first in taken] == [False] * (maze.longest - 1) + [True]


def test_pictures_show_what_the_numbers_say(example):
    """As many different ones: a sign of two, the corridor, the junction."""
    seen = {}
    for pixels in (False, True):
        maze = example.TMaze(32, (1, 3), pixels, seed=0)
        frames = [maze.reset(), *(maze.step(np.full(32, t % 3))[0] for t in range(20))]
        assert frames[0].shape == (32, *maze.shape)
        _, which = np.unique(np.stack(frames).reshape(21 * 32, -1), axis=0, return_inverse=True)
        seen[pixels] = which
    assert len(np.unique(seen[False])) == len(np.unique(seen[True])) == 4
    assert len(np.unique(np.stack([seen[False], seen[True]]), axis=1).T) == 4, "the same steps look alike"


# ---- the agent -------------------------------------------------------------------------------------------------------


def agents(example, shape):
    ours, theirs = (example.Agent(layers, shape, 3, 8).double() for layers in (fused_rnn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", [(4,), (1, 36, 36)], ids=str)
def test_one_call_is_the_masked_loop(example, shape):
    """Values and gradients, with states carried in and resets inside."""
    torch.manual_seed(0)
    found = []
    obs, state = torch.randn(7, 5, *shape).double(), tuple(torch.randn(2, 1, 5, 8).double())
    first = torch.rand(7, 5) < 0.3
    assert first[0].any() and first[1:].any()
    for agent in agents(example, shape):
        policy, values, after = agent(obs, first, state)
        (policy.logits.square().sum() + values.square().sum()).backward()
        found.append([policy.logits, values, *after, *(parameter.grad for parameter in agent.parameters())])
    torch.testing.assert_close(*found)


def test_the_update_sees_what_the_rollout_did(example):
    """Before any update, ratios of probabilities are 1, whichever rows a minibatch takes."""
    config = example.Config(envs=6, steps=20, hidden=8, corridor=(1, 3))
    trainer = example.Trainer(lambda *sizes: example.Agent(fused_rnn, *sizes), config, torch.device("cpu"), 0)
    for _ in range(2):  # the second rollout begins within episodes
        rollout = trainer.collect()
    assert not rollout.first[0].all() and rollout.first[1:].any()
    part = rollout.rows(torch.tensor([4, 1, 2]))
    policy, values, _ = trainer.agent(part.obs, part.first, part.state)
    torch.testing.assert_close(policy.log_prob(part.actions), part.log_probs)
    torch.testing.assert_close(values, part.values)


def test_advantages_end_with_the_episode(example):
    config = example.Config(envs=1, steps=3, hidden=8, gamma=0.5, gae_lambda=0.5)
    trainer = example.Trainer(lambda *sizes: example.Agent(fused_rnn, *sizes), config, torch.device("cpu"), 0)
    trainer.first = torch.tensor([False])
    values, rewards = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [5.0], [0.0]])
    first = torch.tensor([[False], [False], [True]])  # the episode of steps 0 and 1 ends with reward 5
    found = trainer._advantages(None, first, None, None, values, rewards, torch.tensor([8.0]))
    last, middle = 0.5 * 8 - 3, 5 - 2
    assert found[:, 0].tolist() == [0.5 * 2 - 1 + 0.25 * middle, middle, last]


# ---- what the comparison refuses -------------------------------------------------------------------------------------


def curve_of(example, weight=0.0, value=1.0):
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, weight)
    torch.nn.init.zeros_(model.bias)
    curve = example.Curve()
    for _ in range(3):
        curve.add(model, 10, value, 0.1, 0.2)
    return curve


@pytest.mark.parametrize(
    ("wrong", "message"), [({"weight": 1e-3}, "after the first update"), ({"value": 0.5}, "right, torch.nn")], ids=str
)
def test_curves_that_differ_or_do_not_rise_are_noticed(example, wrong, message):
    curves = {"fused_rnn": curve_of(example), "torch.nn": curve_of(example)}
    example.compare_curves(curves, "right", at_least=0.9)
    assert curves["torch.nn"].steps == [10, 20, 30]
    assert curves["torch.nn"].seconds == pytest.approx([0.3, 0.6, 0.9])
    with pytest.raises(SystemExit, match=message):
        example.compare_curves(curves | {"torch.nn": curve_of(example, **wrong)}, "right", at_least=0.9)
