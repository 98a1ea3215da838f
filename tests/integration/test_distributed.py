"""DDP, FSDP2 and sharded checkpoints in two processes on gloo; the example that trains in one process or in many."""

import re
import runpy
import sys

import pytest
import torch

from support.distributed_worker import CHECKS
from support.paths import EXAMPLES
from support.processes import run_python

EXAMPLE = EXAMPLES / "train_ddp.py"


def torchrun(*command) -> str:
    return run_python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command)


def test_two_processes_train_as_one(tmp_path):
    """All checks in one launch, since torch starts slowly."""
    printed = torchrun("--module", "support.distributed_worker", tmp_path)
    assert printed.splitlines() == [f"passed {name}" for name in CHECKS]


FEW_STEPS = ("--steps", "20", "--batch", "8", "--hidden", "16", "--device", "cpu")


def losses_in(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d\.\d+)", printed)]


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs the example in this process, on one thread as under torchrun, and returns what it prints."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*options):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_example_has_the_same_losses_in_two_processes(example):
    alone = losses_in(example(*FEW_STEPS))
    together = torchrun(EXAMPLE, *FEW_STEPS)
    assert "2 processes on cpu" in together
    assert len(alone) == 11
    assert losses_in(together) == pytest.approx(alone, abs=2e-4)  # of rounding to four digits


def test_example_learns(example):
    losses = losses_in(example("--steps", "300", "--lr", "0.01", "--hidden", "32", "--device", "cpu"))
    assert losses[-1] < 0.5 * 0.167 < losses[0]


def test_example_explains_itself_and_its_errors(example, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        example("--help")
    assert "torchrun --nproc-per-node" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit):
        example("--batch", "8")
    assert "--batch must be a multiple of the number of processes, 3, got 8" in capsys.readouterr().err
