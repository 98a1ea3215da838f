"""Lines that are not to be relied on, for their spread or the machine's load, are marked wherever they are shown."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import load, markdown, page, report, table
from benchmarks.results import Line, Results, load_all
from benchmarks.suites import Shape, Work

FIXTURE = Path(__file__).parent / "benchmark_results"
BUSY = {"mean": 3.2, "cores": 2}
WORK = Work("one step", "GRU", "inference", Shape(1, 1, 64), carried=True)


def line(spread: float, on: dict, work: Work = WORK) -> Line:
    side = {"ms": 0.01, "spread": spread, "rounds": 5}
    return Line(work, {"ours": side, "ONNX Runtime": side | {"ms": 0.005, "spread": 0.0}}, {}, on)


@pytest.fixture
def results() -> Results:
    return load_all(FIXTURE)[0]


@pytest.mark.parametrize(
    "found, why",
    [
        (line(0.31, {}), "spread of ours 31%"),
        (line(0.0, BUSY), "load of 3.2 on 2 cores"),
        (line(0.5, BUSY), "spread of ours 50%, load of 3.2 on 2 cores"),
    ],
)
def test_doubtful_lines_are_marked(results, found, why):
    one = replace(results, lines=[found])
    assert f"UNRELIABLE: {why}" in table.row(found)
    assert f"one step GRU inference T1 B1 H64 is UNRELIABLE: {why}" in table.summary(one)
    text = page.text([one])
    assert "| GRU one step | 0.50 † |" in text
    assert "| GRU T1 B1 H64 † | 10 | 5 |" in text
    assert "- ONNX Runtime, 1 thread, one step, GRU inference: T1 B1 H64 0.50 †" in text
    assert f"- 1 thread, one step GRU inference T1 B1 H64: {why}" in text
    assert text.endswith(f"{markdown.FOOTNOTE}\n")


def test_other_lines_are_not_marked(results):
    found = line(0.3, {"mean": 2.4, "cores": 2})
    one = replace(results, lines=[found])
    assert not found.doubts
    assert "UNRELIABLE" not in table.row(found) + table.summary(one)
    assert markdown.DOUBT not in page.text([one])


def test_readme_marks_doubtful_lines(results):
    lines = [replace(results.lines[0], load=BUSY), *results.lines[1:]]
    text = report.markdown([replace(results, lines=lines)], [], [])
    assert "| LSTM inference | 2.00 (1.00) † |" in text
    assert markdown.FOOTNOTE in text
    assert markdown.DOUBT not in report.markdown([results], [], [])


def test_features_are_marked():
    side = {"ms": 1.0, "spread": 0.0, "rounds": 3}
    entry = {"name": "packed", "target": 1.1, "sides": {"padded": side, "packed": side}, "load": BUSY}
    assert table.feature_row(entry).endswith("target 1.10x: met   UNRELIABLE: load of 3.2 on 2 cores")
    (features,) = (one for one in load_all(FIXTURE) if one.suite == "features")
    text = report.markdown([load_all(FIXTURE)[0]], [], [replace(features, features=[entry])])
    assert "| packed | padded | packed 1.00 † | 1.10 |" in text


def test_plots_mark_doubtful_lines(results, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    marked = replace(results, lines=[replace(one, load=BUSY) for one in results.lines])
    for found, expected in ((results, False), (marked, True)):
        for path in plots.draw([found], tmp_path):
            assert ("ringed: not to be relied on" in path.read_text()) == expected, path.name


def test_results_with_marks_survive_the_file(results, tmp_path):
    one = replace(results, lines=[line(0.5, BUSY), line(0.0, {})])
    assert Results.load(one.save(tmp_path)) == one


@pytest.mark.parametrize("others, expected", [(0.0, False), (0.4, False), (0.6, True), (2.0, True)])
def test_load_counts_what_others_take(others, expected, monkeypatch, tmp_path):
    """Two seconds, in which this process works for three, and others, the host among them, for so many cores."""
    now = {"monotonic": 10.0, "process_time": 5.0}
    for clock in now:
        monkeypatch.setattr(load.time, clock, lambda clock=clock: now[clock])
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    tick = os.sysconf("SC_CLK_TCK")

    def write(user: float, idle: float, steal: float) -> None:
        numbers = [user, 0, 7, idle, 0, 0, 0, steal, 0, 0]
        load.STAT.write_text(f"cpu  {' '.join(str(round(tick * number)) for number in numbers)}\ncpu0 1 2 3\n")

    write(100, 50, 20)
    found = load.Load(threads=2, cores=2)
    now |= {"monotonic": 12.0, "process_time": 8.0}
    write(100 + 3 + others, 90, 20 + others)
    facts = found.facts()
    assert facts == {"mean": pytest.approx(2 + others, abs=0.02), "cores": 2}
    assert load.exceeds(facts) == expected


def test_load_of_this_machine_can_be_read():
    assert load.Load(threads=1, cores=2).facts()["mean"] >= 1
