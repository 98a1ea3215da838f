"""What the benchmarks compare: peers and other calls of ours agree with torch.nn, and what cannot run says why."""

import importlib.util
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

import fused_rnn
from benchmarks import problem, run, suites, variants
from benchmarks.peers import PEERS, compiled_loop, onnx_runtime_int8, torch_ao
from benchmarks.results import Line
from benchmarks.suites import EFFORTS, QUANTIZED, Shape, Work, lines
from benchmarks.variants import VARIANTS
from support.benchmark_lines import EVERY_KIND

QUANTIZED_CELL = next(replace(work, shape=Shape(1, 2, 6)) for work in QUANTIZED if work.cell)
STEPS = [work for work in EVERY_KIND if work.single_step]
PLAIN, QUANTIZED_LSTM, DECODER = (
    EVERY_KIND[0],
    *(replace(w, shape=Shape(1, 2, 6)) for w in (QUANTIZED[0], QUANTIZED[-1])),
)


def measured(work, monkeypatch, peers=()):
    """A line of one short run a side, and what it leaves out."""
    monkeypatch.setattr(run, "PEERS", peers)
    limits = SimpleNamespace(
        threads=1, fastest=lambda dtype: dtype, shares=lambda size: {}, operations=lambda kind: 1e9, read=None
    )
    return run.measure_line(work, replace(EFFORTS["quick"], seconds=0.0, fewest_rounds=1), limits, cores=2)


# ---- peers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [p for p in PEERS if p is not compiled_loop], ids=lambda p: p.NAME)
@pytest.mark.parametrize("layer", suites.LAYERS)
def test_peer_agrees_with_torch_nn(peer, layer):
    if peer.missing():
        pytest.skip(peer.missing())
    for work in EVERY_KIND:
        if work.layer == layer and peer.left_out(work) is None:
            built = problem.build(work)
            with problem.calls_of(work):
                problem.check(work, built.sides() | {peer.NAME: peer.build(built)})


