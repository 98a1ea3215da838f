"""LSTM layers with int8 weights exported to ONNX: nodes of ONNX Runtime with the same integers."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn.tools.verify import INT8_TOLERANCE, relative_error
from support.modules import KINDS, make_input, tensors_of
from support.quantized import Quantizer

pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
onnx = pytest.importorskip("onnx", reason="torch.onnx.export needs it")
onnxruntime = pytest.importorskip("onnxruntime", reason="it runs what was exported")

pytestmark = [
    # torch.export copies a structure that torch deprecates.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.onnx.export(dynamo=False), by itself
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

DYNAMIC = torch.export.Dim.DYNAMIC
NODE = "DynamicQuantizeLSTM"


def make_frozen(kind="lstm", weights="int8", **options):
    ours, _, own_options = KINDS[kind]
    return fused_rnn.freeze(ours(24, 32, **{**own_options, **options}).eval(), weights=weights)


@torch.no_grad()
def export(module, **options):
    exported = torch.onnx.export(module, dynamo=True, verbose=False, **options).model_proto
    onnx.checker.check_model(exported, full_check=True)
    return exported


def run(exported, inputs):
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {value.name: t.numpy() for value, t in zip(exported.graph.input, tensors_of(inputs.values()), strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, feed)]


@torch.no_grad()
def assert_close(exported, module, inputs):
    """The node's results are as close to float64's as the layer's own may be.

    Both keep 7 bits of the largest weight of a row, and 7 of the largest number of what they quantize at once: a row
    here, an input or all h of a step there. Inputs and states are uniform, so that these are about the same.
    """
    exact = fused_rnn.thaw(copy.deepcopy(module)).double()
    doubles = {name: t if name == "lengths" else _map(torch.Tensor.double, t) for name, t in inputs.items()}
    found, expected, own = run(exported, inputs), tensors_of(exact(**doubles)), tensors_of(module(**inputs))
    for one, right, ours in zip(found, expected, own, strict=True):
        assert one.shape == ours.shape and one.dtype == ours.dtype
        assert relative_error(one, right) <= INT8_TOLERANCE["int8"]
        assert relative_error(one, ours) <= INT8_TOLERANCE["int8"]


def _map(function, nested):
    return tuple(map(function, nested)) if isinstance(nested, tuple) else function(nested)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("", {}),
        ("states lengths", {"num_layers": 2, "bidirectional": True}),
        ("lengths", {"bidirectional": True, "bias": False}),
        ("states", {"batch_first": True, "num_layers": 2}),
        ("states unbatched", {"bidirectional": True}),
    ],
)
def test_layers(given, options):
    module = make_frozen(**options)
    batched = "unbatched" not in given

    def inputs(steps, batch):
        outer = (batch,) if batched else ()
        shape = (*outer, steps) if module.batch_first and batched else (steps, *outer)
        made = {"input": torch.rand(*shape, module.input_size) * 2 - 1}
        if "states" in given:
            layers = module.num_layers * (1 + module.bidirectional)
            made["hx"] = tuple(torch.rand(layers, *outer, module.hidden_size) * 2 - 1 for _ in range(2))
        if "lengths" in given:
            made["lengths"] = torch.tensor([steps, 0, *range(1, steps)])[:batch]
        return made

    example = inputs(4, 3)
    of_states = {1: DYNAMIC} if batched else {}
    dynamic = {"input": dict.fromkeys(range(1 + batched), DYNAMIC), "hx": (of_states,) * 2, "lengths": {0: DYNAMIC}}
    exported = export(module, kwargs=example, dynamic_shapes={name: dynamic[name] for name in example})
    assert [node.op_type for node in exported.graph.node].count(NODE) == module.num_layers
    for steps, batch in ((4, 3), (70, 5), (1, 1)):
        assert_close(exported, module, inputs(steps, batch))


def test_the_nodes_weights_are_the_layers():
    """Integers, scales and biases, in ONNX's order of gates; the float ones are not in the file."""
    module = make_frozen(bidirectional=True)
    with torch.no_grad():
        module.weight_hh_l0[7] = 0  # a row without a scale
    exported = export(fused_rnn.freeze(module, weights="int8"), args=(make_input(module, dtype=torch.float32),))
    (node,) = (node for node in exported.graph.node if node.op_type == NODE)
    values = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in exported.graph.initializer}
    names = ("W", "R", "B", "W_scale", "W_zero_point", "R_scale", "R_zero_point")
    given = {name: values[node.input[place]] for name, place in zip(names, (1, 2, 3, 8, 9, 10, 11), strict=True)}
    order = torch.arange(4 * 32).unflatten(0, (4, 32))[[0, 3, 1, 2]].flatten()  # input, output, forget, cell
    quantizer = Quantizer("int8")
    for d, suffix in enumerate(("", "_reverse")):
        for name, weight in (
            ("W", module.get_parameter(f"weight_ih_l0{suffix}")),
            ("R", module.get_parameter(f"weight_hh_l0{suffix}")),
        ):
            assert given[name].dtype == torch.int8 and not given[f"{name}_zero_point"].any()
            found = given[name][d].double().T * given[f"{name}_scale"][d].double().unsqueeze(-1)
            torch.testing.assert_close(found, quantizer.matrix(weight.detach())[order], rtol=1e-6, atol=0)
        biases = [module.get_parameter(f"bias_{of}_l0{suffix}").detach()[order] for of in ("ih", "hh")]
        assert given["B"][d].equal(torch.cat(biases))
    assert quantizer.is_decided
    floats = [t for t in exported.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert not any(len(t.dims) > 2 for t in floats) and sum(len(t.raw_data) for t in floats) < 8192


def test_ids_and_cells():
    """Ids are one-hot rows for the node; a cell is a layer's single step."""
    module = make_frozen()
    ids = torch.tensor([[3, 0], [23, 4], [7, 7]])
    exported = export(module, kwargs={"input": ids}, dynamic_shapes={"input": {0: DYNAMIC, 1: DYNAMIC}})
    with torch.no_grad():
        found, (own, _) = run(exported, {"input": ids.repeat(3, 2)})[0], module(ids.repeat(3, 2))
    assert relative_error(found, own) <= INT8_TOLERANCE["int8"]
    cell = make_frozen("lstm_cell")
    inputs = {"input": torch.rand(2, 24), "hx": (torch.rand(2, 32), torch.rand(2, 32))}
    assert_close(export(cell, kwargs=inputs), cell, inputs)


def packed(module, input):
    return module(pack_padded_sequence(input, torch.tensor([4, 3])))[0].data


X = torch.ones(4, 2, 24)
REFUSED = {
    "it has no GRU": (lambda m, x: m(x)[0], make_frozen("gru"), (X,)),
    "it has no RNN": (lambda m, x: m(x)[0], make_frozen("rnn_relu"), (X,)),
    'it has no weights="int8-weights-only"': (lambda m, x: m(x)[0], make_frozen(weights="int8-weights-only"), (X,)),
    "it has no proj_size": (lambda m, x: m(x)[0], make_frozen("lstm_projected"), (X,)),
    "it has no reset_mask": (lambda m, x, mask: m(x, reset_mask=mask)[0], make_frozen(), (X, X[..., 0] > 0)),
    "it has no return_cells": (lambda m, x: m(x, return_cells=True)[2], make_frozen(), (X,)),
    "ONNX has no PackedSequence": (packed, make_frozen(), (X,)),
}


class Model(torch.nn.Module):
    def __init__(self, call, module):
        super().__init__()
        self.call, self.module = call, module

    def forward(self, *args):
        return self.call(self.module, *args)


@pytest.mark.parametrize("sentence", REFUSED)
def test_refused(sentence):
    call, module, args = REFUSED[sentence]
    with pytest.raises(torch.onnx.OnnxExporterError, match=f"fused_rnn: .*{sentence}"):
        export(Model(call, module).eval(), args=args)


def replace(module):
    module.weight_ih_l0 = torch.nn.Parameter(module.weight_ih_l0.clone())


def replace_memory(module):
    module.weight_ih_l0.data = module.weight_ih_l0.clone()


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: module.bias_hh_l0.add_(1), "was changed in place"),
        (replace, "was replaced"),
        (replace_memory, "was replaced"),
    ],
)
def test_weights_that_changed_are_refused(change, message):
    """What is packed would be exported otherwise, or what is no longer the module's."""
    module = make_frozen()
    change(module)
    with pytest.raises(torch.onnx.OnnxExporterError, match=f"fused_rnn: a weight of this frozen layer {message}"):
        export(module, args=(X,))
    export(fused_rnn.freeze(module, weights="int8"), args=(X,))


@torch.no_grad()
def test_the_other_exporter_is_refused(tmp_path):
    module = make_frozen()
    with pytest.raises(RuntimeError, match=r"int8 weights is not exported, traced .* except by .*dynamo=True"):
        torch.onnx.export(module, (X,), tmp_path / "model.onnx", dynamo=False)
