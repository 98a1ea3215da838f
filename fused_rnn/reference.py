"""The same layers in a few lines of plain PyTorch: slow, clear, differentiable any number of times.

Every fast path is tested against this module, and this module against ``torch.nn``. ``lstm``, ``gru`` and ``rnn`` have
the signatures of those in :mod:`fused_rnn.functional`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from .ops import arguments, layer_norm, torch_private
from .ops.cells import BY_ID, Cell
from .ops.layer import Layer, Wanted

# ---- the cells: x = W_ih x_t + b_ih and r = W_hh h + b_hh, each [B, G*H]; then the states, then per-unit parameters --


def lstm_gates(x: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (x + r).chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def lstm_step(x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = lstm_gates(x, r)
    c_next = f * c + i * g
    return o * c_next.tanh(), c_next


def gru_gates(x: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    (x_reset, x_z, x_n), (r_reset, r_z, r_n) = x.chunk(3, -1), r.chunk(3, -1)
    reset = (x_reset + r_reset).sigmoid()
    return reset, (x_z + r_z).sigmoid(), (x_n + reset * r_n).tanh()


def gru_step(x: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor]:
    _, z, n = gru_gates(x, r)
    return ((1 - z) * n + z * h,)


def rnn_tanh_gates(x: Tensor, r: Tensor) -> tuple[Tensor]:
    return ((x + r).tanh(),)


def rnn_tanh_step(x: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor]:
    return rnn_tanh_gates(x, r)


def rnn_relu_gates(x: Tensor, r: Tensor) -> tuple[Tensor]:
    return ((x + r).relu(),)


def rnn_relu_step(x: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor]:
    return rnn_relu_gates(x, r)


# By cell id, like ops.cells.BY_ID. GATES: for the cells whose row there names them.
GATES = (lstm_gates, gru_gates, rnn_tanh_gates, rnn_relu_gates)
STEPS = dict(enumerate((lstm_step, gru_step, rnn_tanh_step, rnn_relu_step)))


def register(cell: Cell, step: Callable[..., tuple[Tensor, ...]]) -> None:
    """The step of a cell that is registered at run time: ``step(x, r, *states) -> new states``, in order.

    x and r are [B, G*H], r None if the cell has no recurrent matrix. After the states come the per-unit parameters
    [kParams, H], if it has any.
    """
    STEPS.setdefault(cell.id, step)


# ---- the loop over time ----------------------------------------------------------------------------------------------


class _ClipGradient(torch.autograd.Function):
    """The identity; clamps the gradient to [-limit, limit]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor, limit):
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-ctx.limit, ctx.limit), None


