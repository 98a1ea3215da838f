"""Layers exported to ONNX: one node each; the graph gives this library's results for any T and B."""

import subprocess
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import functional
from support.modules import F64, KINDS, assert_close, make_input, make_states, tensors_of

pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
onnx = pytest.importorskip("onnx", reason="torch.onnx.export needs it")
pytest.importorskip("onnx.reference")
onnxruntime = pytest.importorskip("onnxruntime", reason="it runs what was exported")

# torch.export copies a structure that torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")

DYNAMIC = torch.export.Dim.DYNAMIC


def make_module(kind, **options):
    ours, _, own_options = KINDS[kind]
    return ours(**{"input_size": 3, "hidden_size": 5, **own_options, **options}).eval()


def export(model, *args, table=True, **options):
    """The exported model, checked by onnx."""
    options["custom_translation_table"] = fused_rnn.onnx.translations() if table else None
    exported = torch.onnx.export(model, args, dynamo=True, verbose=False, **options).model_proto
    onnx.checker.check_model(exported, full_check=True)
    return exported


def assert_runs_as_here(exported, module, inputs):
    """``inputs``: the arguments of ``module`` by name."""
    feed = {value.name: t.numpy() for value, t in zip(exported.graph.input, tensors_of(inputs.values()), strict=True)}
    if inputs["input"].dtype == F64:  # ONNX Runtime has no kernels for it
        evaluator = onnx.reference.ReferenceEvaluator(exported)
    else:
        evaluator = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = tensors_of(module(**inputs))
    found = map(torch.from_numpy, evaluator.run(None, feed))
    assert_close(dict(enumerate(found)), dict(enumerate(expected)))


# With 48 units the runtime reorders the weights, with few the exporter does.
# onnx's evaluator, used for float64, has neither two directions nor lengths.
@pytest.mark.parametrize(
    ("kind", "given", "options"),
    [
        ("lstm", "states lengths", {"num_layers": 2, "bidirectional": True, "hidden_size": 48}),
        ("lstm", "", {"bias": False, "batch_first": True}),
        ("lstm", "states unbatched", {"num_layers": 2}),
        ("lstm", "states lengths", {"bidirectional": True, "dtype": torch.float16}),
        ("lstm", "states", {"dtype": F64}),
        ("gru", "lengths", {"bidirectional": True, "batch_first": True}),
        ("gru", "states lengths", {"num_layers": 2, "bias": False, "hidden_size": 48}),
        ("gru", "unbatched", {"bidirectional": True}),
        ("gru", "states", {"dtype": torch.float16}),
        ("gru", "states", {"dtype": F64}),
        ("rnn_tanh", "states lengths", {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}),
        ("rnn_tanh", "lengths", {"num_layers": 2, "dtype": torch.float16}),
        ("rnn_tanh", "states", {"dtype": F64}),
        ("rnn_relu", "states", {"bidirectional": True}),
        ("rnn_relu", "lengths", {}),
    ],
)
def test_layers(kind, given, options):
    module = make_module(kind, **options)
    batched, dtype = "unbatched" not in given, options.get("dtype", torch.float32)

    def inputs(steps, batch):
        batch = batch if batched else None
        made = {"input": make_input(module, steps, batch, dtype)}
        if "states" in given:
            made["hx"] = make_states(module, batch, dtype)
        if "lengths" in given:
            made["lengths"] = torch.tensor([steps, 0, *range(1, steps)])[:batch]
        return made

    example = inputs(4, 3)
    of_states = {1: DYNAMIC} if batched else {}
    dynamic = {
        "input": dict.fromkeys(range(1 + batched), DYNAMIC),
        "hx": (of_states, of_states) if kind == "lstm" else of_states,
        "lengths": {0: DYNAMIC},
    }
    exported = export(module, kwargs=example, dynamic_shapes={name: dynamic[name] for name in example})
    nodes = [node.op_type for node in exported.graph.node]
    assert nodes.count(kind.split("_")[0].upper()) == module.num_layers
    assert not {"Loop", "Scan", "If"} & set(nodes)
    for steps, batch in ((4, 3), (7, 5), (1, 1)):
        assert_runs_as_here(exported, module, inputs(steps, batch))


