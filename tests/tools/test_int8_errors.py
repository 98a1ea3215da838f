"""The errors of layers with weights of 8 bits: ``verify``, long sequences, and ONNX Runtime's."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fused_rnn
from fused_rnn.__main__ import main
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools import verify as verification
from fused_rnn.tools.verify import INT8_TOLERANCE, relative_error

every_format = pytest.mark.parametrize("weights", INT8_TOLERANCE)


# ---- verify ----------------------------------------------------------------------------------------------------------


@every_format
def test_verify_passes(weights):
    report = fused_rnn.verify(weights=weights, show_progress=False)
    assert report.passed, str(report)
    assert {result.cell for result in report.results} == set(CELLS)
    assert {result.dtype for result in report.results} == {weights}
    assert not any("gradcheck" in result.check for result in report.results)
    # Less would say that the float layer was run; a single unit's weights are integers times their scales anyway.
    assert all(result.error > 1e-4 for result in report.results if result.check not in ("one unit", "saturated"))


@every_format
def test_verify_fails_with_a_wrong_kernel(weights, monkeypatch):
    """One that quantizes to 5 bits, or reads another row's weights."""
    pack, header = verification._frozen, 192

    def coarse(weight):
        quantum = weight.abs().amax(-1, keepdim=True) / 15
        return (weight / quantum).round() * quantum

    def packed_from(change):
        def frozen(problem, format):
            tensors = [t if t.dim() != 2 else change(t) for t in problem.tensors]
            right, wrong = pack(problem, format), pack(replace(problem, tensors=tensors), format)
            for one, other in zip(right.packed, wrong.packed, strict=True):
                one[header:] = other[header:]
            return right

        return frozen

    for change in (coarse, lambda weight: weight.roll(1, 0)):
        monkeypatch.setattr(verification, "_frozen", packed_from(change))
        report = fused_rnn.verify(cells=["gru"], weights=weights, show_progress=False)
        assert not report.passed and "FAILED" in str(report)


def test_verify_refuses():
    with pytest.raises(ValueError, match="weights must be None or one of int8, int8-weights-only, got 'int4'"):
        fused_rnn.verify(weights="int4")


@every_format
def test_verify_command(weights):
    command = [sys.executable, "-m", "fused_rnn", "verify", "--weights", weights, "--cell", "lstm", "gru"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {row[1] for row in rows if row[0] in ("lstm", "gru")} == {weights}
    assert done.stdout.splitlines()[-1] == f"{len(rows) - 2} checks passed, 0 failed"


def test_verify_command_with_other_weights(capsys):
    with pytest.raises(SystemExit):
        main(["verify", "--weights", "int4"])
    assert "invalid choice: 'int4'" in capsys.readouterr().err


# ---- long sequences --------------------------------------------------------------------------------------------------


def error_of(kind, weights, hidden=128, steps=1000):
    """||error|| / ||output|| against float64, of torch's random weights and a random input of one row."""
    layer = getattr(fused_rnn, kind)(hidden, hidden)
    input = torch.randn(steps, 1, hidden)
    with torch.no_grad():
        exact = copy.deepcopy(layer).double()(input.double())[0]
        return relative_error(fused_rnn.freeze(layer, weights=weights)(input)[0], exact)


# Measured: 0.0083 and 0.0043 of an LSTM, the same within 5% of the others and for five seeds.
LIMITS = {"int8": 0.009, "int8-weights-only": 0.005}


@every_format
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_errors_do_not_grow_with_the_sequence(kind, weights):
    assert error_of(kind, weights) <= LIMITS[weights]


def test_onnx_runtimes_int8_is_no_more_exact():
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the error of ONNX Runtime's int8 LSTM is compared with")
    from benchmarks import problem, suites
    from benchmarks.peers import onnx_runtime_int8

    line = problem.build(suites.Work("int8", "LSTM", "inference", suites.Shape(1000, 1, 128), quantized=True))
    side = onnx_runtime_int8.build(line)
    exact = line.exact_output()
    with torch.inference_mode():
        theirs = relative_error(side.as_tensors(side.run())[0], exact)
        for weights in INT8_TOLERANCE:
            ours = relative_error(line.call(fused_rnn.freeze(line.ours, weights=weights))()[0], exact)
            assert 0 < ours <= 1.2 * theirs
