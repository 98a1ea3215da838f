"""Costs and savings of options: this library against itself, and against the alternatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn

from .problem import loop

Run = Callable[[], list[Tensor]]

STEPS, BATCH, HIDDEN = 100, 32, 256
# Rows of 38 to 100 steps, in total as many as BATCH rows of AVERAGE_LENGTH.
LENGTHS = [STEPS - 2 * row for row in range(BATCH)]
AVERAGE_LENGTH = sum(LENGTHS) // BATCH
RESET_SHARE = 0.02
CELL_STEPS = 50
VOCABULARY, READER_HIDDEN = 128, 128
DROPOUT = {"recurrent_dropout": 0.3, "zoneout": 0.1, "weight_dropout": 0.3}
LOOP_OPTIONS = DROPOUT | {"layer_norm": True}
HEADS, HEADS_INPUT, HEADS_HIDDEN, HEADS_BATCH = 4, 64, 1024, 16
MEMBERS, MEMBER_HIDDEN = 8, 64
COMPILED_STEPS, COMPILED_HIDDEN = 32, 64  # few: torch.compile unrolls torch.nn's steps


@dataclass(frozen=True)
class Feature:
    """One line: ``build`` returns named runs; times are relative to the first one's."""

    name: str
    build: Callable[[], dict[str, Run]]
    target: float | None = None  # the largest factor between the first and the others
    same_results: bool = True  # whether the runs' results must agree
    once: bool = False  # time only the first run of each


def features(full: bool = False) -> list[Feature]:
    """``full``: including those that take minutes."""
    found = []
    for layer, mode in product(("LSTM", "GRU"), ("inference", "training")):
        found += [
            Feature(f"{layer} {mode}: packed", lambda a=layer, b=mode: _packed(a, b), 1.1, same_results=False),
            Feature(f"{layer} {mode}: lengths", lambda a=layer, b=mode: _lengths(a, b), same_results=False),
            Feature(f"{layer} {mode}: reset_mask", lambda a=layer, b=mode: _resets(a, b), 1.05, same_results=False),
            Feature(f"{layer} {mode}: ids", lambda a=layer, b=mode: _ids(a, b)),
        ]
    for layer in ("LSTM", "GRU"):
        found += [
            Feature(f"{layer} training: with gradient norms", lambda a=layer: _norms(a), 1.03),
            Feature(f"{layer} training: ensemble of {MEMBERS}", lambda a=layer: _ensemble(a)),
            Feature(f"{layer} per-sample gradients", lambda a=layer: _per_sample(a)),
            Feature(f"{layer} gradient penalty, float64", lambda a=layer: _second_order(a, _penalty)),
            Feature(f"{layer} jvp, float64", lambda a=layer: _second_order(a, _jvp)),
        ]
    for layer, option in product(("LSTM", "GRU", "RNN"), DROPOUT):
        name = f"{layer} training: {option}"
        found.append(Feature(name, lambda a=layer, b=option: _loop_option(a, "training", b), 1.1, same_results=False))
    for layer, mode in product(("LSTM", "GRU", "RNN"), ("inference", "training")):
        name = f"{layer} {mode}: layer_norm"
        found.append(Feature(name, lambda a=layer, b=mode: _loop_option(a, b, "layer_norm"), 1.35, same_results=False))
    for layer, mode in product(("LSTM", "GRU"), ("inference", "training")):
        name = f"{layer} {mode}: {HEADS} heads, H {HEADS_HIDDEN}"
        found.append(Feature(name, lambda a=layer, b=mode: _heads(a, b), 0.5, same_results=False))
    for layer, mode in product(("LSTM", "GRU", "RNN"), ("inference", "training")):
        name = f"{layer}Cell {mode}: a loop of {CELL_STEPS} steps"
        found.append(Feature(name, lambda a=layer, b=mode: _cells(a, b)))
    if full:
        name = f"LSTM training, torch.compile, T {COMPILED_STEPS}"
        found += [Feature(f"{name}: the first step", _compiling, once=True, same_results=False)]
        found += [Feature(f"{name}: a step", _models)]
    return found


def _packed(layer: str, mode: str) -> dict[str, Run]:
    """The same number of active steps in both."""
    ours = _layer(layer, HIDDEN)
    return {
        "padded": _call(ours, mode, torch.randn(AVERAGE_LENGTH, BATCH, HIDDEN)),
        "packed": _call(ours, mode, _pack(torch.randn(STEPS, BATCH, HIDDEN))),
    }


def _lengths(layer: str, mode: str) -> dict[str, Run]:
    """The same rows, packed beforehand or not."""
    ours, x = _layer(layer, HIDDEN), torch.randn(STEPS, BATCH, HIDDEN)
    return {"packed": _call(ours, mode, _pack(x)), "lengths": _call(ours, mode, x, lengths=torch.tensor(LENGTHS))}


