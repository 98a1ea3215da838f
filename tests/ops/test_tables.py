"""Tables in files: where they are, which count, and two processes that write at once."""

import multiprocessing
import sys
import warnings

import pytest
import torch

import fused_rnn
from fused_rnn.ops import measured, tables, user_folder
from fused_rnn.ops.measured import Entry, Sizes, Table
from fused_rnn.ops.plans import cpu_plan

SIZES = Sizes("lstm", "float32", False, 100, 16, 256, 256)
ENTRY = Entry(SIZES, {"torch": 1.0, "ours": 2.0}, frozenset(["ours"]))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "shipped")
    tables.forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    tables.forget()


def table(*entries, **parts):
    return Table(
        parts.get("device", tables.processor()),
        parts.get("made_with", tables.made_with("cpu")),
        entries,
        parts.get("thresholds", {}),
    )


def test_the_folder(monkeypatch, tmp_path, cache):
    assert user_folder.folder() == cache
    monkeypatch.delenv("FUSED_RNN_CACHE")
    if sys.platform != "darwin":
        monkeypatch.setenv("XDG_CACHE_HOME" if sys.platform != "win32" else "LOCALAPPDATA", str(tmp_path))
        assert user_folder.folder() == tmp_path / "fused_rnn"
    assert tables.path_of("NVIDIA H100 80GB (HBM3)").name == "nvidia-h100-80gb-hbm3.json"


def test_the_users_own_table_comes_first(cache):
    assert tables.find("GPU") is None
    tables.write(table(device="GPU"), tables.SHIPPED / "gpu.json")
    assert tables.find("GPU").entries == ()
    tables.write(table(ENTRY, device="GPU"), tables.path_of("GPU"))
    assert tables.find("GPU").entries == (ENTRY,)
    assert tables.find_by_name("gp") == tables.find("GPU")
    assert tables.find_by_name("H200") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is ignored: Expecting"),
        ("\x00", "is ignored"),
        ('{"format": 0}', "its format is 0"),
        (table(device="other"), "it is of other, not of "),
        (table(made_with={"fused_rnn": "0.0.1"}), "made with fused_rnn 0.0.1"),
        (table(made_with={"fused_rnn": fused_rnn.__version__}), "made with torch unknown"),
    ],
)
def test_others_are_ignored_with_one_warning(content, message):
    path = tables.path_of(tables.processor())
    if isinstance(content, Table):
        tables.write(content, path)
    else:
        path.parent.mkdir()
        path.write_text(content)
    with pytest.warns(UserWarning, match=message):
        assert tables.table_for("cpu") is None
    tables._applied.clear()
    assert tables.table_for("cpu") is None  # without another warning, which would be an error here
    with fused_rnn.engine("auto"):
        fused_rnn.GRU(3, 4)(torch.randn(5, 2, 3))


def test_the_shipped_table_counts_where_the_users_is_damaged():
    path = tables.path_of(tables.processor())
    tables.write(table(ENTRY), tables.SHIPPED / path.name)
    path.parent.mkdir()
    path.write_text("[]")
    with pytest.warns(UserWarning, match="not a table"):
        assert tables.table_for("cpu").entries == (ENTRY,)


def test_auto_goes_by_the_table(monkeypatch):
    calls, run = [], fused_rnn.autograd.by_torch._run
    monkeypatch.setattr(fused_rnn.autograd.by_torch, "_run", lambda *args: calls.append(1) or run(*args))
    tables.write(table(ENTRY), tables.path_of(tables.processor()))
    layer, input = fused_rnn.LSTM(256, 256), torch.randn(100, 16, 256)
    with fused_rnn.engine("auto"):
        layer(input)  # with gradients, which were not measured
        assert not calls
        with torch.no_grad():
            layer(input)
            explanation = fused_rnn.explain(layer, input)
        assert len(calls) == 1
        assert explanation.engine == "torch"
        assert "torch took 1 us for lstm float32 inference T100 B16 I256 H256 (ours 2)" in explanation.reason
    with torch.no_grad():
        layer(input)  # the default on the CPU
    assert len(calls) == 1


def test_thresholds_are_taken_into_use_and_put_back():
    shipped = tables.shipped_thresholds()
    assert tables.current_thresholds() == shipped

    def packs(rows):
        plan = cpu_plan(0, torch.float64, rows=rows, input_size=256, hidden=256, output_size=256)
        return plan.weights == "packed"

    assert not packs(5)
    tables.write(table(thresholds={"least_rows_to_pack_many": 5}), tables.path_of(tables.processor()))
    tables.use_for_cpu()
    assert packs(5)
    assert tables.current_thresholds() == shipped | {"least_rows_to_pack_many": 5}
    tables.forget()
    assert not packs(5)


def test_results_do_not_depend_on_the_number_of_threads_whatever_the_thresholds():
    torch.manual_seed(0)
    layer, threads = fused_rnn.LSTM(48, 128), torch.get_num_threads()
    inputs = [torch.randn(steps, batch, 48) for steps, batch in ((1, 3), (1, 12), (9, 5))]
    try:
        for value in (0, 1, 6, 1 << 40):
            tables.set_thresholds(dict.fromkeys(tables.THRESHOLDS, value))
            for input in inputs:
                found = []
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    found.append(layer(input)[0])
                assert torch.equal(found[0], found[1])
                assert torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(threads)


def test_a_warning_names_the_command_once_a_process():
    with pytest.warns(UserWarning, match="no measurements for NVIDIA X.*python -m fused_rnn tune --device cuda"):
        tables.tell_once(fused_rnn.ops.handover.unmeasured("NVIDIA X"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables.tell_once(fused_rnn.ops.handover.unmeasured("NVIDIA X"))


def write_often(folder, number):
    path = tables.Path(folder) / "gpu.json"
    for _ in range(40):
        tables.write(Table("GPU", {}, tuple(ENTRY for _ in range(50 * number))), path)


def test_two_processes_may_write_at_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_often, args=(str(tmp_path), number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "gpu.json").exists():
            seen.add(len(tables.read(tmp_path / "gpu.json").entries))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {50, 100}
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    assert isinstance(tables.read(tmp_path / "gpu.json"), measured.Table)