@pytest.mark.parametrize("layer", suites.LAYERS)
def test_uncompiled_loop_agrees_with_torch_nn(layer, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for work in lines("short", [layer], suites.MODES, [Shape(3, 4, 6)]):
        built = problem.build(work)
        with problem.calls_of(work):
            problem.check(work, built.sides() | {compiled_loop.NAME: compiled_loop.build(built)})


def test_single_steps_have_every_runtime():
    for work in STEPS:
        ran = {peer.NAME for peer in PEERS if peer.left_out(work) is None}
        assert ran >= {"ONNX Runtime", "ONNX Runtime bound", "OpenVINO", "JAX"}


def test_quantized_lines_have_the_peers_that_quantize_their_layer():
    for layer, expected in {"LSTM": [onnx_runtime_int8, torch_ao], "GRU": [torch_ao], "RNN": []}.items():
        work = replace(QUANTIZED_LSTM, layer=layer)
        assert [peer for peer in (onnx_runtime_int8, torch_ao) if peer.left_out(work) is None] == expected
    assert {(work.layer, work.cell) for work in QUANTIZED} == set(product(suites.LAYERS, (False, True)))
    for layer in suites.LAYERS:
        assert torch_ao.left_out(replace(QUANTIZED_CELL, layer=layer)) is None
        assert onnx_runtime_int8.left_out(replace(QUANTIZED_CELL, layer=layer)) == "has no cells"


@pytest.mark.parametrize("threads", [1, 2])
def test_quantized_lines_are_measured_on_any_number_of_threads(threads):
    assert all(EFFORTS["standard"].selects(work, threads, most_threads=2) for work in [*QUANTIZED, *STEPS])


def test_torch_without_its_quantized_layers(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "quantization" in name else found(name))
    assert torch_ao.missing() == f"not installed: torch {torch.__version__} has no torch.ao.quantization"


@pytest.mark.parametrize(
    "peer, work",
    [(onnx_runtime_int8, QUANTIZED_LSTM), (torch_ao, QUANTIZED_LSTM), (torch_ao, QUANTIZED_CELL)],
    ids=lambda found: str(getattr(found, "NAME", found)),
)
def test_errors_of_quantized_sides_are_those_against_float64(peer, work, monkeypatch):
    if peer.missing():
        pytest.skip(peer.missing())
    line, _ = measured(work, monkeypatch, [peer])
    assert 1e-4 < line.sides[peer.NAME]["error"] < problem.LARGEST_DIFFERENCE_QUANTIZED
    assert "error" not in line.sides["ours"]


def test_quantized_results_that_are_far_off_are_not_measured():
    sides = problem.build(QUANTIZED_LSTM).sides()
    right = sides["ours"].run
    sides["ours"] = problem.Side(lambda: [1.05 * tensor for tensor in right()], quantized=True)
    problem.check("this line", sides)
    sides["ours"] = problem.Side(lambda: [1.2 * tensor for tensor in right()], quantized=True)
    with pytest.raises(AssertionError, match=r"ours differs from torch\.nn"):
        problem.check("this line", sides)


@pytest.mark.parametrize("layer", suites.LAYERS)
def test_training_of_cells_whose_input_is_given_has_the_gradients_of_weights_alone(layer):
    (work, *_) = (work for work in suites.CELLS if work.given_input and work.layer == layer)
    built = problem.build(replace(work, shape=Shape(1, 2, 6)))
    assert work.mode == "training"
    for side in built.sides().values():
        assert [tensor.shape for tensor in side.run()[1:]] == [weight.shape for weight in built.weights]


# ---- other calls of ours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [work for work in EVERY_KIND if work.mode == "inference"], ids=str)
def test_other_calls_of_ours_agree_with_torch_nn(work):
    built = problem.build(work)
    found = {v.name: v.build(built) for v in VARIANTS if v.applies(work) and v.missing(work) is None}
    assert "frozen" in found or (work.cell and not work.quantized)
    with problem.calls_of(work):
        problem.check(work, built.sides() | found)


@pytest.mark.parametrize(
    "work, expected",
    [
        (PLAIN, {"frozen"}),
        (STEPS[0], {"frozen", "stream"}),
        (QUANTIZED_LSTM, {"frozen", "int8", "int8 weights"}),
        (DECODER, {"frozen", "stream", "int8", "int8 weights", "int8 stream"}),
        (QUANTIZED_CELL, {"frozen", "int8", "int8 weights"}),
        (replace(PLAIN, mode="training"), set()),
        (Work("cell, loop", "GRU", "inference", Shape(2, 2, 3), cell=True), set()),
    ],
    ids=lambda found: str(sorted(found) if isinstance(found, set) else found),
)
def test_other_calls_of_ours_are_measured(work, expected, monkeypatch):
    line, left_out = measured(work, monkeypatch)
    assert set(line.sides) == {"ours", "torch.nn"} | expected
    assert {name for name, side in line.sides.items() if "error" in side} == {n for n in expected if "int8" in n}
    assert not left_out


def test_calls_that_the_library_lacks_are_left_out_with_the_reason(monkeypatch):
    def freeze(module):
        return module

    monkeypatch.setattr(fused_rnn, "freeze", freeze)
    monkeypatch.delattr(fused_rnn, "Stream", raising=False)
    variants._refused.cache_clear()
    line, left_out = measured(DECODER, monkeypatch)
    variants._refused.cache_clear()
    assert set(line.sides) == {"ours", "torch.nn", "frozen"}
    assert "stream: this version has no fused_rnn.Stream" in left_out
    (why,) = (why for why in left_out if why.startswith("int8 weights: "))
    assert "refuses weights='int8-weights-only'" in why
    assert "unexpected keyword argument" in why


@pytest.mark.parametrize(
    "peer, sides, expected",
    [
        ("torch.nn", {"ours": 2.0, "frozen": 1.0}, 2.0),
        ("ONNX Runtime", {"ours": 2.0, "frozen": 1.0, "stream": 0.5}, 4.0),
        ("ONNX Runtime", {"ours": 1.0, "frozen": 2.0}, 4.0),
        ("ONNX Runtime bound", {"ours": 2.0, "frozen": 1.0, "stream": 0.5}, 8.0),
        ("OpenVINO", {"ours": 2.0, "int8": 1.0}, 2.0),
        ("ONNX Runtime int8", {"ours": 2.0, "int8": 1.0}, 4.0),
        ("torch.ao int8", {"ours": 2.0}, 2.0),
    ],
)
def test_peers_meet_our_fastest_call_of_their_kind(peer, sides, expected):
    line = Line(PLAIN, {name: {"ms": ms} for name, ms in sides.items()} | {peer: {"ms": 4.0}}, {})
    assert line.ratio(peer) == expected
