"""The layers as JAX users write them: the input projection as one product, then ``lax.scan``, all of it under jit."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from ..problem import Problem, Side
from ..suites import Work

NAME = "JAX"


def missing() -> str | None:
    return "not installed: jax" if importlib.util.find_spec("jax") is None else None


def version() -> str:
    return importlib.metadata.version("jax")


def left_out(work: Work) -> str | None:
    if work.cell:
        return "has no cells"
    if work.device != "cpu" or work.dtype != "float32":
        return "float32 on the CPU only"
    if work.packed or work.projected:
        return "written without packed input and projections"
    return None


def build(problem: Problem) -> Side:
    import jax

    work = problem.work

    def layers(x, weights, states):
        import jax.numpy as jnp

        directions, finals = 1 + work.bidirectional, []
        for k in range(work.num_layers):
            outputs = []
            for d in range(directions):
                walk = k * directions + d
                start = [state[walk] for state in states] or None
                output, final = _walk(work.layer, x, weights[4 * walk : 4 * walk + 4], start, reverse=d == 1)
                outputs.append(output)
                finals.append(final)
            x = jnp.concatenate(outputs, -1) if directions > 1 else outputs[0]
        return x, [jnp.stack(parts) for parts in zip(*finals, strict=True)] if states else []

    def infer(x, weights, states):
        output, finals = layers(x, weights, states)
        return [output, *finals]

    def train(x, weights, grad):
        output, pull = jax.vjp(lambda x, weights: layers(x, weights, [])[0], x, weights)
        dx, dweights = pull(grad)
        return [output, dx, *dweights]

    x, weights, states, grad = jax.device_put(
        [
            problem.input.numpy(),
            [weight.numpy() for weight in problem.weights],
            [state.numpy() for state in problem.states],
            problem.grad.numpy(),
        ]
    )
    call = jax.jit(train if work.mode == "training" else infer)
    arguments = (x, weights, grad if work.mode == "training" else states)
    return Side(
        lambda: jax.block_until_ready(call(*arguments)),
        lambda results: [torch.from_numpy(jax.device_get(array).copy()) for array in results],
    )


def _walk(layer: str, x, weights, start, reverse: bool):
    """One direction of one layer: ``[T, B, I]`` to ``[T, B, H]`` and the final states."""
    import jax
    import jax.numpy as jnp

    w_ih, w_hh, b_ih, b_hh = weights
    if start is None:
        start = [jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)] * (2 if layer == "LSTM" else 1)

    def lstm(states, x):
        h, c = states
        i, f, g, o = jnp.split(x + h @ w_hh.T, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(states, x):
        (h,) = states
        x_rz, x_n = jnp.split(x, [2 * h.shape[-1]], -1)
        h_rz, h_n = jnp.split(h @ w_hh.T + b_hh, [2 * h.shape[-1]], -1)
        r, z = jnp.split(jax.nn.sigmoid(x_rz + h_rz), 2, -1)
        n = jnp.tanh(x_n + r * h_n)
        h = (1 - z) * n + z * h
        return (h,), h

    def rnn(states, x):
        (h,) = states
        h = jnp.tanh(x + h @ w_hh.T)
        return (h,), h

    step = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[layer]
    projected = x @ w_ih.T + (b_ih if layer == "GRU" else b_ih + b_hh)
    final, output = jax.lax.scan(step, tuple(start), projected, reverse=reverse)
    return output, final
