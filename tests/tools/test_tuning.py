"""``tune``: sizes, engines verified and timed by a clock of the test's, a process that hangs or dies, thresholds."""

import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch

import fused_rnn
from fused_rnn.__main__ import main
from fused_rnn.ops import tables
from fused_rnn.ops.measured import Entry, Sizes, Table
from fused_rnn.tools.tuning import measuring, report, run, sizes, thresholds, tune
from fused_rnn.tools.tuning.report import Tuned
from fused_rnn.tools.tuning.run import Tuner, Worker

SMALL = Sizes("lstm", "float32", True, 6, 2, 5, 8)
ENGINES = ("torch", "ours")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    tables.forget()
    yield
    monkeypatch.undo()
    tables.forget()


class FakeClock:
    """Says what an engine's call takes, after it was made."""

    def __init__(self, seconds):
        self.told = seconds if callable(seconds) else seconds.get

    def seconds(self, name, call, calls):
        call()
        return self.told(name)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("effort", sizes.SECONDS)
def test_standard_sizes(device, effort):
    found = sizes.standard(device, effort)
    assert len(set(found)) == len(found)
    assert {size.training for size in found} == {True, False}
    assert {"lstm", "gru"} <= {size.cell for size in found}
    assert len(sizes.standard(device, "quick")) < len(sizes.standard(device, "full"))


def test_shapes():
    assert sizes.like("B4 H64") == [Sizes("lstm", "float32", training, 100, 4, 64, 64) for training in (False, True)]
    found = sizes.like("gru, rnn_tanh T20 B1 I3 H64 L2")
    assert len(found) == 4
    assert found[0] == Sizes("gru", "float32", False, 20, 1, 3, 64, 2)


def test_sizes_of_a_state_dict(tmp_path):
    model = torch.nn.ModuleDict(
        {"a": torch.nn.GRU(3, 8, 2, bidirectional=True).half(), "b": torch.nn.LSTM(5, 4), "c": torch.nn.Linear(2, 3)}
    )
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    found = sizes.like(str(tmp_path / "model.pt"))
    assert len(found) == 8
    assert Sizes("gru", "float16", True, 100, 16, 3, 8, 2, 2) in found
    assert Sizes("lstm", "float32", False, 100, 1, 5, 4) in found


@pytest.mark.parametrize("text", ["", "fast", "lstm H64", "lstm B4 H64 X3", "B0x H4"])
def test_what_names_no_sizes_is_refused(text):
    with pytest.raises(ValueError, match="no recurrent layer in"):
        sizes.like(text)


