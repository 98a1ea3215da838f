"""Hooks on a layer's results: called as on torch.nn's, and never with None for a gradient that there is not."""

import pytest
import torch
from torch import nn

import fused_rnn

NAMES = ("LSTM", "GRU", "RNN")
LAYERS = ({}, {"num_layers": 2}, {"bidirectional": True}, {"batch_first": True}, {"num_layers": 2, "dropout": 0.5})


def padded(dtype):
    return torch.randn(5, 3, 3, dtype=dtype)


def packed(dtype):
    return nn.utils.rnn.pack_padded_sequence(padded(dtype), [2, 5, 3], enforce_sorted=False)


def unbatched(dtype):
    return torch.randn(5, 3, dtype=dtype)


def results_of(module, *args, **options):
    """The tensors that a call returns, by name."""
    output, states, *cells = module(*args, **options)
    states = states if isinstance(states, tuple) else (states,)
    output = output.data if isinstance(output, nn.utils.rnn.PackedSequence) else output
    return dict(zip(("output", "h_n", "c_n", "cells"), (output, *states, *cells), strict=False))


def reached(results, used):
    """{result: whether its hook got a gradient}, of the hooks called in the backward pass from one of the results."""
    called = {}
    for name, result in results.items():
        result.register_hook(lambda grad, name=name: called.update({name: grad is not None}))
    results[used].sum().backward()
    return called


def by_each(call):
    """What ``reached`` finds from each of the results of such a call."""
    return {used: reached(call(), used) for used in call()}


@pytest.mark.parametrize("make_input", [padded, packed, unbatched])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_called_as_on_torchs(name, options, dtype, make_input):
    x = make_input(dtype)
    found, theirs = (
        by_each(lambda kind=kind: results_of(getattr(kind, name)(3, 4, dtype=dtype, **options), x))
        for kind in (fused_rnn, nn)
    )
    # nn.LSTM in float32 calls the hook of an output that no gradient reaches with None.
    expected = {used: {k: True for k, is_reached in called.items() if is_reached} for used, called in theirs.items()}
    assert found == expected == {used: {used: True} for used in theirs}


@pytest.mark.parametrize(
    "options", [{"lengths": torch.tensor([5, 2, 3])}, {"return_cells": True}, {"grad_clip": 1.0}], ids=str
)
def test_hooks_with_options(options):
    found = by_each(lambda: results_of(fused_rnn.LSTM(3, 4), padded(torch.float32), **options))
    assert found == {used: {used: True} for used in found}


def test_hooks_of_a_watched_layer():
    module = fused_rnn.GRU(3, 4)
    with fused_rnn.gradient_flow(module):
        found = by_each(lambda: results_of(module, padded(torch.float32)))
    assert found == {used: {used: True} for used in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_may_change_a_gradient(name):
    """What such a hook returns reaches the weights, in first and in second derivatives."""
    ours, theirs = (getattr(kind, name)(3, 4, dtype=torch.float64) for kind in (fused_rnn, nn))
    ours.load_state_dict(theirs.state_dict())
    x = padded(torch.float64)
    found = []
    for module in (ours, theirs):
        results = results_of(module, x)
        for result in results.values():
            result.register_hook(lambda grad: grad * 2)
        grads = torch.autograd.grad(results["output"].square().sum(), list(module.parameters()), create_graph=True)
        found.append([*grads, *torch.autograd.grad(sum(grad.sum() for grad in grads), list(module.parameters()))])
    torch.testing.assert_close(*found)