def run_layer(
    layer: Layer, cells: bool = False, grad_clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer over a whole sequence, as ``autograd.functions.run_layer``: output, h_n, c_n, and the second state
    after every step.

    16-bit tensors are computed in float32 and rounded at the end.
    """
    if layer.reads_tokens:
        _check_ids(layer)
        layer = layer.with_numbers()
    if layer.weights[0].dim() == 3:
        return _run_members(layer, cells, grad_clip)
    return _run_directions(_PlainStep, layer, cells, grad_clip)


def run_normed(
    layer: Layer, norms: Sequence[Tensor], cells: bool = False, grad_clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with layer norm, whose parameters are ``norms`` (:mod:`fused_rnn.ops.layer_norm`)."""
    if layer.reads_tokens:
        _check_ids(layer)
        layer = layer.with_numbers()
    dtype, narrow = layer.weights[0].dtype, layer.weights[0].dtype in _NARROW
    norms = [norm.float() if narrow else norm for norm in norms]
    return tuple(t.to(dtype) for t in _run_directions(partial(_NormedStep, norms), layer, cells, grad_clip))


_NARROW = (torch.float16, torch.bfloat16)


def _run_directions(step_of, layer: Layer, cells: bool, grad_clip: float | None):
    """``step_of(layer, weights, d)`` gives the step of direction d."""
    dtype = layer.input.dtype
    if dtype in _NARROW:
        names = ("input", "h0", "c0", "h_factor")
        wide = {name: tensor.float() for name in names if (tensor := getattr(layer, name)) is not None}
        layer = layer._replace(**wide, weights=tuple(w.float() for w in layer.weights))
        return tuple(t.to(dtype) for t in _run_directions(step_of, layer, cells, grad_clip))
    if layer.batch_sizes is not None:
        return _run_packed(partial(_run_directions, step_of), layer, cells, grad_clip)

    directions = 1 + layer.bidirectional
    per_direction = len(layer.weights) // directions
    results = []
    for d in range(directions):
        step = step_of(layer, layer.weights[d * per_direction : (d + 1) * per_direction], d)
        states = [s[d] if s is not None else None for s in (layer.h0, layer.c0)]
        results.append(_run_direction(layer, step, states, reverse=d == 1, grad_clip=grad_clip))
    outputs, h_ns, c_ns, all_cells = zip(*results, strict=True)
    empty = layer.input.new_empty(0)
    two_states = BY_ID[layer.cell].states > 1
    return (
        torch.cat(outputs, -1),
        torch.stack(h_ns),
        torch.stack(c_ns) if two_states else empty,
        torch.cat(all_cells, -1) if cells else empty,
    )


def _check_ids(layer: Layer) -> None:
    if torch_private.in_transform():  # values cannot be read under transforms
        return
    known = (layer.input >= 0) & (layer.input < layer.weights[0].shape[-1])
    if layer.lengths is not None:  # padding may hold anything
        known |= torch.arange(known.shape[-2], device=known.device).unsqueeze(1) >= layer.lengths.unsqueeze(-2)
    if not known.all():
        raise RuntimeError(f"ids must lie between 0 and {layer.weights[0].shape[-1] - 1}")


class _PlainStep:
    """One step of one direction, as a function of its input, h as W_hh reads it, and the states."""

    def __init__(self, layer: Layer, weights: tuple[Tensor, ...], d: int):
        self.cell, _, self.hidden, self.width, *_ = layer.sizes
        self.weights = dict(zip(layer.weight_kinds, weights, strict=False))  # the kinds repeat for each direction

    def __call__(self, x: Tensor, h: Tensor, states: list[Tensor]) -> list[Tensor]:
        weights, gates_r = self.weights, None
        gates_x = linear(x, weights[Wanted.WEIGHT_IH], weights.get(Wanted.BIAS_IH))
        if self.cell.recurrent:
            gates_r = linear(h, weights[Wanted.WEIGHT_HH], weights.get(Wanted.BIAS_HH))
        params = [weights[Wanted.PARAMETERS]] if self.cell.params else []
        new = list(STEPS[self.cell.id](gates_x, gates_r, *states, *params))
        if Wanted.WEIGHT_HR in weights:
            new[0] = new[0] @ weights[Wanted.WEIGHT_HR].T
        return new


class _NormedStep(_PlainStep):
    """Likewise with layer norm."""

    def __init__(self, norms: Sequence[Tensor], layer: Layer, weights: tuple[Tensor, ...], d: int):
        super().__init__(layer, weights, d)
        names = layer_norm.names(self.cell, layer.bias)
        self.norms = dict(zip(names, norms[d * len(names) :], strict=False))

    def __call__(self, x: Tensor, h: Tensor, states: list[Tensor]) -> list[Tensor]:
        weights, norms, gates_r = self.weights, self.norms, None
        gates_x = _normalised(x @ weights[Wanted.WEIGHT_IH].T, norms["gain_ih"], weights.get(Wanted.BIAS_IH))
        if self.cell.recurrent:
            gates_r = _normalised(h @ weights[Wanted.WEIGHT_HH].T, norms["gain_hh"], weights.get(Wanted.BIAS_HH))
        params = [weights[Wanted.PARAMETERS]] if self.cell.params else []
        new = list(STEPS[self.cell.id](gates_x, gates_r, *states, *params))
        if self.cell.output_gate:
            gate = GATES[self.cell.id](gates_x, gates_r)[self.cell.gate("output")]
            new[0] = gate * _normalised(new[1], norms["gain_c"], norms.get("bias_c")).tanh()
        return new


def _normalised(sums: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.layer_norm(sums, sums.shape[-1:], gain, bias, layer_norm.EPSILON)


def _run_direction(layer: Layer, step, states: list[Tensor | None], reverse: bool, grad_clip):
    cell, hidden, width = step.cell, step.hidden, step.width
    x = layer.input
    steps, batch = x.shape[:2]
    h0, c0 = states
    beginning = [x.new_full((batch, width if k == 0 else hidden), start) for k, start in enumerate(cell.beginning)]
    now = [
        beginning[0] if h0 is None else h0,
        *(beginning[1:] if c0 is None else c0.split(hidden, -1)),
    ]
    steps_done: list[list[Tensor]] = []
    for t in reversed(range(steps)) if reverse else range(steps):
        active = _column(t < layer.lengths) if layer.lengths is not None else None
        cut = _cut_before(layer, t, reverse)
        if cut is not None:
            now = [state.masked_fill(cut, start) for state, start in zip(now, cell.beginning, strict=True)]
        # Padding may hold anything, NaN included, and a zero gradient does not stop a NaN.
        x_t = x[t] if active is None else x[t].masked_fill(~active, 0)
        new = step(x_t, now[0] if layer.h_factor is None else now[0] * layer.h_factor[int(reverse)], now)
        if layer.zones_out:
            new = _zone_out(layer, t, int(reverse), now, new)
        if grad_clip is not None:
            new[0] = _ClipGradient.apply(new[0], grad_clip)
        if active is None:
            now = new
            steps_done.append(new)
        else:
            steps_done.append([state.masked_fill(~active, 0) for state in new])
            now = [torch.where(active, after, before) for after, before in zip(new, now, strict=True)]
    if reverse:
        steps_done.reverse()
    output, *further = (torch.stack(state) for state in zip(*steps_done, strict=True))
    h, *c = now
    return output, h, torch.cat(c, -1) if c else h, torch.cat(further, -1) if c else output


def _zone_out(layer: Layer, t: int, d: int, former: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """The states after a step of direction ``d``."""
    if layer.zoneout_mask is None:
        shares = [layer.zoneout_h or 0.0, *[layer.zoneout_c or 0.0] * (len(new) - 1)]
        return [p * before + (1 - p) * after for p, before, after in zip(shares, former, new, strict=True)]
    kept = layer.zoneout_mask[t].chunk(1 + layer.bidirectional, -1)[d].chunk(len(new), -1)
    return [torch.where(keeps, before, after) for keeps, before, after in zip(kept, former, new, strict=True)]


def _cut_before(layer: Layer, t: int, reverse: bool) -> Tensor | None:
    """[B, 1]: rows that are reset before step t; in the reverse direction, by the mask of step t + 1."""
    at = t + 1 if reverse else t
    if layer.reset_mask is None or at == layer.reset_mask.shape[0]:
        return None
    cut = layer.reset_mask[at]
    return _column(cut & (at < layer.lengths) if layer.lengths is not None else cut)


def _column(mask: Tensor) -> Tensor:
    return mask.unsqueeze(-1)


def _run_packed(run, layer: Layer, cells: bool, grad_clip):
    """Pads packed input first: the rows of step t are the first batch_sizes[t] of the batch."""
    sizes = layer.batch_sizes.tolist()
    steps, batch = len(sizes), sizes[0]
    place = torch.cat([torch.arange(n) + t * batch for t, n in enumerate(sizes)]).to(layer.input.device)
    padded = layer.input.new_zeros(steps * batch, layer.input.shape[-1]).index_copy(0, place, layer.input)
    lengths = torch.tensor([sum(n > b for n in sizes) for b in range(batch)], device=layer.input.device)
    mask = layer.zoneout_mask
    if mask is not None:
        mask = mask.new_zeros(steps * batch, mask.shape[-1]).index_copy(0, place, mask).unflatten(0, (steps, batch))
    layer = layer._replace(lengths=lengths, batch_sizes=None, zoneout_mask=mask)
    output, h_n, c_n, all_cells = run(layer._replace(input=padded.unflatten(0, (steps, batch))), cells, grad_clip)
    output, all_cells = (t.flatten(0, 1).index_select(0, place) if t.dim() == 3 else t for t in (output, all_cells))
    return output, h_n, c_n, all_cells


def _run_members(layer: Layer, cells: bool, grad_clip):
    """Runs each member by itself; members may share input, lengths and reset_mask."""
    row_dims = 1 if layer.batch_sizes is not None else 2
    own_dims = {"input": row_dims + 1, "h0": 3, "c0": 3, "lengths": 1, "reset_mask": 2}
    own_dims |= {"h_factor": 3, "zoneout_mask": row_dims + 1}
    tensors = {name: tensor for name in own_dims if (tensor := getattr(layer, name)) is not None}
    dims = {name: 0 if tensor.dim() > own_dims[name] else None for name, tensor in tensors.items()}

    def run(tensors, weights):
        results = run_layer(layer._replace(**tensors, weights=weights), cells, grad_clip)
        return tuple(result for result in results if result.shape != (0,))

    found = iter(torch.vmap(run, (dims, 0))(tensors, layer.weights))
    empty, two_states = layer.input.new_empty(0), layer.sizes[0].states > 1
    return next(found), next(found), next(found) if two_states else empty, next(found) if cells else empty


RUNNER = arguments.Runner(run_layer)
RUNNER.run_normed = run_normed


def _twin(name: str):
    function = partial(getattr(arguments, name), RUNNER)
    function.__doc__ = f"``fused_rnn.functional.{name}`` in plain PyTorch: same arguments, shapes and results."
    return function


lstm, gru, rnn = _twin("lstm"), _twin("gru"), _twin("rnn")
