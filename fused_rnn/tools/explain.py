"""``explain``: which engine runs a layer, or each layer of a model, and why."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..nn.freeze import is_frozen, thaw, weights_of
from ..nn.kinds import OURS, cell_of
from ..nn.recurrent import Recurrent
from ..nn.runners import Frozen
from ..ops import arguments, engines, plans
from ..ops.arguments import Runner
from ..ops.layer import Layer, WeightFormat

_SPLIT = "Each float is multiplied as three bfloat16, on tiles, as exactly as float32 is; FUSED_RNN_ISA=avx512 does not"
_FROZEN = "The weights are frozen: packed once by fused_rnn.freeze, for calls without gradients"

_TOKENS = "Ids are looked up in weight_ih, of which nothing is multiplied"

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
    """What :func:`explain` found for a layer or a cell; ``str()`` is a sentence or two."""

    engine: str
    """One of "fused" (this library's kernels on the CPU), "stepwise" and "persistent" (those on CUDA), "none" (a call
    would raise), "torch.nn", and "unknown" (somebody else's forward)."""
    instruction_set: str | None
    reason: str

    def __str__(self) -> str:
        isa = f" ({self.instruction_set})" if self.instruction_set else ""
        return f"{self.engine}{isa}: {self.reason}"


@dataclass(frozen=True)
class ModelExplanation:
    """What :func:`explain` found for a model; ``str()`` has a line for each of its recurrent layers and cells."""

    layers: tuple[tuple[str, Explanation], ...]
    """(the layer's name in the model, its explanation), in order."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: {explanation}" for name, explanation in self.layers)


def explain(
    module: nn.Module, *inputs, lengths=None, reset_mask=None, engine: str | None = None
) -> Explanation | ModelExplanation:
    """Says which engine and instruction set ``module(*inputs)`` runs on, and why.

    For a layer or a cell nothing is computed, unless its weights are int8, to tell their error: inputs pass the same
    checks as in a call, and the plan comes from the engine's own function. ``lengths`` and ``reset_mask`` are
    predicates inside the same kernel and do not change it.
    ``engine``: explains what would run within :func:`cuda_engine` of that name; no effect on the CPU.

    Any other model is run once, without gradients and in evaluation mode, to see the arguments of its recurrent layers
    and cells; each is explained for its first call.
    """
    if engine is not None:
        engines.check_cuda_engine(engine)
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if not isinstance(module, nn.Module):
        raise TypeError(f"explain needs a torch.nn.Module, got {type(module).__name__}")
    masks = {"lengths": lengths, "reset_mask": reset_mask}
    inner = {} if _is_recurrent(module) else _recurrent_layers(module)
    if inner:
        return _explain_model(module, inner, inputs, masks, engine)
    if not inputs and _is_ours(module):
        raise TypeError("explain needs the input that forward would get: explain(module, input)")
    return _explain_layer(module, inputs, masks, engine)


# ---- a model ---------------------------------------------------------------------------------------------------------


def _is_recurrent(module: nn.Module) -> bool:
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase))


def _recurrent_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name.replace("_orig_mod.", ""): m for name, m in model.named_modules() if _is_recurrent(m)}


def _explain_model(
    model: nn.Module, layers: dict[str, nn.Module], inputs: tuple, masks: dict, engine: str | None
) -> ModelExplanation:
    found: dict[nn.Module, Explanation] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module not in found:
            given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
            own_masks = {name: given.get(name) for name in masks}
            found[module] = _explain_layer(module, (given.get("input"), given.get("hx")), own_masks, engine)

    gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    training = [module for module in model.modules() if module.training]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers.values()]
    missing = "the model's forward did not call it"
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(gpus), torch.compiler.set_stance("force_eager"):
            model(*inputs, **{name: mask for name, mask in masks.items() if mask is not None})
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        missing = f"the model's forward raised before it was called: {error}"
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    none = Explanation("none", None, missing)
    return ModelExplanation(tuple((name, found.get(layer, none)) for name, layer in layers.items()))


# ---- a layer or a cell -----------------------------------------------------------------------------------------------


def _runs_forward_of(module: nn.Module, classes) -> bool:
    """Whether its forward is that of one of these classes, possibly inherited, as in parametrized modules."""
    if "forward" in vars(module):
        return False
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in classes)


def _is_ours(module: nn.Module) -> bool:
    return _runs_forward_of(module, OURS.values())


def _explain_layer(module: nn.Module, inputs: tuple, masks: dict, engine: str | None) -> Explanation:
    if not _is_ours(module):
        return _explain_others(module)
    try:
        layer = _first_layer(module, inputs, masks)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return Explanation("none", None, str(error))
    if layer.input.device.type == "meta":
        return Explanation("none", None, "meta tensors have shapes only; nothing is computed")
    if layer.input.device.type == "cuda":
        return explain_cuda(layer, plans.gpu(layer.input.device), engine)
    return _explain_cpu(layer, module._runner if is_frozen(module) else None, _error_of(module, inputs, masks))


def _explain_others(module: nn.Module) -> Explanation:
    kind = type(module).__name__
    if isinstance(module, tuple(OURS.values())):
        return Explanation("unknown", None, f"{kind} has a forward of its own, which may compute anything")
    if _runs_forward_of(module, OURS):
        what = f"{kind} is not one of fused_rnn's modules; fused_rnn.swap(model) replaces torch.nn's"
        return Explanation("torch.nn", None, what)
    if _is_recurrent(module):
        return Explanation("unknown", None, f"{kind} is not one of fused_rnn's modules, nor a layer of torch.nn's")
    return Explanation("unknown", None, f"{kind} is no recurrent layer or cell, and has none")


def _first_layer(module: nn.Module, inputs: tuple, masks: dict) -> Layer:
    """The first layer that ``module(*inputs)`` would run, after all checks."""

    def stop(layer: Layer, cells: bool):
        raise _Stop(layer)

    input, hx = (*inputs, None)[:2]
    try:
        if isinstance(module, Recurrent):
            module._run(input, hx, **masks, runner=Runner(stop))
        else:
            weights = [module.weight_ih, module.weight_hh]
            if module.bias:
                weights += [module.bias_ih, module.bias_hh]
            arguments.single_step(Runner(stop), cell_of(module), input, hx, weights, are_plain=False)
    except _Stop as stopped:
        (layer,) = stopped.args
        if is_frozen(module):
            module._runner.check_call(layer)
        return layer
    raise AssertionError("no layer was run")


class _Stop(Exception):
    """Carries the first layer out of a call before it is computed."""


# ---- plans in words --------------------------------------------------------------------------------------------------


def _error_of(module: nn.Module, inputs: tuple, masks: dict) -> str | None:
    """How far the output of a layer with int8 weights is from that of its float twin."""
    if not is_frozen(module) or not module._runner.is_quantized:
        return None
    given = {name: mask for name, mask in masks.items() if mask is not None}
    with torch.no_grad():
        runs = module.forward, thaw(copy.deepcopy(module)).forward  # past hooks: one may be what asks
        quantized, twin = (_output_of(run(*inputs, **given)) for run in runs)
    error = (quantized - twin).norm() / twin.norm()
    return f"The weights are {weights_of(module)}: for this input the output differs by {error:.1e} of its norm"


def _output_of(results) -> Tensor:
    while isinstance(results, tuple) and not isinstance(results, PackedSequence):
        results = results[0]
    return results.data if isinstance(results, PackedSequence) else results


def _explain_cpu(layer: Layer, frozen: Frozen | None, error: str | None) -> Explanation:
    cell, directions, hidden, width, _, rows = layer.sizes
    dtype = layer.weights[0].dtype
    plan = plans.cpu_plan(
        cell.id,
        dtype,
        directions=directions,
        rows=math.prod(rows),
        batch=_batch_of(layer),
        input_size=0 if layer.reads_tokens else layer.input.shape[-1],
        hidden=hidden,
        output_size=width,
        packed=frozen is not None,
        format=WeightFormat.OWN if frozen is None else frozen.format,
        threads=torch.get_num_threads(),
    )
    reasons = [
        f"CPU tensors run the whole time loop in one call, on {_count(plan.threads, 'thread')}: "
        f"{_count(directions, 'direction')} x {_spread(plan)}",
        "The instruction set is the best of this processor for such a layer, or FUSED_RNN_ISA",
    ]
    if plan.instruction_set == "amx" and dtype == torch.float32:
        reasons.append(_SPLIT)
    if layer.reads_tokens:
        reasons.append(_TOKENS)
    if frozen is not None:
        reasons.append(_FROZEN)
    if error is not None:
        reasons.append(error)
    return Explanation("fused", plan.instruction_set, ". ".join(reasons))


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
    tokens = f"{_TOKENS}. " if layer.reads_tokens else ""
    return Explanation(engine, None, f"{tokens}forward {_describe(forward)}; backward {_describe(backward)}")


def _batch_of(layer: Layer) -> int:
    return int(layer.batch_sizes[0]) if layer.batch_sizes is not None else layer.sizes[-1][-1]


def _tf32_allowed() -> bool:
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the precision was set by torch's newer API; the engine then uses no TF32 either
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


def _spread(plan: plans.CpuPlan) -> str:
    if plan.unit_chunks > 1:
        return f"{plan.unit_chunks} shares of the hidden units, which wait for each other after every step"
    return f"{_count(plan.row_chunks, 'run')} of batch rows, which never wait for each other"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
