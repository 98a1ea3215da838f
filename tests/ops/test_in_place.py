"""``FUSED_RNN_TUNE=1``: a call is timed on each engine the first time its sizes are met."""

import pytest
import torch

import fused_rnn
from fused_rnn.ops import in_place, tables
from support.modules import make_input, make_packed, make_pair, make_states


@pytest.fixture(autouse=True)
def measured(monkeypatch, tmp_path):
    """The sizes measured so far; the clock makes torch.nn's kernels the fastest."""
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    monkeypatch.setenv("FUSED_RNN_TUNE", "1")
    calls, run = [], fused_rnn.autograd.by_torch._run
    monkeypatch.setattr(fused_rnn.autograd.by_torch, "_run", lambda *args: calls.append(1) or run(*args))
    tables.forget()
    with fused_rnn.engine("auto"):
        yield calls
    tables.forget()


def entries():
    table = tables.table_for("cpu")
    return () if table is None else table.entries


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_size_is_measured_once_for_each_way_of_calling(kind, packed, measured):
    module, _ = make_pair(kind, num_layers=2, bidirectional=True)
    input = make_packed([3, 5]) if packed else make_input(module)
    for _ in range(2):
        module(input)
        assert len(entries()) == 1
    with torch.no_grad():
        for _ in range(2):
            module(input, make_states(module))
            assert len(entries()) == 2
    for entry in entries():
        assert entry.times.keys() == {"torch", "ours"}
        assert entry.sizes.layers == entry.sizes.directions == 2
    assert {entry.sizes.training for entry in entries()} == {True, False}


def test_the_faster_one_runs_from_then_on(monkeypatch, measured):
    module, _ = make_pair("gru")
    input = make_input(module)
    for engine, ticks in (("torch", {"torch": 1, "ours": 2}), ("ours", {"torch": 2, "ours": 1})):
        tables.forget()
        clock = [0.0]

        def tick(ticks=ticks, clock=clock):
            clock[0] += ticks[fused_rnn.ops.engines.engine_for("cpu")]
            return clock[0]

        monkeypatch.setattr(in_place.time, "perf_counter", tick)
        module(input)
        del measured[:]
        module(input)
        assert bool(measured) == (engine == "torch")


def test_nothing_of_the_callers_changes():
    """Neither hooks nor gradients nor random numbers."""
    module, _ = make_pair("lstm")
    called = []
    module.weight_hh_l0.register_hook(called.append)
    input = make_input(module).requires_grad_()
    state = torch.get_rng_state()
    output, _ = module(input)
    assert entries()
    assert not called
    assert module.weight_hh_l0.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    output.sum().backward()
    assert len(called) == 1


@pytest.mark.parametrize(
    "options", [{"lengths": [2, 5]}, {"reset_mask": torch.zeros(5, 2, dtype=torch.bool)}, {"grad_clip": 1.0}]
)
def test_calls_with_options_are_not_measured(options):
    module, _ = make_pair("gru")
    module(make_input(module), **options)
    assert not entries()


def test_only_where_it_was_asked_for(monkeypatch):
    module, _ = make_pair("gru")
    with fused_rnn.engine("torch"):
        module(make_input(module))
    monkeypatch.setenv("FUSED_RNN_TUNE", "0")
    module(make_input(module))
    assert not entries()
