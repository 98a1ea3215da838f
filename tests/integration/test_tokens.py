"""Token ids as input under torch.compile, torch.export and ONNX."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import Case
from support.compiled import Compiled
from support.modules import DEEP, tensors_of
from support.one_hot import VOCABULARY, ids_of
from support.problems import problem_of


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # as in test_compile.py
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_compiled(kind, forgetful, no_reference):
    module = getattr(fused_rnn, kind)(VOCABULARY, 4, **DEEP)
    compiled = Compiled(module)
    for steps, batch, dtype in ((5, 2, torch.int64), (9, 3, torch.int64), (6, 5, torch.int64), (6, 5, torch.int32)):
        ids, lengths = torch.randint(0, VOCABULARY, (steps, batch), dtype=dtype), torch.randint(1, steps, (batch,))
        results = []
        for call in (compiled, module):
            output, _ = call(ids, lengths=lengths)
            results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
        torch.testing.assert_close(*results)
    assert compiled.graphs <= 3
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), module(ids))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_exported(strict, no_reference):
    module, ids = fused_rnn.LSTM(VOCABULARY, 4, **DEEP), torch.randint(0, VOCABULARY, (5, 2))
    dims = {0: torch.export.Dim("steps", min=2), 1: torch.export.Dim("rows", min=2)}
    loaded = torch.export.export(module, (ids,), dynamic_shapes=(dims,), strict=strict).module()
    ids = torch.randint(0, VOCABULARY, (8, 3))
    results = []
    for call in (loaded, module):
        output, _ = call(ids)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", [{}, {"lengths": True, "reset": True}, {"packed": True}], ids=str)
def test_opcheck(options):
    case = Case("", steps=2, bidirectional=True, **options)
    problem = problem_of(CELLS["gru"], case, torch.float32)
    input, batch_sizes, lengths = ids_of(problem), None, problem.lengths
    if case.packed:
        input, batch_sizes, *_ = pack_padded_sequence(input, lengths, enforce_sorted=False)
        lengths = None
    gru, weights = (CELLS["gru"].id, True, True), [t.requires_grad_() for t in problem.tensors[2:]]
    layer = (input, problem.tensors[1], None, weights, lengths, batch_sizes, problem.reset_mask)
    operators = torch.ops.fused_rnn
    torch.library.opcheck(operators.layer_forward.default, (*gru, *layer, True, False))
    with torch.no_grad():
        output, h_n, _, _, saved = operators.layer_forward(*gru, *layer, True, False)
        arguments = (*gru, output, h_n, None, None, *layer, saved, 126, 1, False)
        checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
        torch.library.opcheck(operators.layer_backward.default, arguments, test_utils=checks)
        with pytest.raises(RuntimeError, match="ids have no gradient"):
            operators.layer_backward(*gru, output, h_n, None, None, *layer, saved, 127, 1, False)
        with pytest.raises(RuntimeError, match="takes one-hot input, not ids"):
            operators.layer_tangent(*gru, *layer, saved, None, None, None, False)


@pytest.mark.parametrize("mode", ["fake", "meta"])
def test_shapes_without_data(mode):
    module = fused_rnn.LSTM(VOCABULARY, 4, **DEEP)
    ids = torch.randint(0, VOCABULARY, (5, 2))
    expected = tensors_of(module(ids))
    if mode == "meta":
        found = tensors_of(module.to("meta")(ids.to("meta")))
    else:
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
            found = tensors_of(module(fake.from_tensor(ids)))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_onnx():
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    onnx = pytest.importorskip("onnx", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs what was exported")
    module = fused_rnn.LSTM(VOCABULARY, 4, **DEEP).eval()
    dynamic = {"input": dict.fromkeys(range(2), torch.export.Dim.DYNAMIC)}
    exported = torch.onnx.export(
        module,
        kwargs={"input": torch.randint(0, VOCABULARY, (5, 2))},
        dynamic_shapes=dynamic,
        dynamo=True,
        verbose=False,
        custom_translation_table=fused_rnn.onnx.translations(),
    ).model_proto
    onnx.checker.check_model(exported, full_check=True)
    session = runtime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = torch.randint(0, VOCABULARY, (8, 3))
    found = session.run(None, {exported.graph.input[0].name: ids.numpy()})
    with torch.no_grad():
        torch.testing.assert_close([torch.from_numpy(f) for f in found], tensors_of(module(ids)))
