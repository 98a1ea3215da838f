"""Names of torch that are not public, all in one place: what to look at when a new torch breaks something."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

below_autograd = torch._C._AutoDispatchBelowAutograd
FakeTensor = torch._subclasses.FakeTensor
in_transform = torch._C._are_functorch_transforms_active
add_batch_dim, remove_batch_dim = torch._add_batch_dim, torch._remove_batch_dim
any_autocast = torch._C._is_any_autocast_enabled
dispatch_modes = torch._C._len_torch_dispatch_stack
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def in_forward_mode() -> bool:
    return forward_ad._current_level >= 0


def legacy_vmap_level() -> int:
    """The level of the vmap behind ``torch.autograd.grad(is_grads_batched=True)`` that is being run."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def apply_function(function: type[torch.autograd.Function], args: Sequence):
    """``function.apply(*args)`` outside of transforms, without its study of signatures, as costly as a layer."""
    unwrapped = [_unwrap_if_dead(arg) if isinstance(arg, Tensor) else arg for arg in args]
    return super(torch.autograd.Function, function).apply(*unwrapped)


def bare(operator: torch._ops.OpOverload):
    """The operator without its wrapper in Python, for calls that count every half microsecond."""
    return operator._op


def arguments_of(operator: torch._ops.OpOverload) -> tuple[list[str], list]:
    """The names of its arguments, and the default values that the last of them have."""
    arguments = operator._schema.arguments
    return [a.name for a in arguments], [a.default_value for a in arguments if a.has_default_value()]


def need_gradient(tensors: Iterable[Tensor]) -> bool:
    """Might a gradient of one of these be asked for?"""
    if not in_transform():
        return any(tensor.requires_grad for tensor in tensors)
    if torch.compiler.is_compiling():  # Dynamo cannot look at the transforms
        return True
    if any(level.key() != torch._C._functorch.TransformType.Vmap for level in retrieve_all_functorch_interpreters()):
        return True  # a wrapped tensor does not say whether an outer level differentiates it
    return any(_without_batching(tensor).requires_grad for tensor in tensors)


def in_nested_forward_mode() -> bool:
    """Is a derivative along a direction taken of another? torch then drops, without a word, what a Function's jvp
    contributes to the outer one."""
    levels = retrieve_all_functorch_interpreters()
    return sum(map(is_jvp, levels)) > 1


def innermost_level():
    """The innermost transform of torch.func that is active."""
    levels = retrieve_all_functorch_interpreters()
    return levels[-1] if levels else None


def is_jvp(level) -> bool:
    return level.key() == torch._C._functorch.TransformType.Jvp


def has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


def is_of_level(tensor: Tensor, level) -> bool:
    """Does this transform, a derivative, follow the tensor?"""
    functorch = torch._C._functorch
    return functorch.is_gradtrackingtensor(tensor) and functorch.maybe_get_level(tensor) == level.level()


def below_level(nested, level):
    """All in it as it is outside of this transform."""
    return map_tensors(lambda t: torch._C._functorch.get_unwrapped(t) if is_of_level(t, level) else t, nested)


def without_the_dead(nested):
    """All in it as it is outside of transforms that are over."""

    def unwrap(tensor: Tensor) -> Tensor:
        while (inner := _unwrap_if_dead(tensor)) is not tensor:
            tensor = inner
        return tensor

    return map_tensors(unwrap, nested)


def map_tensors(function: Callable[[Tensor], Tensor], nested):
    """Tuples, named ones too, lists and dicts as they were, with other tensors."""
    if isinstance(nested, Tensor):
        return function(nested)
    if isinstance(nested, dict):
        return {key: map_tensors(function, part) for key, part in nested.items()}
    if isinstance(nested, (tuple, list)):
        parts = [map_tensors(function, part) for part in nested]
        return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
    return nested


def _without_batching(tensor: Tensor) -> Tensor:
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
