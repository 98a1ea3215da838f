"""What layers with weights of 8 bits compute, in plain torch and float64: the tests' reference.

A rounding that is close to a tie may go the other way in float32; ``Quantizer.is_decided`` is False after such a one.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# Distances from a tie, in units of the integers. What is given is exact, so only its scale has an error; what layers
# compute (h) has some float32 errors of up to 127 units.
OF_GIVEN, OF_COMPUTED = 2e-5, 3e-4


class Quantizer:
    """The products of layers whose weights are "int8" or "int8-weights-only"."""

    def __init__(self, weights: str):
        assert weights in ("int8", "int8-weights-only")
        self.of_rows = weights == "int8"
        self.is_decided = True

    def integers(self, rows: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Each row of [.., K] as integers times a scale [.., 1]."""
        largest = rows.abs().amax(-1, keepdim=True)
        scaled = torch.where(largest > 0, rows * (127 / largest), 0.0)
        distance = ((scaled - scaled.floor()) - 0.5).abs()
        self.is_decided = self.is_decided and not (distance < margin).any().item()
        return scaled.round(), largest / 127  # torch rounds half to even

    def matrix(self, weight: Tensor) -> Tensor:
        numbers, scale = self.integers(weight.double(), OF_GIVEN)
        return numbers * scale

    def product(self, rows: Tensor, weight: Tensor, margin: float = OF_COMPUTED) -> Tensor:
        numbers, scale = self.integers(weight.double(), OF_GIVEN)
        if not self.of_rows:
            return rows @ (numbers * scale).T
        own, own_scale = self.integers(rows, margin)
        return (own @ numbers.T) * (own_scale * scale.T)


def weights_of(module: nn.Module, suffix: str) -> dict[str, Tensor]:
    names = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
    found = {name: getattr(module, name + suffix, None) for name in names}
    return {name: weight.detach() for name, weight in found.items() if isinstance(weight, Tensor)}