def test_files_are_read_as_data_alone(tmp_path):
    torch.save(partial(print, "ran"), tmp_path / "program.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        sizes.like(str(tmp_path / "program.pt"))


# ---- measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_every_engine_is_verified_and_timed(cell, dtype):
    busy = []
    clock = FakeClock({"torch.nn": 3e-3, "torch": 4e-3, "ours": 1e-3})
    size = SMALL._replace(cell=cell, dtype=dtype, layers=2, directions=2)
    times, verified, failed = measuring.measure(size, ENGINES, "cpu", clock, busy.append)
    assert times == {"torch.nn": 3000, "torch": 4000, "ours": 1000}
    assert (verified, failed) == (["ours"], {})
    assert busy[0] == "ours"
    assert busy.count("torch.nn") == measuring.ROUNDS + 1


def test_a_wrong_engine_is_not_timed(monkeypatch):
    honest = measuring._results

    def slightly_off(module, input, training):
        results = honest(module, input, training)
        is_ours = isinstance(module, fused_rnn.LSTM)
        return [result * (1 + 1e-3 * is_ours) for result in results]

    monkeypatch.setattr(measuring, "_results", slightly_off)
    times, verified, failed = measuring.measure(SMALL, ENGINES, "cpu", FakeClock(lambda name: 1e-3), print)
    assert set(times) == {"torch.nn", "torch"}
    assert verified == []
    assert "its error is 1.0e-03" in failed["ours"]


def test_an_engine_that_refuses_is_left_out(monkeypatch):
    def refuse(sizes, name, device):
        raise RuntimeError("no shape of the persistent kernel fits")

    monkeypatch.setattr(measuring, "error_of", refuse)
    times, verified, failed = measuring.measure(SMALL, ENGINES, "cpu", FakeClock(lambda name: 1e-3), print)
    assert set(times) == {"torch.nn", "torch"}
    assert (verified, failed) == ([], {"ours": "no shape of the persistent kernel fits"})


# ---- the process -----------------------------------------------------------------------------------------------------

FAULTY = """
    import json, os, sys, time
    def say(**what): print(json.dumps(what), flush=True)
    say(event="ready")
    for line in sys.stdin:
        names = json.loads(line)["names"]
        for name in names:
            say(event="begins", name=name)
            if name == "hangs": time.sleep(60)
            if name == "dies": os._exit(3)
            if name == "fails":
                say(event="failed", reason="the GPU is lost")
                break
        else:
            say(event="measured", times={name: 7.0 for name in names}, verified=names, failed={"wrong": "by much"})
"""


def faulty():
    return Worker((sys.executable, "-c", textwrap.dedent(FAULTY)))


def test_a_hang_or_a_fault_costs_one_engine():
    tuner = Tuner("cpu", faulty, step_seconds=1.5)
    try:
        entry = tuner.measure(SMALL, ("torch", "hangs", "one", "dies", "fails", "cluster"))
    finally:
        tuner.end()
    assert entry.times == {"torch": 7.0, "one": 7.0, "cluster": 7.0}
    reasons = {name: reason for _, name, reason in tuner.failures}
    assert reasons.keys() == {"hangs", "dies", "fails", "wrong"}
    assert "did not answer within 1.5 s" in reasons["hangs"]
    assert "exit status 3" in reasons["dies"]


def test_a_process_that_does_not_start_costs_the_job():
    tuner = Tuner("cpu", partial(Worker, (sys.executable, "-c", "")))
    assert tuner.measure(SMALL, ENGINES) is None
    assert tuner.thresholds() == {}


def test_on_this_machine(monkeypatch):
    """All of it, for real."""
    monkeypatch.setattr(thresholds, "QUESTIONS", ())
    found = tune("cpu", [SMALL, SMALL._replace(training=False, cell="gru")], show_progress=False)
    assert found.failures == []
    assert len(found.measured) == 2
    for entry in found.measured:
        assert entry.times.keys() == {"torch.nn", "torch", "ours"}
        assert entry.verified == {"ours"}
    assert tables.table_for("cpu") == found.table
    assert "2 sizes measured" in str(found)
    # A second run adds to the table.
    tune("cpu", [SMALL._replace(batch=1)], show_progress=False)
    assert len(tables.table_for("cpu").entries) == 3


class NoWorker(Tuner):
    """Answers by itself."""

    def measure(self, sizes, names):
        return Entry(sizes, dict.fromkeys(("torch.nn", *names), 5.0), frozenset(names[1:]))

    def thresholds(self):
        return {"rows_to_share_many": 2}


def test_what_there_is_no_time_for_is_said():
    found = tune("cpu", [SMALL], seconds=-1, tuner=NoWorker("cpu"), show_progress=False)
    assert found.left == 1
    assert "1 sizes were left out" in str(found)


def test_without_a_gpu():
    with pytest.raises((RuntimeError, NotImplementedError)):
        tune("cuda", [SMALL])


# ---- thresholds ------------------------------------------------------------------------------------------------------

QUESTION = thresholds.Question("least_rows_to_pack_many", (4, 6, 8, 10, 12), lambda rows: SMALL)


@pytest.mark.parametrize(
    ("verdicts", "moved"),
    [
        ((-1, -1, -1, 1, 1), 10),  # as shipped
        ((1, 1, 1, 1, 1), 4),
        ((-1, -1, 1, 1, 1), 8),
        ((1, -1, 1, 1, 1), 8),  # a rung alone is noise
        ((0, 0, 0, 0, 0), 10),  # neither way is faster
        ((-1, -1, -1, -1, 1), 12),
        ((-1, -1, -1, -1, -1), 13),
    ],
)
def test_a_threshold_moves_as_far_as_rungs_are_faster_for_it(verdicts, moved):
    by_rung = dict(zip(QUESTION.rungs, verdicts, strict=True))
    assert thresholds._moved(QUESTION, 10, by_rung.get) == moved


def test_thresholds_are_measured_by_both_ways(monkeypatch):
    shipped = tables.shipped_thresholds()
    question = thresholds.Question("least_rows_to_pack_many", (4, 6, 8, 12), lambda rows: SMALL._replace(batch=rows))
    monkeypatch.setattr(thresholds, "QUESTIONS", (question,))
    seen = set()

    def seconds(name):
        _, rung, value = name.split()
        seen.add(tables.current_thresholds()["least_rows_to_pack_many"])
        packs = int(value) == thresholds.ALWAYS
        return 1e-3 if packs == (int(rung) >= 6) else 2e-3

    assert thresholds.measure(FakeClock(seconds), lambda name: None) == {"least_rows_to_pack_many": 6}
    assert seen == {thresholds.ALWAYS, thresholds.NEVER}
    assert tables.current_thresholds() == shipped


def test_questions_are_of_known_thresholds():
    for question in thresholds.QUESTIONS:
        assert question.threshold in tables.THRESHOLDS
        assert list(question.rungs) == sorted(question.rungs)
        assert isinstance(question.sizes(question.rungs[0]), Sizes)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Tuner", NoWorker)
    monkeypatch.setattr(run, "machine_is_busy", lambda: False)
    assert main(["tune", "--like", "lstm T5 B2 I3 H4"]) == 0
    assert "geometric mean of all" in capsys.readouterr().out
    assert main(["tune", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "lstm float32 inference T5 B2 I3 H4: " in shown
    assert "rows_to_share_many: 2" in shown
    assert main(["tune", "--export", str(tmp_path / "mine.json")]) == 0
    assert tables.read(tmp_path / "mine.json") == tables.table_for("cpu")
    assert tables.current_thresholds()["rows_to_share_many"] == 2
    assert main(["tune", "--clear"]) == 0
    capsys.readouterr()
    assert main(["tune", "--show"]) == 2
    assert "there is no table of" in capsys.readouterr().err
    assert main(["tune", "--like", "nothing"]) == 2


def test_the_summary_names_what_is_slower():
    entries = [
        Entry(SMALL, {"torch.nn": 10.0, "torch": 11.0, "ours": 20.0}, frozenset(["ours"])),
        Entry(SMALL._replace(batch=1), {"torch.nn": 40.0, "ours": 10.0}, frozenset(["ours"])),
    ]
    text = report.summary(Tuned(Table("CPU", {}, tuple(entries)), entries, [(SMALL, "one", "it hung")], was_busy=True))
    assert "below 1: lstm float32 training T6 B2 I5 H8 0.91" in text
    assert "geometric mean of all              1.91" in text
    assert "worst 0.91  (2 sizes)" in text
    assert "not taken: one for lstm float32 training T6 B2 I5 H8: it hung" in text
    assert "other work kept the machine busy" in text


@pytest.mark.parametrize("busy", [True, False])
def test_thresholds_are_left_alone_on_a_busy_machine(monkeypatch, busy):
    monkeypatch.setattr(run, "machine_is_busy", lambda: busy)
    found = tune("cpu", [SMALL], tuner=NoWorker("cpu"), show_progress=False)
    assert found.table.thresholds == ({} if busy else {"rows_to_share_many": 2})
    assert found.was_busy == busy


def test_a_process_of_its_own_reads_the_table():
    tables.write(
        Table(tables.processor(), tables.made_with("cpu"), (), {"rows_to_share_many": 2}),
        tables.path_of(tables.processor()),
    )
    program = "import fused_rnn; print(fused_rnn.ops.tables.current_thresholds()['rows_to_share_many'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
