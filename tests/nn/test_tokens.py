"""Token ids as input: however a layer is called they equal one-hot rows, to the bit; invalid ids are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case
from support.modules import CELLS as CELL_KINDS
from support.modules import DEEP, F64, LAYERS, as_leaves, make_pair, make_states, tensors_of
from support.one_hot import VOCABULARY, assert_equals_one_hot, one_hot
from support.problems import cases as all_cases

LAYOUTS = {
    "time major": {},
    "batch first": {"batch_first": True},
    "deep": DEEP,
}
vocabularies = st.integers(1, 40) | st.sampled_from([97, 300, 1000])  # some larger than the number of rows


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in CELLS if name != "rnn_relu"])
@given(
    case=st.builds(lambda case, size: Case(**case.__dict__ | {"input_size": size}), all_cases, vocabularies),
    empty_rows=st.booleans(),
    threads=st.sampled_from([1, 1, 2, 3]),
)
@settings(max_examples=20)
def test_equals_one_hot(name, dtype, case, empty_rows, threads):
    torch.set_num_threads(threads)
    # A call of a row or two sums one-hot rows in another order than a longer one; a look-up sums nothing.
    assert_equals_one_hot(name, case, dtype, empty_rows)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    case=st.builds(lambda case, size: Case(**case.__dict__ | {"input_size": size}), all_cases, vocabularies),
    threads=st.sampled_from([1, 3]),
)
@settings(max_examples=10)
def test_equals_one_hot_with_relu(dtype, case, threads):
    """Few steps: positive sums overflow 16 bits."""
    torch.set_num_threads(threads)
    assert_equals_one_hot("rnn_relu", Case(**case.__dict__ | {"steps": min(case.steps, 2)}), dtype, False)


def make_ids(module, steps=5, batch=2):
    shape = (steps,) if batch is None else (batch, steps) if module.batch_first else (steps, batch)
    return torch.randint(0, module.input_size, shape)


def assert_same_module_results(module, ids, *args, **options):
    """Equals one-hot rows with gradients, without them (the fast path) and frozen."""
    rows = one_hot(ids, module.input_size, module.weight_ih_l0.dtype)
    results = []
    for input in (ids, rows):
        leaves = as_leaves(args)
        outputs = tensors_of(module(input, *leaves, **options))
        wanted = [*tensors_of(leaves), *module.parameters()]
        results.append([outputs, torch.autograd.grad(sum(o.square().sum() for o in outputs), wanted)])
    assert all(torch.equal(*pair) for pair in zip(results[0][0], results[1][0], strict=True))
    torch.testing.assert_close(results[0][1], results[1][1])
    with torch.no_grad():
        assert all(map(torch.equal, tensors_of(module(ids, *args, **options)), results[1][0]))
        fused_rnn.freeze(module)
        assert all(map(torch.equal, tensors_of(module(ids, *args, **options)), results[1][0]))
        fused_rnn.thaw(module)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_modules(kind, layout, no_reference):
    module, _ = make_pair(kind, VOCABULARY, 4, **LAYOUTS[layout])
    for ids in (make_ids(module), make_ids(module).int(), make_ids(module, 9, 4)[::2, ::2]):
        batch = ids.shape[0 if module.batch_first else 1]
        assert_same_module_results(module, ids)
        assert_same_module_results(module, ids, make_states(module, batch))
        assert_same_module_results(module, ids, lengths=torch.tensor([3, 0, 5][:batch]))
        assert_same_module_results(module, ids, reset_mask=torch.rand(ids.shape) < 0.3)
    assert_same_module_results(module, make_ids(module, batch=None))
    assert_same_module_results(module, make_ids(module, batch=None), make_states(module, None))


def test_few_rows_of_a_frozen_layer(no_reference):
    """One step, with batch_first too, as in text generation."""
    for options in ({}, {"batch_first": True}):
        module = fused_rnn.freeze(fused_rnn.GRU(VOCABULARY, 4, **options))
        ids = torch.tensor([[3]])
        with torch.no_grad():
            torch.testing.assert_close(module(ids), module(one_hot(ids, VOCABULARY, torch.float32)))
            assert module(ids)[0].dtype == torch.float32


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_packed(kind, enforce_sorted, no_reference):
    module, _ = make_pair(kind, VOCABULARY, 4, **DEEP)
    lengths = torch.tensor([5, 3, 1] if enforce_sorted else [3, 5, 1])
    packed = pack_padded_sequence(torch.randint(0, VOCABULARY, (5, 3)), lengths, enforce_sorted=enforce_sorted)
    rows = packed._replace(data=one_hot(packed.data, VOCABULARY, F64))
    mask = torch.rand(5, 3) < 0.3
    found, expected = (module(input, reset_mask=mask) for input in (packed, rows))
    assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
    assert isinstance(found[0], PackedSequence)
    loss = [sum(o.square().sum() for o in tensors_of(side)) for side in (found, expected)]
    torch.testing.assert_close(*(torch.autograd.grad(one, list(module.parameters())) for one in loss))
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(module(packed, reset_mask=mask)), tensors_of(found))


def test_autocast_leaves_ids_alone(no_reference):
    module = fused_rnn.LSTM(300, 4, **DEEP)  # more than bfloat16 can count to
    ids = torch.randint(256, 300, (5, 2))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = module(ids)[0], module(one_hot(ids, 300, torch.float32))[0]
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_same_bits_for_any_number_of_threads(kind):
    module, _ = make_pair(kind, 50, 130, dtype=torch.float32, **DEEP)
    ids, results, before = torch.randint(0, 40, (60, 9)), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output, _ = module(ids)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    weight = dict(zip(dict(module.named_parameters()), results[0][1:], strict=True))["weight_ih_l0"]
    assert (weight[:, 40:] == 0).all() and (weight[:, :40] != 0).any()  # of ids that do not occur


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 3)])
def test_frozen_layers_of_a_large_vocabulary(kind, shape):
    """Fewer ids than vocabulary entries, and more."""
    module, ids = getattr(fused_rnn, kind)(300, 5), torch.randint(0, 300, shape)
    with torch.no_grad():
        expected = module(ids)[0]
        found = fused_rnn.freeze(module)(ids)[0]
    torch.testing.assert_close(found, expected)


# ---- refusals --------------------------------------------------------------------------------------------------------


every_mode = pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])


@every_mode
@pytest.mark.parametrize("bad", [VOCABULARY, -1, 1 << 40, -(1 << 62)])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_ids_out_of_range(kind, bad, mode):
    module, _ = make_pair(kind, VOCABULARY, 4, **DEEP)
    ids = torch.randint(0, VOCABULARY, (5, 2))
    ids[3, 1] = bad
    message = f"ids must lie between 0 and 6, as input_size is 7; got {bad} at step 3 of row 1"
    packed = PackedSequence(torch.tensor([0, 1, 2, 0, 1, 2, 3, bad]), torch.tensor([2] * 4))
    weights = [w.detach().requires_grad_() for w in module.parameters()]
    function = getattr(functional, kind.split("_")[0])
    with mode():
        for call in (
            lambda: module(ids),
            lambda: module(ids, lengths=[5, 4]),
            lambda: module(packed),
            lambda: function(ids, None, weights, **DEEP),
            lambda: fused_rnn.explain(module, ids) and module(ids),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
        assert module(ids, lengths=[5, 3])[0].isfinite().all()  # padding may hold anything
        with pytest.raises(RuntimeError, match="ids must lie between 0 and 6"):
            getattr(reference, kind.split("_")[0])(ids, None, weights, **DEEP)
    if mode is torch.no_grad:
        fused_rnn.freeze(module)
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            module(ids)


@every_mode
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("kind", LAYERS)
def test_integers_with_a_feature_dimension(kind, dtype, mode):
    """Integers with a feature dimension raise torch.nn's errors."""
    module, _ = make_pair(kind, VOCABULARY, 4)
    packed = PackedSequence(torch.zeros(4, VOCABULARY, dtype=dtype), torch.tensor([2, 2]))
    with mode():
        for dims in (0, 4):
            with pytest.raises(ValueError, match=f"Expected input to be 2D or 3D, got {dims}D"):
                module(torch.zeros((VOCABULARY,) * dims, dtype=dtype))
        for input in (torch.zeros(5, 2, VOCABULARY, dtype=dtype), packed):
            with pytest.raises(ValueError, match=rf"RNN input dtype \({dtype}\) does not match weight dtype"):
                module(input)
        with pytest.raises(RuntimeError, match=r"For batched ids, like 3-D input, hx.* should also be 3-D"):
            module(torch.zeros(4, 2, dtype=dtype), make_states(module, None))


@every_mode
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16])
def test_other_integers(dtype, mode):
    module, _ = make_pair("gru", 2, 4)
    with mode():
        with pytest.raises(ValueError, match="does not match weight dtype"):
            module(torch.zeros(4, 2, dtype=dtype))
        with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got 1D"):
            module(torch.zeros(4, dtype=dtype))


@every_mode
@pytest.mark.parametrize("kind", CELL_KINDS)
def test_cells_refuse_ids(kind, mode):
    cell, _ = make_pair(kind, VOCABULARY, 4)
    with mode():
        with pytest.raises(RuntimeError, match=r"RNN input dtype \(torch.int64\) does not match"):
            cell(torch.zeros(2, VOCABULARY, dtype=torch.int64))
        with pytest.raises((ValueError, RuntimeError), match=r"dtype|inconsistent input_size"):
            cell(torch.zeros(VOCABULARY, dtype=torch.int64))
