"""Norms of the gradients that reach each step, from a loop over time whose states keep their gradients."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import fused_rnn
from fused_rnn import reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.layer import Wanted, weight_kinds

both_probes = pytest.mark.parametrize("probe", ["last", "all"])
LENGTHS, RESETS = torch.tensor([6, 2, 6, 0, 4]), torch.zeros(6, 5, dtype=torch.bool)
RESETS[[0, 3, 1, 5, 3], [0, 0, 1, 2, 4]] = True
MASKS = {
    "padded": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"reset_mask": RESETS},
    "both": {"lengths": LENGTHS, "reset_mask": RESETS},
    "some whole rows": {"lengths": LENGTHS, "reset_mask": RESETS & (torch.arange(5) != 2)},
}
AT_THE_START, BEHIND_THE_END = torch.zeros_like(RESETS), torch.zeros_like(RESETS)
AT_THE_START[[0, 1], [0, 2]] = True
BEHIND_THE_END[[5, 1], [0, 2]] = True
MASKS |= {
    "a reset that cuts off nothing": {"lengths": LENGTHS, "reset_mask": AT_THE_START},
    "a reset behind the end": {"lengths": LENGTHS.clamp(max=4), "reset_mask": BEHIND_THE_END},
}


class Loop:
    """A module's layers as loops over time; ``states[k][d][t]`` holds h (and c) after step t, with gradients."""

    def __init__(self, module, input, lengths=None, reset_mask=None, detached=False):
        steps, batch = input.shape[:2]
        lengths = torch.full((batch,), steps) if lengths is None else lengths
        self.active = (torch.arange(steps).unsqueeze(1) < lengths).unsqueeze(-1)
        self.cuts = torch.zeros_like(self.active)
        if reset_mask is not None:
            self.cuts = reset_mask.unsqueeze(-1) & self.active
        self.cell = CELLS[module.mode.lower()]
        self.states, self.h_n = [], []
        for k in range(module.num_layers):
            entering, self.output = input.detach() if detached else input, []
            self.states.append([])
            for d in range(1 + module.bidirectional):
                suffix = f"l{k}" + "_reverse" * d
                self._direction(module, entering, suffix, d)
            input = torch.cat(self.output, -1)
        self.output = input

    def _direction(self, module, input, suffix, d):
        kinds = weight_kinds(self.cell, module.bias, module.proj_size > 0)
        own = {kind: getattr(module, f"{kind.name.lower()}_{suffix}") for kind in kinds}
        batch, steps = input.shape[1], input.shape[0]
        widths = [module.proj_size or module.hidden_size, module.hidden_size][: self.cell.states]
        states = [input.new_zeros(batch, width) for width in widths]
        after = {}
        for t in reversed(range(steps)) if d else range(steps):
            if t + d < steps:
                states = [s.masked_fill(self.cuts[t + d], 0) for s in states]
            x = linear(input[t], own[Wanted.WEIGHT_IH], own.get(Wanted.BIAS_IH))
            r = linear(states[0], own[Wanted.WEIGHT_HH], own.get(Wanted.BIAS_HH))
            h, *c = reference.STEPS[self.cell.id](x, r, *states)
            after[t] = [h if Wanted.WEIGHT_HR not in own else linear(h, own[Wanted.WEIGHT_HR]), *c]
            for state in after[t]:
                state.retain_grad()
            states = [torch.where(self.active[t], new, s) for new, s in zip(after[t], states, strict=True)]
        self.states[-1].append([after[t] for t in range(steps)])
        self.h_n.append(states[0])
        self.output.append(torch.stack([after[t][0] * self.active[t] for t in range(steps)]))

    def norms(self, k):
        """[D, kStates, T] of layer k, after a backward pass."""

        def norm(state):
            return torch.zeros((), dtype=state.dtype) if state.grad is None else state.grad.norm()

        by_time = [[torch.stack([norm(s) for s in states]) for states in of_d] for of_d in self.states[k]]
        return torch.stack([torch.stack(of_d, -1) for of_d in by_time])


def loss_of(output):
    """A loss of every step's output, each with another weight."""
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output).to(output)).sum()


def expected_norms(module, input, probe, lengths=None, reset_mask=None):
    loop = Loop(module, input, lengths, reset_mask, detached=probe == "last")
    if probe == "all":
        loss_of(loop.output).backward()
    else:
        steps, batch = input.shape[:2]
        longest = torch.ones(batch, dtype=torch.bool) if lengths is None else lengths == lengths.max()
        last = steps if lengths is None else int(lengths.max())
        whole = longest if reset_mask is None else longest & ~reset_mask[1:last].any(0)
        rows = whole if whole.any() else longest
        sum(h_n[rows].sum() for h_n in loop.h_n).backward()
    module.zero_grad()
    return {f"l{k}": loop.norms(k) for k in range(module.num_layers)}


def found_norms(module, input, probe, call=None, loss=loss_of, **options):
    with fused_rnn.gradient_flow(module, probe, **options) as flow:
        loss((call or module)(input)[0]).backward()
    module.zero_grad()
    return dict(flow.norms())


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 3)
        self.encoder = fused_rnn.LSTM(3, 5, 2, bidirectional=True)
        self.decoder = fused_rnn.GRU(10, 5)

    def forward(self, x):
        return self.decoder(self.encoder(self.enter(x))[0])
