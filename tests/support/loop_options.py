"""A layer as a loop in plain PyTorch, with the masks of the loop's options given."""

import torch
from torch import nn
from torch.nn.functional import linear


def lstm_step(x, r, h, c):
    i, f, g, o = (x + r).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru_step(x, r, h):
    (x_r, x_z, x_n), (r_r, r_z, r_n) = x.chunk(3, -1), r.chunk(3, -1)
    n, z = (x_n + (x_r + r_r).sigmoid() * r_n).tanh(), (x_z + r_z).sigmoid()
    return [(1 - z) * n + z * h]


STEPS = {
    "LSTM": lstm_step,
    "GRU": gru_step,
    "RNN_TANH": lambda x, r, h: [(x + r).tanh()],
    "RNN_RELU": lambda x, r, h: [(x + r).relu()],
}


def keep(z, before, after):
    return z * before + (1 - z) * after if isinstance(z, float) else torch.where(z, before, after)


def run_loop(
    module: nn.RNNBase,
    x,
    states=None,
    *,
    weights=None,
    lengths=None,
    reset_mask=None,
    h_factors=None,
    zoneouts=None,
    each=None,
):
    """``[output, h_n, and c_n if there is one]`` of a layer that is given [T, B, I].

    ``weights``: by name, in place of the module's. ``h_factors``: for each layer [D, B, P], which h is multiplied by
    before W_hh. ``zoneouts``: likewise masks [T, B, D, states, H], or probabilities, for evaluation.
    ``each``: a list that gets the states after every step.
    """
    weights = dict(module.named_parameters()) | (weights or {})
    (steps, batch), directions = x.shape[:2], 1 + module.bidirectional
    count = 2 if module.mode == "LSTM" else 1
    lengths = torch.full((batch,), steps) if lengths is None else torch.as_tensor(lengths)
    finals = [[] for _ in range(count)]
    for k in range(module.num_layers):
        outputs = []
        for d in range(directions):
            at = k * directions + d
            suffix = f"_l{k}" + "_reverse" * d
            w = {name: weights.get(name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            w_hr = weights.get(f"weight_hr{suffix}")
            width = module.proj_size or module.hidden_size
            zeros = [x.new_zeros(batch, n) for n in (width, module.hidden_size)[:count]]
            now = zeros if states is None else [state[at] for state in states]
            done = [None] * steps
            for t in reversed(range(steps)) if d else range(steps):
                cut = t + d  # the step that a reset before this one is given for
                if reset_mask is not None and cut < steps:
                    is_cut = (reset_mask[cut] & (cut < lengths)).unsqueeze(-1)
                    now = [torch.where(is_cut, zero, state) for zero, state in zip(zeros, now, strict=True)]
                h = now[0] if h_factors is None else now[0] * h_factors[k][d]
                new = STEPS[module.mode](
                    linear(x[t], w["weight_ih"], w["bias_ih"]), linear(h, w["weight_hh"], w["bias_hh"]), *now
                )
                if w_hr is not None:
                    new[0] = linear(new[0], w_hr)
                if zoneouts is not None:
                    kept = zoneouts[k] if isinstance(zoneouts[k], tuple) else zoneouts[k][t, :, d].unbind(1)
                    new = [keep(z, before, after) for z, before, after in zip(kept, now, new, strict=False)]
                active = (t < lengths).unsqueeze(-1)
                done[t] = torch.where(active, new[0], torch.zeros_like(new[0]))
                now = [torch.where(active, after, before) for after, before in zip(new, now, strict=True)]
                if each is not None:
                    each.append(now)
                    done[t] = now[0]
            outputs.append(torch.stack(done))
            for final, state in zip(finals, now, strict=True):
                final.append(state)
        x = torch.cat(outputs, -1)
    return [x, *map(torch.stack, finals)]


def results_of(returned):
    """A layer's results as a flat list."""
    output, states = returned
    return [output, *(states if isinstance(states, tuple) else (states,))]
