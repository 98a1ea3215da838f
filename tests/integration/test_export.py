"""torch.export and AOTInductor: any T and B, through a file, with gradients."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from support.modules import DEEP, F64, make_packed, make_pair, make_states, tensors_of

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    # torch.export uses deprecated parts of torch.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]
STEPS, ROWS, PACKED = (Dim(name, min=2, max=1000) for name in ("steps", "rows", "packed"))
strictly = pytest.mark.parametrize("strict", [True, False])


class Tagger(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.enter = nn.Linear(4, 3, dtype=F64)
        self.rnn = getattr(fused_rnn, kind)(3, 5, **DEEP, dtype=F64, **options)

    def forward(self, x, lengths, reset_mask):
        return self.rnn(self.enter(x), lengths=lengths, reset_mask=reset_mask)


def arguments(steps, batch, batch_first=False):
    shape = (batch, steps) if batch_first else (steps, batch)
    return torch.randn(*shape, 4, dtype=F64), torch.randint(1, steps + 1, (batch,)), torch.rand(shape) < 0.2


def export(model, strict, batch_first=False):
    dims = dict(enumerate((ROWS, STEPS) if batch_first else (STEPS, ROWS)))
    args = arguments(5, 3, batch_first)
    return torch.export.export(model, args, dynamic_shapes=(dims, {0: ROWS}, dims), strict=strict)


def assert_same(call, model, *args):
    torch.testing.assert_close(tensors_of(call(*args)), tensors_of(model(*args)))


@strictly
@pytest.mark.parametrize(("kind", "options"), [("LSTM", {"proj_size": 2}), ("GRU", {"batch_first": True}), ("RNN", {})])
def test_exported(kind, options, strict):
    model = Tagger(kind, **options)
    program = export(model, strict, **options if "batch_first" in options else {})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    lowered = loaded.run_decompositions()
    operators = [node.target for node in lowered.graph.nodes if "fused_rnn" in str(node.target)]
    assert operators == [torch.ops.fused_rnn.layer_forward.default] * 2
    for steps, batch in ((7, 2), (31, 9)):
        args = arguments(steps, batch, "batch_first" in options)
        for found in (program, loaded, lowered):
            assert_same(found.module(), model, *args)


@strictly
def test_an_exported_model_can_be_trained(strict):
    model = Tagger("LSTM")
    exported = export(model, strict).module()
    args = arguments(7, 2)
    gradients = []
    for module in (exported, model):
        module.zero_grad()
        sum(output.square().sum() for output in tensors_of(module(*args))).backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("states", [False, True])
@strictly
def test_packed_input_exported(strict, states):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, _ = make_pair("gru", **DEEP)

        def forward(self, data, batch_sizes, order, back, hx=None):
            output, state = self.rnn(PackedSequence(data, batch_sizes, order, back), hx)
            return output.data, state

    model, dims = Packed(), ({0: PACKED}, {0: STEPS}, {0: ROWS}, {0: ROWS}, {1: ROWS})

    def packed(*lengths):
        return *make_packed(lengths), *([make_states(model.rnn, len(lengths))] if states else [])

    args = packed(3, 5, 2)
    program = torch.export.export(model, args, dynamic_shapes=dims[: len(args)], strict=strict)
    assert_same(program.module(), model, *packed(4, 1, 7, 2))


@strictly
def test_a_cell_exported(strict):
    cell, _ = make_pair("lstm_cell")

    def args(batch):
        return torch.randn(batch, 3, dtype=F64), tuple(torch.randn(2, batch, 4, dtype=F64))

    program = torch.export.export(cell, args(3), dynamic_shapes=({0: ROWS}, ({0: ROWS},) * 2), strict=strict)
    assert_same(program.module(), cell, *args(9))


@torch.no_grad()
@strictly
def test_a_frozen_layer_is_exported_with_unpacked_weights(strict):
    layer, _ = make_pair("gru")
    input = torch.randn(5, 2, 3, dtype=F64)
    program = torch.export.export(fused_rnn.freeze(layer), (input,), strict=strict)
    assert list(program.state_dict) == list(layer.state_dict())
    assert_same(program.module(), layer, input)


def test_packaged_by_aot_inductor(tmp_path):
    """The package calls the operator, so a process that runs it must load the library."""
    model = Tagger("LSTM")
    with torch.no_grad():
        program = export(model, strict=False)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    package = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        for steps, batch in ((7, 2), (31, 9), (400, 3)):
            assert_same(package, model, *arguments(steps, batch))
