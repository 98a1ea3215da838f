"""``examples/gradient_flow.py``: it runs, and shows the textbook's numbers."""

import importlib

import pytest

from support.paths import EXAMPLES
from support.processes import run_python

for needed in ("matplotlib", "tqdm"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

# Norms of dh after 1, 2, .. 20 products with the transposed matrix of random seed 3.
GROWING = [
    *(2.468407, 3.335705, 4.783279, 6.279587, 8.080776, 10.251163, 12.936064, 16.276861, 20.45483, 25.688973),
    *(32.253157, 40.488956, 50.824407, 63.796127, 80.07737, 100.512989, 126.163318, 158.359206, 198.77108, 249.495615),
]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("gradient_flow")


def test_the_textbooks_norms(example):
    norms, radius = example.textbook(1.0)
    assert norms == pytest.approx(GROWING, rel=1e-6)
    assert norms[-1] / norms[-2] == pytest.approx(radius, rel=1e-3), "by now it grows exponentially"
    halved, half_radius = example.textbook(0.5)
    assert halved == pytest.approx([norm / 2 ** (k + 1) for k, norm in enumerate(GROWING)], rel=1e-6)
    assert radius > 1 > half_radius == pytest.approx(radius / 2)


def test_it_runs(tmp_path):
    printed = run_python(EXAMPLES / "gradient_flow.py", "--quick", "--out", tmp_path)
    assert all(name in printed for name in ("tanh RNN", "ReLU RNN", "LSTM, forget bias 3", "GRU"))
    text = (tmp_path / "gradient_flow.svg").read_text()
    assert "what is left at the first of T steps" in text
    assert "divided by the rows of the batch" in text
