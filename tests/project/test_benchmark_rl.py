"""The benchmarks' suite of recurrent reinforcement learning."""

from dataclasses import replace

import pytest

from benchmarks import problem, report, rl, run
from benchmarks.__main__ import arguments_of
from benchmarks.results import load_all
from support.paths import TESTS


@pytest.fixture
def small(monkeypatch):
    for name, value in {"STEPS": 6, "OBSERVED": 3, "BATCHES": (4,), "HIDDEN": (5,)}.items():
        monkeypatch.setattr(rl, name, value)


def test_names_are_unique():
    names = [feature.name for feature in rl.features()]
    assert len(set(names)) == len(names) >= 12


def test_every_way_computes_the_same(small):
    found = [feature for feature in rl.features() if feature.same_results]
    assert [feature.name for feature in found] == ["rollout step, B4 H5", "training epoch, T6 B4 H5"]
    for feature in found:
        sides = {name: problem.Side(side) for name, side in feature.build().items()}
        assert list(sides) == ["ours", "torch.nn masked loop", "torch.nn step by step"]
        problem.check(feature.name, sides, "ours")


def test_a_way_without_resets_is_noticed(small, monkeypatch):
    monkeypatch.setattr(rl, "RESET_SHARE", 0.5)
    monkeypatch.setattr(rl, "_one_call", lambda lstm, x, state, first: lstm(x, state)[0])
    feature = next(feature for feature in rl.features() if feature.name.startswith("training"))
    sides = {name: problem.Side(side) for name, side in feature.build().items()}
    with pytest.raises(AssertionError, match="differs from ours"):
        problem.check(feature.name, sides, "ours")


def test_packages_stand_in_the_results(monkeypatch):
    assert arguments_of(["rl"]).what == ["rl"]
    assert run.peers_of("rl").keys() == {"sb3-contrib", "torchrl"}
    monkeypatch.setattr(rl.importlib.util, "find_spec", lambda _: None)
    assert set(run.peers_of("rl").values()) == {"not installed"}
    assert all("RecurrentPPO" not in feature.name and "Module" not in feature.name for feature in rl.features())


def test_the_report_has_a_table_of_each_number_of_threads():
    found = load_all(TESTS / "project" / "benchmark_results")
    (features,) = (one for one in found if one.suite == "features")
    side = {"ms": 2.0, "spread": 0.0, "rounds": 3}
    entry = {"name": "training epoch", "target": None, "sides": {"ours": side, "torch.nn": side | {"ms": 9.0}}}
    one = replace(features, suite="rl", features=[entry], peers={"torch.nn": "2.13", "torchrl": "0.14"})
    text = report.markdown([found[0]], [], [], [one, replace(one, threads=2)])
    assert text.count("| training epoch | ours | torch.nn 4.50 |  |") == 2
    assert "reinforcement learning, 2 threads" in text and "torchrl 0.14" in text
