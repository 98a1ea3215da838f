"""The CUDA engine on a GPU. Everywhere else its kernels' PTX is executed in software: test_stepwise.py."""

import threading

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import CASES, TOLERANCE, make_problem, outputs_and_gradients
from support.gpu import on_a_gpu
from support.modules import LAYERS, as_leaves, make_pair, results_of
from support.problems import assert_near

pytestmark = on_a_gpu
# Results are compared with the rounding of float32, so TF32 must be off.
exact = pytest.mark.usefixtures("without_tf32")


def copied(data):
    """A copy made by a layer: an RNN with ReLU, W_ih = 1 and W_hh = 0."""
    weights = [torch.tensor([[weight]], device="cuda") for weight in (1.0, 0.0)]
    return functional.rnn(data.view(1, -1, 1), None, weights, nonlinearity="relu")[0].view(-1)


def filled_late(reader=None):
    """Copies, on `reader` or on the same stream, what a stream writes after 0.1 s."""
    writer, data = torch.cuda.Stream(), torch.empty(1 << 20, device="cuda")
    reader = reader or writer
    torch.cuda.synchronize()
    with torch.cuda.stream(reader):  # warm up: loading a kernel or allocating may wait for the GPU
        copied(data.fill_(1))
    torch.cuda.synchronize()
    with torch.cuda.stream(writer):
        torch.cuda._sleep(200_000_000)  # clock cycles
        data.fill_(7)
    with torch.cuda.stream(reader):
        copy = copied(data)
    assert not writer.query(), "the layer waited for the GPU"
    torch.cuda.synchronize()
    return copy


def test_kernels_run_on_the_current_stream():
    early = filled_late(reader=torch.cuda.default_stream())
    assert (early == 1).all(), "this test cannot tell streams apart: the default stream waited for the other"
    assert (filled_late() == 7).all()


@exact
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_reference(name, dtype, case):
    if case.proj_size and not CELLS[name].projectable:
        pytest.skip("this cell is not projected")
    # A seed gives other masks on the CPU.
    device = "cuda" if case.recurrent_dropout or case.zoneout else "cpu"
    on_gpu, other = (make_problem(CELLS[name], case, dtype, device) for device in ("cuda", device))
    found = [t.cpu() for t in outputs_and_gradients(on_gpu, functional, dtype)]
    assert_near(found, [t.cpu() for t in outputs_and_gradients(other, reference, torch.float64)], dtype)


@exact
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 257, 129), (130, 8, 300), (2, 1000, 7)], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_odd_sizes(kind, sizes):
    steps, batch, hidden = sizes
    layer, _ = make_pair(kind, 5, max(hidden, 3), bidirectional=True, dtype=torch.float32)
    input = torch.randn(steps, batch, 5)
    expected = results_of(layer, input)
    found = results_of(layer.cuda(), input.cuda())
    for name, one in found.items():
        torch.testing.assert_close(one.cpu(), expected[name], rtol=1e-4, atol=1e-4)


def ragged_call(kind, dtype=torch.float32, **dropout):
    layer, _ = make_pair(kind, 20, 50, num_layers=2, bidirectional=True, dtype=dtype)
    for name, p in dropout.items():
        setattr(layer, name, p)
    lengths = torch.randint(1, 31, (12,), device="cuda")
    masks = {"lengths": lengths, "reset_mask": torch.rand(30, 12, device="cuda") < 0.1}
    return layer.cuda(), torch.randn(30, 12, 20, dtype=dtype, device="cuda"), masks


