"""Layers with the loop's options, and a layer as a loop in plain PyTorch, with the masks of these options given."""

import contextlib
import copy

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

import fused_rnn
from support.modules import F64, make_states

LAYERS = {
    "lstm": (fused_rnn.LSTM, {}),
    "projected": (fused_rnn.LSTM, {"proj_size": 2}),
    "gru": (fused_rnn.GRU, {}),
    "rnn": (fused_rnn.RNN, {"nonlinearity": "relu"}),
}
every_class = pytest.mark.parametrize("kind", LAYERS)

SHAPES = (st.integers(1, 5), st.integers(1, 4), st.integers(3, 19), st.booleans(), st.data())
"""Steps, batch, hidden, bidirectional, and what ``random_rows`` draws from."""


def make(made, *sizes, **options):
    """A layer in float64, of 3 features and 5 units by default."""
    return made(*(sizes or (3, 5)), **{"dtype": F64} | options)


def call(layer, *args, seed=1, **options):
    torch.manual_seed(seed)
    return layer(*args, **options)


def random_rows(data, steps, batch):
    """Lengths and resets, as a call takes them."""
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    reset = torch.tensor(data.draw(st.lists(st.booleans(), min_size=steps * batch, max_size=steps * batch)))
    return {"lengths": torch.tensor(lengths), "reset_mask": reset.view(steps, batch)}


def states_for(layer, batch):
    """Random first states, a tuple."""
    states = make_states(layer, batch)
    return states if isinstance(states, tuple) else (states,)


def assert_same(layer, x, states=None, *, masks, **options):
    """Values and all gradients against the loop. ``masks``: those of a call, as ``run_loop`` takes them."""
    leaves = [x, *(states or ()), *layer.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    found = results_of(call(layer, x, states if states is None or len(states) > 1 else states[0], **options))
    expected = run_loop(layer, x, states, **masks, **options)
    torch.testing.assert_close(found, expected)
    upstream = [torch.randn_like(t) for t in found]
    given, wanted = (torch.autograd.grad(t, leaves, upstream, allow_unused=True) for t in (found, expected))
    torch.testing.assert_close(
        [g for g in given if g is not None], [g for g in wanted if g is not None], rtol=1e-9, atol=1e-9
    )


def assert_plain_in_evaluation(layer, option):
    """The same bits as without the option, which draws nothing; frozen too."""
    plain = copy.deepcopy(layer.eval())
    setattr(plain, option, 0.0)
    x, state = torch.randn(4, 2, 3, dtype=F64), torch.get_rng_state()
    assert all(map(torch.equal, results_of(layer(x)), results_of(plain(x))))
    with torch.no_grad():
        assert all(map(torch.equal, results_of(fused_rnn.freeze(layer)(x)), results_of(plain(x))))
    assert torch.equal(state, torch.get_rng_state())


def assert_zero_is_plain(option, value=0):
    layer = fused_rnn.LSTM(3, 5, **{option: value})
    assert option not in vars(layer) and repr(layer) == "fused_rnn.LSTM(3, 5)"
    state = torch.get_rng_state()
    layer(torch.ones(2, 1, 3))
    assert torch.equal(state, torch.get_rng_state())


def assert_takes_an_empty_batch(layer):
    output, (h, c) = layer(torch.randn(4, 0, 3, dtype=F64))
    output.sum().backward()
    assert output.shape == (4, 0, 5) and h.shape == c.shape == (1, 0, 5)
    assert layer.weight_hh_l0.grad.count_nonzero() == 0


def assert_same_bits_whatever_the_threads(layer, x, draws=True):
    """For calls after one seed. ``draws``: whether a call after no seed has other masks."""
    first = results_of(call(layer, x))
    assert torch.equal(first[0], results_of(layer(x))[0]) is not draws
    with other_threads():
        assert all(map(torch.equal, first, results_of(call(layer, x))))


@contextlib.contextmanager
def other_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        yield
    finally:
        torch.set_num_threads(before)


def lstm_step(x, r, h, c, normed=lambda c: c):
    i, f, g, o = (x + r).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [o.sigmoid() * normed(c).tanh(), c]


def normalised(sums, gain, bias):
    """Layer norm, from its definition."""
    from_mean = sums - sums.mean(-1, keepdim=True)
    y = gain * from_mean / (from_mean.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return y if bias is None else y + bias


def normed_step(mode, w, x, r, states):
    """A step with layer norm, of W_ih x and W_hh h."""
    gates = normalised(x, w["gain_ih"], w["bias_ih"]), normalised(r, w["gain_hh"], w["bias_hh"])
    if mode != "LSTM":
        return STEPS[mode](*gates, *states)
    return lstm_step(*gates, *states, normed=lambda c: normalised(c, w["gain_c"], w["bias_c"]))


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
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh", "gain_c", "bias_c")
            w = {name: weights.get(name + suffix) for name in names}
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
                if module.layer_norm:
                    new = normed_step(module.mode, w, linear(x[t], w["weight_ih"]), linear(h, w["weight_hh"]), now)
                else:
                    gates = linear(x[t], w["weight_ih"], w["bias_ih"]), linear(h, w["weight_hh"], w["bias_hh"])
                    new = STEPS[module.mode](*gates, *now)
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
