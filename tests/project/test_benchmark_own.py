"""The benchmarks' suite of own cells."""

from dataclasses import replace
from functools import partialmethod

import pytest
import torch

import fused_rnn
from benchmarks import own_cells, problem, report, run
from benchmarks.__main__ import arguments_of
from benchmarks.results import load_all
from fused_rnn import zoo
from support.paths import TESTS


@pytest.fixture
def small(monkeypatch):
    """Nothing is compiled: the loops are compared with the reference's."""
    monkeypatch.setattr(own_cells, "SHAPES", ((5, 3, 4),))
    monkeypatch.setattr(fused_rnn.OwnCell, "layer", partialmethod(fused_rnn.OwnCell.layer, compiled=False))


def sides_of(feature):
    return {name: problem.Side(side) for name, side in feature.build().items()}


def test_every_cell_has_its_lines():
    names = [feature.name for feature in own_cells.features()]
    assert len(set(names)) == len(names) == 2 * 2 * (len(zoo.__all__) + 2)


def test_every_way_computes_the_same(small):
    for feature in own_cells.features():
        sides = sides_of(feature)
        assert list(sides) in (["built-in", "own"], ["ours", "Python loop", "Python loop, W_ih x ahead"])
        problem.check(feature.name, sides, next(iter(sides)))


def test_a_wrong_loop_is_noticed(small, monkeypatch):
    right = own_cells.loop
    monkeypatch.setattr(own_cells, "loop", lambda layer, ahead: lambda x: right(layer, ahead)(x) * (1 + 0.1 * ahead))
    feature = next(feature for feature in own_cells.features() if feature.name.startswith("janet training"))
    with pytest.raises(AssertionError, match="differs from ours"):
        problem.check(feature.name, sides_of(feature), "ours")


def test_the_compiled_loop_is_of_full_runs(small, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    names = [list(feature.build()) for feature in own_cells.features(full=True)]
    assert sum("compiled loop" in sides for sides in names) == 2 * len(zoo.__all__)


def test_the_report_has_a_table():
    assert arguments_of(["own"]).what == ["own"] and run.peers_of("own") == {}
    found = load_all(TESTS / "project" / "benchmark_results")
    (features,) = (one for one in found if one.suite == "features")
    side = {"ms": 2.0, "spread": 0.0, "rounds": 3}
    entry = {"name": "janet training", "target": None, "sides": {"ours": side, "Python loop": side | {"ms": 9.0}}}
    one = replace(features, suite="own", features=[entry], peers={"torch.nn": "2.13"})
    text = report.markdown([found[0]], [], [], [], [one])
    assert "### Cells of your own" in text and "| janet training | ours | Python loop 4.50 |  |" in text
