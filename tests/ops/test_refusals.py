"""Unsupported kinds of tensors are refused in every argument, with a message that says what to do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fused_rnn import functional
from fused_rnn.ops.cells import CELLS as CELL_IDS
from fused_rnn.ops.layer import TIME_MAJOR, stack_code
from support.gpu import on_a_gpu
from support.modules import LAYERS, make_input, make_pair, make_states, tensors_of

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    # torch's warnings about the tensors made for these tests.
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.* are deprecated:UserWarning"),
]
# kind: (how to make one, its error)
KINDS = {
    "nested": (
        lambda t: torch.nested.nested_tensor(list(t)),
        r"a nested one\. Pad it, torch\.nested\.to_padded_tensor",
    ),
    "jagged": (lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged), r"a nested one\. Pad it"),
    "sparse": (lambda t: t.to_sparse(), r"layout torch\.sparse_coo\. Pass \w+\.to_dense\(\)"),
    "sparse rows": (lambda t: t.to_sparse_csr(), r"layout torch\.sparse_csr\. Pass \w+\.to_dense\(\)"),
    "oneDNN": (lambda t: t.float().to_mkldnn(), r"layout torch\._mkldnn\. Pass \w+\.to_dense\(\)"),
    "quantized": (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8), r"Pass \w+\.dequantize\(\)"),
    "distributed": (lambda t: distributed(t), r"a DTensor\. Pass \w+\.to_local\(\)"),
}
every_kind = pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu", "lstm_cell", "rnn_tanh_cell"])
every_mode = pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A DTensor of this process alone."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    file = tmp_path_factory.mktemp("group") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def distributed(tensor):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Replicate()])


def arguments_of(module):
    """(name, tensor, a call with another one in its place) for each tensor argument of a module and its function."""
    input, hx = make_input(module, dtype=torch.float32), make_states(module, dtype=torch.float32)
    weights, kind = [weight.detach() for weight in module.parameters()], type(module).__name__.lower()
    yield "input", input, module
    if isinstance(hx, tuple):
        yield "hx", hx[1], lambda t: module(input, (hx[0], t))
    else:
        yield "hx", hx, lambda t: module(input, t)
    if isinstance(module, nn.RNNBase):
        yield "input", input.flatten(0, 1), lambda t: module(PackedSequence(t, torch.tensor([2] * 5)))
        yield "lengths", torch.tensor([5, 3]), lambda t: module(input, lengths=t)
        yield "reset_mask", torch.eye(5, 2).bool(), lambda t: module(input, reset_mask=t)
        function = getattr(functional, kind)
    else:
        names = {"rnncell": f"rnn_{getattr(module, 'nonlinearity', None)}_cell"}
        cell = getattr(functional, names.get(kind, kind.replace("cell", "_cell")))

        def function(input, hx, weights):
            return cell(input, hx, *weights)

    for i, weight in enumerate(weights):
        others = weights[:i], weights[i + 1 :]
        yield "weights", weight, lambda t, others=others: function(input, hx, [*others[0], t, *others[1]])


@every_mode
@pytest.mark.parametrize("refused", KINDS)
@every_kind
def test_other_kinds_of_tensors(kind, refused, mode, process_group):
    make, message = KINDS[refused]
    module, _ = make_pair(kind, dtype=torch.float32)
    tried = set()
    for name, tensor, call in arguments_of(module):
        try:
            other = make(tensor)
        except (RuntimeError, ValueError, IndexError):  # no kind supports every dtype and number of dimensions
            continue
        with mode(), pytest.raises(RuntimeError, match=f"{name} must be a plain dense tensor, got .*{message}"):
            call(other)
        tried.add(name)
    assert {"weights", "input" if refused != "sparse rows" else "weights"} <= tried


# Ordinary tensors of a wrong dtype or on a wrong device: the usual checks.
@every_mode
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@every_kind
def test_other_dtypes(kind, dtype, mode):
    module, _ = make_pair(kind, dtype=torch.float32)
    for name, tensor, call in arguments_of(module):
        if dtype == tensor.dtype or (name == "lengths" and not (dtype.is_complex or dtype == torch.bool)):
            continue
        with mode(), pytest.raises((TypeError, ValueError, RuntimeError), match=r"dtype|must be|Expected|expected"):
            call(tensor.to(dtype))


@every_mode
def test_complex_input_and_weights(mode):
    input, *weights = (torch.randn(shape, dtype=torch.complex64) for shape in ((5, 2, 3), (12, 3), (12, 4)))
    with mode(), pytest.raises(RuntimeError, match="must be float32, float64, bfloat16 or float16, got ComplexFloat"):
        functional.gru(input, None, weights)


@every_mode
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=on_a_gpu)])
@every_kind
def test_tensors_on_another_device(kind, device, mode):
    """Regression: one argument on meta gave results that were never written."""
    module, _ = make_pair(kind, dtype=torch.float32)
    for name, tensor, call in arguments_of(module):
        if device == "cuda" and name in ("lengths", "reset_mask"):
            assert tensors_of(call(tensor.to(device)))
            continue
        with mode(), pytest.raises(RuntimeError, match=r"not on the same device|on the input's device|is on meta"):
            call(tensor.to(device))


@pytest.mark.parametrize("operator", ["layer_forward", "layer_backward", "infer"])
def test_operators_refuse_one_argument_on_meta(operator):
    data, batch_sizes = torch.randn(5, 3), torch.tensor([3, 2])
    weights, states = [torch.randn(12, 3), torch.randn(12, 4)], torch.randn(1, 3, 4)
    gru = (CELL_IDS["gru"].id, False, False)
    saved = torch.ops.fused_rnn.layer_forward(*gru, data, None, None, weights, None, batch_sizes, None, True, False)[4]
    layer = [data, states, None, weights, None, batch_sizes, torch.zeros(2, 3, dtype=torch.bool)]

    def call(layer, saved=saved):
        if operator == "layer_forward":
            return torch.ops.fused_rnn.layer_forward(*gru, *layer, False, False)
        if operator == "infer":
            stack = stack_code(gru[0], 1, *gru[1:], TIME_MAJOR)
            return torch.ops.fused_rnn.infer(stack, *layer[:4], None, *layer[4:])
        grads = (torch.randn(5, 4), None, None, None)
        return torch.ops.fused_rnn.layer_backward(*gru, *grads, *layer, saved, 7, 1, False)

    with torch.no_grad():
        call(layer)
        for i, argument in enumerate(layer):
            if argument is None:
                continue
            changed = [argument[0], argument[1].to("meta")] if argument is weights else argument.to("meta")
            with pytest.raises(RuntimeError, match=r"arguments must be on the input's device"):
                call([*layer[:i], changed, *layer[i + 1 :]])
        if operator == "layer_backward":
            with pytest.raises(RuntimeError, match=r"arguments must be on the input's device"):
                call(layer, saved.to("meta"))


@pytest.mark.parametrize("kind", LAYERS)
def test_parameters_of_fully_sharded_modules_are_taken(kind, process_group):
    """DTensors between calls, plain tensors inside of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    ours, _ = make_pair(kind)
    expected, sharded = (nn.Sequential(module) for module in (ours, copy.deepcopy(ours)))
    fully_shard(sharded[0], mesh=init_device_mesh("cpu", (1,)))
    input = make_input(ours)
    for module in (sharded, expected):
        sum(output.square().sum() for output in tensors_of(module(input))).backward()
    for found, own in zip(sharded.parameters(), expected.parameters(), strict=True):
        assert isinstance(found, DTensor)
        assert torch.equal(found.grad.full_tensor(), own.grad)
    with torch.no_grad():
        assert torch.equal(tensors_of(sharded(input))[0], tensors_of(expected(input))[0])
