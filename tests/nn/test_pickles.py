"""Models pickled by earlier versions load, and compute what they computed then.

``tests/nn/pickles/models-VERSION.pickle`` and ``.pt`` (torch.save) hold ``{name: (model, inputs, results)}``.
"""

import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fused_rnn

DATA = Path(__file__).with_name("pickles")
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


def test_there_are_files_of_both_formats():
    assert {Path(name).suffix for name in FILES} == {".pickle", ".pt"}


@pytest.mark.filterwarnings("ignore:fused_rnn.* will go away:DeprecationWarning")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("file", FILES)
def test_an_old_model_loads_and_computes_the_same(file, model):
    module, inputs, expected = load(file)[model]
    with torch.no_grad():
        torch.testing.assert_close(module(*inputs), expected)
    if model == "frozen LSTM":  # only the mark is pickled; loading packs the weights again
        with pytest.raises(RuntimeError, match=r"a frozen layer has no gradients.*fused_rnn.thaw"):
            module(*inputs)
        fused_rnn.thaw(module)
    assert all(parameter.requires_grad for parameter in module.parameters())


# ---- what is pickled now ---------------------------------------------------------------------------------------------


def one_of_each():
    """An object of every public class."""
    lstm = fused_rnn.LSTM(3, 3)
    yield from (lstm, fused_rnn.GRU(3, 3), fused_rnn.RNN(3, 3))
    yield from (fused_rnn.LSTMCell(3, 3), fused_rnn.GRUCell(3, 3), fused_rnn.RNNCell(3, 3))
    yield fused_rnn.Stack("gru", 3, [3, 3])
    yield from (fused_rnn.zoo.janet, fused_rnn.zoo.janet.layer(3, 3, compiled=False))
    yield fused_rnn.Stream(lstm)
    x = torch.randn(4, 2, 3)
    spectrum, gates = fused_rnn.spectrum(lstm), fused_rnn.gate_statistics(lstm, x)
    yield from (spectrum, spectrum.blocks[0], gates, gates.gates[0], fused_rnn.explain(lstm, x))
    yield fused_rnn.explain(torch.nn.Sequential(lstm), x)
    with fused_rnn.gradient_flow(lstm) as flow:
        lstm(x)[0].sum().backward()
    yield from (flow, flow.summary(), flow.summary().lines[0])
    report = fused_rnn.verify(cells=[], show_progress=False)
    yield from (report, fused_rnn.Result("lstm", "float32", "plain", 0.0, 1.0))
    yield next(fused_rnn.tbptt(lstm, lambda output, target: output.sum(), [(x, None)]))


def test_public_classes_are_pickled_by_their_public_names():
    found = set()
    for thing in one_of_each():
        kind = type(thing)
        assert kind.__module__ == "fused_rnn", kind
        assert getattr(fused_rnn, kind.__name__) is kind
        pickled = pickle.dumps(thing)
        assert not any(f"fused_rnn.{folder}".encode() in pickled for folder in ("nn", "ops", "autograd", "tools"))
        assert type(pickle.loads(pickled)) is kind
        found.add(kind)
    assert found == {value for value in vars(fused_rnn).values() if isinstance(value, type)}, (
        "some public class has no example"
    )


def test_dir_lists_public_names():
    assert dir(fused_rnn) == sorted(fused_rnn.__all__)
    assert all(hasattr(fused_rnn, name) for name in fused_rnn.__all__)


# ---- old module names, which those pickles refer to ------------------------------------------------------------------

OLD_NAMES = [
    ("modules", "LSTM"),
    ("modules", "GRU"),
    ("modules", "RNN"),
    ("cells", "LSTMCell"),
    ("cells", "GRUCell"),
    ("cells", "RNNCell"),
    ("deep", "Stack"),
    ("convert", "swap"),
    ("convert", "restore"),
    ("diagnostics", "explain"),
    ("diagnostics", "info"),
    ("engines", "cuda_engine"),
    ("flow", "gradient_flow"),
    ("freezing", "freeze"),
    ("freezing", "thaw"),
    ("gates", "gate_statistics"),
    ("spectra", "spectrum"),
    ("training", "tbptt"),
    ("verification", "verify"),
]


@pytest.mark.parametrize(("module", "name"), OLD_NAMES)
def test_an_old_name_is_importable_and_warns(module, name):
    old = import_module(f"fused_rnn.{module}")
    assert old is getattr(fused_rnn, module)
    with pytest.warns(DeprecationWarning, match=rf"fused_rnn.{module} will go away.*fused_rnn.{name}\b"):
        assert getattr(old, name) is getattr(fused_rnn, name)


def test_every_old_module_is_tested():
    assert {module for module, _ in OLD_NAMES} == set(fused_rnn._old_names.MOVED)


def test_an_old_module_has_no_other_names():
    with pytest.raises(AttributeError, match=r"module 'fused_rnn.modules' has no attribute 'Transformer'"):
        fused_rnn.modules.Transformer  # noqa: B018
    with pytest.raises(ImportError, match=r"cannot import name 'Transformer'"):
        exec("from fused_rnn.modules import Transformer")


def test_importing_the_package_does_not_warn():
    command = "import fused_rnn, fused_rnn.modules, inspect; inspect.stack(); inspect.getmodule(inspect.stack()[0][0])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
