"""``explain``: which engine runs a layer, or each layer of a model, and why."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..nn.freeze import FORMATS, is_frozen, thaw, weights_of
from ..nn.kinds import OURS, cell_of
from ..nn.loop_options import LoopOptions
from ..nn.recurrent import Recurrent
from ..nn.runners import Frozen
from ..nn.stream import Stream
from ..ops import arguments, engines, handover, library, plans, tables
from ..ops.arguments import Runner
from ..ops.cells import BY_MODE
from ..ops.checks import Options
from ..ops.layer import Layer
from ..ops.measured import Table
from ..own.layer import OwnLayer
from . import html, plan_words

_FROZEN = "The weights are frozen: packed once by fused_rnn.freeze, for calls without gradients"
_STREAM = (
    "A step is one call past torch's dispatcher, on states and buffers of the stream's own: it checks what it is given "
    "itself and, after the first ones, allocates nothing; autograd, autocast, hooks and torch.compile do not see it. "
    "It computes what the frozen layer does, bit by bit. Ids are looked up in weight_ih"
)

_OF_FUNCTION = "compiled=False: the Python function of {} is called for every step; layer(...) without it is compiled"
_TORCH = (
    "torch.nn's kernels run the call: those of cuDNN, oneDNN or ATen. What they cannot do is ours: second derivatives "
    "that cuDNN and oneDNN lack, torch.func's transforms, compiled, exported and traced calls"
)

_HEADER = ("layer", "engine", "instruction set", "why")


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found for a layer or a cell; ``str()`` is a sentence or two."""

    engine: str
    """One of "fused" (this library's kernels on the CPU), "stepwise" and "persistent" (those on CUDA), "torch"
    (torch.nn's kernels, in a module of this library), "python" (an own cell's function), "none" (a call would raise),
    "torch.nn" (a module of torch.nn), and "unknown" (somebody else's forward)."""
    instruction_set: str | None
    reason: str

    def __str__(self) -> str:
        isa = f" ({self.instruction_set})" if self.instruction_set else ""
        return f"{self.engine}{isa}: {self.reason}"

    def __repr__(self) -> str:
        return f"Explanation(engine={self.engine!r}, instruction_set={self.instruction_set!r})"

    def _repr_html_(self) -> str:
        return html.table(_HEADER, [("", self.engine, self.instruction_set or "", self.reason)])


