"""Models pickled by earlier versions load, and compute what they computed then.

``tests/data/models-VERSION.pickle`` and ``.pt`` (torch.save) hold ``{name: (model, inputs, results)}``.
"""

import pickle
from pathlib import Path

import pytest
import torch

import fused_rnn

DATA = Path(__file__).with_name("data")
FILES = sorted(path.name for path in DATA.glob("models-*"))
MODELS = (
    "LSTM",
    "GRU",
    "RNN",
    "frozen LSTM",
    "LSTMCell",
    "GRUCell",
    "RNNCell",
    "Stack",
    "Stack of LSTM",
    "Sequential",
    "InitialState",
)


def load(name):
    if name.endswith(".pt"):
        return torch.load(DATA / name, weights_only=False)
    return pickle.loads((DATA / name).read_bytes())


def test_there_are_files_of_both_kinds():
    assert {Path(name).suffix for name in FILES} == {".pickle", ".pt"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("file", FILES)
def test_an_old_model_loads_and_computes_the_same(file, model):
    module, inputs, expected = load(file)[model]
    with torch.no_grad():
        torch.testing.assert_close(module(*inputs), expected)
    if model == "frozen LSTM":  # its mark was pickled, not its packed weights: they are packed anew
        with pytest.raises(RuntimeError, match=r"a frozen layer has no gradients.*fused_rnn.thaw"):
            module(*inputs)
        fused_rnn.thaw(module)
    assert all(parameter.requires_grad for parameter in module.parameters())
