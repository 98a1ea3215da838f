"""All uses of non-public names of torch: where to look when a new torch breaks something."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

below_autograd = torch._C._AutoDispatchBelowAutograd
FakeTensor = torch._subclasses.FakeTensor
is_tracing_eagerly = torch._C._is_tracing  # Dynamo cannot call it
in_transform = torch._C._are_functorch_transforms_active
add_batch_dim, remove_batch_dim = torch._add_batch_dim, torch._remove_batch_dim
switch_gradients = torch._C._set_grad_enabled
any_autocast = torch._C._is_any_autocast_enabled
dispatch_modes = torch._C._len_torch_dispatch_stack
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def cuda_driver() -> str:
    """The version of the GPU's driver, as CUDA counts: 13000 is 13.0."""
    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    return "unknown" if version is None else str(version())


def is_tracing() -> bool:
    """Whether torch.jit.trace is recording."""
    return not torch.compiler.is_compiling() and is_tracing_eagerly()


def original_of(tensor: Tensor | None, expected: Tensor) -> Tensor | None:
    """``expected``, if ``tensor`` is the fake tensor that was made of it; else ``tensor``."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    of_expected = tensor.fake_mode.fake_tensor_converter._get_memo(expected)  # without making one
    return expected if of_expected is tensor else tensor


def in_forward_mode() -> bool:
    return forward_ad._current_level >= 0


def legacy_vmap_level() -> int:
    """The level of the active vmap of ``torch.autograd.grad(is_grads_batched=True)``."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


@contextmanager
def no_tracer_warnings() -> Iterator[None]:
    """Silences the tracer's warnings, for checks of sizes that do not affect results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


DYNAMO_BUILDER = "torch._dynamo.variables.builder"


def dynamo_entry(builder) -> tuple[type, str]:
    """The entry point, in a class of that module, by which Dynamo starts tracing an nn.Module."""
    return builder.VariableBuilder, "wrap_module"


ONNX_REGISTRY = "torch.onnx._internal.exporter._registration"


def register_onnx(registration, operator: torch._ops.OpOverload, translate: Callable) -> bool:
    """Adds a translation to the table of ``torch.onnx.export(dynamo=True)``; False if this torch keeps it elsewhere."""
    table = getattr(registration, "_torchlib_registry", None)
    if not hasattr(table, "onnx_impl"):
        return False
    table.onnx_impl(operator, no_compile=True)(translate)
    return True


without_modes = torch.utils._python_dispatch._disable_current_modes
"""A context in which tensors with numbers are computed with, and nothing is recorded, while torch.export runs."""


def in_onnx_export() -> bool:
    """Whether ``torch.onnx.export`` is running, for code that Dynamo may trace: it takes torch's own for false."""
    return torch.onnx.is_in_onnx_export()


in_onnx_export._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing Dynamo


def in_onnx_trace() -> bool:
    """Whether ``torch.onnx.export(dynamo=False)`` is running."""
    return is_tracing() and torch.onnx.is_in_onnx_export()


def types_to_quantize() -> set[type]:
    """The module types that a running ``torch.ao.quantization`` call quantizes: it does not pass them to modules."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_propagate_qconfig_helper":
        frame = frame.f_back
    asked = {} if frame is None else frame.f_locals.get("qconfig_dict", {})
    return {kind for kind, config in asked.items() if isinstance(kind, type) and config is not None}


def apply_function(function: type[torch.autograd.Function], args: Sequence):
    """``function.apply(*args)`` outside of transforms, without binding the signature (as costly as a layer)."""
    unwrapped = [_unwrap_if_dead(arg) if isinstance(arg, Tensor) else arg for arg in args]
    return super(torch.autograd.Function, function).apply(*unwrapped)


def bare(operator: torch._ops.OpOverload):
    """The operator without its Python wrapper: saves half a microsecond."""
    return operator._op


def arguments_of(operator: torch._ops.OpOverload) -> tuple[list[str], list]:
    """The names of an operator's arguments, and the default values of the last of them."""
    arguments = operator._schema.arguments
    return [a.name for a in arguments], [a.default_value for a in arguments if a.has_default_value()]


def need_gradient(tensors: Iterable[Tensor]) -> bool:
    """Whether a gradient for any of these may be requested."""
    if not in_transform():
        return any(tensor.requires_grad for tensor in tensors)
    if torch.compiler.is_compiling():  # Dynamo cannot inspect the transforms
        return True
    if any(level.key() != torch._C._functorch.TransformType.Vmap for level in retrieve_all_functorch_interpreters()):
        return True  # a wrapped tensor does not reveal whether an outer level differentiates it
    return any(_without_batching(tensor).requires_grad for tensor in tensors)


def in_nested_forward_mode() -> bool:
    """Whether forward-mode levels are nested. torch then silently drops the contribution of a Function's jvp to the
    outer one."""
    levels = retrieve_all_functorch_interpreters()
    return sum(map(is_jvp, levels)) > 1


def innermost_level():
    """The innermost active transform of torch.func."""
    levels = retrieve_all_functorch_interpreters()
    return levels[-1] if levels else None


def is_jvp(level) -> bool:
    return level.key() == torch._C._functorch.TransformType.Jvp


def has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


def is_of_level(tensor: Tensor, level) -> bool:
    """Whether this transform, a differentiating one, tracks the tensor."""
    functorch = torch._C._functorch
    return functorch.is_gradtrackingtensor(tensor) and functorch.maybe_get_level(tensor) == level.level()


def below_level(nested, level):
    """``nested`` with its tensors unwrapped from this transform."""
    return map_tensors(lambda t: torch._C._functorch.get_unwrapped(t) if is_of_level(t, level) else t, nested)


def without_the_dead(nested):
    """``nested`` with its tensors unwrapped from transforms that have ended."""

    def unwrap(tensor: Tensor) -> Tensor:
        while (inner := _unwrap_if_dead(tensor)) is not tensor:
            tensor = inner
        return tensor

    return map_tensors(unwrap, nested)


def map_tensors(function: Callable[[Tensor], Tensor], nested):
    """Applies the function to every tensor in nested tuples (named ones too), lists and dicts."""
    if isinstance(nested, Tensor):
        return function(nested)
    if isinstance(nested, dict):
        return {key: map_tensors(function, part) for key, part in nested.items()}
    if isinstance(nested, (tuple, list)):
        parts = [map_tensors(function, part) for part in nested]
        return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
    return nested


def elementary_decompositions() -> dict:
    """How torch composes an operator of simpler ones; these are exp, log1p and the like, and what moves numbers."""
    aten = torch.ops.aten
    more = (aten.elu, aten.gelu, aten.hardtanh, aten.leaky_relu, aten.log_sigmoid_forward)
    table = {**core_aten_decompositions(), **get_decompositions(more)}
    for kept in (aten.select_backward.default, aten.slice_backward.default):
        table.pop(kept, None)
    return table


def tensors_in(nested) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dicts."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list, dict)):
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from tensors_in(part)


def _without_batching(tensor: Tensor) -> Tensor:
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