def cell_of(mode: str, x: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h and c from W_ih x + b_ih and W_hh h + b_hh; of a GRU, "c" is the old h."""
    if mode == "LSTM":
        i, f, g, o = (x + r).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        (xr, xz, xn), (rr, rz, rn) = x.chunk(3, -1), r.chunk(3, -1)
        z, n = (xz + rz).sigmoid(), (xn + (xr + rr).sigmoid() * rn).tanh()
        return (1 - z) * n + z * c, c
    return ((x + r).tanh() if mode == "RNN_TANH" else (x + r).relu()), c


def run_direction(quantizer, mode, weights, x, states, lengths, resets, *, reverse, margin):
    """One layer in one direction: output [T, B, P], final states, all c. x: [T, B, I] or ids [T, B]."""
    h, c = states
    outputs, cells = {}, {}
    steps, batch = x.shape[:2]
    bias_ih, bias_hh = (weights[name].double() if name in weights else 0.0 for name in ("bias_ih", "bias_hh"))
    for t in reversed(range(steps)) if reverse else range(steps):
        active = lengths > t
        entering = t + reverse  # the step whose mask cuts the row before this one
        cut = resets[entering] & (lengths > entering) if entering < steps else torch.zeros(batch, dtype=torch.bool)
        h, c = h.masked_fill(cut[:, None], 0), c.masked_fill(cut[:, None], 0)
        if x.dtype == torch.int64:
            gates = quantizer.matrix(weights["weight_ih"])[:, x[t]].T + bias_ih
        else:
            gates = quantizer.product(x[t].double().masked_fill(~active[:, None], 0), weights["weight_ih"], margin)
            gates = gates + bias_ih
        recurrent = quantizer.product(h, weights["weight_hh"]) + bias_hh
        new_h, new_c = cell_of(mode, gates, recurrent, h if mode == "GRU" else c)
        if "weight_hr" in weights:
            new_h = quantizer.product(new_h, weights["weight_hr"])
        h, c = torch.where(active[:, None], new_h, h), torch.where(active[:, None], new_c, c)
        outputs[t], cells[t] = h * active[:, None], c * active[:, None]
    empty = h.new_zeros(0, *h.shape)
    in_order = (torch.stack([of[t] for t in range(steps)]) if steps else empty for of in (outputs, cells))
    return *in_order, h, c


def run_layers(module, input, hx=None, *, weights, lengths=None, reset_mask=None):
    """(output, states, all c of the last layer) of a layer's call, in float64, and whether they are decided."""
    quantizer = Quantizer(weights)
    packed = input if isinstance(input, PackedSequence) else None
    if packed is not None:
        input, lengths = pad_packed_sequence(packed)
    is_ids = input.dtype == torch.int64
    is_batched = input.dim() == (2 if is_ids else 3)
    batch_first = module.batch_first and packed is None
    if not is_batched:
        input = input.unsqueeze(1)
        reset_mask = None if reset_mask is None else reset_mask.unsqueeze(1)
    elif batch_first:
        input = input.transpose(0, 1)
        reset_mask = None if reset_mask is None else reset_mask.T
    steps, batch = input.shape[:2]
    lengths = torch.full((batch,), steps) if lengths is None else torch.as_tensor(lengths)
    reset_mask = torch.zeros(steps, batch, dtype=torch.bool) if reset_mask is None else reset_mask
    directions, hidden = 1 + module.bidirectional, module.hidden_size
    width = getattr(module, "proj_size", 0) or hidden
    count = module.num_layers * directions
    given = hx if isinstance(hx, tuple) else (hx,)
    given = [None if s is None else s.double() if is_batched else s.double().unsqueeze(1) for s in given]
    h0 = given[0] if given[0] is not None else torch.zeros(count, batch, width, dtype=torch.float64)
    c0 = given[1] if len(given) > 1 else torch.zeros(count, batch, hidden, dtype=torch.float64)
    finals, x = [], input
    for k in range(module.num_layers):
        done = [
            run_direction(
                quantizer,
                module.mode,
                weights_of(module, f"_l{k}" + "_reverse" * d),
                x,
                (h0[k * directions + d], c0[k * directions + d]),
                lengths,
                reset_mask,
                reverse=d == 1,
                margin=OF_COMPUTED if k else OF_GIVEN,
            )
            for d in range(directions)
        ]
        x, cells = (torch.cat([one[i] for one in done], -1) for i in (0, 1))
        finals += [one[2:] for one in done]
    states = [torch.stack([one[i] for one in finals]) for i in range(2 if module.mode == "LSTM" else 1)]
    if not is_batched:
        x, cells, states = x.squeeze(1), cells.squeeze(1), [s.squeeze(1) for s in states]
    elif batch_first:
        x, cells = x.transpose(0, 1), cells.transpose(0, 1)
    if packed is not None:
        x = pack_padded_sequence(x, lengths, enforce_sorted=False).data
    return [x, *states, *([cells] if module.mode == "LSTM" and packed is None else [])], quantizer.is_decided


def run_cell(module, input, hx=None, *, weights):
    """[h, c] or [h] of a cell's call, in float64, and whether they are decided."""
    quantizer = Quantizer(weights)
    modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
    kind = type(module).__name__
    mode = modes[module.nonlinearity] if kind == "RNNCell" else kind.removesuffix("Cell")
    rows = input.reshape(1, -1, input.shape[-1])
    given = [
        s.double().reshape(-1, module.hidden_size) for s in (hx if isinstance(hx, tuple) else (hx,)) if s is not None
    ]
    zeros = torch.zeros(rows.shape[1], module.hidden_size, dtype=torch.float64)
    h, c = (*given, zeros, zeros)[:2] if given else (zeros, zeros)
    lengths, resets = torch.ones(rows.shape[1]), torch.zeros(rows.shape[:2], dtype=torch.bool)
    own = weights_of(module, "")
    *_, h, c = run_direction(quantizer, mode, own, rows, (h, c), lengths, resets, reverse=False, margin=OF_GIVEN)
    shape = (*input.shape[:-1], module.hidden_size)
    return [s.reshape(shape) for s in ((h, c) if mode == "LSTM" else (h,))], quantizer.is_decided