@exact
@pytest.mark.parametrize("sizes", [(1, 1, 3), (40, 1, 64), (9, 11, 130), (70, 8, 200)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("engine", ["one", "cluster", "polling", "flags"])
def test_persistent_kernel_in_every_way(engine, cell, dtype, sizes):
    """Each kind of exchange between blocks, against the stepwise engine."""
    steps, batch, hidden = sizes
    layer = getattr(fused_rnn, cell)(hidden, hidden, bidirectional=True, dtype=dtype, device="cuda")
    input = torch.randn(steps, batch, hidden, dtype=dtype, device="cuda")
    masks = {"reset_mask": torch.rand(steps, batch, device="cuda") < 0.1}
    masks["lengths"] = torch.randint(1, steps + 1, (batch,), device="cuda")
    expected = results_of(layer, input, **masks)
    explanation = fused_rnn.explain(layer, input, engine=engine)
    if explanation.engine == "none":
        pytest.skip(explanation.reason)
    assert explanation.engine == "persistent"
    with fused_rnn.engine(engine):
        found = results_of(layer, input, **masks)
    assert_near(list(found.values()), list(expected.values()), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_same_bits_every_time(kind, dtype):
    layer, input, masks = ragged_call(kind, dtype)
    first, *others = (results_of(layer, input, **masks) for _ in range(4))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", LAYERS)
def test_graph(kind):
    """Replays of a captured forward and backward pass equal plain calls on the new numbers."""
    layer, input, masks = ragged_call(kind)
    parameters = list(layer.parameters())
    held = input.clone().requires_grad_()

    def run():
        output, _ = layer(held, **masks)
        return [output, *torch.autograd.grad(output.square().sum(), [held, *parameters])]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for scale in (1.0, -0.5):
        with torch.no_grad():
            held.copy_(input * scale)
        graph.replay()
        found = [t.clone() for t in captured]
        for one, other in zip(found, run(), strict=True):
            torch.testing.assert_close(one, other)


def test_dropout_in_a_graph():
    """Each replay draws masks of its own."""
    layer, input, masks = ragged_call("lstm", recurrent_dropout=0.5, zoneout=0.25)
    with torch.no_grad():
        layer(input, **masks)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = layer(input, **masks)[0]
        drawn = []
        for _ in range(2):
            graph.replay()
            drawn.append(output.clone())
    assert not torch.equal(*drawn) and all(output.isfinite().all() for output in drawn)


def test_packed_input_in_a_graph():
    layer, input, _ = ragged_call("lstm")
    packed = pack_padded_sequence(input, torch.arange(30, 18, -1))
    with torch.no_grad():
        expected = layer(packed)[0].data
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = layer(packed)[0].data
        graph.replay()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_streams_and_threads(kind):
    """Two Python threads, each on its own stream, share a layer."""
    layer, input, masks = ragged_call(kind)
    inputs = [input, -input]
    expected = [results_of(layer, one, **masks) for one in inputs]
    torch.cuda.synchronize()
    found = [[], []]

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            found[i] += [results_of(layer, inputs[i], **masks) for _ in range(10)]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert len(found[i]) == 10
        for one in found[i]:
            for name, other in expected[i].items():
                torch.testing.assert_close(one[name], other)


@pytest.mark.parametrize(
    ("kind", "dropout"),
    [*((kind, {}) for kind in LAYERS), ("lstm", {"recurrent_dropout": 0.5, "zoneout": 0.25})],
    ids=str,
)
def test_no_synchronization_and_memory_is_given_back(kind, dropout):
    layer, input, masks = ragged_call(kind, **dropout)
    results_of(layer, input, **masks)  # cuBLAS keeps its workspace
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output, _ = layer(as_leaves(input), **masks)
        output.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    layer.zero_grad(set_to_none=True)
    del output
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_long_sequence():
    """More than 65535 steps, the limit of a grid's second and third dimension."""
    layer = fused_rnn.GRU(1, 2).cuda()
    with torch.no_grad():
        found, _ = layer(torch.ones(70_000, 1, 1, device="cuda"))
    torch.testing.assert_close(found[-1], found[40_000])  # long at rest


def test_packing_is_refused():
    layer = fused_rnn.LSTM(3, 4).cuda()
    with pytest.raises(RuntimeError, match="weights are frozen on cpu, not on cuda"):
        fused_rnn.freeze(layer)
    with pytest.raises(RuntimeError, match="weights are packed on the CPU only, not on CUDA"):
        torch.ops.fused_rnn.pack_weights(0, True, False, list(layer.parameters()))


def test_verify():
    report = fused_rnn.verify("cuda", show_progress=False)
    assert report.passed, str(report)
