"""Shapes, layouts, dropout and dtypes of a module's calls, compared with torch.nn."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from fused_rnn.tools.verify import TOLERANCE
from support.modules import (
    DEEP,
    F64,
    KINDS,
    LAYERS,
    assert_close,
    assert_same_results,
    every_cell,
    every_kind,
    every_layer,
    has_two_states,
    layouts_of,
    make_input,
    make_packed,
    make_pair,
    make_states,
    results_of,
    tensors_of,
)

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
@pytest.mark.parametrize("steps", [1, 5])
def test_every_layout_of_the_input(kind, batch_first, batch, steps):
    ours, theirs = make_pair(kind, **DEEP, batch_first=batch_first)
    input = make_input(theirs, steps=steps, batch=batch)
    assert_same_results(ours, theirs, input)
    assert_same_results(ours, theirs, input, make_states(theirs, batch=batch))


@every_cell
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
@pytest.mark.parametrize("hidden", [0, 1, 4])
def test_every_layout_of_a_cell(kind, batch, hidden):
    ours, theirs = make_pair(kind, 3, hidden)
    input = make_input(theirs, batch=batch)
    assert_same_results(ours, theirs, input)
    assert_same_results(ours, theirs, input, make_states(theirs, batch=batch))


@every_layer
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_input_and_states(kind, enforce_sorted):
    ours, theirs = make_pair(kind, **DEEP)
    lengths = [5, 4, 4, 1] if enforce_sorted else [4, 1, 5, 4]
    packed = make_packed(lengths, enforce_sorted=enforce_sorted)
    assert_same_results(ours, theirs, packed)
    assert_same_results(ours, theirs, packed, make_states(theirs, batch=4))
    found, expected = ours(packed)[0], theirs(packed)[0]
    assert isinstance(found, PackedSequence)
    for field in PackedSequence._fields[1:]:
        assert (getattr(found, field) is None) == (getattr(expected, field) is None)
        assert getattr(found, field) is None or torch.equal(getattr(found, field), getattr(expected, field))
    assert torch.equal(pad_packed_sequence(found)[1], torch.tensor(lengths))


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("batch", [None, 2])
def test_states_of_an_lstm_may_be_a_list(proj_size, batch):
    for kind in ("lstm", "lstm_cell"):
        options = {**DEEP, "proj_size": proj_size} if kind == "lstm" else {}
        ours, theirs = make_pair(kind, **options)
        input, states = make_input(theirs, batch=batch), list(make_states(theirs, batch=batch))
        assert_same_results(ours, theirs, input, states)
        output = ours(input, states)
        assert isinstance(output, tuple)
        assert kind == "lstm_cell" or isinstance(output[1], tuple)


@every_kind
def test_results_have_torchs_strides(kind):
    for ours, theirs, args in layouts_of(kind):
        for found, expected in zip(tensors_of(ours(*args)), tensors_of(theirs(*args)), strict=True):
            assert found.stride() == expected.stride()


@every_layer
def test_empty_batch_takes_empty_lengths(kind):
    ours, _ = make_pair(kind)
    for empty in ([], torch.empty(0, dtype=torch.int64)):
        assert ours(make_input(ours, batch=0), lengths=empty)[0].shape[:2] == (5, 0)


def strided(tensor):
    """The same numbers, neither contiguous nor dense."""
    wide = torch.full((*tensor.shape, 3), float("nan"), dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


@every_kind
def test_non_contiguous_input_states_and_weights(kind):
    ours, theirs = make_pair(kind, **DEEP if kind in LAYERS else {})
    for module in (ours, theirs):
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(strided(parameter.detach())))
    args = make_input(theirs), make_states(theirs)
    args = strided(args[0]), tuple(map(strided, args[1])) if has_two_states(theirs) else strided(args[1])
    assert not any(tensor.is_contiguous() for tensor in [*tensors_of(args), *ours.parameters()])
    assert_same_results(ours, theirs, *args)


@every_kind
def test_expanded_input_and_output_gradients(kind):
    ours, theirs = make_pair(kind)
    row = make_input(theirs, batch=1)
    input = row.expand(*row.shape[:-2], 4, 3)
    results = []
    for module in (ours, theirs):
        leaf = input.detach().requires_grad_()
        outputs = tensors_of(module(leaf))
        sum(output.sum() for output in outputs).backward()  # the gradient of sum() is an expanded scalar
        results.append({"input": leaf.grad} | {n: p.grad for n, p in module.named_parameters()})
    assert_close(*results)


@every_layer
def test_non_contiguous_weights_of_float32(kind):
    ours, theirs = make_pair(kind, 5, 16, dtype=torch.float32)
    for module in (ours, theirs):
        module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().t().contiguous().t())
    assert_same_results(ours, theirs, make_input(theirs, dtype=torch.float32))


# ---- dropout ---------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["padded", "batch_first", "unbatched", "packed"])
@pytest.mark.parametrize("dropout", [0.4, 1.0])
def test_dropout_draws_torchs_random_numbers(kind, training, layout, dropout):
    for bidirectional in (False, True):
        options = {"num_layers": 3, "dropout": dropout, "bidirectional": bidirectional}
        ours, theirs = make_pair(kind, **options, batch_first=layout == "batch_first")
        input = make_input(theirs, batch=None if layout == "unbatched" else 2)
        if layout == "packed":
            input = make_packed([4, 1, 5])
        results = []
        for module in (ours.train(training), theirs.train(training)):
            torch.manual_seed(3)
            results.append(results_of(module, input) | {"random state": torch.get_rng_state()})
        assert torch.equal(results[0].pop("random state"), results[1].pop("random state"))
        assert_close(*results)


@every_layer
def test_dropout_acts_in_training_only(kind):
    ours, _ = make_pair(kind, num_layers=2, dropout=0.5)
    input = make_input(ours)
    assert not torch.equal(ours(input)[0], ours(input)[0])
    assert torch.equal(ours.eval()(input)[0], ours(input)[0])


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_dtype_against_float64(kind, dtype):
    options = DEEP if kind in LAYERS else {}
    ours, _ = make_pair(kind, 7, 9, dtype=dtype, **options)
    theirs = KINDS[kind][1](7, 9, **KINDS[kind][2], **options, dtype=F64)
    theirs.load_state_dict(ours.state_dict())
    args = make_input(ours, dtype=dtype, batch=4), make_states(ours, dtype=dtype, batch=4)
    wide_args = torch.utils._pytree.tree_map(lambda tensor: tensor.double(), args)
    found = results_of(ours, *args)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_close(found, results_of(theirs, *wide_args))
