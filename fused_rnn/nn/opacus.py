"""Per-sample gradients for Opacus (differential privacy), when its ``PrivacyEngine`` puts hooks on our layers.

Its hooks only see a layer's positional arguments and the gradient of its first result, and would miss what passes
through ``h_n``, ``lengths`` or ``reset_mask``. So per-sample gradients are computed in the layer's own backward pass
and delivered where Opacus's hooks would put them: in ``grad_sample`` of each parameter, or as norms. Clipping, noise
and accounting remain Opacus's. Nothing here imports Opacus.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..autograd import functions, rows
from ..ops import torch_private
from ..ops.arguments import RunLayer, Runner
from ..ops.layer import Layer

_HOOKS = "opacus.grad_sample.grad_sample_module"
_NORM_HOOKS = "opacus.grad_sample.grad_sample_module_fast_gradient_clipping"


class Handle:
    """The handle returned to Opacus for a hook on one of our layers."""

    def __init__(self, module: nn.Module):
        self._module = module

    def remove(self) -> None:
        self._module.__dict__.pop("_runner", None)


def take_over(module: nn.Module, hook) -> Handle | None:
    """If Opacus puts this hook on one of our layers, makes that run by :class:`ByRow`. None for other hooks."""
    if _HOOKS not in sys.modules:
        return None
    opacus, owner = sys.modules[_HOOKS], getattr(getattr(hook, "func", hook), "__self__", None)
    if not isinstance(owner, getattr(opacus, "GradSampleHooks", opacus.GradSampleModule)):  # the former since 1.6
        return None
    kinds = {"GradSampleHooks", "GradSampleModule"}
    kinds |= {"GradSampleHooksFastGradientClipping", "GradSampleModuleFastGradientClipping"}
    if type(owner).__name__ not in kinds:
        raise NotImplementedError(
            f"{module._get_name()} does not go with Opacus' {type(owner).__name__}: use grad_sample_mode='hooks'"
        )
    module._runner = ByRow(module, owner)
    return Handle(module)


class ByRow(Runner):
    """Runs the layers of one module, and delivers their per-sample weight gradients to Opacus."""

    infers = True
    watches = "Opacus"

    def __init__(self, module: nn.Module, hooks):
        self._module, self._hooks = module, hooks

    def check(self, weights: Sequence[Tensor | None]) -> None:
        """Accepts any weights that are parameters."""
        computed = set(self._module._weight_names()) - set(self._module._parameters)
        if computed:
            raise NotImplementedError(
                f"fused_rnn: Opacus gets no gradients of each row for weights that are computed: {sorted(computed)}"
            )

    def layers(self) -> RunLayer:
        if not (self._are_wanted() and self._module.training and torch.is_grad_enabled()):
            return functions.run_layer
        if torch_private.in_transform() or torch.compiler.is_compiling():
            raise NotImplementedError("fused_rnn: Opacus' hooks go with neither torch.func nor torch.compile")
        if getattr(self._module, "weight_dropout", 0):  # a cell has none
            raise NotImplementedError("fused_rnn: Opacus gets no gradients of each row through weight_dropout")
        names = iter(self._module._weight_names())

        def run_layer(layer: Layer, cells: bool, grad_clip: float | None = None):
            own = [self._module._parameters[next(names)] for _ in layer.weights]
            trained = [parameter for parameter in own if parameter.requires_grad]
            if not trained:
                return functions.run_layer(layer, cells, grad_clip)
            if layer.batch_sizes is not None:
                raise NotImplementedError(
                    "fused_rnn: Opacus gets no gradients of each row from a PackedSequence; pass padded input and "
                    "lengths"
                )
            for parameter in trained:
                parameter._forward_counter += 1
            return rows.run_layer(layer, cells, grad_clip, self._are_wanted, lambda grads: self._deliver(own, grads))

        return run_layer

    def _are_wanted(self) -> bool:
        return self._hooks.hooks_enabled

    def _deliver(self, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
        """Does the job of ``GradSampleHooks.capture_backprops_hook``, and of its fast gradient clipping counterpart."""
        hooks, opacus = self._hooks, sys.modules[_HOOKS]
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is None or not parameter.requires_grad:
                continue
            batch = grad.shape[0]
            sample = (grad * batch if hooks.loss_reduction == "mean" else grad).to(parameter.dtype)
            opacus.create_or_accumulate_grad_sample(param=parameter, grad_sample=sample, max_batch_len=batch)
            parameter._forward_counter -= 1
            if parameter._forward_counter:
                continue
            opacus.promote_current_grad_sample(parameter)
            if hasattr(hooks, "get_norm_sample"):
                sample = parameter.grad_sample
                sys.modules[_NORM_HOOKS].create_norm_sample(param=parameter, grad_sample=sample, max_batch_len=batch)
                parameter.grad_sample = None
            elif not hooks.grad_accumulation_allowed and isinstance(parameter.grad_sample, list):
                raise ValueError(
                    "Poisson sampling is not compatible with grad accumulation. You need to call optimizer.step() "
                    "after every forward/backward pass or consider using BatchMemoryManager"
                )
