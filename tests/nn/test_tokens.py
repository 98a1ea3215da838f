"""Ids in place of input: in every way a layer can be called they are one-hot rows, to the bit; others are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case
from support.compiled import Compiled
from support.modules import CELLS as CELL_KINDS
from support.modules import DEEP, F64, LAYERS, as_leaves, make_pair, make_states, tensors_of
from support.one_hot import assert_equals_one_hot, ids_of, one_hot
from support.problems import cases as all_cases
from support.problems import problem_of

VOCABULARY = 7
LAYOUTS = {
    "time major": {},
    "batch first": {"batch_first": True},
    "deep": DEEP,
}
vocabularies = st.integers(1, 40) | st.sampled_from([97, 300, 1000])  # some with more ids than rows look up


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
    # A call of a row or two sums one-hot rows in another order than a longer one, which a look-up has none of.
    assert_equals_one_hot(name, case, dtype, empty_rows)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    case=st.builds(lambda case, size: Case(**case.__dict__ | {"input_size": size}), all_cases, vocabularies),
    threads=st.sampled_from([1, 3]),
)
@settings(max_examples=10)
def test_equals_one_hot_with_relu(dtype, case, threads):
    """Of few steps: where sums of positive numbers grow, 16 bits end."""
    torch.set_num_threads(threads)
    assert_equals_one_hot("rnn_relu", Case(**case.__dict__ | {"steps": min(case.steps, 2)}), dtype, False)


# ---- the ways in -----------------------------------------------------------------------------------------------------


def make_ids(module, steps=5, batch=2):
    shape = (steps,) if batch is None else (batch, steps) if module.batch_first else (steps, batch)
    return torch.randint(0, module.input_size, shape)


def assert_same_module_results(module, ids, *args, **options):
    """With gradients, without (straight to the operator), frozen: as with one-hot rows."""
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
    """One step, with batch_first too: what a generator of text does."""
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
def test_the_same_bits_whatever_the_threads(kind):
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
    assert (weight[:, 40:] == 0).all() and (weight[:, :40] != 0).any()  # ids that do not occur


# ---- transforms, second derivatives ----------------------------------------------------------------------------------


def loss_of(weights, input, **options):
    output, state = functional.gru(input, None, weights, **options)
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output)).square().sum() + state.sum()


def gru_weights(**options):
    return [w.detach() for w in fused_rnn.GRU(VOCABULARY, 4, dtype=F64, **options).parameters()]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (None, 1), (0, 0)], ids=str)
def test_vmap(in_dims, ragged, no_reference):
    weights = gru_weights()
    if in_dims[0] is not None:
        weights = [torch.stack([w * (1 + i) for i in range(3)]) for w in weights]
    ids = torch.randint(0, VOCABULARY, (5, 2) if in_dims[1] is None else (3, 5, 2))
    if in_dims[1] == 1:
        ids = ids.transpose(0, 1)
    options = {"lengths": torch.tensor([5, 2])} if ragged else {}
    over = torch.vmap(lambda w, x: torch.func.grad_and_value(loss_of)(w, x, **options), in_dims)
    torch.testing.assert_close(over(weights, ids), over(weights, one_hot(ids, VOCABULARY, F64)))


def test_nested_vmap_and_packed(no_reference):
    stacked = [torch.stack([w, 2 * w]) for w in gru_weights()]
    ids = torch.randint(0, VOCABULARY, (3, 5, 2))
    over = torch.vmap(torch.vmap(torch.func.grad(loss_of), (None, 0)), (0, None))
    torch.testing.assert_close(over(stacked, ids), over(stacked, one_hot(ids, VOCABULARY, F64)))
    data, batch_sizes = torch.randint(0, VOCABULARY, (3, 6)), torch.tensor([3, 2, 1])

    def of_packed(weights, data):
        output, state = functional.gru(PackedSequence(data, batch_sizes), None, weights)
        return output.data.square().sum() + state.sum()

    over = torch.vmap(torch.func.grad(of_packed), (None, 0))
    weights = gru_weights()
    torch.testing.assert_close(over(weights, data), over(weights, one_hot(data, VOCABULARY, F64)))


def penalty(weights, input):
    weights = [w.clone().requires_grad_() for w in weights]
    gradients = torch.autograd.grad(loss_of(weights, input), weights, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradients), weights)


def jvp(weights, input):
    return torch.func.jvp(lambda w: loss_of(w, input), (weights,), (weights,))


SECOND_ORDER = {
    "double backward": penalty,
    "jvp": jvp,
    "jvp of grad": lambda weights, input: torch.func.jvp(
        torch.func.grad(lambda w: loss_of(w, input)), (weights,), (weights,)
    ),
    "grad of grad": lambda weights, input: torch.func.grad(
        lambda w: sum(g.square().sum() for g in torch.func.grad(lambda w: loss_of(w, input))(w))
    )(weights),
    "hessian": lambda weights, input: torch.func.hessian(lambda w: loss_of([*weights[:3], w], input))(weights[3]),
    "jvp of jvp": lambda weights, input: torch.func.jvp(lambda w: jvp(w, input)[1], (weights,), (weights,)),
    "jacfwd over ids": lambda weights, input: torch.vmap(
        lambda x: torch.func.jacfwd(lambda w: loss_of([*weights[:3], w], x))(weights[3])
    )(torch.stack([input, input.flip(0)])),
    "double backward per sample": lambda weights, input: torch.vmap(
        torch.func.grad(lambda w, x: sum(g.square().sum() for g in torch.func.grad(loss_of)(w, x))), (None, 0)
    )(weights, torch.stack([input, input.flip(0)])),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_derivatives_and_tangents(name):
    """By way of one-hot rows, of which no derivative is asked."""
    weights, ids = gru_weights(), torch.randint(0, VOCABULARY, (4, 2))
    derivative = SECOND_ORDER[name]
    torch.testing.assert_close(derivative(weights, ids), derivative(weights, one_hot(ids, VOCABULARY, F64)))


def test_batched_gradients(no_reference):
    module, ids = fused_rnn.LSTM(VOCABULARY, 4, dtype=F64), torch.randint(0, VOCABULARY, (5, 2))
    grads = torch.randn(3, 5, 2, 4, dtype=F64)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(module(input)[0], list(module.parameters()), grads, is_grads_batched=True)
            for input in (ids, one_hot(ids, VOCABULARY, F64))
        )
    )


# ---- compile, export -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # as in test_compile.py
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_compiled(kind, forgetful, no_reference):
    module = getattr(fused_rnn, kind)(VOCABULARY, 4, **DEEP)
    compiled = Compiled(module)
    for steps, batch, dtype in ((5, 2, torch.int64), (9, 3, torch.int64), (6, 5, torch.int64), (6, 5, torch.int32)):
        ids, lengths = torch.randint(0, VOCABULARY, (steps, batch), dtype=dtype), torch.randint(1, steps, (batch,))
        results = []
        for call in (compiled, module):
            output, _ = call(ids, lengths=lengths)
            results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
        torch.testing.assert_close(*results)
    assert compiled.graphs <= 3
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), module(ids))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_exported(strict, no_reference):
    module, ids = fused_rnn.LSTM(VOCABULARY, 4, **DEEP), torch.randint(0, VOCABULARY, (5, 2))
    dims = {0: torch.export.Dim("steps", min=2), 1: torch.export.Dim("rows", min=2)}
    loaded = torch.export.export(module, (ids,), dynamic_shapes=(dims,), strict=strict).module()
    ids = torch.randint(0, VOCABULARY, (8, 3))
    results = []
    for call in (loaded, module):
        output, _ = call(ids)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", [{}, {"lengths": True, "reset": True}, {"packed": True}], ids=str)
def test_opcheck(options):
    case = Case("", steps=2, bidirectional=True, **options)
    problem = problem_of(CELLS["gru"], case, torch.float32)
    input, batch_sizes, lengths = ids_of(problem), None, problem.lengths
    if case.packed:
        input, batch_sizes, *_ = pack_padded_sequence(input, lengths, enforce_sorted=False)
        lengths = None
    gru, weights = (CELLS["gru"].id, True, True), [t.requires_grad_() for t in problem.tensors[2:]]
    layer = (input, problem.tensors[1], None, weights, lengths, batch_sizes, problem.reset_mask)
    operators = torch.ops.fused_rnn
    torch.library.opcheck(operators.layer_forward.default, (*gru, *layer, True, False))
    with torch.no_grad():
        output, h_n, _, _, saved = operators.layer_forward(*gru, *layer, True, False)
        arguments = (*gru, output, h_n, None, None, *layer, saved, 126, 1, False)
        checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
        torch.library.opcheck(operators.layer_backward.default, arguments, test_utils=checks)
        with pytest.raises(RuntimeError, match="ids have no gradient"):
            operators.layer_backward(*gru, output, h_n, None, None, *layer, saved, 127, 1, False)
        with pytest.raises(RuntimeError, match="takes one-hot input, not ids"):
            operators.layer_tangent(*gru, *layer, saved, None, None, None, False)


@pytest.mark.parametrize("mode", ["fake", "meta"])
def test_shapes_without_data(mode):
    module = fused_rnn.LSTM(VOCABULARY, 4, **DEEP)
    ids = torch.randint(0, VOCABULARY, (5, 2))
    expected = tensors_of(module(ids))
    if mode == "meta":
        found = tensors_of(module.to("meta")(ids.to("meta")))
    else:
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
            found = tensors_of(module(fake.from_tensor(ids)))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 3)])
def test_frozen_layers_of_a_large_vocabulary(kind, shape):
    """Fewer ids than there are columns, and more: what is packed serves both."""
    module, ids = getattr(fused_rnn, kind)(300, 5), torch.randint(0, 300, shape)
    with torch.no_grad():
        expected = module(ids)[0]
        found = fused_rnn.freeze(module)(ids)[0]
    torch.testing.assert_close(found, expected)


def test_explained():
    module, ids = fused_rnn.GRU(VOCABULARY, 4), torch.randint(0, VOCABULARY, (5, 2))
    assert "Ids are looked up in weight_ih" in str(fused_rnn.explain(module, ids))
    assert "Ids" not in str(fused_rnn.explain(module, torch.randn(5, 2, VOCABULARY)))
    with torch.no_grad():
        assert "Ids are looked up" in str(fused_rnn.explain(fused_rnn.freeze(module), ids))


# ---- tools that look into a call -------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["last", "all"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradient_flow(kind, probe):
    module, ids = getattr(fused_rnn, kind)(VOCABULARY, 4, **DEEP, dtype=F64), torch.randint(0, VOCABULARY, (5, 2))
    found = []
    for input in (ids, one_hot(ids, VOCABULARY, F64)):
        with fused_rnn.gradient_flow(module, probe) as flow:
            module(input, lengths=torch.tensor([5, 3]))[0].square().sum().backward()
        found.append(flow.to_dict())
    assert str(found[0]) == str(found[1]) and "-1" not in str(found[0])


def test_gate_statistics():
    module, ids = fused_rnn.LSTM(VOCABULARY, 4, **DEEP), torch.randint(0, VOCABULARY, (5, 2))
    found, expected = (fused_rnn.gate_statistics(module, x) for x in (ids, one_hot(ids, VOCABULARY, torch.float32)))
    assert found == expected


@pytest.mark.parametrize("skip", [None, "residual", "dense"])
def test_a_deep_stack(skip):
    ids = torch.randint(0, VOCABULARY, (5, 2))
    stack = fused_rnn.Stack("gru", VOCABULARY, [4, 4], skip=skip)
    if skip == "dense":
        with pytest.raises(TypeError, match="ids are no numbers to add"):
            stack(ids)
    else:
        torch.testing.assert_close(stack(ids), stack(one_hot(ids, VOCABULARY, torch.float32)))
    if skip == "residual":
        with pytest.raises(TypeError, match="ids are no numbers to add"):
            fused_rnn.Stack("gru", 4, [4, 4], skip=skip)(ids % 4)


# ---- refused ---------------------------------------------------------------------------------------------------------

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
def test_integers_that_are_no_ids(kind, dtype, mode):
    """With a dimension for the numbers of a row: the errors that torch.nn has for them."""
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
def test_cells_take_numbers_only(kind, mode):
    cell, _ = make_pair(kind, VOCABULARY, 4)
    with mode():
        with pytest.raises(ValueError, match=r"RNN input dtype \(torch.int64\) does not match"):
            cell(torch.zeros(2, VOCABULARY, dtype=torch.int64))
        with pytest.raises((ValueError, RuntimeError), match=r"dtype|inconsistent input_size"):
            cell(torch.zeros(VOCABULARY, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_onnx():
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    onnx = pytest.importorskip("onnx", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs what was exported")
    module = fused_rnn.LSTM(VOCABULARY, 4, **DEEP).eval()
    dynamic = {"input": dict.fromkeys(range(2), torch.export.Dim.DYNAMIC)}
    exported = torch.onnx.export(
        module,
        kwargs={"input": torch.randint(0, VOCABULARY, (5, 2))},
        dynamic_shapes=dynamic,
        dynamo=True,
        verbose=False,
        custom_translation_table=fused_rnn.onnx.translations(),
    ).model_proto
    onnx.checker.check_model(exported, full_check=True)
    session = runtime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = torch.randint(0, VOCABULARY, (8, 3))
    found = session.run(None, {exported.graph.input[0].name: ids.numpy()})
    with torch.no_grad():
        torch.testing.assert_close([torch.from_numpy(f) for f in found], tensors_of(module(ids)))
