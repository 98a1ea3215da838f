"""``checkpoint``: the backward pass gets a few states and computes the rest again, to the same bits."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from support.loop_options import LAYERS, call, every_class, make, other_threads, results_of, states_for
from support.modules import DEEP, F64, through_file

ROUND = 512  # rows of the batch times steps, at most, in a round of the backward pass


def twins(kind, *sizes, checkpoint=1, **options):
    """A layer with checkpoints, and the same one without."""
    made, own = LAYERS[kind]
    layer = make(made, *sizes, **own | {"checkpoint": checkpoint} | options)
    plain = copy.deepcopy(layer)
    plain.checkpoint = None
    return layer, plain


def saved_bytes(run):
    """What a call keeps for its backward pass, without the tensors that it was given."""
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        output = run()
    return sum(t.numel() * t.element_size() for t in seen), output


def gradients(layer, *args, **options):
    leaves = [leaf for leaf in (args[0], *layer.parameters()) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    results = results_of(call(layer, *args, **options))
    results = [r.data if isinstance(r, nn.utils.rnn.PackedSequence) else r for r in results]
    torch.manual_seed(2)
    upstream = [torch.randn_like(result) for result in results]
    return results, torch.autograd.grad(results, leaves, upstream, allow_unused=True)


def assert_same_bits(layer, plain, *args, **options):
    found, expected = (gradients(each, *args, **options) for each in (layer, plain))
    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@every_class
@pytest.mark.parametrize("options", [{}, DEEP, {"bias": False}], ids=str)
@pytest.mark.parametrize("steps", [1, 300, 512, 513, 1400])
def test_same_bits_as_without(no_reference, kind, options, steps):
    """Of less than a round, of one, and of several with a rest."""
    layer, plain = twins(kind, 3, 5, **options)
    x = torch.randn(steps, 1, 3, dtype=F64, requires_grad=True)
    states = states_for(layer, 1)
    assert_same_bits(layer, plain, x, states if len(states) > 1 else states[0])


@every_class
@pytest.mark.parametrize("checkpoint", [1, 70, 129, 250])
def test_any_number_of_steps_is_rounded_up_to_whole_rounds(no_reference, kind, checkpoint):
    layer, plain = twins(kind, 3, 33, checkpoint=checkpoint, bidirectional=True)
    assert_same_bits(layer, plain, torch.randn(400, 8, 3, dtype=F64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "projected"])
def test_in_every_dtype(no_reference, kind, dtype):
    """h is kept as it is carried, c wider than it is stored."""
    layer, plain = twins(kind, 3, 40, bidirectional=True, dtype=dtype)
    assert_same_bits(layer, plain, torch.randn(150, 9, 3, dtype=dtype, requires_grad=True))
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert_same_bits(layer.float(), plain.float(), torch.randn(150, 9, 3, requires_grad=True))


@settings(max_examples=25)
@given(st.sampled_from(sorted(LAYERS)), st.integers(60, 150), st.integers(9, 20), st.booleans(), st.data())
def test_random_shapes_with_lengths_and_resets(kind, steps, batch, bidirectional, data):
    layer, plain = twins(kind, 2, 5, bidirectional=bidirectional, checkpoint=data.draw(st.integers(1, 80)))
    x = torch.randn(steps, batch, 2, dtype=F64, requires_grad=True)
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    resets = torch.rand(steps, batch, generator=torch.Generator().manual_seed(1)) < 0.05
    assert_same_bits(layer, plain, x, lengths=torch.tensor(lengths), reset_mask=resets)


@every_class
def test_packed_rows(no_reference, kind):
    layer, plain = twins(kind, bidirectional=True)
    x = pack_padded_sequence(torch.randn(200, 6, 3, dtype=F64), torch.tensor([200, 180, 130, 100, 99, 1]))
    assert_same_bits(layer, plain, x)


@pytest.mark.parametrize(
    "options", [{"recurrent_dropout": 0.3}, {"zoneout": 0.3}, {"weight_dropout": 0.3}, {"heads": 2}], ids=str
)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_with_other_options(no_reference, kind, options):
    layer, plain = twins(kind, 3, 6, bidirectional=True, **options)
    assert_same_bits(layer, plain, torch.randn(150, 9, 3, dtype=F64, requires_grad=True))


@pytest.mark.parametrize("hidden", [40, 200])
def test_whatever_the_threads(no_reference, hidden):
    """Rows or units are shared among threads."""
    layer, plain = twins("lstm", 3, hidden)
    x = torch.randn(700, 2, 3, dtype=F64, requires_grad=True)
    assert_same_bits(layer, plain, x)
    before = gradients(layer, x)
    with other_threads():
        after = gradients(layer, x)
        assert_same_bits(layer, plain, x)
    for ours, theirs in zip([*before[0], *before[1]], [*after[0], *after[1]], strict=True):
        assert torch.equal(ours, theirs)


def test_it_saves_memory():
    layer, plain = twins("lstm", 3, 64)
    x = torch.randn(5120, 1, 3, dtype=F64)
    (kept, _), (everything, _) = saved_bytes(lambda: layer(x)), saved_bytes(lambda: plain(x))
    weights = sum(w.numel() for w in layer.parameters()) * 8 + x.numel() * 8
    assert kept - weights == 10 * 128 * 8
    assert everything - weights == 5120 * 6 * 64 * 8


def test_grad_clip_return_cells_and_what_was_edited():
    layer, plain = twins("lstm")
    x, weights = torch.randn(1200, 1, 3, dtype=F64), torch.randn(1200, 1, 5, dtype=F64)

    def grads(layer):
        output, _, cells = layer(x, return_cells=True, grad_clip=0.01)
        loss = (output * weights).sum() + cells.square().sum()
        output.detach().zero_()  # the backward pass neither reads nor writes it
        found = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        assert output.count_nonzero() == 0
        again = torch.autograd.grad(loss, list(layer.parameters()))
        assert all(map(torch.equal, found, again))
        return found

    assert all(map(torch.equal, grads(layer), grads(plain)))


def test_an_empty_batch_and_ids():
    layer, plain = twins("gru", 7, 5)
    layer(torch.randn(4, 0, 7, dtype=F64))[0].sum().backward()
    assert layer.weight_hh_l0.grad.count_nonzero() == 0
    assert_same_bits(layer, plain, torch.randint(7, (1200, 1)))


def test_without_gradients_it_does_nothing(no_reference):
    layer, plain = twins("lstm")
    x = torch.randn(1200, 1, 3, dtype=F64)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], plain(x)[0])
        assert torch.equal(fused_rnn.freeze(copy.deepcopy(layer))(x)[0], fused_rnn.freeze(copy.deepcopy(plain))(x)[0])


# ---- who follows a gradient keeps everything -------------------------------------------------------------------------


@every_class
def test_derivatives_of_derivatives(no_reference, kind):
    layer, plain = twins(kind, 2, 3)
    x = torch.randn(600, 1, 2, dtype=F64, requires_grad=True)

    def penalty(layer):
        (grad,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), list(layer.parameters()))

    assert all(map(torch.equal, penalty(layer), penalty(plain)))


def test_transforms_and_forward_mode(no_reference):
    layer, plain = twins("gru", 2, 3)
    x, v = torch.randn(2, 600, 1, 2, dtype=F64)
    for derivative in (
        lambda f: torch.func.jvp(f, (x,), (v,))[1],
        lambda f: torch.func.grad(lambda x: f(x).square().sum())(x),
        lambda f: torch.vmap(f)(torch.stack([x, v])),
    ):
        torch.testing.assert_close(derivative(lambda x: layer(x)[0]), derivative(lambda x: plain(x)[0]))
    upstream, leaf = torch.randn(3, 600, 1, 3, dtype=F64), x.clone().requires_grad_()
    found, wanted = (
        torch.autograd.grad(each(leaf)[0], leaf, upstream, is_grads_batched=True) for each in (layer, plain)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch, by Dynamo
def test_compiled_and_traced():
    layer, plain = twins("lstm")
    x = torch.randn(600, 1, 3, dtype=F64)
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0]
    torch.testing.assert_close(found, plain(x)[0])
    ours, theirs = (
        torch.autograd.grad(y.sum(), list(m.parameters())) for y, m in ((found, layer), (plain(x)[0], plain))
    )
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(torch.jit.trace(layer, (x,))(x)[0], plain(x)[0])


def test_gradient_flow_keeps_everything():
    layer, plain = twins("lstm")
    x = torch.randn(600, 1, 3, dtype=F64)
    norms, kept = [], []
    for each in (layer, plain):
        with fused_rnn.gradient_flow(each) as flow:
            count, (output, _) = saved_bytes(lambda each=each: each(x))
            output.sum().backward()
        norms.append(flow.norms)
        kept.append(count)
    assert str(norms[0]) == str(norms[1]) and kept[0] == kept[1]


@pytest.mark.parametrize("name", ["peephole_lstm", "slstm"])
def test_own_cells_have_it(no_reference, name):
    layer = getattr(fused_rnn.zoo, name).layer(3, 6, checkpoint=1, bidirectional=True, dtype=F64)
    plain = copy.deepcopy(layer)
    plain.checkpoint = None
    assert_same_bits(layer, plain, torch.randn(200, 6, 3, dtype=F64, requires_grad=True))


def test_explain_says_where_states_are_kept():
    layer, _ = twins("lstm", checkpoint=600)
    long, short = torch.randn(2, 5120, 1, 3, dtype=F64)[0], torch.randn(600, 1, 3, dtype=F64)
    assert "checkpoint=600: of the states those that enter every 1024 steps" in fused_rnn.explain(layer, long).reason
    assert "checkpoint=600: all is saved" in fused_rnn.explain(layer, short).reason
    with torch.no_grad():
        assert "checkpoint" not in fused_rnn.explain(layer, long).reason
    assert "there are checkpoints" in fused_rnn.explain(layer, long, engine="torch").reason
    found = fused_rnn.explain(layer, long, gpu="H100")
    assert (found.engine, found.reason) == ("none", "checkpoint runs on the CPU so far, not on CUDA")


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_parameters_copies_and_files():
    layer = fused_rnn.LSTM(3, 5, checkpoint=1000)
    assert (
        "checkpoint=1000" in repr(layer) and copy.deepcopy(layer).checkpoint == through_file(layer).checkpoint == 1000
    )
    assert "checkpoint" not in vars(fused_rnn.LSTM(3, 5, checkpoint=None))
    assert [part.checkpoint for part in fused_rnn.Stack("gru", 3, [6, 6], checkpoint=64).layers] == [64, 64]


def test_functions_take_it():
    layer, plain = twins("gru")
    x = torch.randn(1200, 1, 3, dtype=F64)
    found = fused_rnn.functional.gru(x, None, list(layer.parameters()), checkpoint=1)
    grads = torch.autograd.grad(found[0].sum(), list(layer.parameters()))
    wanted = torch.autograd.grad(plain(x)[0].sum(), list(plain.parameters()))
    assert all(map(torch.equal, grads, wanted))


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (-5, ValueError), (2.5, TypeError), (True, TypeError)])
def test_wrong_numbers(steps, error):
    for made in (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN, fused_rnn.zoo.mgu.layer):
        with pytest.raises(error, match="checkpoint must be a number of steps"):
            made(3, 5, checkpoint=steps)
    with pytest.raises(error, match="checkpoint must be a number of steps"):
        fused_rnn.functional.gru(torch.ones(2, 1, 3), None, list(fused_rnn.GRU(3, 5).parameters()), checkpoint=steps)