def _resets(layer: str, mode: str) -> dict[str, Run]:
    ours, x = _layer(layer, HIDDEN), torch.randn(STEPS, BATCH, HIDDEN)
    resets = torch.rand(STEPS, BATCH) < RESET_SHARE
    return {"no resets": _call(ours, mode, x), "reset_mask": _call(ours, mode, x, reset_mask=resets)}


def _loop_option(layer: str, mode: str, option: str) -> dict[str, Run]:
    """Masks drawn and applied, or sums normalised."""
    ours = _layer(layer, HIDDEN)
    other = getattr(fused_rnn, layer)(HIDDEN, HIDDEN, **{option: LOOP_OPTIONS[option]})
    x = torch.randn(STEPS, BATCH, HIDDEN)
    return {"plain": _call(ours, mode, x), option: _call(other, mode, x)}


def _heads(layer: str, mode: str) -> dict[str, Run]:
    x = torch.randn(STEPS, HEADS_BATCH, HEADS_INPUT)
    kind = getattr(fused_rnn, layer)
    dense, blocks = (kind(HEADS_INPUT, HEADS_HIDDEN, heads=heads) for heads in (1, HEADS))
    return {"dense": _call(dense, mode, x), f"{HEADS} heads": _call(blocks, mode, x)}


def _norms(layer: str) -> dict[str, Run]:
    """A training step with and without gradient norms."""
    ours = _layer(layer, HIDDEN)
    x = torch.randn(STEPS, BATCH, HIDDEN).requires_grad_()
    gradient = torch.randn(STEPS, BATCH, HIDDEN)
    leaves = [x, *ours.parameters()]

    def step() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        output = ours(x)[0]
        output.backward(gradient)
        return [output, *(leaf.grad for leaf in leaves)]

    def watched() -> list[Tensor]:
        with fused_rnn.gradient_flow(ours, "all"):
            return step()

    return {"not watched": step, "gradient norms": watched}


def _ids(layer: str, mode: str) -> dict[str, Run]:
    """Characters, say: as ids, as one-hot rows made beforehand, and by an embedding with one-hot rows."""
    ours = _layer(layer, VOCABULARY, READER_HIDDEN)
    theirs = _twin(ours)
    ids = torch.randint(0, VOCABULARY, (STEPS, BATCH))
    rows = nn.functional.one_hot(ids, VOCABULARY).float()
    spell_out = nn.Embedding.from_pretrained(torch.eye(VOCABULARY))
    gradient = torch.randn(STEPS, BATCH, READER_HIDDEN)

    def call(module: nn.Module, read: Callable[[], Tensor]) -> Run:
        def infer() -> list[Tensor]:
            with torch.inference_mode():
                return [module(read())[0]]

        def train() -> list[Tensor]:
            output = module(read())[0]
            return [output, *torch.autograd.grad(output, list(module.parameters()), gradient)]

        return train if mode == "training" else infer

    return {
        "ids": call(ours, lambda: ids),
        "one-hot": call(ours, lambda: rows),
        "torch.nn one-hot": call(theirs, lambda: rows),
        "torch.nn embedding": call(theirs, lambda: spell_out(ids)),
    }


