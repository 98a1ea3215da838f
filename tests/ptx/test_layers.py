"""Layers on the machine, forward and backward, against torch.nn: every cell, dtype, engine and order of events."""

import pytest

from support.gpu import tf32

from . import cases


@pytest.fixture(autouse=True)
def plain_options(machine):
    yield
    machine.options()


def all_right(several):
    wrong = {str(case): what for case in several if (what := cases.what_is_wrong(case))}
    assert not wrong, "\n".join(f"{case}: {what}" for case, what in wrong.items())


def test_every_kernel_can_be_read(machine):
    assert machine.decode_all() == []
    assert len(machine.names()) > 300


@pytest.mark.parametrize("engine", ["stepwise", "one", "cluster", "polling", "flags"])
def test_matrix(machine, engine):
    machine.options()
    all_right(case for case in cases.matrix() if case.engine == engine)


@pytest.mark.parametrize("engine", ["one", "cluster", "polling", "flags"])
def test_sizes(machine, engine):
    machine.options()
    all_right(case for case in cases.sizes() if case.engine == engine)


@pytest.mark.parametrize("order", ["in_turn", "shuffled", "adversarial", "block_ahead", "warp_ahead", "block_behind"])
@pytest.mark.parametrize("seed", [1, 2])
def test_orders(machine, order, seed):
    machine.options(seed=seed, order=order)
    all_right(cases.orders(seed))


@pytest.mark.parametrize("seed", range(1, 7))
def test_weak_memory(machine, seed):
    """Stores of other blocks are seen late, often enough for the test to mean something."""
    machine.options(seed=seed, weak=True)
    before = machine.totals().stale
    all_right(cases.weak(seed))
    assert machine.totals().stale - before > 10_000


@pytest.mark.parametrize("case", cases.WIDE, ids=str)
def test_wide(machine, case):
    machine.options()
    all_right([case])


def test_tf32(machine):
    machine.options()
    with tf32(True):
        all_right(cases.TF32)


def test_rough_arithmetic(machine):
    """Approximations are as inaccurate as PTX allows."""
    machine.options(rough=True)
    all_right(cases.rough())


@pytest.mark.parametrize("ahead", [1, 4096])
def test_runs_of_steps(machine, ahead):
    """Inputs are projected ahead for a few steps at a time: states go from launch to launch."""
    machine.options()
    before = machine.set_ahead_bytes(ahead)
    try:
        all_right(
            cases.Case(dtype, engine, "lstm", 9, 3, 4, 13, bidirectional=True, lengths=(9, 3, 6))
            for dtype, engine in cases.ENGINES
        )
    finally:
        machine.set_ahead_bytes(before)


@pytest.mark.parametrize("order", ["shuffled", "block_ahead"])
def test_many_steps(machine, order):
    """In one launch of several blocks, which reuse their slots many times."""
    machine.options(seed=1, order=order)
    all_right(
        cases.Case(dtype, engine, "gru", 40, 2, 3, 70, factor=2)
        for dtype, engine in cases.PERSISTENT
        if engine != "one"
    )


def test_scope_of_a_clusters_waits(machine, monkeypatch):
    """By PTX's memory model a wait at the block's scope is not enough for what other blocks store."""
    machine.options()
    case = cases.Case(cases.F32, "cluster", "lstm", 4, 3, 5, 33)
    monkeypatch.setenv("FUSED_RNN_CUDA_MBARRIER_SCOPE", "cta")
    assert "without a wait for it that acquires at the cluster's scope" in cases.what_is_wrong(case)
    monkeypatch.delenv("FUSED_RNN_CUDA_MBARRIER_SCOPE")
    assert cases.what_is_wrong(case) is None
    monkeypatch.setenv("FUSED_RNN_CUDA_MBARRIER_SCOPE", "gpu")
    assert "FUSED_RNN_CUDA_MBARRIER_SCOPE must be cluster or cta, got 'gpu'" in cases.what_is_wrong(case)
