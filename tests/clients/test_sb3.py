"""RecurrentPPO of sb3-contrib: training with a swapped policy, saving and loading."""

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client, quiet

pytestmark = pytest.mark.filterwarnings("ignore")
sb3_contrib = client("sb3_contrib")


def make():
    sizes = {"lstm_hidden_size": 8, "net_arch": [8]}
    with quiet():
        return sb3_contrib.RecurrentPPO(
            "MlpLstmPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=2, seed=0, policy_kwargs=sizes
        )


def losses_of(agent):
    agent.set_random_seed(0)
    agent.learn(32)
    return {name: float(value) for name, value in agent.logger.name_to_value.items() if "loss" in name}


@pytest.fixture(scope="module")
def trained():
    theirs, ours = make(), make()
    fused_rnn.swap(ours.policy)
    return ours, losses_of(ours), losses_of(theirs)


def test_a_swapped_policy_trains_with_the_same_losses(trained):
    ours, found, expected = trained
    assert type(ours.policy.lstm_actor) is type(ours.policy.lstm_critic) is fused_rnn.LSTM
    assert set(expected) >= {"train/loss", "train/value_loss", "train/policy_gradient_loss"}
    assert found == pytest.approx(expected, rel=5e-7, abs=5e-7)


def test_load_gives_torchs_layers_unless_ours_are_installed(trained, tmp_path):
    ours, *_ = trained
    ours.save(tmp_path / "agent.zip")
    theirs = sb3_contrib.RecurrentPPO.load(tmp_path / "agent.zip")
    assert type(theirs.policy.lstm_actor) is nn.LSTM
    with fused_rnn.install():
        loaded = sb3_contrib.RecurrentPPO.load(tmp_path / "agent.zip")
    assert type(loaded.policy.lstm_actor) is fused_rnn.LSTM
    assert type(fused_rnn.swap(theirs.policy).lstm_actor) is fused_rnn.LSTM
    for agent in (loaded, theirs):
        state = agent.policy.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in ours.policy.state_dict().items())
