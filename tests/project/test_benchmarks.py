"""The benchmarks' own code: every line can be built and agrees with its peers, and reports follow from result files."""

import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import devices, features, page, problem, report, results, roofline, summary, table, timing
from benchmarks.__main__ import arguments_of
from benchmarks.limits import Limits
from benchmarks.peers import jax_scan
from benchmarks.results import Line, Results
from benchmarks.run import commit, measure_line
from benchmarks.suites import EFFORTS, SUITES, Shape, Work
from support.benchmark_lines import EVERY_KIND
from support.paths import ROOT

FIXTURE = Path(__file__).parent / "benchmark_results"
WITH_MARKERS = (report.README, report.PERFORMANCE)


@pytest.fixture
def measured():
    return results.load_all(FIXTURE)


@pytest.fixture
def small_features(monkeypatch):
    monkeypatch.setattr(features, "STEPS", 9)
    monkeypatch.setattr(features, "BATCH", 4)
    monkeypatch.setattr(features, "HIDDEN", 5)
    monkeypatch.setattr(features, "MEMBER_HIDDEN", 3)
    monkeypatch.setattr(features, "LENGTHS", [9, 7, 5, 3])
    monkeypatch.setattr(features, "AVERAGE_LENGTH", 6)
    # Which one line sets, for a process of its own. pytest's way to put things back would hide the second one.
    with torch._dynamo.config.patch(allow_rnn=False), torch._inductor.config.patch(force_disable_caches=False):
        yield


# ---- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_names_are_unique(suite):
    names = [str(work) for work in SUITES[suite]]
    assert len(set(names)) == len(names)


def test_feature_names_are_unique():
    names = [feature.name for feature in features.features(full=True)]
    assert len(set(names)) == len(names)


def test_efforts_grow():
    every = [(work, threads) for work in SUITES["cpu"] for threads in (1, 2)]
    quick, standard, full = (
        {line for line in every if effort.selects(*line, most_threads=2)} for effort in EFFORTS.values()
    )
    assert quick < standard < full
    assert full == set(every)


@pytest.mark.parametrize("arguments", [[], ["--quick"]])
def test_default_suites(arguments):
    assert arguments_of(arguments).what == ["cpu", "features"]


@pytest.mark.parametrize("work", EVERY_KIND, ids=str)
def test_line_agrees_with_torch_nn(work):
    built = problem.build(work)
    with problem.calls_of(work):
        problem.check(work, built.sides())


def test_packed_lines_are_ragged():
    work = Work("packed", "LSTM", "inference", Shape(100, 16, 4), packed=True)
    assert max(work.lengths) == 100
    assert min(work.lengths) < 50
    assert sorted(work.lengths, reverse=True) != work.lengths


# torch.nn says this of itself under vmap.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_features_agree(small_features, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # takes minutes
    monkeypatch.setattr(features, "COMPILED_HIDDEN", 3)
    features._models.cache_clear()
    for feature in features.features(full=True):
        runs = feature.build()
        found = {name: problem.Side(run) for name, run in runs.items()}
        if feature.same_results:
            problem.check(feature.name, found, next(iter(found)))
        else:
            for run in runs.values():
                assert all(torch.isfinite(tensor).all() for tensor in run())


def test_wrong_results_are_not_measured():
    sides = problem.build(EVERY_KIND[0]).sides()
    right = sides["ours"].run
    sides["ours"] = problem.Side(lambda: [tensor + 0.01 for tensor in right()])
    with pytest.raises(AssertionError, match=r"ours differs from torch\.nn"):
        problem.check("this line", sides)


# ---- how it is measured ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_suite_says_what_it_lacks():
    with pytest.raises(SystemExit, match="torch sees none"):
        devices.Gpu().require()


def test_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() is None
    monkeypatch.setenv("FUSED_RNN_COMMIT", "abc1234")
    assert commit() == "abc1234"


def test_every_round_runs_every_side():
    calls = []
    effort = replace(EFFORTS["quick"], seconds=0.0, fewest_rounds=2)
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    found = timing.time_interleaved(runs, effort, lambda: calls.append("beside"))
    assert [timing.rounds for timing in found.values()] == [2, 2]
    order = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert order == ["a", "b", "beside"] * 2


@pytest.fixture(scope="module")
def limits():
    if shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None:
        pytest.skip("there is no C++ compiler")
    return Limits(1)


def test_machine_has_limits(limits):
    assert limits.operations("float32", 1e-4) > 1e6
    assert limits.fastest("float16") == "float32"
    for level in limits.levels[:-1]:
        assert limits.read(level, 1e-4) > 1e6


def test_shares_of_levels(limits):
    for size in (100.0, 1e5, 1e7, 1e12):
        assert sum(limits.shares(size).values()) == pytest.approx(1)
    assert list(limits.shares(100.0)) == limits.levels[:1]
    assert list(limits.shares(1e12)) == limits.levels


def test_line_is_measured(limits, monkeypatch):
    monkeypatch.setattr("benchmarks.run.PEERS", [jax_scan])
    monkeypatch.setattr(jax_scan, "missing", lambda: None)
    effort = replace(EFFORTS["quick"], seconds=0.0, fewest_rounds=1)
    work = Work("float64", "GRU", "training", Shape(3, 2, 4), dtype="float64")
    line, left_out = measure_line(work, effort, limits, cores=2)
    assert set(line.sides) == {"ours", "torch.nn"}
    assert left_out == ["JAX: float32 on the CPU only"]
    assert line.ratio("torch.nn") > 0
    assert line.of_limit > 0
    assert line.load["cores"] == 2


