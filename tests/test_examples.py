"""The examples that need only this library, and matplotlib for figures: quick runs, and what they claim."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from common import run_python

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def clipping(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("clipping")


def test_training_reaches_nan_without_clipping_and_learns_with_it():
    printed = run_python(EXAMPLES / "clipping.py", "--quick")
    losses = dict(re.findall(r"(without clipping|clipped) +\d+ updates, loss (\S+)", printed))
    assert losses["without clipping"] in ("nan", "inf")
    assert float(losses["clipped"]) < 0.75, "always saying the mean: 1"


def test_the_wall_throws_the_step_out_of_the_valley(clipping):
    x = clipping.make_sequences()
    free, clipped = (clipping.descend(max_norm, x) for max_norm in (None, 0.25))
    longest = [path.diff(dim=0).norm(dim=1).max() for path in (free, clipped)]
    assert longest[0] > 0.5 > 0.03 > longest[1]
    assert clipping.loss_of(clipped[-1], x) < 0.05 < 0.2 < clipping.loss_of(clipped[0], x)


def test_the_figure_is_drawn(clipping, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    x = clipping.make_sequences()
    path = tmp_path / "figure.png"
    curves = {"without clipping": [2.0, 1e30, float("nan")], "clipped": [2.0, 1.0, 0.5]}
    clipping.draw(path, curves, {"without clipping": torch.rand(3, 2), "clipped": torch.rand(3, 2)}, x)
    assert path.stat().st_size > 10_000


# The recipes, one a line: the file's name and what it leaves.
RECIPES = {
    "seq2seq": "seq2seq.svg",
    "sentiment_bi": "sentiment_bi.svg",
    "video": "video.png",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_keep_their_promises(name, tmp_path):
    """At ``--quick``. They exit with 1 where they miss what they promise."""
    pytest.importorskip("tqdm", reason="the recipes draw progress bars with tqdm")
    pytest.importorskip("matplotlib", reason="the recipes draw with matplotlib")
    run_python(EXAMPLES / f"{name}.py", "--quick", "--out", tmp_path)
    assert (tmp_path / RECIPES[name]).stat().st_size > 1000
