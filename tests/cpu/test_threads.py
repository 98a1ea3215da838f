"""Python threads, torch threads, forked processes: the same bits as on one thread."""

import multiprocessing
import threading
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.layer import Layer

# Large enough for several threads, which `test_number_of_threads` checks.
STEPS, INPUT, HIDDEN = 60, 20, 47
LAYERS = {
    "lstm": partial(fused_rnn.LSTM, INPUT, HIDDEN),
    "lstm projected": partial(fused_rnn.LSTM, INPUT, HIDDEN, proj_size=30),
    "gru": partial(fused_rnn.GRU, INPUT, HIDDEN),
    "rnn tanh": partial(fused_rnn.RNN, INPUT, HIDDEN),
    "rnn relu": partial(fused_rnn.RNN, INPUT, HIDDEN, nonlinearity="relu"),
}
# Wide enough that threads split the hidden units of a few rows, with and without projection.
TEAMS = {
    "team lstm": partial(fused_rnn.LSTM, INPUT, 150),
    "team lstm projected": partial(fused_rnn.LSTM, INPUT, 200, proj_size=131),
    "team gru": partial(fused_rnn.GRU, INPUT, 131),
    "team rnn": partial(fused_rnn.RNN, INPUT, 520),
}
SECONDS = 120  # far more than anything here takes


@pytest.fixture(autouse=True)
def threads():
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def problem(name, seed=0, batch=7, dtype=torch.float32, bidirectional=True):
    """A layer, its input and options; the same for the same arguments."""
    random = torch.Generator().manual_seed(seed)
    layer = (LAYERS | TEAMS)[name](num_layers=2, bidirectional=bidirectional, dtype=dtype)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random) / layer.hidden_size**0.5)
    input = torch.randn(STEPS, batch, INPUT, generator=random).to(dtype).requires_grad_()
    lengths = torch.randint(STEPS // 2, STEPS + 1, (batch,), generator=random)
    reset_mask = torch.rand(STEPS, batch, generator=random) < 0.1
    return layer, input, {"lengths": lengths, "reset_mask": reset_mask}


def training_step(name, **options):
    """Output, states and all gradients."""
    layer, input, masks = problem(name, **options)
    output, states = layer(input, **masks)
    outputs = [output, *(states if isinstance(states, tuple) else (states,))]
    random = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=random).to(t.dtype) for t in outputs]
    gradients = torch.autograd.grad(outputs, [input, *layer.parameters()], grads)
    return [t.detach() for t in outputs] + list(gradients)


def assert_identical(found, expected):
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert all(t.isfinite().all() for t in expected)


def in_threads(work, count=4):
    """``[work(0), work(1), ...]``, all at once; fails where one raises or hangs."""
    start, results = threading.Barrier(count), {}

    def run(i):
        start.wait(SECONDS)
        results[i] = work(i)

    workers = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    assert len(results) == count, "a thread failed or hangs"
    return [results[i] for i in range(count)]


@pytest.mark.parametrize("name", TEAMS)
def test_python_threads_with_teams(name):
    """More members than cores, so that teams wait for members without a core."""
    torch.set_num_threads(4)
    options = {"batch": 2, "bidirectional": False}
    expected = [training_step(name, seed=seed, **options) for seed in range(4)]
    found = in_threads(lambda seed: [training_step(name, seed=seed, **options) for _ in range(2)])
    for repeats, one in zip(found, expected, strict=True):
        for repeat in repeats:
            assert_identical(repeat, one)


@pytest.mark.parametrize("name", LAYERS)
def test_python_threads(name):
    expected = [training_step(name, seed=seed) for seed in range(4)]
    found = in_threads(lambda seed: [training_step(name, seed=seed) for _ in range(8)])
    for repeats, one in zip(found, expected, strict=True):
        for repeat in repeats:
            assert_identical(repeat, one)


def test_threads_share_one_module():
    """Gradients of the same weights from several threads at once, as in Hogwild training."""
    layer = LAYERS["lstm"](bidirectional=True)
    inputs = [torch.randn(STEPS, 7, INPUT) for _ in range(4)]

    def gradients(i):
        return torch.autograd.grad(layer(inputs[i])[0].square().sum(), list(layer.parameters()))

    expected = [gradients(i) for i in range(4)]
    found = in_threads(lambda i: [gradients(i) for _ in range(8)])
    for repeats, one in zip(found, expected, strict=True):
        for repeat in repeats:
            assert_identical(repeat, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 7, 24])
@pytest.mark.parametrize("name", LAYERS)
def test_number_of_threads(name, batch, dtype):
    """7 rows are split unevenly; 24 rows are whole tiles on one thread but not on four."""
    expected = None
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        layer, input, _ = problem(name, batch=batch, dtype=dtype)
        assert f"on {threads} thread" in str(fused_rnn.explain(layer, input))
        found = training_step(name, batch=batch, dtype=dtype)
        expected = expected or found
        assert_identical(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "bidirectional"), [(1, False), (3, True), (7, False)])
