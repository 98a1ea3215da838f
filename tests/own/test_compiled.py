"""Compiled layers of own cells against the loop over their Python function."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import zoo

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
F64 = torch.float64
NAMES = [
    name if name in ("peephole_lstm", "slstm") else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in zoo.__all__
]
# The tolerances of float32 and float64 differ by how many digits they have.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, F64: {"rtol": 1e-10, "atol": 1e-10}}


def both(name, dtype=F64, **options):
    """A compiled layer and its twin in Python."""
    cell = getattr(zoo, name)
    layer = cell.layer(INPUT, HIDDEN, dtype=dtype, **options)
    twin = cell.layer(INPUT, HIDDEN, dtype=dtype, compiled=False, **options)
    twin.load_state_dict(layer.state_dict())
    return layer, twin


def results(layer, *args, **options):
    layer.zero_grad()
    output, states = layer(*args, **options)
    states = states if isinstance(states, tuple) else (states,)
    data = getattr(output, "data", output) if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output
    (data.square().sum() + sum(state.sum() for state in states)).backward()
    return [data, *states, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name, dtype):
    layer, twin = both(name, dtype, num_layers=2, bidirectional=True)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=dtype)
    resets = torch.rand(STEPS, BATCH) < 0.3
    packed = pack_padded_sequence(x, [2, 5, 4], enforce_sorted=False)
    ids = torch.randint(INPUT, (STEPS, BATCH))
    with torch.no_grad():
        _, states = twin(x)
    calls = [
        ((x,), {}),
        ((x, states), {}),
        ((x[:, 0],), {}),
        ((x,), {"lengths": [5, 0, 2], "reset_mask": resets}),
        ((x,), {"grad_clip": 0.01}),
        ((packed,), {}),
        ((ids,), {}),
    ]
    for args, options in calls:
        for found, expected in zip(results(layer, *args, **options), results(twin, *args, **options), strict=True):
            torch.testing.assert_close(found, expected, **CLOSE[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_the_kernels(name, no_reference):
    layer = getattr(zoo, name).layer(INPUT, HIDDEN)
    layer(torch.randn(STEPS, BATCH, INPUT))[0].sum().backward()
    with torch.no_grad():
        layer(torch.randn(STEPS, BATCH, INPUT))


@pytest.mark.parametrize("name", NAMES)
def test_finite_differences(name):
    layer, _ = both(name)
    x = torch.randn(3, 2, INPUT, dtype=F64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_forward_mode_and_per_sample_gradients():
    layer, twin = both("peephole_lstm")
    x = torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    direction = torch.randn_like(x)
    for found, expected in zip(
        *(torch.func.jvp(lambda x, m=m: m(x)[0], (x,), (direction,)) for m in (layer, twin)), strict=True
    ):
        torch.testing.assert_close(found, expected)

    def loss(parameters, row, module):
        return torch.func.functional_call(module, parameters, (row.unsqueeze(1),))[0].square().sum()

    found, expected = (
        torch.vmap(torch.func.grad(loss), (None, 1, None))(dict(m.named_parameters()), x, m) for m in (layer, twin)
    )
    torch.testing.assert_close(found, expected)


def test_an_ensemble_is_one_call():
    layers = [both("peephole_lstm")[0] for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(layers)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    found = torch.vmap(lambda p: torch.func.functional_call(layers[0], p, (x,))[0])(parameters)
    torch.testing.assert_close(found, torch.stack([layer(x)[0] for layer in layers]))


def test_frozen_weights():
    layer, _ = both("peephole_lstm")
    x = torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    with torch.no_grad():
        expected = layer(x)
        fused_rnn.freeze(layer)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    assert repr(layer) == "peephole_lstm(4, 6, frozen)"
    with pytest.raises(RuntimeError, match="has no gradients"):
        layer(x)
    with torch.no_grad():
        layer.p_f_l0.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place"):
            layer(x)
    fused_rnn.thaw(layer)
    layer(x)[0].sum().backward()
    with pytest.raises(NotImplementedError, match="8 bits"):
        fused_rnn.freeze(layer, weights="int8")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
def test_compiled_graphs(forgetful):
    layer, twin = both("slstm", torch.float32)
    x = torch.randn(STEPS, BATCH, INPUT)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x), **CLOSE[torch.float32])
    compiled(x)[0].sum().backward()
    assert layer.weight_hh_l0.grad is not None


def test_exported_graphs():
    layer, _ = both("peephole_lstm", torch.float32)
    x = torch.randn(STEPS, BATCH, INPUT)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    assert str(layer.cell.id) in program.graph_module.code
    with torch.no_grad():
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        torch.testing.assert_close(traced(x[:3]), layer(x[:3]))


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    cell = fused_rnn.cell(lambda x, r, h: torch.tanh(x + r)[0] * 0.5, gates=1, states=("h",), name="halved")
    with pytest.raises(RuntimeError, match=r"no-such-compiler.*compiled=False"):
        cell.layer(INPUT, HIDDEN)
    cell.layer(INPUT, HIDDEN, compiled=False)(torch.randn(STEPS, BATCH, INPUT))


def test_explain_says_what_runs_and_where_its_source_lies():
    layer, twin = both("peephole_lstm")
    x = torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    found = fused_rnn.explain(layer, x)
    assert found.engine == "fused" and found.instruction_set
    path = Path(re.search(r"from its formula: (\S+),", found.reason)[1])
    assert path.is_file() and (path.parent / "cell.h").read_text() == zoo.peephole_lstm.header
    assert fused_rnn.explain(twin, x).engine == "python"
    assert fused_rnn.explain(layer, x[..., 1:]).engine == "none"
    assert fused_rnn.explain(torch.nn.Sequential(layer), x).layers[0][1].engine == "fused"


def test_gradient_flow_of_all_states():
    layer, twin = both("slstm", torch.float32)
    x = torch.randn(STEPS, BATCH, INPUT)
    with fused_rnn.gradient_flow(layer) as flow:
        layer(x)[0][-1].sum().backward()
    (line,) = flow.to_dict()["lines"]
    assert [len(line[state]) for state in "hcnm"] == [STEPS] * 4
    assert [norms.shape for _, norms in flow.norms()] == [(1, 4, STEPS)]
    assert flow.summary().lines[0].verdict in ("healthy", "fading", "vanishing", "exploding")
    with pytest.raises(RuntimeError, match="compiled=False"), fused_rnn.gradient_flow(twin):
        pass


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["peephole_lstm", "slstm"])
def test_verify(name):
    report = fused_rnn.verify(getattr(zoo, name), show_progress=False)
    assert report, str(report)


def test_pickles_are_frozen_again():
    layer, _ = both("peephole_lstm")
    x = torch.randn(STEPS, BATCH, INPUT, dtype=F64)
    with torch.no_grad():
        again = pickle.loads(pickle.dumps(fused_rnn.freeze(layer)))
        assert "frozen" in repr(again)
        torch.testing.assert_close(again(x), layer(x))