def test_cost_of_a_plain_layer():
    work = Work("plain", "LSTM", "inference", Shape(10, 2, 8))
    cost = roofline.cost(work)
    assert cost.operations == 2 * 10 * 2 * 4 * 8 * (8 + 8)
    assert cost.weight_bytes == 4 * (10 * 4 * 8 * 8 + 4 * 8 * 8)
    assert cost.resident_bytes == 4 * 4 * 8 * 8
    assert roofline.cost(replace(work, mode="training")).operations == 3 * cost.operations
    assert roofline.cost(replace(work, bidirectional=True)).operations == 2 * cost.operations


def test_limit_is_the_longer_of_both():
    cost = roofline.Cost(operations=1e9, weight_bytes=1e6, resident_bytes=1e3)
    assert roofline.limit(cost, 1e9, "float32", {"L1": 1e-9}) == roofline.Limit(1.0, "float32")
    bound = roofline.limit(cost, 1e12, "float32", {"L1": 1e-9, "L2": 1e-8})
    assert bound.bound_by == "L2"
    assert bound.seconds == pytest.approx(1.1e-2)


# ---- how it is shown -------------------------------------------------------------------------------------------------


def test_results_survive_the_file(measured, tmp_path):
    for one in measured:
        assert Results.load(one.save(tmp_path)) == one


def test_frozen_layers_are_compared_with_onnx_runtime():
    sides = {"ours": {"ms": 2.0}, "frozen": {"ms": 1.0}, "torch.nn": {"ms": 3.0}, "ONNX Runtime": {"ms": 0.5}}
    line = Line(EVERY_KIND[0], sides, {"ms": 0.25})
    assert (line.ratio("torch.nn"), line.ratio("ONNX Runtime"), line.ratio("JAX")) == (1.5, 0.5, None)
    assert line.of_limit == 0.25


def test_slower_lines_are_marked(measured):
    for line in measured[0].lines:
        lost = [name for name in results.OPPONENTS if (line.ratio(name) or 1) < 1]
        assert ("SLOWER than " + ", ".join(lost) in table.row(line)) == bool(lost)
    assert "SLOWER" in "".join(map(table.row, measured[0].lines))


@pytest.mark.parametrize("width", [60, 100])
def test_rows_fit_the_terminal(measured, width):
    rows = [table.row(line) for line in measured[0].lines]
    assert max(map(len, rows)) > width
    text = "\n".join([*rows, table.summary(measured[0])])
    fitted = table.fitted(text, width)
    assert max(map(len, fitted.splitlines())) <= width
    assert fitted.split() == text.split()
    assert table.fitted(text, None) == text  # files and pipes
    name = rows[0][:31].rstrip()
    assert any(line.startswith(name) for line in fitted.splitlines())


def test_how_long_a_run_takes_is_said_in_one_place():
    for name in ("README.md", "CONTRIBUTING.md", "Makefile", "benchmarks/__main__.py"):
        text = (ROOT / name).read_text()
        assert not re.search(r"--(quick|full)[^.\n]*\bminute|ten minutes \(ARGS", text), name


def test_summary_names_missing_peers(measured):
    text = table.summary(measured[0])
    assert "ONNX Runtime did not run: not installed: onnxruntime" in text
    assert "JAX: float32 on the CPU only (left out of float64 inference)" in text


def test_markdown_shows_the_losing_lines(measured):
    text = report.markdown([measured[0]], [], [measured[1]])
    assert "| LSTM inference | 2.00 (1.00) |" in text
    assert "| torch.nn | 1 of 4 | 0.50 | plain GRU |" in text
    assert "- torch.nn, 1 thread, plain, GRU training: T100 B1 H128 0.50" in page.text([measured[0]])
    assert "| packed | padded | packed 1.25 | 1.10 |" in text
    assert "0.50 (geometric mean" in text


def marked(inside):
    return f"before\n{report.BEGIN}\n{inside}\n{report.END}\nafter\n"


def test_report_changes_nothing_the_second_time(tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "benchmarks" / "results"
    for one in results.load_all(FIXTURE):
        one.save(folder)
    (tmp_path / "docs").mkdir()
    for name in WITH_MARKERS:
        (tmp_path / name).write_text(marked("old"))
    found = []
    for _ in range(2):
        report.report(folder, tmp_path)
        found.append({path.name: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()})
    assert found[0] == found[1]
    for name in WITH_MARKERS:
        text = found[0][Path(name).name]
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
    assert "(../benchmarks/results/ratios.svg)" in found[0]["performance.md"]
    assert found[0]["peers.md"].startswith("# Every peer, in every group\n")


def test_the_summary_shows_the_losing_lines(measured):
    text = summary.text([measured[0]])
    assert "| LSTM inference | 2.00 (1.00) |" in text
    assert "torch.nn is faster in 1 of 4 measured lines (plain GRU)" in text


def test_report_of_the_repository_is_up_to_date(tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "benchmarks" / "results"
    shutil.copytree(results.FOLDER, folder)
    (tmp_path / "docs").mkdir()
    for name in WITH_MARKERS:
        shutil.copy(report.ROOT / name, tmp_path / name)
    report.report(folder, tmp_path)
    for name in (*WITH_MARKERS, report.PEERS):
        assert (tmp_path / name).read_text() == (report.ROOT / name).read_text(), name


@pytest.mark.parametrize("name", WITH_MARKERS)
def test_pages_have_the_markers(name, tmp_path):
    text = (report.ROOT / name).read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    for part in ("docs", "results"):
        (tmp_path / part).mkdir()
    for other in WITH_MARKERS:
        (tmp_path / other).write_text(marked("old") if other != name else "no markers")
    for one in results.load_all(FIXTURE):
        one.save(tmp_path / "results")
    with pytest.raises(SystemExit, match=f"{Path(name).name} lacks the markers"):
        report.report(tmp_path / "results", tmp_path)