@dataclass(frozen=True)
class ModelExplanation:
    """What :func:`explain` found for a model; ``str()`` has a line for each of its recurrent layers and cells."""

    layers: tuple[tuple[str, Explanation], ...]
    """(the layer's name in the model, its explanation), in order."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: {explanation}" for name, explanation in self.layers)

    def __repr__(self) -> str:
        return f"ModelExplanation({html.shortened([f'{name}: {found.engine}' for name, found in self.layers])})"

    def _repr_html_(self) -> str:
        rows = [(name, found.engine, found.instruction_set or "", found.reason) for name, found in self.layers]
        return html.table(_HEADER, rows)


class _Asked(NamedTuple):
    """Other than what is set here."""

    engine: str | None
    gpu: str | None
    training: bool

    def engine_on(self, device: str) -> str:
        return self.engine or engines.engine_for(device)


def explain(
    module: nn.Module | Stream,
    *inputs: Any,
    lengths: Any = None,
    reset_mask: Any = None,
    engine: str | None = None,
    gpu: str | None = None,
) -> Explanation | ModelExplanation:
    """Says which engine and instruction set ``module(*inputs)`` runs on, and why.

    For a layer or a cell nothing is computed, unless its weights are int8, to tell their error: inputs pass the same
    checks as in a call, and the plan comes from the engine's own function. ``lengths`` and ``reset_mask`` are
    predicates inside the same kernel and do not change it.
    ``engine``: explains what would run within :func:`engine` of that name. ``gpu``: what would run on such a GPU, by
    its measurements if there are any: "H200", "H100", "A100", "L40S", "T4". Gradients count as in a call: what was
    measured with them holds where grad mode is on and a weight needs one.

    Any other model is run once, without gradients and in evaluation mode, to see the arguments of its recurrent layers
    and cells; each is explained for its first call.

    Of a :class:`fused_rnn.Stream`, without inputs, it says what a step runs on: the engine, the instruction set and the
    format of the weights, and that steps go past torch's dispatcher.

    Example:
        >>> fused_rnn.explain(fused_rnn.LSTM(10, 20), torch.randn(5, 3, 10)).engine
        'fused'
        >>> model = torch.nn.Sequential(torch.nn.GRU(10, 20))
        >>> print(fused_rnn.explain(model, torch.randn(5, 3, 10)))
        0: torch.nn: GRU is not one of fused_rnn's modules; fused_rnn.swap(model) replaces torch.nn's
    """
    if engine is not None:
        engines.check_engine(engine)
    if gpu is not None and gpu not in plans.GPUS:
        raise ValueError(f"gpu must be None or one of {', '.join(plans.GPUS)}, got {gpu!r}")
    asked = _Asked(engine, gpu, torch.is_grad_enabled())
    if isinstance(module, Stream):
        if inputs or lengths is not None or reset_mask is not None:
            raise TypeError("explain of a Stream takes no input: the sizes of its steps are its own")
        return _explain_stream(module)
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if not isinstance(module, nn.Module):
        raise TypeError(f"explain needs a torch.nn.Module, got {type(module).__name__}")
    masks = {"lengths": lengths, "reset_mask": reset_mask}
    inner = {} if _is_recurrent(module) else _recurrent_layers(module)
    if inner:
        return _explain_model(module, inner, inputs, masks, asked)
    if not inputs and _is_ours(module):
        raise TypeError("explain needs the input that forward would get: explain(module, input)")
    return _explain_layer(module, inputs, masks, asked)


# ---- a model ---------------------------------------------------------------------------------------------------------


def _is_recurrent(module: nn.Module) -> bool:
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase, OwnLayer))


def _recurrent_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name.replace("_orig_mod.", ""): m for name, m in model.named_modules() if _is_recurrent(m)}


def _explain_model(
    model: nn.Module, layers: dict[str, nn.Module], inputs: tuple, masks: dict, asked: _Asked
) -> ModelExplanation:
    found: dict[nn.Module, Explanation] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module not in found:
            given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
            own_masks = {name: given.get(name) for name in masks}
            found[module] = _explain_layer(module, (given.get("input"), given.get("hx")), own_masks, asked)

    training = [module for module in model.modules() if module.training]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers.values()]
    missing = "the model's forward did not call it"
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(_gpus_of(model)), torch.compiler.set_stance("force_eager"):
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


def _gpus_of(model: nn.Module) -> list[int]:
    if not torch.cuda.is_available():  # fake tensors
        return []
    return sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})


# ---- a stream --------------------------------------------------------------------------------------------------------


def _explain_stream(stream: Stream) -> Explanation | ModelExplanation:
    """For a ``Stack`` a line for each of its layers, as for the stack itself."""
    found = [_explain_part(part.module, part.weights, part.change(), stream.batch) for part in stream._parts]
    if stream.model is stream._parts[0].module:
        return found[0]
    return ModelExplanation(tuple((f"layers.{k}", explanation) for k, explanation in enumerate(found)))


def _explain_part(module: Recurrent, weights: Frozen, change: str | None, batch: int) -> Explanation:
    if change is not None:
        return Explanation("none", None, f"{change}; a step raises")
    cell, own = BY_MODE[module.mode], weights.weights[: len(weights.weights) // module.num_layers]
    step = own[0].new_empty(1, batch, module.input_size)
    plan = plan_words.cpu_plan_of(Layer.plain(cell.id, bool(module.bias), False, step, None, None, tuple(own)), weights)
    name = next(name for name, format in FORMATS.items() if format == weights.format)
    packer = "fused_rnn.freeze" if module._runner is weights else "the stream"
    packed = f"The weights are {name or str(own[0].dtype).removeprefix('torch.')}, packed once by {packer}"
    reasons = [plan_words.where(plan, 1), *plan_words.products(plan, own[0].dtype), packed, _STREAM]
    return Explanation("fused", plan.instruction_set, ". ".join(reasons))


# ---- a layer or a cell -----------------------------------------------------------------------------------------------


def _runs_forward_of(module: nn.Module, classes) -> bool:
    """Whether its forward is that of one of these classes, possibly inherited, as in parametrized modules."""
    if "forward" in vars(module):
        return False
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in classes)


def _is_ours(module: nn.Module) -> bool:
    return _runs_forward_of(module, [*OURS.values(), OwnLayer])


def _explain_layer(module: nn.Module, inputs: tuple, masks: dict, asked: _Asked) -> Explanation:
    if not _is_ours(module):
        return _explain_others(module)
    try:
        layer = _first_layer(module, inputs, masks)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return Explanation("none", None, str(error))
    if isinstance(module, OwnLayer) and not module.compiled:
        return Explanation("python", None, _OF_FUNCTION.format(module.cell.name))
    if layer.input.device.type == "meta":
        return Explanation("none", None, "meta tensors have shapes only; nothing is computed")
    device = "cuda" if asked.gpu else layer.input.device.type
    if device == "cuda" and getattr(module, "checkpoint", None) is not None and _gradients_wanted(layer, asked):
        return Explanation("none", None, "checkpoint runs on the CPU so far, not on CUDA")
    normed = getattr(module, "layer_norm", False)
    table = _table(asked, device, layer)
    reason, by_torch = _handed_over(module, layer, masks, asked, table)
    if by_torch:
        return Explanation("torch", None, f"{reason}{_TORCH}{plan_words.options_of(module)}")
    if asked.gpu:
        found = _explain_gpu(layer, asked, table, normed)
    elif device == "cuda":
        gpu, index = plans.gpu(layer.input.device), layer.input.device.index or 0
        found = explain_cuda(layer, gpu, asked.engine, index, normed)
    else:
        frozen, error = module._runner if is_frozen(module) else None, _error_of(module, inputs, masks)
        found = _explain_cpu(layer, frozen, error, normed)
    if found.engine == "none":
        return found
    source = plan_words.options_of(module)
    checkpoint = getattr(module, "checkpoint", None)
    if checkpoint is not None and found.engine == "fused" and _gradients_wanted(layer, asked):
        source += f". {plan_words.checkpoints(layer, checkpoint)}"
    if isinstance(module, OwnLayer):
        try:
            source += f". {plan_words.source_of(module.cell, layer.weights[0].dtype, device)}"
        except RuntimeError as error:  # it cannot be compiled
            return Explanation("none", None, str(error))
    return replace(found, reason=f"{reason}{found.reason}{source}")


def _table(asked: _Asked, device: str, layer: Layer) -> Table | None:
    if asked.gpu:
        return tables.find_by_name(asked.gpu)
    if asked.engine_on(device) not in ("auto", "ours"):
        return None
    if device == "cuda" and not torch.cuda.is_available():  # fake tensors
        return None
    return tables.table_for(device, layer.input.device.index or 0)


def _handed_over(module: nn.Module, layer: Layer, masks: dict, asked: _Asked, table: Table | None) -> tuple[str, bool]:
    """Whether torch.nn's kernels run the call, and why or why not, if they might have."""
    device = "cuda" if asked.gpu else layer.input.device.type
    name, count = asked.engine_on(device), getattr(module, "num_layers", 1)
    if name not in ("torch", "auto"):
        return "", False
    options = Options(**masks)
    if isinstance(module, LoopOptions):
        options = module._with_loop_options(options, layer.sizes[0])
    call = handover.call_of_layer(layer, count, options, device)
    training = _gradients_wanted(layer, asked)
    gpu = plans.GPUS[asked.gpu] if asked.gpu else None
    chosen = handover.choice(call, table, training, gpu) if name == "auto" else None
    if chosen is not None and chosen.engine == "ours":
        return (f"As measured, {chosen.reason}. " if table is not None else ""), False
    obstacle = handover.obstacle(call)
    if module._runner.run_by_torch is None:
        obstacle = "the weights are frozen" if is_frozen(module) else "gradient_flow watches the layer"
    if obstacle is not None:
        return f"Not torch.nn's kernels, as {obstacle}. ", False
    return (f"As far as measured, {chosen.reason}. " if chosen is not None else ""), True


