"""What was measured on a GPU: the plans that follow, and the verification that comes before, on the machine."""

import pytest
import torch

import fused_rnn
from fused_rnn.ops import plans as ops_plans
from fused_rnn.ops import tables
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.measured import Entry, Sizes, Table
from fused_rnn.tools.tuning import measuring

HOPPER = ops_plans.GPUS["H200"]
AMPERE = ops_plans.GPUS["A100"]
SIZES = Sizes("lstm", "float32", False, 100, 16, 256, 256)
EVERY = ("stepwise", "one", "cluster", "polling", "flags")


def entry(name, **sizes):
    return Entry(SIZES._replace(**sizes), {"torch": 2.0, name: 1.0}, frozenset([name]))


@pytest.fixture
def measured(plans):
    """Gives the engine a table for a GPU that is not here."""

    def give(*entries):
        tables.give_to_cuda(ops_plans.NOT_HERE, Table("NVIDIA H200", {}, entries))

    yield give
    give()


def plan(wanted="auto", gpu=HOPPER, **sizes):
    given = {"batch": 16, "hidden": 256} | sizes
    return ops_plans.cuda_plan(CELLS["lstm"].id, torch.float32, gpu, wanted=wanted, device=ops_plans.NOT_HERE, **given)


@pytest.mark.parametrize("wanted", ["auto", "ours", "torch"])
def test_nothing_is_persistent_that_was_not_measured(measured, wanted):
    assert plan(wanted).blocks_kind is None
    assert "no other engine of ours has been measured" in plan(wanted).reason
    measured(entry("cluster"))
    assert plan(wanted).blocks_kind == "cluster"
    assert "measured to be the fastest of ours" in plan(wanted).reason


def test_the_direction_and_the_size_class_decide(measured):
    measured(entry("cluster"), entry("polling", training=True), entry("stepwise", batch=256), entry("flags", batch=64))
    assert plan().blocks_kind == "cluster"
    assert plan(backward=True).blocks_kind == "polling"
    assert plan(batch=8, hidden=128).blocks_kind == "cluster"
    assert plan(batch=60).blocks_kind == "flags"
    assert plan(batch=200).blocks_kind is None
    for other in ({"batch": 7}, {"hidden": 513}, {"problems": 2}, {"tf32": True}):
        assert plan(**other).blocks_kind is None, other


def test_an_engine_by_name_goes_before(measured):
    measured(entry("cluster"))
    assert plan("polling").blocks_kind == "polling"
    assert plan("stepwise").blocks_kind is None


def test_what_does_not_fit_goes_stepwise(measured):
    measured(entry("cluster"), entry("one", hidden=64))
    assert plan(gpu=AMPERE).blocks_kind is None  # which has no clusters
    assert plan(hidden=64).blocks_kind == "one"
    assert plan(hidden=100).blocks_kind is None  # of the class of 64, and too wide for a block
    assert plan(projected=True).blocks_kind is None
    assert plan(zoneout=True).reason == "persistent kernels have no zoneout"


def test_nonsense_is_refused(plans):
    with pytest.raises(RuntimeError, match="a measured entry has engine 1"):
        tables.give_to_cuda(ops_plans.NOT_HERE, Table("X", {}, (entry("persistent"),)))


@pytest.mark.parametrize("training", [False, True])
def test_explain_for_a_gpu_that_is_not_here(plans, tmp_path, monkeypatch, training):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    layer, input = fused_rnn.LSTM(256, 256), torch.randn(100, 16, 256)
    with torch.set_grad_enabled(training):
        found = fused_rnn.explain(layer, input, gpu="H200")
        assert found.engine == "torch"
        assert "no engine of ours has been measured" in found.reason
        entries = (entry("cluster"), entry("polling", training=True))
        tables.write(Table("NVIDIA H200", {}, entries), tables.path_of("NVIDIA H200"))
        found = fused_rnn.explain(layer, input, gpu="H200")
        assert found.engine == "persistent"
        assert ("polling took 1 us" if training else "cluster took 1 us") in found.reason
        assert fused_rnn.explain(layer, input, gpu="A100").engine == "torch"
        assert "step by step" in fused_rnn.explain(layer, input, gpu="A100", engine="ours").reason
        # What torch.nn cannot do is ours from the start.
        assert fused_rnn.explain(layer, input, gpu="A100", reset_mask=torch.zeros(100, 16).bool()).engine == "stepwise"
        if not training:  # in the table's class, but too wide for a cluster
            assert fused_rnn.explain(fused_rnn.LSTM(256, 512), input, gpu="H200").engine == "torch"
    with pytest.raises(ValueError, match=r"one of H200, .*, got 'H300'"):
        fused_rnn.explain(layer, input, gpu="H300")


# ---- verification, with kernels that run -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_right_engines_pass(machine, plans, name, training):
    size = Sizes("lstm", "float32", training, 5, 3, 5, 13)
    assert measuring.error_of(size, name, "cpu") < 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_a_broken_kernel_is_seen(machine, plans, name):
    """All of its additions become subtractions."""
    size = Sizes("gru", "float32", False, 5, 3, 5, 13)
    part = "forward_step" if name == "stepwise" else "10persistentINS"
    names = [kernel for kernel in machine.names() if part in kernel and ("fLNS" in kernel or "Gru" in kernel)]
    for kernel in names:
        text = machine.text_of(kernel)
        machine.change(
            kernel,
            {k + 1: line.strip().replace("add.f32", "sub.f32") for k, line in enumerate(text) if "add.f32" in line},
        )
    try:
        _, verified, failed = measuring.measure(size, [name], "cpu", measuring.Clock("cpu"), lambda busy: None)
    finally:
        machine.undo_changes()
    assert verified == []
    assert "its error is" in failed[name]