def _ensemble(layer: str) -> dict[str, Run]:
    """Forward and backward of members with weights of their own on the same rows."""
    ours = [_layer(layer, MEMBER_HIDDEN) for _ in range(MEMBERS)]
    theirs = [_twin(member) for member in ours]
    x = torch.randn(STEPS, BATCH, MEMBER_HIDDEN)
    stacked, _ = stack_module_state(ours)
    names = list(stacked)

    def run_member(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(ours[0], weights, (x,))[0]

    def at_once() -> list[Tensor]:
        output = vmap(run_member)(stacked)
        return [output, *torch.autograd.grad(output.sum(), list(stacked.values()))]

    def one_by_one(members: list[nn.Module]) -> list[Tensor]:
        results = []
        for member in members:
            output = member(x)[0]
            weights = dict(member.named_parameters())
            results.append([output, *torch.autograd.grad(output.sum(), [weights[name] for name in names])])
        return [torch.stack(parts) for parts in zip(*results, strict=True)]

    return {
        "vmap": at_once,
        "loop": lambda: one_by_one(ours),
        "torch.nn loop": lambda: one_by_one(theirs),
    }


def _per_sample(layer: str) -> dict[str, Run]:
    """The gradient of each row's loss with respect to the weights."""
    ours = _layer(layer, MEMBER_HIDDEN)
    theirs = _twin(ours)
    x = torch.randn(STEPS, BATCH, MEMBER_HIDDEN)

    def at_once(module: nn.Module) -> list[Tensor]:
        weights = {name: weight.detach() for name, weight in module.named_parameters()}

        def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(module, weights, (row.unsqueeze(1),))[0].square().sum()

        return list(vmap(grad(loss), (None, 1))(weights, x).values())

    def one_by_one(module: nn.Module) -> list[Tensor]:
        weights = list(module.parameters())
        losses = (module(row)[0].square().sum() for row in x.split(1, 1))
        return [torch.stack(parts) for parts in zip(*(torch.autograd.grad(a, weights) for a in losses), strict=True)]

    runs = {
        "vmap(grad)": lambda: at_once(ours),
        "loop": lambda: one_by_one(ours),
        "torch.nn loop": lambda: one_by_one(theirs),
    }
    if layer == "LSTM":  # torch.nn's others raise under vmap
        runs["torch.nn vmap(grad)"] = lambda: at_once(theirs)
    return runs


def _second_order(layer: str, derivative: Callable[[Callable, Tensor, list[Tensor]], list[Tensor]]) -> dict[str, Run]:
    ours = _layer(layer, MEMBER_HIDDEN).double()
    theirs = _twin(ours).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(STEPS, BATCH, MEMBER_HIDDEN, dtype=torch.float64)
    weights, loop = list(ours.parameters()), getattr(fused_rnn.reference, layer.lower())
    return {
        "ours": lambda: derivative(lambda x: ours(x)[0], x, weights),
        "torch.nn": lambda: derivative(lambda x: theirs(x)[0], x, list(theirs.parameters())),
        "cell loop": lambda: derivative(lambda x: loop(x, None, weights)[0], x, weights),
    }


def _penalty(run: Callable, x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """A training step whose loss is a norm of a gradient."""
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(leaf).square().sum(), leaf, create_graph=True)
    return [gradient, *torch.autograd.grad(gradient.square().sum(), [leaf, *weights])]


def _jvp(run: Callable, x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return list(jvp(run, (x,), (x,)))


def _cells(layer: str, mode: str) -> dict[str, Run]:
    """A cell for each step, then backward through all of them; and what one call of a layer takes."""
    ours = _layer(f"{layer}Cell", HIDDEN)
    theirs, whole = _twin(ours), _layer(layer, HIDDEN)
    whole.load_state_dict({f"{name}_l0": weight for name, weight in ours.state_dict().items()})
    x, gradient = torch.randn(2, CELL_STEPS, BATCH, HIDDEN)

    def run(module: nn.Module, forward: Callable[[], Tensor]) -> list[Tensor]:
        with torch.set_grad_enabled(mode == "training"):
            output = forward()
        found = torch.autograd.grad(output, list(module.parameters()), gradient) if output.requires_grad else ()
        return [output, *found]

    return {
        "ours": lambda: run(ours, lambda: torch.stack(loop(ours, x))),
        "torch.nn": lambda: run(theirs, lambda: torch.stack(loop(theirs, x))),
        "one call": lambda: run(whole, lambda: whole(x)[0]),
    }


class _Model(nn.Module):
    def __init__(self, lstm: nn.Module):
        super().__init__()
        self.enter = nn.Linear(COMPILED_HIDDEN, COMPILED_HIDDEN)
        self.lstm = lstm
        self.leave = nn.Linear(COMPILED_HIDDEN, COMPILED_HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.lstm(self.enter(x).relu())[0])


@cache
def _models() -> dict[str, Run]:
    """A training step of each, on the same data; compiled at its first run."""
    ours = _Model(_layer("LSTM", COMPILED_HIDDEN))
    theirs = _Model(_twin(ours.lstm))
    theirs.load_state_dict(ours.state_dict())
    torch._dynamo.config.allow_rnn = True  # off by default
    torch._inductor.config.force_disable_caches = True
    x = torch.randn(COMPILED_STEPS, BATCH, COMPILED_HIDDEN)
    return {"ours": _training(ours, x), "torch.nn": _training(theirs, x)}


def _training(model: nn.Module, x: Tensor) -> Run:
    compiled = torch.compile(model, dynamic=False)

    def step() -> list[Tensor]:
        output = compiled(x)
        return [output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))]

    return step


def _compiling() -> dict[str, Run]:
    models = _models()
    _training(nn.Linear(2, 2), torch.randn(2, 2))()  # a process's first compilation takes longer
    return models


def _layer(layer: str, input_size: int, hidden: int | None = None) -> nn.Module:
    return getattr(fused_rnn, layer)(input_size, hidden or input_size)


def _twin(module: nn.Module) -> nn.Module:
    theirs = getattr(nn, type(module).__name__)(module.input_size, module.hidden_size)
    theirs.load_state_dict(module.state_dict())
    return theirs


def _pack(x: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, torch.tensor(LENGTHS))


def _call(module: nn.Module, mode: str, input: Tensor | PackedSequence, **options) -> Run:
    data = input.data if isinstance(input, PackedSequence) else input

    def forward(leaf: Tensor) -> Tensor:
        x = PackedSequence(leaf, *input[1:]) if isinstance(input, PackedSequence) else leaf
        output = module(x, **options)[0]
        return output.data if isinstance(output, PackedSequence) else output

    def infer() -> list[Tensor]:
        with torch.inference_mode():
            return [forward(data)]

    leaf = data.clone().requires_grad_()
    gradient = torch.randn(*data.shape[:-1], module.hidden_size)

    def train() -> list[Tensor]:
        output = forward(leaf)
        return [output, *torch.autograd.grad(output, [leaf, *module.parameters()], gradient)]

    return train if mode == "training" else infer