def _gradients_wanted(layer: Layer, asked: _Asked) -> bool:
    return asked.training and any(weight.requires_grad for weight in layer.weights)


def _explain_gpu(layer: Layer, asked: _Asked, table: Table | None, layer_norm: bool) -> Explanation:
    if not library.cuda_archs():
        return Explanation("none", None, "this fused_rnn was built without CUDA, so it has no plans for GPUs")
    tables.give_to_cuda(plans.NOT_HERE, table)
    return explain_cuda(layer, plans.GPUS[asked.gpu or ""], asked.engine_on("cuda"), plans.NOT_HERE, layer_norm)


def _explain_others(module: nn.Module) -> Explanation:
    kind = type(module).__name__
    if isinstance(module, (*OURS.values(), OwnLayer)):
        return Explanation("unknown", None, f"{kind} has a forward of its own, which may compute anything")
    if _runs_forward_of(module, OURS):
        what = f"{kind} is not one of fused_rnn's modules; fused_rnn.swap(model) replaces torch.nn's"
        return Explanation("torch.nn", None, what)
    if _is_recurrent(module):
        return Explanation("unknown", None, f"{kind} is not one of fused_rnn's modules, nor a layer of torch.nn's")
    return Explanation("unknown", None, f"{kind} is no recurrent layer or cell, and has none")


