"""Memory that is empty, freed, endless, exhausted or locked while the process forks."""

import os
import platform
import sys

import pytest
import torch

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.layer import Layer
from support.compiling import compile_library
from support.processes import run_python

EMPTY = {"h of no width": (5, 0), "no units": (0, 2)}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("hidden", "width"), EMPTY.values(), ids=EMPTY)
def test_an_empty_weight_is_a_weight(hidden, width, bidirectional, with_gradients):
    """Its address is null: that must not read as if there were no projection."""
    shapes = [(4 * hidden, 3), (4 * hidden, width), (width, hidden)] * (1 + bidirectional)
    tensors = [torch.randn(5, 2, 3), *map(torch.randn, shapes)]

    def results(api):
        leaves = [tensor.clone().requires_grad_(with_gradients) for tensor in tensors]
        with torch.set_grad_enabled(with_gradients):
            output, states = api.lstm(leaves[0], None, leaves[1:], bidirectional=bidirectional)
        if with_gradients:
            (output.sum() + states[1].sum()).backward()
        return [output, *states, *[leaf.grad for leaf in leaves if leaf.grad is not None]]

    for found, expected in zip(results(functional), results(reference), strict=True):
        torch.testing.assert_close(found, expected)


NAMES = ("input", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "lengths", "reset_mask")
SHAPES = ((5, 2, 3), (1, 2, 3), (1, 2, 4), (16, 3), (16, 3), (16,), (16,), (3, 4))


def lstm_of(tensors):
    input, h0, c0, *weights, lengths, reset_mask = tensors
    return functional.lstm(input, (h0, c0), weights, lengths=lengths, reset_mask=reset_mask)[0]


def tensors_to_free():
    tensors = [torch.randn(shape) for shape in SHAPES]
    return [*tensors, torch.tensor([5, 3]), torch.zeros(5, 2, dtype=torch.bool)]


@pytest.mark.parametrize("bytes_left", [0, 1])
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_freed_storage_is_refused(name, with_gradients, bytes_left):
    tensors = tensors_to_free()
    for tensor in tensors[3:8]:
        tensor.requires_grad_(with_gradients)
    tensors[NAMES.index(name)].untyped_storage().resize_(bytes_left)
    # torch itself refuses what it has to copy first.
    with torch.set_grad_enabled(with_gradients), pytest.raises(RuntimeError, match=f"{name} needs|setStorage|out of b"):
        lstm_of(tensors)


@pytest.mark.parametrize("name", ["input", "weight_hh", "bias_hh"])
def test_storage_freed_before_the_backward_pass_is_refused(name):
    tensors = tensors_to_free()
    for tensor in tensors[:8]:
        tensor.requires_grad_()
    loss = lstm_of(tensors).sum()
    tensors[NAMES.index(name)].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=rf"{name} needs .* bytes of storage, but its storage has 0: it was freed"):
        loss.backward()


def test_a_view_of_freed_storage_is_refused():
    """FSDP's parameters are views of one flat tensor: their addresses are not null."""
    layer = fused_rnn.GRU(3, 4)
    flat = torch.cat([weight.detach().flatten() for weight in layer.parameters()])
    first = 0
    for weight in layer.parameters():
        weight.data = flat[first : first + weight.numel()].view(weight.shape)
        first += weight.numel()
    layer(torch.randn(5, 2, 3))
    flat.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"needs .* bytes of storage, but its storage has 0"):
        layer(torch.randn(5, 2, 3))


@pytest.mark.parametrize("with_gradients", [True, False])
def test_freed_input_of_other_strides_is_refused(with_gradients):
    """``contiguous`` of it would crash torch."""
    layer = fused_rnn.GRU(3, 4)
    input = torch.randn(2, 5, 3).transpose(0, 1)
    input.untyped_storage().resize_(0)
    with torch.set_grad_enabled(with_gradients), pytest.raises(RuntimeError, match="storage"):
        layer(input)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_steps_without_rows_take_no_time(kind, with_gradients):
    """A loop over 2^40 steps would not end."""
    layer = getattr(fused_rnn, kind)(3, 4, 2, bidirectional=True)
    input = torch.empty(1 << 40, 0, 3)
    with torch.set_grad_enabled(with_gradients):
        output, _ = layer(input)
    assert output.shape == (1 << 40, 0, 8)
    if with_gradients:
        output.sum().backward()
        assert all((weight.grad == 0).all() for weight in layer.parameters())


def test_ids_without_rows_take_no_time():
    with torch.no_grad():
        output, _ = fused_rnn.GRU(3, 4)(torch.empty(1 << 40, 0, dtype=torch.int64))
    assert output.shape == (1 << 40, 0, 4)


def test_gradient_norms_without_rows_are_zeros():
    weights = (torch.randn(12, 3), torch.randn(12, 4))
    layer = Layer.plain(1, False, False, torch.empty(5, 0, 3), None, None, weights)
    output, *_, saved = layer.forward(True, False)
    _, _, _, norms, *_ = layer.backward((output, None, None, None), saved, 2, 1, True)
    assert torch.equal(norms, torch.zeros(1, 1, 5))


@pytest.mark.parametrize("with_gradients", [True, False])
def test_exhausted_memory_is_named(with_gradients):
    weights = [torch.randn(4, 0), torch.randn(4, 1)]
    message = r"^fused_rnn: out of memory: could not allocate \d+ bytes"
    with torch.set_grad_enabled(with_gradients), pytest.raises(RuntimeError, match=message):
        functional.lstm(torch.empty(1 << 46, 1, 0), None, weights)  # whose output no address space holds


# Takes long over what the pool does while it is locked.
SLOW_MADVISE = """
#include <stddef.h>
#include <unistd.h>
extern "C" int madvise(void*, size_t, int) { return usleep(300 * 1000); }
"""
FORKING = """
import os, sys, threading, time
import torch, fused_rnn
torch.set_num_threads(1)
layer, input = fused_rnn.GRU(64, 256), torch.randn(300, 8, 64)
thread = threading.Thread(target=layer, args=(input,))
thread.start()
time.sleep(0.1)
child = os.fork()
if child == 0:
    layer(input)
    os._exit(0)
thread.join()
for _ in range(200):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        print("done", status)
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    print("hung")
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="a slow madvise is preloaded, as Linux does it")
def test_fork_while_another_thread_allocates(tmp_path, monkeypatch):
    library = compile_library(tmp_path, SLOW_MADVISE, "-O1")
    monkeypatch.setenv("LD_PRELOAD", os.pathsep.join([library._name, *os.environ.get("LD_PRELOAD", "").split()]))
    assert run_python("-W", "ignore", "-c", FORKING) == "done 0\n", sys.version
