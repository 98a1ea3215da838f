"""torch.nn's own kernels (cuDNN, oneDNN, ATen), with derivatives of any order: those that they lack are by ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import torch_private
from ..ops.arguments import ForTorch, over_layers
from ..ops.cells import BY_ID
from ..ops.layer import Layer
from . import functions
from .plain import need_layer

_KERNELS = {
    "lstm": (torch.lstm, torch.lstm_cell),
    "gru": (torch.gru, torch.gru_cell),
    "rnn_tanh": (torch.rnn_tanh, torch.rnn_tanh_cell),
    "rnn_relu": (torch.rnn_relu, torch.rnn_relu_cell),
}
_OF_CELLS = {cell.id: _KERNELS.get(cell.name) for cell in BY_ID.values()}


def _run(stack: ForTorch, batch_sizes: Tensor | None, input, h0, c0, weights) -> Sequence[Tensor]:
    """torch.nn's kernels: output, h_n and, for an LSTM, c_n; of a step the new states."""
    sequence, step = _OF_CELLS[stack.cell.id]
    if stack.is_step:
        if h0 is None:
            h0 = c0 = input.new_zeros(input.shape[0], weights[1].shape[1])
        return step(input, (h0, c0), *weights) if stack.cell.states > 1 else (step(input, h0, *weights),)
    if h0 is None or (c0 is None and stack.cell.states > 1):
        batch = input.shape[not stack.batch_first] if batch_sizes is None else int(batch_sizes[0])
        rows = stack.layers * (1 + stack.bidirectional)
        hidden = weights[0].shape[0] // stack.cell.gates
        h0 = input.new_zeros(rows, batch, weights[1].shape[1]) if h0 is None else h0
        c0 = input.new_zeros(rows, batch, hidden) if c0 is None else c0
    # cuDNN keeps what the backward pass needs in training alone. Dropout between layers is ours.
    options = (stack.bias, stack.layers, 0.0, torch.is_grad_enabled(), stack.bidirectional)
    states = (h0, c0) if stack.cell.states > 1 else h0
    if batch_sizes is None:
        return sequence(input, states, weights, *options, stack.batch_first)
    return sequence(input, batch_sizes, states, weights, *options)


def _has_higher_derivatives(stack: ForTorch, input: Tensor) -> bool:
    """Whether torch.nn's kernels have them: ATen's do, cuDNN's and oneDNN's LSTM do not."""
    return input.device.type == "cpu" and (stack.is_step or stack.cell.states == 1)


class _Differentiable(torch.autograd.Function):
    """``apply(stack, batch_sizes, number of results, *results, input, h0, c0, *weights)``: the results.

    Its gradients go on to torch.nn's kernels, through the results, unless they are differentiated themselves: then
    they are computed by ours, and go to the tensors that the results come from.
    """

    @staticmethod
    def forward(ctx, stack, batch_sizes, count, *tensors):
        ctx.stack, ctx.count = stack, count
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, *tensors[count:])
        return tuple([result.detach() for result in tensors[:count]])

    @staticmethod
    def backward(ctx, *grads):
        given = [grad for grad in grads if grad is not None]
        needs = ctx.needs_input_grad[3 + ctx.count :]
        if not given or not need_layer(given):
            return (None, None, None, *grads, *[None] * len(needs))
        batch_sizes, *tensors = ctx.saved_tensors
        found = _gradients_by_ours(ctx.stack, batch_sizes, tensors, needs, grads)
        return (None, None, None, *[None] * ctx.count, *found)


def _gradients_by_ours(stack: ForTorch, batch_sizes, tensors, needs, grads) -> list[Tensor | None]:
    """The gradients by our operators, which can be differentiated again."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of views, since one argument may depend on another.
        views = [t.view_as(t) if needed else t for t, needed in zip(tensors, needs, strict=True)]
        input, h0, c0, *weights = views
        if stack.is_step:
            input, h0, c0 = (None if t is None else t.unsqueeze(0) for t in (input, h0, c0))
        elif stack.batch_first:
            input = input.transpose(0, 1).contiguous()
        cell, bias, bidirectional = stack.cell.id, stack.bias, stack.bidirectional
        layer = Layer.plain(cell, bias, bidirectional, input, h0, c0, (*weights,), batch_sizes=batch_sizes)
        output, *states = over_layers(stack.layers, functions.run_layer, layer)[: 1 + stack.cell.states]
        if stack.is_step:
            results = [state.squeeze(0) for state in states]
        else:
            results = [output.transpose(0, 1) if stack.batch_first else output, *states]
        used, given = zip(*[pair for pair in zip(results, grads, strict=True) if pair[1] is not None], strict=True)
        wanted = [view for view, needed in zip(views, needs, strict=True) if needed]
        # Its graph is needed again if the outer one is.
        found = iter(torch.autograd.grad(used, wanted, given, True, create_graph, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


def run_by_torch(stack: ForTorch, batch_sizes: Tensor | None, input, h0, c0, weights) -> Sequence[Tensor]:
    """One call of torch.nn's kernels: output, h_n and, of a cell with two states, c_n; of a step the states alone."""
    if torch_private.any_autocast() and torch.is_autocast_enabled(input.device.type):  # its casts have been made
        with torch.autocast(input.device.type, enabled=False):
            results = _run(stack, batch_sizes, input, h0, c0, weights)
    else:
        results = _run(stack, batch_sizes, input, h0, c0, weights)
    if not results[0].requires_grad or _has_higher_derivatives(stack, input):
        return results
    arguments = (stack, batch_sizes, len(results), *results, input, h0, c0, *weights)
    # Views, for nodes of their own: `nodes.own_node` would count as an edit of what the backward pass reads.
    return [result.view_as(result) for result in torch_private.apply_function(_Differentiable, arguments)]
