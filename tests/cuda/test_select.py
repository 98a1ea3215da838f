"""Which kernel the CUDA engine selects, also for GPUs that are not there."""

import itertools

import pytest
import torch

import fused_rnn
from fused_rnn.ops import plans
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.layer import Layer
from fused_rnn.ops.plans import Gpu, cuda_plan
from fused_rnn.tools.explain import explain_cuda
from support.gpu import tf32

KB = 1024
GPUS = {  # one GPU of each architecture
    75: Gpu(75, 40, 64 * KB, 1),
    80: Gpu(80, 108, 163 * KB, 1),
    86: Gpu(86, 84, 99 * KB, 1),
    89: Gpu(89, 128, 99 * KB, 1),
    90: Gpu(90, 132, 227 * KB, 16),
    100: Gpu(100, 148, 227 * KB, 16),
    120: Gpu(120, 170, 99 * KB, 8),
}
HOPPER = GPUS[90]
HIDDEN = (1, 4, 24, 64, 65, 128, 130, 192, 256, 512, 768, 1024, 1500, 2048, 4096)
BATCH = (1, 8, 32, 64, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


pytestmark = pytest.mark.usefixtures("plans")


def plan(name, dtype, gpu=HOPPER, wanted="best", **sizes):
    return cuda_plan(CELLS[name].id, dtype, gpu, wanted=wanted, **sizes)


@pytest.mark.parametrize("capability", GPUS)
def test_every_plan_can_be_run(capability):
    """Blocks cover all units and rows, and blocks that wait for each other are resident together."""
    gpu = GPUS[capability]
    seen = set()
    for name, dtype, hidden, batch, problems, backward in itertools.product(
        CELLS, DTYPES, HIDDEN, BATCH, (1, 2, 16), (False, True)
    ):
        found = plan(name, dtype, gpu, hidden=hidden, batch=batch, problems=problems, backward=backward)
        assert found.reason
        seen.add((dtype, found.blocks_kind))
        if found.blocks_kind is None:
            continue
        assert found.units % 4 == 0
        assert found.units * (found.blocks - 1) < hidden <= found.units * found.blocks
        assert found.columns * (found.groups - 1) < batch <= found.columns * found.groups
        assert found.groups_at_once >= 1
        assert found.shared_bytes <= gpu.shared_bytes
        assert found.threads <= 1024 and found.weight_registers <= 160  # of 255, besides all else
        if found.blocks_kind == "one":
            assert found.blocks == 1
        elif found.blocks_kind == "cluster":
            assert capability >= 90 and found.blocks <= gpu.most_cluster_blocks
        else:
            assert found.blocks * found.groups_at_once <= gpu.multiprocessors
    kinds = {kind for dtype, kind in seen if dtype == torch.bfloat16}
    assert kinds == ({None} if capability < 80 else kinds)
    doubles = {kind for dtype, kind in seen if dtype == torch.float64}
    assert "polling" not in doubles  # polling marks unwritten words with all ones, which half of a double may be
    assert doubles == ({None, "one", "cluster", "flags"} if capability == 90 else doubles)


@pytest.mark.parametrize(
    ("dtype", "widest"),  # by cell: backward exchanges every gate of every unit
    [
        (torch.float32, {"lstm": 1152, "gru": 1536, "rnn_tanh": 2112}),
        (torch.float64, {"lstm": 512, "gru": 672, "rnn_tanh": 2048}),
    ],
)
def test_widest_backward_plans_of_a_hopper(dtype, widest):
    for name, hidden in widest.items():
        sizes = {"batch": 1, "backward": True, "wanted": "persistent"}
        assert plan(name, dtype, hidden=hidden, **sizes).units == 16
        with pytest.raises(RuntimeError, match="no shape of the persistent kernel fits"):
            plan(name, dtype, hidden=hidden + 16, **sizes)


@pytest.mark.parametrize(
    ("hidden", "backward", "kind"),
    [
        (128, False, "cluster"),
        (128, True, "cluster"),
        (1024, False, "polling"),
        (1024, True, "polling"),
        (1500, False, "polling"),
    ],
)
def test_tf32_where_it_is_allowed(hidden, backward, kind):
    sizes = {"hidden": hidden, "batch": 8, "backward": backward}
    without, allowed = (plan("lstm", torch.float32, tf32=tf32, **sizes) for tf32 in (False, True))
    assert (allowed.blocks_kind, allowed.tf32, without.tf32) == (kind, True, False)
    for dtype in (torch.float64, torch.bfloat16):
        assert plan("lstm", dtype, tf32=True, **sizes) == plan("lstm", dtype, **sizes)
    turing = GPUS[75]  # its tensor cores have no TF32
    assert plan("lstm", torch.float32, turing, tf32=True, **sizes) == plan("lstm", torch.float32, turing, **sizes)


def test_wanted_engines():
    assert plan("lstm", torch.float32, hidden=64, wanted="stepwise").blocks_kind is None
    for kind in ("one", "cluster", "polling", "flags"):
        assert plan("lstm", torch.float32, hidden=64, wanted=kind).blocks_kind == kind
    with pytest.raises(RuntimeError, match="'one' was asked for, but no shape of the persistent kernel fits"):
        plan("lstm", torch.float32, hidden=65, wanted="one")
    with pytest.raises(RuntimeError, match="'cluster' was asked for, but no shape"):
        plan("lstm", torch.bfloat16, GPUS[80], hidden=64, wanted="cluster")
    with pytest.raises(RuntimeError, match=r"must be one of stepwise, persistent, .* got 'fastest'"):
        plan("lstm", torch.bfloat16, hidden=64, wanted="fastest")


def test_many_rows_share_out_the_gpu():
    """First as many groups as are resident together, then more columns a group, then several launches."""
    few, many, most = (plan("lstm", torch.bfloat16, hidden=256, batch=b) for b in (16, 64, 128))
    assert (few.groups, many.groups, most.groups) == (2, 8, 16)
    assert {few.columns, many.columns, most.columns} == {8}


def test_explanations():
    weights = tuple(torch.empty(4 * 512, 512, dtype=torch.bfloat16) for _ in range(2))
    layer = Layer.plain(
        CELLS["lstm"].id, False, False, torch.empty(9, 16, 512, dtype=torch.bfloat16), None, None, weights
    )

    def text(wanted, layer=layer, gpu=HOPPER):
        return str(explain_cuda(layer, gpu, wanted))

    found = text("persistent")
    assert found.startswith(
        "persistent: forward in one launch, as it was asked for: the weights in a cluster of 16 blocks"
    )
    assert "32 units each, 2 groups of 8 batch rows for each direction, 256 threads and " in found
    assert " KB of shared memory a block, 128 registers a thread for weights; backward in one launch" in found
    assert text("stepwise").startswith("stepwise: forward step by step, as it was asked for: a matrix product")
    assert text("cluster", gpu=GPUS[80]).startswith("none: fused_rnn: the engine 'cluster' was asked for, but no shape")
    wide = layer._replace(input=torch.empty(9, 16, 512), weights=tuple(w.float() for w in weights))
    assert "TF32" not in text("persistent", wide)
    with tf32(True):
        assert "products in TF32, which torch.backends.cuda.matmul allows" in text("persistent", wide)
    projected = layer._replace(weights=(torch.empty(2048, 512), torch.empty(2048, 256), torch.empty(256, 512)))
    assert "a projection has a product of its own" in text("best", projected)


@pytest.mark.parametrize("option", ["recurrent_dropout", "zoneout", "layer_norm"])
def test_dropout_in_the_loop_goes_stepwise(option):
    given = {"hidden": 64, option: True}
    for wanted in ("auto", "ours", "best", "stepwise"):
        assert plan("lstm", torch.bfloat16, wanted=wanted, **given).blocks_kind is None
    assert plan("lstm", torch.bfloat16, **given).reason == f"persistent kernels have no {option}"
    for wanted in ("persistent", "cluster", "polling", "flags", "one"):
        with pytest.raises(RuntimeError, match=f"'{wanted}' was asked for, but persistent kernels have no {option}"):
            plan("lstm", torch.bfloat16, wanted=wanted, **given)


def test_dropout_in_the_loop_is_explained():
    layer = fused_rnn.LSTM(4, 64, recurrent_dropout=0.5, zoneout=0.1)
    x = torch.randn(3, 2, 4)
    found = fused_rnn.explain(layer, x, gpu="H200")
    assert found.engine == "stepwise" and "zoneout=0.1: applied inside the kernel" in found.reason
    estimated = fused_rnn.explain(layer, x, gpu="H200", engine="best")
    assert "step by step, as persistent kernels have no recurrent_dropout" in estimated.reason
    refused = fused_rnn.explain(layer.eval(), x, gpu="H200", engine="cluster")
    assert refused.engine == "none"
    assert "'cluster' was asked for, but persistent kernels have no zoneout" in refused.reason


def test_shared_memory_bounds_the_shapes():
    """This shape parks 160 KB of weights in shared memory, more than a block has on architecture 120."""
    sizes = {"hidden": 2048, "batch": 8, "wanted": "polling"}
    assert plan("lstm", torch.bfloat16, **sizes).blocks_kind == "polling"
    with pytest.raises(RuntimeError, match="'polling' was asked for, but no shape"):
        plan("lstm", torch.bfloat16, GPUS[120], **sizes)


def test_this_gpu(monkeypatch):
    """The software GPU, and the engine that is the default on it."""
    assert plans.gpu(torch.device("cuda", 0)) == HOPPER
    monkeypatch.delenv("FUSED_RNN_ENGINE", raising=False)
    assert plan("lstm", torch.bfloat16, hidden=64, wanted=None).blocks_kind is None
    monkeypatch.setenv("FUSED_RNN_ENGINE", "cluster")
    assert plan("lstm", torch.bfloat16, hidden=64, wanted=None).blocks_kind == "cluster"