@pytest.mark.parametrize("name", TEAMS)
def test_number_of_threads_that_split_units(name, batch, bidirectional, dtype):
    options = {"batch": batch, "bidirectional": bidirectional, "dtype": dtype}
    torch.set_num_threads(1)
    expected = training_step(name, **options)
    layer, input, masks = problem(name, **options)
    for threads in (2, 3, 4, 8):
        torch.set_num_threads(threads)
        shared = "shares of the hidden units" in str(fused_rnn.explain(layer, input))
        assert shared == (4 * -(-threads // (1 + bidirectional)) > max(batch, 4)), "threads do not split units here"
        if not shared:
            continue
        assert_identical(training_step(name, **options), expected)
        with torch.no_grad():
            assert_identical([layer(input, **masks)[0]], expected[:1])


@pytest.mark.parametrize(("forward", "backward"), [(1, 4), (4, 1)])
def test_number_of_threads_between_forward_and_backward(forward, backward):
    layer, input, _ = problem("gru")
    gradients = []
    for threads in ((1, 1), (forward, backward)):
        torch.set_num_threads(threads[0])
        loss = layer(input)[0].square().sum()
        torch.set_num_threads(threads[1])
        gradients.append(torch.autograd.grad(loss, [input, *layer.parameters()]))
    assert_identical(*gradients)


@pytest.mark.parametrize("units", [100, 128])
@pytest.mark.parametrize("batch", [5, 8, 16])
def test_number_of_threads_of_a_single_step(units, batch):
    layer = fused_rnn.LSTM(200, units)
    leaves = [torch.randn(1, batch, 200), *(torch.randn(1, batch, units) for _ in range(2))]
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        x, h, c = (leaf.clone().requires_grad_() for leaf in leaves)
        output, _ = layer(x, (h, c))
        found.append([output, *torch.autograd.grad(output.square().sum(), [x, h, c, *layer.parameters()])])
    assert_identical(found[1], found[0])
    assert_identical(found[2], found[0])


def test_gradient_norms_with_number_of_threads():
    layer, input, _ = problem("gru", batch=24)
    weights = tuple(layer.all_weights[0] + layer.all_weights[1])
    call = Layer.plain(CELLS["gru"].id, True, True, input, None, None, weights)
    with torch.no_grad():
        *_, saved = call.forward(save=True, cells=False)
        norms = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            grads = (torch.ones(STEPS, 24, 2 * HIDDEN), None, None, None)
            norms.append(call.backward(grads, saved, 0, 1, norms=True)[3])
    assert_identical(norms[1:], norms[:1] * 2)


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_no_row_reaches_the_last_steps(kind):
    """The backward pass starts with steps in which no row is active."""
    layer, x = getattr(fused_rnn, kind)(32, 128), torch.randn(100, 16, 32)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(torch.autograd.grad(layer(x, lengths=[5] * 16)[0].sum(), list(layer.parameters())))
    for found in results[1:]:
        assert_identical(found, results[0])


def in_forked_process(work):
    """What ``work()`` returns in a forked copy of this process; fails where it raises or hangs."""
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def child():
        try:
            sending.send((work(), None))
        except BaseException as error:
            sending.send((None, repr(error)))

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, on any fork beside threads
        process.start()
    sending.close()  # so that the wait ends if the child dies
    try:
        assert receiving.poll(SECONDS), "the forked process hangs"
        result, error = receiving.recv()
        assert error is None, error
        return result
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("name", [*LAYERS, *TEAMS])
def test_fork(name):
    """As in DataLoader's workers: the child of a process with several threads runs on one."""
    torch.set_num_threads(2)
    options = {"bidirectional": name in LAYERS}
    expected = training_step(name, **options)

    def work():
        torch.set_num_threads(1)
        return [t.numpy() for t in training_step(name, **options)]

    assert_identical([torch.from_numpy(array) for array in in_forked_process(work)], expected)
    assert_identical(training_step(name, **options), expected)


class Encoded(torch.utils.data.Dataset):
    """Rows that went through a layer, in the process that asks for them."""

    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 12

    def __getitem__(self, i):
        input = torch.full((STEPS, INPUT), i / 10.0, requires_grad=True)
        output, _ = self.layer(input)
        (gradient,) = torch.autograd.grad(output.square().sum(), input)
        return output.detach(), gradient


def test_data_loader():
    torch.set_num_threads(2)
    dataset = Encoded(LAYERS["gru"](bidirectional=True))
    expected = [dataset[i] for i in range(len(dataset))]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, timeout=SECONDS, multiprocessing_context="fork"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = list(loader)
    for pair, expected_pair in zip(found, expected, strict=True):
        assert_identical(pair, expected_pair)


# ---- many steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_more_than_65536_steps(kind):
    ours = getattr(fused_rnn, kind)(1, 1, dtype=torch.float64)
    theirs = getattr(nn, kind)(1, 1, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(70_000, 1, 1, dtype=torch.float64)
    weight = torch.randn(70_000, 1, 1, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        own = input.clone().requires_grad_()
        output, _ = layer(own)
        gradients = torch.autograd.grad((output * weight).sum(), [own, *layer.parameters()])
        results.append([output.detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
