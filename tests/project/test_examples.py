"""The examples that need only this library, tqdm and matplotlib: quick runs, and what they claim."""

import argparse
import importlib
import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import fused_rnn
from support.paths import EXAMPLES
from support.processes import run_python


@pytest.fixture
def clipping(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("clipping")


def test_training_reaches_nan_without_clipping_and_learns_with_it():
    printed = run_python(EXAMPLES / "clipping.py", "--quick")
    losses = dict(re.findall(r"(without clipping|clipped) +\d+ updates, loss (\S+)", printed))
    assert losses["without clipping"] in ("nan", "inf")
    assert float(losses["clipped"]) < 0.75, "predicting the mean has loss 1"


def test_the_wall_throws_the_step_out_of_the_valley(clipping):
    x = clipping.make_sequences()
    free, clipped = (clipping.descend(max_norm, x) for max_norm in (None, 0.25))
    longest = [path.diff(dim=0).norm(dim=1).max() for path in (free, clipped)]
    assert longest[0] > 0.5 > 0.03 > longest[1]
    assert clipping.loss_of(clipped[-1], x) < 0.05 < 0.2 < clipping.loss_of(clipped[0], x)


def test_the_figure_is_drawn(clipping, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    x = clipping.make_sequences()
    curves = {"without clipping": [2.0, 1e30, float("nan")], "clipped": [2.0, 1.0, 0.5]}
    paths = {"without clipping": torch.rand(3, 2), "clipped": torch.rand(3, 2)}
    clipping.draw(argparse.Namespace(out=tmp_path), curves, paths, x)
    assert (tmp_path / "clipping.png").stat().st_size > 10_000


@pytest.mark.parametrize("options", [[], ["--quick"], ["--torch-nn"]])
def test_published_figures_are_replaced_on_purpose_only(example, monkeypatch, options):
    recipe = example("recipe")
    monkeypatch.setattr(sys, "argv", ["recipe.py", *options])
    assert recipe.arguments("").out == Path(tempfile.gettempdir()) / "fused_rnn_examples"


@pytest.mark.parametrize(
    ("name", "work", "result"), [("gradient_flow", "share_that_arrives", 1.0), ("clipping", "train", [1.0])]
)
def test_figures_go_where_out_says(example, tmp_path, monkeypatch, name, work, result):
    """Without ``work``, which takes long, and the drawing itself."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    pytest.importorskip("tqdm", reason="gradient_flow draws progress bars with tqdm")
    module, default, drawn = example(name), example("recipe").OUT, []
    before = {path: path.read_bytes() for path in (EXAMPLES / "figures").iterdir()}
    monkeypatch.setattr(module, "draw", lambda args, *_: drawn.append(args.out))
    monkeypatch.setattr(module, work, lambda *_: result)
    for options, expected in (([], default), (["--out", str(tmp_path / "new")], tmp_path / "new")):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        module.main()
        assert drawn[-1] == expected
        assert expected.is_dir()
    assert before == {path: path.read_bytes() for path in (EXAMPLES / "figures").iterdir()}


# Each recipe, and the files that it writes.
RECIPES = {
    "captioning": "captioning.png",
    "char_lm": "char_lm.svg",
    "hidden_units": "hidden_units.html",
    "long_memory": "long_memory.svg",
    "sentiment_bi": "sentiment_bi.svg",
    "seq2seq": "seq2seq.svg",
    "streaming": "streaming.svg",
    "video": "video.png",
}


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory) -> Path:
    """Where the recipes put their files; hidden_units finds char_lm's model here."""
    return tmp_path_factory.mktemp("recipes")


# The others train for half a minute or more.
QUICK = ("streaming", "video")
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in RECIPES]


@pytest.mark.parametrize("name", MARKED)
def test_recipes_keep_their_promises(name, left_behind):
    """With ``--quick``. A recipe exits with 1 if it misses what it promises."""
    pytest.importorskip("tqdm", reason="the recipes draw progress bars with tqdm")
    pytest.importorskip("matplotlib", reason="the recipes draw with matplotlib")
    run_python(EXAMPLES / f"{name}.py", "--quick", "--out", left_behind)
    assert (left_behind / RECIPES[name]).stat().st_size > 1000


@pytest.fixture
def example(monkeypatch):
    """Imports a module of the examples."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_training_resumes_from_a_checkpoint_unchanged(example, tmp_path):
    pytest.importorskip("tqdm", reason="the recipes draw progress bars with tqdm")
    char_lm, cpu = example("char_lm"), torch.device("cpu")
    text = torch.randint(char_lm.VOCABULARY, (1300,))
    parts = char_lm.chunks(text, torch.rand(1300) < 0.01, 4, cpu)
    assert len(parts) == 5

    def after(stops: list[int]) -> torch.Tensor:
        torch.manual_seed(1)
        training = char_lm.Training(fused_rnn, 8, 12, cpu)
        for stop in stops:
            training.run(stop, parts, parts[:1])
            training.save(tmp_path / "model.pt")
            training = char_lm.Training.load(tmp_path / "model.pt", fused_rnn, cpu)
        return training.model.head.weight

    assert torch.equal(after([3, 5, 12]), after([12]))


def test_the_character_model_is_the_same_with_torch_nn(example):
    char_lm = example("char_lm")
    ours, theirs = (char_lm.CharLM(layers, 8).double() for layers in (fused_rnn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    ids, resets = torch.randint(char_lm.VOCABULARY, (20, 3)), torch.rand(20, 3) < 0.1
    for found, expected in zip(ours(ids, None, resets), theirs(ids, None, resets), strict=True):
        torch.testing.assert_close(found, expected)


def test_targets_of_the_search_for_units(example):
    source = 'if x:\n    y = "ab"  # c\n    z = f"{y}"\nz = 3\n'
    tracked = example("hidden_units").tracked(source)
    drawn = {name: "".join("#" if value else "." for value in values) for name, values in tracked.items()}
    assert drawn == {  # at each character, the state after it
        "quotes": "." * 14 + "###" + "." * 15 + "#####" + "." * 8,
        "comments": "." * 20 + "###" + "." * 22,
        "place in the line": "#####." + "#" * 17 + "." + "#" * 14 + "." + "#####.",
        "indentation": "......" + "#" * 17 + "." + "#" * 14 + "." + "......",
        "body of an if": "." * 6 + "#" * 33 + "." * 6,
    }
    assert tracked["indentation"].max() == 4


def test_ngrams_are_interpolated_after_witten_and_bell(example):
    char_lm = example("char_lm")
    text = torch.tensor([1, 2, 1, 2, 1, 3])
    one = {c: (count + 3 / char_lm.VOCABULARY) / (6 + 3) for c, count in ((1, 3), (2, 2), (3, 1))}
    first = (1 + one[1]) / (1 + 1)  # at the beginning, once, came 1
    second = (2 + 2 * one[2]) / (3 + 2)  # after 1 came 2 twice and 3 once
    unigrams, bigrams = char_lm.NGrams(text, 2).bits_per_character(torch.tensor([1, 2]))
    assert unigrams == pytest.approx(-math.log2(one[1] * one[2]) / 2)
    assert bigrams == pytest.approx(-math.log2(first * second) / 2)


def test_the_page_of_units_opens_in_a_browser(left_behind, tmp_path):
    browser = shutil.which("chromium")
    page = left_behind / RECIPES["hidden_units"]
    if browser is None:
        pytest.skip("Debian's chromium is not installed")
    if not page.exists():
        pytest.skip("the page is made by the test of hidden_units, which did not run")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, *options, f"--screenshot={shot}", "--window-size=1000,1400", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    seen = subprocess.run(
        [browser, *options, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert seen.count("<pre>") == seen.count("<h2>") == 5  # the targets
    assert {kind for kind in "np" if re.search(rf'<i class="{kind}[1-8]">', seen)} == {"n", "p"}
    assert colours_of(shot) > 20


def colours_of(png: Path) -> int:
    image = pytest.importorskip("matplotlib.image", reason="reads the screenshot").imread(png)
    return len(torch.from_numpy(image[::4, ::4, :3].copy()).flatten(0, 1).unique(dim=0))
