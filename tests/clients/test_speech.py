"""SpeechBrain's layers and torchaudio's Tacotron2, which is scripted."""

import importlib.util
import sys
import types
from unittest.mock import MagicMock

import pytest
import torch

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
TORCHAUDIO = importlib.util.find_spec("torchaudio")


def pair(make):
    theirs, ours = make().eval(), make().eval()
    ours.load_state_dict(theirs.state_dict())
    return fused_rnn.swap(ours), theirs


@pytest.fixture(scope="module")
def speechbrain():
    """Its RNNs. It imports torchaudio, for files of sound, of which there is none for this torch: "Could not find a
    version that satisfies the requirement torchaudio==2.13.0 (from versions: ..., 2.11.0, 2.11.1)". That last one is
    for CUDA; beside a torch for the CPU it says "OSError: libc10_cuda.so: cannot open shared object file: No such file
    or directory", and a module without contents takes its place."""
    try:
        client("torchaudio")
    except OSError as error:
        assert "_torchaudio" in str(error)
        for name in [name for name in sys.modules if name.startswith("torchaudio")]:
            del sys.modules[name]
        stub = types.ModuleType("torchaudio")
        stub.__spec__ = importlib.util.spec_from_loader("torchaudio", None)
        stub.__version__, stub.__getattr__ = "2.11.1", lambda name: MagicMock()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "torchaudio", stub)
            yield client("speechbrain.nnet.RNN")
    else:
        yield client("speechbrain.nnet.RNN")


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_speechbrains_layers(speechbrain, name):
    ours, theirs = pair(lambda: getattr(speechbrain, name)(4, input_size=3, num_layers=2, bidirectional=True))
    assert type(ours.rnn) is getattr(fused_rnn, name)
    x, lengths = torch.randn(2, 5, 3), torch.tensor([1.0, 0.6])
    for given in ((x,), (x, None, lengths)):
        (found, state), (expected, their_state) = ours(*given), theirs(*given)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(state, their_state)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_speechbrains_layers_are_traced_and_scripted_as_far_as_with_torch(speechbrain, name):
    ours, theirs = pair(lambda: getattr(speechbrain, name)(4, input_size=3, num_layers=2, bidirectional=True))
    x, y = torch.randn(2, 5, 3), torch.randn(3, 7, 3)
    torch.testing.assert_close(torch.jit.trace(ours, x)(y), theirs(y))
    # They call flatten_parameters, which TorchScript refuses of torch.nn's layers.
    refused = pytest.raises(torch.jit.frontend.UnsupportedNodeError, match="SetComp aren't supported")
    with pytest.warns(UserWarning, match=f"replaces fused_rnn.{name} by torch.nn.{name}"), refused:
        torch.jit.script(ours)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_speechbrains_cells(speechbrain, name):
    ours, theirs = pair(lambda: getattr(speechbrain, name)(4, input_size=3, num_layers=2))
    assert type(ours.rnn_cells[0]) is getattr(fused_rnn, name)
    torch.testing.assert_close(ours(torch.ones(2, 3)), theirs(torch.ones(2, 3)))


def test_tacotron2_runs_and_is_scripted():
    """From its file, for the package's own library may not load: see ``speechbrain``."""
    if TORCHAUDIO is None:
        pytest.skip("torchaudio is not installed: pip install '.[clients]' in a clone")
    place = f"{TORCHAUDIO.submodule_search_locations[0]}/models/tacotron2.py"
    spec = importlib.util.spec_from_file_location("tacotron2_of_torchaudio", place)
    source = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)

    def make():
        return source.Tacotron2(
            n_mels=4, symbol_embedding_dim=8, encoder_embedding_dim=8, encoder_n_convolution=1, decoder_rnn_dim=8,
            decoder_max_step=3, attention_rnn_dim=8, attention_hidden_dim=8, attention_location_n_filter=2,
            prenet_dim=8, postnet_n_convolution=1, postnet_embedding_dim=8,
        )  # fmt: skip

    ours, theirs = pair(make)
    assert type(ours.encoder.lstm) is fused_rnn.LSTM
    assert type(ours.decoder.attention_rnn) is fused_rnn.LSTMCell
    tokens, lengths = torch.randint(0, 100, (2, 6)), torch.tensor([6, 4])
    sound, sound_lengths = torch.randn(2, 4, 5), torch.tensor([5, 3])
    results = []
    for model in (theirs, ours):
        torch.manual_seed(0)  # its dropout is always there
        results.append(model(tokens, lengths, sound, sound_lengths))
    torch.testing.assert_close(*results)
    with pytest.warns(UserWarning, match="replaces fused_rnn.LSTM") as caught:
        scripted = torch.jit.script(ours)
    assert sum("torch.jit.script replaces" in str(warning.message) for warning in caught) == 3
    torch.manual_seed(0)
    torch.testing.assert_close(scripted(tokens, lengths, sound, sound_lengths), results[0])
    torch.manual_seed(0)
    found = scripted.infer(tokens, lengths)
    torch.manual_seed(0)
    torch.testing.assert_close(found, torch.jit.script(theirs).infer(tokens, lengths))