def _first_layer(module: nn.Module, inputs: tuple, masks: dict) -> Layer:
    """The first layer that ``module(*inputs)`` would run, after all checks."""

    def stop(layer: Layer, *_):
        raise _Stop(layer)

    input, hx = (*inputs, None)[:2]
    stopping = Runner(stop)
    stopping.run_normed = stop
    try:
        with torch.random.fork_rng(_gpus_of(module)):  # masks are drawn
            if isinstance(module, Recurrent):
                module._run(input, hx, **masks, runner=stopping)
            elif isinstance(module, OwnLayer):
                module._run(input, hx, **masks, by=stopping)
            else:
                weights = [module.weight_ih, module.weight_hh]
                if module.bias:
                    weights += [module.bias_ih, module.bias_hh]
                arguments.single_step(stopping, cell_of(module), input, hx, weights, are_plain=False)
    except _Stop as stopped:
        (layer,) = stopped.args
        if is_frozen(module):
            module._runner.check_call(layer)
        return layer
    raise AssertionError("no layer was run")


class _Stop(Exception):
    """Carries the first layer out of a call before it is computed."""


def _explain_cpu(layer: Layer, frozen: Frozen | None, error: str | None, layer_norm: bool) -> Explanation:
    plan = plan_words.cpu_plan_of(layer, frozen, layer_norm)
    reasons = [plan_words.where(plan, layer.sizes[1]), *plan_words.products(plan, layer.weights[0].dtype)]
    if layer.reads_tokens:
        reasons.append(plan_words.TOKENS)
    if frozen is not None:
        reasons.append(_FROZEN)
    if error is not None:
        reasons.append(error)
    return Explanation("fused", plan.instruction_set, ". ".join(reasons))


def explain_cuda(
    layer: Layer, gpu: plans.Gpu, wanted: str | None = None, device: int = 0, layer_norm: bool = False
) -> Explanation:
    """``device``: whose measurements count."""
    try:
        engine, reason = plan_words.of_cuda(layer, gpu, wanted, device, layer_norm)
    except RuntimeError as error:
        return Explanation("none", None, str(error))
    return Explanation(engine, None, reason)


# ---- weights of 8 bits ---------------------------------------------------------------------------------------------


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
