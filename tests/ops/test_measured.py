"""The choice by measurements: a pure function over a table, and the table as text."""

import json
import math

import pytest

from fused_rnn.ops import measured
from fused_rnn.ops.measured import Entry, Sizes, Table, select

SIZES = Sizes("lstm", "float32", False, 100, 16, 256, 256)
TIMES = {"torch.nn": 890.0, "torch": 900.0, "stepwise": 2000.0, "cluster": 300.0}


def table(*entries):
    return Table("NVIDIA H200", {"torch": "2.11"}, entries, {"rows_to_share_many": 2})


def entry(times=TIMES, verified=("stepwise", "cluster"), **sizes):
    return Entry(SIZES._replace(**sizes), times, frozenset(verified))


def test_without_a_table_each_device_has_its_default():
    assert select(SIZES, "cuda", None).engine == "torch"
    assert select(SIZES, "cpu", None).engine == "ours"
    assert select(SIZES, "cuda", table()).engine == "torch"


@pytest.mark.parametrize(
    ("times", "verified", "engine"),
    [
        (TIMES, ("stepwise", "cluster"), "ours"),
        (TIMES, ("stepwise",), "torch"),  # what was not verified is never taken
        (TIMES, (), "torch"),
        ({"torch": 900.0, "cluster": 1000.0}, ("cluster",), "torch"),
        ({"cluster": 1000.0}, ("cluster",), "ours"),
        ({"cluster": 1000.0}, (), "torch"),  # nothing is known
    ],
)
def test_the_fastest_verified_engine_runs(times, verified, engine):
    found = select(SIZES, "cuda", table(entry(times, verified)))
    assert found.engine == engine
    if engine == "ours":
        assert "cluster took" in found.reason


def test_where_the_fastest_does_not_fit_stepwise_counts():
    def fits(name):
        return name != "cluster"

    found = table(entry(TIMES | {"flags": 400.0}, ("stepwise", "cluster", "flags")))
    assert select(SIZES, "cuda", found).engine == "ours"
    assert select(SIZES, "cuda", found, fits).engine == "torch"
    assert select(SIZES, "cuda", table(entry(TIMES | {"stepwise": 500.0})), fits).engine == "ours"


@pytest.mark.parametrize(
    ("change", "is_near"),
    [
        ({}, True),
        ({"batch": 32, "hidden": 128}, True),
        ({"batch": 33}, False),
        ({"hidden": 127}, False),
        ({"steps": 400, "input_size": 64}, True),
        ({"steps": 401}, False),
        ({"steps": 1}, False),
        ({"cell": "gru"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"training": True}, False),
        ({"directions": 2}, False),
        ({"layers": 2}, False),
    ],
)
def test_an_entry_holds_for_its_class_of_sizes(change, is_near):
    assert (table(entry()).nearest(SIZES._replace(**change)) is not None) == is_near


def test_the_nearest_entry_counts():
    near, far = entry(batch=16), entry(batch=64)
    assert table(far, near).nearest(SIZES._replace(batch=20)) is near
    assert table(near, far).nearest(SIZES._replace(batch=63)) is far
    assert table(entry(layers=4), entry(layers=2)).nearest(SIZES._replace(layers=3)).sizes.layers in (2, 4)


def test_new_entries_replace_old_ones_of_the_same_sizes():
    slow, fast, other = entry({"torch": 2.0}), entry({"torch": 1.0}), entry(batch=1)
    assert table(slow, other).with_entries([fast]).entries == (fast, other)


def test_tables_survive_as_text():
    whole = table(entry(), entry({"torch": 1.5}, (), training=True))
    assert measured.from_json(json.loads(json.dumps(measured.as_json(whole)))) == whole


def damaged():
    def change(**parts):
        return measured.as_json(table(entry())) | parts

    good = measured.as_json(table(entry()))["entries"][0]
    yield "not a table", [1, 2]
    yield "not a table", {}
    yield "its format is 99", change(format=99)
    yield "damaged", change(entries=3)
    yield "damaged", change(made_with=None)
    for part in (
        {"cell": "peephole"},
        {"dtype": "int8"},
        {"training": 1},
        {"batch": 0},
        {"batch": "16"},
        {"microseconds": {"torch": -1}},
        {"microseconds": {"torch": math.inf}},
        {"microseconds": None},
        {"verified": 3},
    ):
        yield "damaged", change(entries=[good | part])
    yield "damaged", change(entries=[{k: v for k, v in good.items() if k != "steps"}])


@pytest.mark.parametrize(("message", "found"), list(damaged()))
def test_what_is_no_table_is_refused(message, found):
    with pytest.raises(ValueError, match=message):
        measured.from_json(found)


def test_rows_for_the_cuda_engine():
    """Inference chooses the forward pass's kernel, training the backward pass's; single steps and torch neither."""
    numbers = measured.rows_of_cuda(
        table(
            entry(directions=2),
            entry({"polling": 1.0}, ("polling",), training=True, cell="gru", dtype="bfloat16"),
            entry(steps=1),
            entry({"torch": 1.0}, ()),
        )
    )
    assert numbers == [0, 0, 0, 2, 16, 256, 0, 3, 1, 2, 1, 1, 16, 256, 0, 4]
