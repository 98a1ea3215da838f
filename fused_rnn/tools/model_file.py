"""Explains a model that a function in a user's file makes: ``fused-rnn explain model.py:make``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .explain import Explanation, ModelExplanation, explain


def explain_model(where: str, steps: int, batch: int) -> list[tuple[str, Explanation]]:
    """The layers by name, for the example that the function returns, else each for zeros of so many steps and rows."""
    made = _function(where)()
    model, inputs = (made[0], _inputs(made[1:])) if isinstance(made, tuple) and made else (made, None)
    if not isinstance(model, nn.Module):
        got = f"a tuple that begins with {type(model).__name__}" if inputs is not None else type(model).__name__
        raise ValueError(f"{where} must return a torch.nn.Module, or (module, example input), got {got}")
    if inputs is None:
        layers = {
            name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.RNNBase, nn.RNNCellBase))
        }
        if not layers:
            raise ValueError(f"{type(model).__name__} has no recurrent layer or cell")
        return [(name or type(layer).__name__, _alone(layer, steps, batch)) for name, layer in layers.items()]
    found = explain(model, *inputs)
    return list(found.layers) if isinstance(found, ModelExplanation) else [(type(model).__name__, found)]


def _function(where: str) -> Callable[[], Any]:
    name, _, function = where.rpartition(":")
    path = Path(name)
    if not name or not function.isidentifier():
        raise ValueError(f"expected FILE.py:FUNCTION, got {where!r}")
    if not path.is_file():
        raise ValueError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # for classes that are looked up by module
    sys.path.insert(0, str(path.resolve().parent))  # its neighbours can be imported, as in a script
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{name} has no function {function}")
    return getattr(module, function)


def _inputs(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments: given one after another, or as one tuple."""
    return tuple(rest[0]) if len(rest) == 1 and type(rest[0]) in (tuple, list) else rest


def _alone(layer: nn.RNNBase | nn.RNNCellBase, steps: int, batch: int) -> Explanation:
    found = explain(layer, _zeros(layer, steps, batch))
    if not isinstance(found, Explanation):
        raise AssertionError("a layer is not a model of layers")
    return found


def _zeros(layer: nn.RNNBase | nn.RNNCellBase, steps: int, batch: int) -> Tensor:
    like = next(layer.parameters())
    rows: tuple[int, ...] = (batch,)
    if isinstance(layer, nn.RNNBase):
        rows = (batch, steps) if layer.batch_first else (steps, batch)
    return torch.zeros(*rows, layer.input_size, dtype=like.dtype, device=like.device)
