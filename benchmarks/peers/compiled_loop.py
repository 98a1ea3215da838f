"""``torch.compile`` of a loop of cells in plain PyTorch. It unrolls the loop: only short sequences finish compiling."""

from __future__ import annotations

import functools
import importlib.util
import signal
from collections.abc import Callable

import torch

from ..problem import Problem, Side, calls_of
from ..suites import Work

NAME = "compiled loop"
MOST_STEPS = 8
COMPILE_SECONDS = 60  # the limit; 2 to 8 seconds are usual


def missing() -> str | None:
    return "not installed: triton or a C++ compiler" if importlib.util.find_spec("torch._inductor") is None else None


def version() -> str:
    return torch.__version__


def left_out(work: Work) -> str | None:
    if work.cell:
        return "has no cells"
    if work.shape.steps > MOST_STEPS:
        return f"more than {MOST_STEPS} steps, which it unrolls, take too long to compile"
    if work.carried or work.num_layers > 1 or work.projected or work.packed:
        return "written for one plain layer"
    return None


def build(problem: Problem) -> Side:
    torch._dynamo.reset()
    loop = torch.compile(functools.partial(_loop, problem.work.layer), fullgraph=True, dynamic=False)
    if problem.work.mode == "inference":

        def run() -> list[torch.Tensor]:
            return [loop(problem.input, *problem.weights)]

    else:
        leaves = [tensor.clone().requires_grad_() for tensor in (problem.input, *problem.weights)]

        def run() -> list[torch.Tensor]:
            output = loop(*leaves)
            return [output, *torch.autograd.grad(output, leaves, problem.grad)]

    with calls_of(problem.work):
        _within(COMPILE_SECONDS, run)
    return Side(run)


def _within(seconds: int, run: Callable[[], object]) -> None:
    def stop(*_):
        raise TimeoutError(f"compiling takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        run()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _loop(layer: str, x, w_ih, w_hh, b_ih, b_hh):
    h = c = x.new_zeros(x.shape[1], w_hh.shape[1])
    outputs = []
    for projected in (x @ w_ih.t() + b_ih).unbind():
        recurrent = h @ w_hh.t() + b_hh
        if layer == "LSTM":
            i, f, g, o = (projected + recurrent).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif layer == "GRU":
            x_r, x_z, x_n = projected.chunk(3, -1)
            h_r, h_z, h_n = recurrent.chunk(3, -1)
            n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
            h = n + (x_z + h_z).sigmoid() * (h - n)
        else:
            h = (projected + recurrent).tanh()
        outputs.append(h)
    return torch.stack(outputs)
