"""How a call is split over threads: ``select``, a pure function of sizes."""

import itertools

import pytest
import torch

import fused_rnn
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.plans import cpu_plan

BATCHES = (0, 1, 2, 3, 4, 7, 8, 16, 33, 256)
HIDDEN = (1, 64, 127, 128, 129, 200, 512, 2000)
THREADS = (1, 2, 3, 4, 8, 64)


ON_TILES = fused_rnn.info()["CPU instruction set for large float32 layers"] == "amx"


def plan(problems=1, batch=16, hidden=256, threads=4, steps=100, cell="lstm", packed=False, dtype=torch.float64):
    """For a layer with as many inputs as units; ``problems`` are given as directions, which are split like members.

    By default in float64, for which no processor has special products.
    """
    return cpu_plan(
        CELLS[cell].id,
        dtype,
        directions=problems,
        rows=steps * batch,
        batch=batch,
        input_size=hidden,
        hidden=hidden,
        output_size=hidden,
        packed=packed,
        threads=threads,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("problems", [1, 2, 3, 8, 40])
def test_every_plan_can_be_carried_out(problems, dtype):
    for batch, hidden, threads, steps in itertools.product(BATCHES, HIDDEN, THREADS, (1, 10, 1000)):
        given = {"batch": batch, "hidden": hidden, "threads": threads, "steps": steps}
        found = plan(problems, dtype=dtype, **given)
        assert found.threads in (1, threads), given
        assert 1 <= found.row_chunks <= max(batch, 1), given  # no empty chunk
        assert 1 <= found.unit_chunks <= max(hidden // 64, 1), given  # at least 64 units a chunk
        assert 1 in (found.row_chunks, found.unit_chunks), given
        if found.threads == 1:
            assert found.row_chunks == found.unit_chunks == 1, given
        pieces = problems * found.row_chunks * found.unit_chunks
        assert pieces >= threads or found.threads == 1 or hidden < 64 * threads, given
        assert problems < threads or pieces == problems, given  # no split without need


@pytest.mark.parametrize(
    ("given", "threads", "runs", "shares"),
    [
        ({"threads": 1}, 1, 1, 1),
        ({"threads": 4}, 4, 4, 1),
        ({"threads": 2, "batch": 8}, 2, 2, 1),
        ({"threads": 2, "batch": 7}, 2, 1, 2),  # too few rows for full tiles
        ({"threads": 2, "batch": 1, "hidden": 128}, 2, 1, 2),
        ({"threads": 8, "batch": 1, "hidden": 128}, 8, 1, 2),  # at least 64 units a chunk
        ({"threads": 2, "batch": 1, "hidden": 127}, 2, 1, 1),
        ({"threads": 2, "batch": 7, "hidden": 127}, 2, 2, 1),
        ({"threads": 2, "batch": 1, "hidden": 128, "cell": "rnn_tanh"}, 2, 1, 1),  # too few weights for a barrier
        ({"threads": 2, "batch": 7, "hidden": 128, "cell": "rnn_tanh"}, 2, 2, 1),
        ({"threads": 2, "batch": 1, "hidden": 192, "cell": "rnn_tanh"}, 2, 1, 2),
        ({"threads": 2, "batch": 2, "hidden": 192, "cell": "rnn_tanh"}, 2, 2, 1),
        ({"threads": 2, "batch": 1, "problems": 2}, 2, 1, 1),  # two directions, two threads
        ({"threads": 4, "batch": 1, "problems": 2}, 4, 1, 2),
        ({"threads": 4, "batch": 32, "problems": 2}, 4, 2, 1),
        ({"threads": 4, "batch": 32, "problems": 3}, 4, 2, 1),
        ({"threads": 4, "batch": 32, "problems": 5}, 4, 1, 1),
        ({"threads": 4, "batch": 1, "hidden": 64, "steps": 5}, 1, 1, 1),  # done before another thread wakes up
        ({"threads": 4, "batch": 0}, 1, 1, 1),
    ],
    ids=str,
)
def test_plans(given, threads, runs, shares):
    found = plan(**given)
    assert (found.threads, found.row_chunks, found.unit_chunks) == (threads, runs, shares)


@pytest.mark.parametrize(
    ("hidden", "dtype", "least"),
    [
        (64, torch.float32, 5),
        (256, torch.float32, 10),
        (256, torch.float64, 10),
        (512, torch.float32, 20),
        (500, torch.float32, 10),
        (256, torch.bfloat16, 4),
        (256, torch.float16, 2),
    ],
)
def test_weights_are_packed_from_some_rows_on_or_if_packed_already(hidden, dtype, least):
    for threads in (1, 4):
        layer = {"hidden": hidden, "dtype": dtype, "threads": threads}
        for steps in (1, least - 1, least, least + 1):
            in_panels = plan(steps=steps, batch=1, **layer).weights != "rows"
            assert in_panels == (steps >= least)
        assert plan(steps=1, batch=1, packed=True, **layer).weights == "packed"


@pytest.mark.parametrize(
    ("hidden", "dtype", "least"),
    [
        (64, torch.float32, 5),
        (256, torch.float32, 10),
        (512, torch.float32, 10),
        (100, torch.float32, 2),  # rows of weights that do not fill cache lines
        (500, torch.float32, 4),
        (256, torch.bfloat16, 4),
        (256, torch.float16, 2),
    ],
)
def test_few_steps_of_enough_rows_read_weights_in_blocks(hidden, dtype, least):
    most_steps = 3 if 4 * hidden**2 >= 100_000 else 1
    for threads in (1, 4):
        layer = {"hidden": hidden, "dtype": dtype, "threads": threads}
        for batch in (least - 1, least, 40):
            found = [plan(steps=steps, batch=batch, **layer) for steps in (1, most_steps, most_steps + 1)]
            if batch < least:
                assert found[0].weights == "rows", batch
            else:  # tiles read packed weights alone
                few = "packed" if found[0].instruction_set == "amx" else "blocks"
                assert [each.weights for each in found] == [few, few, "packed"], batch


@pytest.mark.parametrize("cell", CELLS)
def test_work_counts_by_a_cell_s_gates(cell):
    """A call that pays for a second thread with some gates does not with fewer."""
    steps = next(t for t in range(1, 1000) if plan(steps=t, hidden=16, batch=8, cell=cell).threads > 1)
    assert steps == -(-250_000 // (8 * 16 * 32 * CELLS[cell].gates))


@pytest.mark.skipif(not ON_TILES, reason="this processor has no tiles, or FUSED_RNN_ISA says which instructions to use")
@pytest.mark.parametrize(
    ("given", "runs", "shares"),
    [
        ({"threads": 2, "batch": 16, "hidden": 128}, 2, 1),  # 8 rows each
        ({"threads": 2, "batch": 64, "hidden": 256}, 2, 1),
        ({"threads": 2, "batch": 16, "hidden": 256}, 1, 2),  # tiles stay full
        ({"threads": 2, "batch": 64, "hidden": 512}, 1, 2),  # each reads half of the weights
        ({"threads": 16, "batch": 64, "hidden": 128}, 8, 1),
    ],
    ids=str,
)
def test_split_floats_on_tiles(given, runs, shares):
    found = plan(dtype=torch.float32, **given)
    assert (found.instruction_set, found.row_chunks, found.unit_chunks) == ("amx", runs, shares)


@pytest.mark.skipif(not ON_TILES, reason="this processor has no tiles, or FUSED_RNN_ISA says which instructions to use")
def test_small_calls_stay_off_tiles():
    """For any number of threads: results must not depend on it."""
    for threads, (batch, hidden, steps, packed, expected) in itertools.product(
        THREADS,
        [
            (16, 64, 16, False, "amx"),
            (15, 64, 100, False, "avx512"),
            (16, 63, 100, False, "avx512"),
            (16, 64, 15, False, "avx512"),
            (16, 64, 1, True, "amx"),
        ],
    ):
        found = plan(batch=batch, hidden=hidden, steps=steps, packed=packed, threads=threads, dtype=torch.float32)
        assert found.instruction_set == expected, (batch, hidden, steps, packed, threads)


@pytest.mark.parametrize("cell", CELLS)
def test_a_small_step_stays_on_one_thread(cell):
    """Waking another one takes longer than the step."""
    for hidden in (64, 128):
        assert plan(steps=1, batch=1, hidden=hidden, cell=cell, packed=True, threads=2).threads == 1
