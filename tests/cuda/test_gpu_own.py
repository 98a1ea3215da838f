"""Cells of one's own on a GPU, compiled there by nvcc. Elsewhere their PTX is executed in software: test_on_cuda.py."""

import pytest
import torch

import fused_rnn
from fused_rnn import reference, zoo
from fused_rnn.autograd import functions
from fused_rnn.own import cuda
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.gpu import on_a_gpu
from support.own_cells import CELLS, differentiable, outputs_and_gradients, own_cell, random_layer

pytestmark = [*on_a_gpu, pytest.mark.usefixtures("without_tf32")]


def on_gpu(layer, dtype):
    """The layer there, rounded to a dtype; and here, with the same numbers."""
    rounded = [t.detach().to(dtype) for t in differentiable(layer)]
    sides = []
    for device, wide in (("cuda", dtype), ("cpu", torch.float64)):
        input, *weights = (t.to(device, wide).requires_grad_() for t in rounded)
        masks = {name: None if mask is None else mask.to(device) for name, mask in masks_of(layer).items()}
        sides.append(layer._replace(input=input, weights=tuple(weights), **masks))
    return sides


def masks_of(layer):
    return {"lengths": layer.lengths, "reset_mask": layer.reset_mask}


# Each compiles for some seconds.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("wide_cell", torch.float64),
        ("peephole_lstm", torch.float32),
        ("slstm", torch.bfloat16),
        ("min_gru", torch.float16),
    ],
)
def test_equals_reference_on_the_cpu(name, dtype):
    """All results as one vector, as verify does it for 16 bits."""
    assert name in CELLS
    for rows in ("padded", "lengths and reset"):
        there, here = on_gpu(random_layer(own_cell(name), rows, hidden=33, given=False), dtype)
        found = [t.cpu().double() for t in outputs_and_gradients(functions.run_layer, there)]
        expected = outputs_and_gradients(reference.run_layer, here)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.isfinite(), other.isfinite())
        found, expected = (torch.cat([t[t.isfinite()].flatten() for t in side]) for side in (found, expected))
        assert relative_error(found, expected) <= TOLERANCE[dtype]


def test_layers_say_what_they_run_on_and_can_be_captured():
    layer = zoo.peephole_lstm.layer(5, 33, num_layers=2, bidirectional=True, device="cuda")
    x = torch.randn(9, 4, 5, device="cuda")
    found = fused_rnn.explain(layer, x)
    assert found.engine == "stepwise" and str(cuda.find(layer.cell.header, torch.float32)) in found.reason
    with torch.no_grad():
        expected = layer(x)[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = layer(x)[0]
        output.zero_()
        graph.replay()
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_verify():
    report = fused_rnn.verify("cuda", cells=[zoo.peephole_lstm], quick=True, show_progress=False)
    assert report, str(report)
