"""``explain``: which engine runs a layer, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..nn import cells, layers
from ..nn.freeze import is_frozen
from ..nn.kinds import cell_of
from ..ops import arguments, engines, plans
from ..ops.arguments import Runner
from ..ops.layer import Layer

_LAYERS = (layers.LSTM, layers.GRU, layers.RNN)
_CELLS = (cells.LSTMCell, cells.GRUCell, cells.RNNCell)


_SPLIT = (
    "Each float is multiplied as three bfloat16, on tiles, as exactly as float32 is; FUSED_RNN_ISA=avx512 does not. "
)
_FROZEN = "The weights are frozen: packed once by fused_rnn.freeze, for calls without gradients"

_TOKENS = "Ids are looked up in weight_ih, of which nothing is multiplied. "

_STEPWISE = (
    "a matrix product of torch's for all directions together, then one kernel for the rest of the step, for every size "
    "and dtype"
)
_EXCHANGES = {
    "one": "in one block",
    "cluster": "in a cluster of {0.blocks} blocks, through shared memory",
    "polling": "in {0.blocks} blocks, through the second-level cache",
    "flags": "in {0.blocks} blocks, through the second-level cache and a flag for each",
}


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``str()`` of it is a sentence or two."""

    engine: str
    """"fused" (this library's kernels on the CPU), "stepwise" and "persistent" (those on CUDA), "none" (a call would
    raise), "torch.nn" or, for others' modules, "unknown"."""
    instruction_set: str | None
    reason: str

    def __str__(self) -> str:
        isa = f" ({self.instruction_set})" if self.instruction_set else ""
        return f"{self.engine}{isa}: {self.reason}"


def explain(module: nn.Module, *inputs, lengths=None, reset_mask=None, engine: str | None = None) -> Explanation:
    """Says which engine and instruction set ``module(*inputs)`` runs on, and why; computes nothing.

    The inputs pass the same checks as in a call, and the plan comes from the very function that the engine asks.
    ``lengths`` and ``reset_mask`` are predicates inside the same kernel and change nothing. ``engine``: what would run
    within :func:`cuda_engine` of that name; it says nothing about tensors on the CPU.
    """
    if engine is not None:
        engines.check_cuda_engine(engine)
    kind = type(module)
    if kind not in _LAYERS and kind not in _CELLS:
        ours = isinstance(module, (*_LAYERS, *_CELLS))
        what = f"{kind.__name__} has a class of its own, whose forward may be too"
        if not ours:
            what = f"{kind.__name__} is not one of fused_rnn's modules; fused_rnn.swap(model) replaces torch.nn's"
        from_torch = kind.__module__.startswith("torch.nn.")
        return Explanation("torch.nn" if from_torch else "unknown", None, what)
    if not inputs:
        raise TypeError("explain needs the input that forward would get: explain(module, input)")
    try:
        layer = _first_layer(module, inputs, lengths, reset_mask)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return Explanation("none", None, str(error))
    if layer.input.device.type == "meta":
        return Explanation("none", None, "meta tensors have shapes only; nothing is computed")
    if layer.input.device.type == "cuda":
        return explain_cuda(layer, plans.gpu(layer.input.device), engine)
    cell, directions, hidden, width, _, rows = layer.sizes
    plan = plans.cpu_plan(
        cell.id,
        layer.weights[0].dtype,
        directions=directions,
        rows=math.prod(rows),
        batch=_batch_of(layer),
        input_size=0 if layer.reads_tokens else layer.input.shape[-1],
        hidden=hidden,
        output_size=width,
        packed=is_frozen(module),
        threads=torch.get_num_threads(),
    )
    return Explanation(
        "fused",
        plan.instruction_set,
        f"CPU tensors run the whole time loop in one call, on {_count(plan.threads, 'thread')}: "
        f"{_count(directions, 'direction')} x {_spread(plan)}. "
        "The instruction set is the best of this processor for such a layer, or FUSED_RNN_ISA. "
        + (_SPLIT if plan.instruction_set == "amx" and layer.weights[0].dtype == torch.float32 else "")
        + (_TOKENS if layer.reads_tokens else "")
        + (_FROZEN if is_frozen(module) else "A gradient of the gradient is recomputed in plain PyTorch"),
    )


def explain_cuda(layer: Layer, gpu: plans.Gpu, wanted: str | None = None) -> Explanation:
    """The plan of a layer's forward pass on this GPU, and its backward pass where that differs."""
    cell, directions, hidden, width, members, _ = layer.sizes
    sizes = {
        "problems": directions * math.prod(members),
        "batch": _batch_of(layer),
        "hidden": hidden,
        "tf32": _tf32_allowed(),
        "projected": width != hidden,
        "wanted": wanted,
    }
    try:
        forward, backward = (
            plans.cuda_plan(cell.id, layer.weights[0].dtype, gpu, backward=back, **sizes) for back in (False, True)
        )
    except RuntimeError as error:
        return Explanation("none", None, str(error))
    engine = "persistent" if forward.blocks_kind else "stepwise"
    tokens = _TOKENS if layer.reads_tokens else ""
    return Explanation(engine, None, f"{tokens}forward {_describe(forward)}; backward {_describe(backward)}")


def _batch_of(layer: Layer) -> int:
    return int(layer.batch_sizes[0]) if layer.batch_sizes is not None else layer.sizes[-1][-1]


def _tf32_allowed() -> bool:
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the precision was set in torch's newer way; the engine then rounds nothing either
        return False


def _describe(plan: plans.CudaPlan) -> str:
    if plan.blocks_kind is None:
        return f"step by step, as {plan.reason}: {_STEPWISE}"
    place = _EXCHANGES[plan.blocks_kind].format(plan)
    return (
        f"in one launch, as {plan.reason}: the weights {place}, {_count(plan.units, 'unit')} each, "
        f"{_count(plan.groups, 'group')} of {_count(plan.columns, 'batch row')} for each direction, "
        f"{plan.threads} threads and {plan.shared_bytes >> 10} KB of shared memory a block, "
        f"{plan.weight_registers} registers a thread for weights"
        + (", products in TF32, which torch.backends.cuda.matmul allows" if plan.tf32 else "")
    )


class _Stop(Exception):
    """Carries the first layer out of a call before it is computed."""


def _first_layer(module: nn.Module, inputs, lengths, reset_mask) -> Layer:
    """What ``module(*inputs)`` asks of the operator first, after all checks."""

    def stop(layer: Layer, cells: bool):
        raise _Stop(layer)

    input, hx = (*inputs, None)[:2]
    try:
        if type(module) in _LAYERS:
            module._run(input, hx, lengths, reset_mask, runner=Runner(stop))
        else:
            weights = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
            weights = [weight for weight in weights if weight is not None]
            arguments.single_step(Runner(stop), cell_of(module), input, hx, weights, are_plain=False)
    except _Stop as stopped:
        (layer,) = stopped.args
        if is_frozen(module):
            module._runner.check_call(layer)
        return layer
    raise AssertionError("no layer was run")


def _spread(plan: plans.CpuPlan) -> str:
    if plan.unit_chunks > 1:
        return f"{plan.unit_chunks} shares of the hidden units, which wait for each other after every step"
    return f"{_count(plan.row_chunks, 'run')} of batch rows, which never wait for each other"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