@pytest.mark.parametrize("kind", ["lstm_cell", "gru_cell", "rnn_relu_cell"])
def test_cells(kind):
    module = make_module(kind)
    inputs = {"input": torch.randn(2, 3), "hx": make_states(module, dtype=torch.float32)}
    assert_runs_as_here(export(module, kwargs=inputs), module, inputs)


def test_frozen_layer_and_plain_graph():
    """Packed weights are not exported. ``optimize=False`` keeps every node as translated."""
    module = fused_rnn.freeze(make_module("gru", num_layers=2))
    inputs = {"input": torch.randn(4, 2, 3), "lengths": torch.tensor([4, 2])}
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            exported = export(module, kwargs=inputs, optimize=False)
        assert {tensor.data_type for tensor in exported.graph.initializer} == {onnx.TensorProto.FLOAT}
        assert_runs_as_here(exported, module, inputs)


class Model(torch.nn.Module):
    """A module, if there is one, and how it is called."""

    def __init__(self, call, *module):
        super().__init__()
        self.call, self.module = call, torch.nn.ModuleList(module)
        self.eval()

    def forward(self, *args):
        return self.call(*self.module, *args)


def packed(module, input, lengths):
    return module(pack_padded_sequence(input, lengths, enforce_sorted=False))[0].data


def ensemble(*weights):
    return torch.vmap(lambda *weights: functional.lstm(X, None, weights)[0])(*weights)


def operator(*weights, input=None, batch_sizes=None, cells=False):
    """As in programs traced elsewhere."""
    input = X if input is None else input
    return torch.ops.fused_rnn.layer_forward(
        0, False, False, input, None, None, weights, None, batch_sizes, None, False, cells
    )[0]


X = torch.ones(4, 2, 3)
WEIGHTS = torch.ones(20, 3), torch.ones(20, 5)
MEMBERS = tuple(weight.expand(2, -1, -1) for weight in WEIGHTS)
REFUSED = {
    "no reset_mask": (lambda m, x, mask: m(x, reset_mask=mask)[0], [make_module("gru")], (X, X[..., 0] > 0)),
    "no proj_size": (lambda m, x: m(x)[0], [make_module("lstm_projected")], (X,)),
    "no bfloat16": (lambda m, x: m(x)[0], [make_module("gru", dtype=torch.bfloat16)], (X.bfloat16(),)),
    "ONNX has no PackedSequence": (packed, [make_module("rnn_tanh")], (X, torch.tensor([4, 3]))),
    "node has no PackedSequence": (
        lambda input, sizes, *weights: operator(*weights, input=input, batch_sizes=sizes),
        [],
        (X[:, 0], torch.tensor([2, 1, 1]), *WEIGHTS),
    ),
    "torch.export does not take vmap": (ensemble, [], MEMBERS),
    "no vmap over weights": (operator, [], MEMBERS),
    "no .* cell state after every step": (partial(operator, cells=True), [], WEIGHTS),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refused(sentence):
    call, module, args = REFUSED[sentence]
    with pytest.raises(torch.onnx.OnnxExporterError, match=f"NotImplementedError'>: fused_rnn: .*{sentence}"):
        export(Model(call, *module), *args)


def test_without_the_table():
    module = make_module("lstm")
    assert_runs_as_here(export(module, X, table=False), module, {"input": X})


def test_a_torch_whose_table_is_elsewhere_is_told_of_ours():
    with pytest.warns(UserWarning, match=r"custom_translation_table=fused_rnn\.onnx\.translations\(\)"):
        fused_rnn.onnx._register(ModuleType("registry"))


def test_onnx_is_needed_for_translations_alone(monkeypatch):
    used = (
        "import sys, fused_rnn; fused_rnn.onnx; sys.exit(bool({'onnx', 'onnxscript', 'onnx_ir'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", used], check=True)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        fused_rnn.onnx.translations()
