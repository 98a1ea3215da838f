"""transformers initialises by ``isinstance(module, nn.LSTM)`` and loads state dicts into models it builds itself."""

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
transformers = client("transformers")
SIZES = {"num_filters": 2, "hidden_size": 4, "codebook_size": 8, "codebook_dim": 4, "upsampling_ratios": [2, 2]}


def build():
    torch.manual_seed(0)
    return transformers.EncodecModel(transformers.EncodecConfig(**SIZES, num_lstm_layers=2))


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, nn.LSTM)]


def assert_same_weights(ours, theirs):
    assert [type(layer) for layer in layers_of(ours)] == [fused_rnn.LSTM] * 2
    assert not any(isinstance(layer, fused_rnn.LSTM) for layer in layers_of(theirs))
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_same_seed_gives_the_same_weights():
    with fused_rnn.install():
        ours = build()
    assert_same_weights(ours, build())


def test_a_swapped_model_is_initialised_as_before():
    theirs, ours = build(), fused_rnn.swap(build())
    for model in (theirs, ours):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data.zero_()
            parameter._is_hf_initialized = False
        model.apply(model._init_weights)
    assert layers_of(theirs)[0].weight_hh_l0.any()
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("with_lstm", [True, False])
def test_from_pretrained(with_lstm, tmp_path):
    """What is missing in the file is initialised, and our layers by the rule for torch.nn's."""
    model = build()
    state = {name: t for name, t in model.state_dict().items() if with_lstm or ".lstm." not in name}
    model.save_pretrained(tmp_path, state_dict=state)

    def load():
        torch.manual_seed(1)
        return transformers.EncodecModel.from_pretrained(tmp_path)

    with fused_rnn.install():
        ours = load()
    theirs = load()
    assert_same_weights(ours, theirs)
    assert torch.equal(layers_of(theirs)[0].weight_hh_l0, layers_of(model)[0].weight_hh_l0) == with_lstm
    sound = torch.randn(1, 1, 64)
    torch.testing.assert_close(ours(sound).audio_values, theirs(sound).audio_values)
    assert_same_weights(fused_rnn.swap(theirs), load())
