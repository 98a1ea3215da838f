"""torch.ao's dynamically quantized LSTM, GRU and cells, which torch has announced to remove."""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import nn

from ..problem import Problem, Side
from ..suites import Work

NAME = "torch.ao int8"
LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU}
CELLS = {nn.LSTMCell, nn.GRUCell, nn.RNNCell}


def missing() -> str | None:
    for name in ("torch.ao", "torch.ao.quantization"):  # each is looked for in the one before
        if importlib.util.find_spec(name) is None:
            return f"not installed: torch {torch.__version__} has no {name}"
    if torch.backends.quantized.engine == "none":
        return "not installed: this build of torch has no engine for quantized layers"
    return None


def version() -> str:
    return torch.__version__


def left_out(work: Work) -> str | None:
    if not work.quantized:
        return "8-bit layers are measured in lines of their own"
    return None if work.cell or work.layer in LAYERS else "quantizes no RNN"


def build(problem: Problem) -> Side:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its end
        from torch.ao.quantization import quantize_dynamic

        kinds = CELLS | set(LAYERS.values())
        (layer,) = quantize_dynamic(nn.Sequential(problem.theirs), kinds, dtype=torch.qint8)
    return Side(problem.call(layer), quantized=True)
