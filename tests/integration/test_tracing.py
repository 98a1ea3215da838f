"""torch.jit.trace and script, torch.fx, and ONNX's exporters: each keeps our layers, or says what it does instead."""

import io

import pytest
import torch
from torch import nn

import fused_rnn
from support.modules import F64

LAYERS = ("LSTM", "GRU", "RNN")
FORMS = [{}, {"batch_first": True}, {"bidirectional": True, "batch_first": True}, {"num_layers": 2, "bias": False}]


class Net(nn.Module):
    """A layer and a cell between others."""

    def __init__(self, name, **options):
        super().__init__()
        self.enter = nn.Linear(3, 3, dtype=F64)
        self.rnn = getattr(fused_rnn, name)(3, 4, dtype=F64, **options)
        self.cell = getattr(fused_rnn, f"{name}Cell")(4 * (1 + self.rnn.bidirectional), 4, dtype=F64)

    def forward(self, x):
        output, hidden = self.rnn(self.enter(x))
        state = self.cell(output[0])
        return output, hidden, state


def _feed(file, x):
    """The only input of an exported model, whatever its name."""
    import onnx

    return {onnx.load_from_string(file.getvalue()).graph.input[0].name: x.numpy()}


def tensors(results):
    return [t for r in results for t in (tensors(r) if isinstance(r, (tuple, list)) else [r])]


def saved_and_loaded(trace):
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_saved_trace_runs_at_other_sizes_and_trains(name, form, with_gradients):
    model = Net(name, **form)
    with torch.set_grad_enabled(with_gradients):
        trace = saved_and_loaded(torch.jit.trace(model, torch.randn(5, 2, 3, dtype=F64)))
    for steps, batch in ((5, 2), (7, 3), (1, 1)):
        x = torch.randn(steps, batch, 3, dtype=F64)
        gradients = []
        for module in (trace, model):
            module.zero_grad()
            results = tensors(module(x))
            sum(result.square().sum() for result in results).backward()
            gradients.append([parameter.grad for parameter in module.parameters()])
            with torch.no_grad():
                torch.testing.assert_close(tensors(module(x)), results)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_trace_takes_gradients_through_weights_that_need_none(name, with_gradients):
    model = Net(name, num_layers=2)
    for frozen in (model.rnn, model.cell):
        frozen.requires_grad_(False)
    with torch.set_grad_enabled(with_gradients):
        trace = saved_and_loaded(torch.jit.trace(model, torch.randn(5, 2, 3, dtype=F64)))
    gradients, x = [], torch.randn(7, 3, 3, dtype=F64)
    for module in (trace, model):
        sum(result.square().sum() for result in tensors(module(x))).backward()
        gradients.append([module.enter.weight.grad, module.enter.bias.grad])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", LAYERS)
def test_a_trace_under_autocast_passes_torchs_own_check(name):
    """Which runs without gradients: it has to find the same graph."""
    layer, x = getattr(fused_rnn, name)(3, 4), torch.randn(5, 2, 3)
    with torch.autocast("cpu"):
        trace = torch.jit.trace(layer, x)
        torch.testing.assert_close(tensors(trace(x)), tensors(layer(x)))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_frozen_layer_traces(form):
    layer = fused_rnn.freeze(fused_rnn.LSTM(3, 4, **form).requires_grad_(False))
    with torch.no_grad():
        trace = saved_and_loaded(torch.jit.trace(layer, torch.randn(5, 2, 3)))
        x = torch.randn(6, 3, 3)
        torch.testing.assert_close(tensors(trace(x)), tensors(layer(x)))


def test_states_and_options_of_a_call_are_traced():
    layer = fused_rnn.GRU(3, 4, dtype=F64)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, h, lengths):
            return self.layer(x, h, lengths=lengths)

    def arguments(steps, batch):
        lengths = torch.randint(1, steps + 1, (batch,))
        return torch.randn(steps, batch, 3, dtype=F64), torch.randn(1, batch, 4, dtype=F64), lengths

    trace = torch.jit.trace(Net(), arguments(5, 2))
    given = arguments(7, 4)
    torch.testing.assert_close(trace(*given), Net()(*given))


@pytest.mark.parametrize("name", LAYERS)
def test_tracing_raises_the_errors_of_a_call(name):
    layer = getattr(fused_rnn, name)(3, 4, batch_first=True)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\)"):
        torch.jit.trace(layer, torch.randn(5, 2, 7))
    torch.jit.trace(layer, torch.randn(5, 2, 3))


def test_the_functional_interface_traces():
    weights = [p.detach() for p in nn.GRU(3, 4).parameters()]
    trace = torch.jit.trace(lambda x: fused_rnn.functional.gru(x, None, weights)[0], torch.randn(5, 2, 3))
    x = torch.randn(7, 3, 3)
    torch.testing.assert_close(trace(x), fused_rnn.functional.gru(x, None, weights)[0])


# ---- TorchScript -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_script_uses_torchs_layers_with_the_same_parameters_and_warns(name):
    model, x = Net(name, num_layers=2, bidirectional=True), torch.randn(5, 2, 3, dtype=F64)
    fused_rnn.freeze(model)
    with torch.no_grad():
        expected = tensors(model(x))
    fused_rnn.thaw(model)
    with pytest.warns(UserWarning, match=rf"replaces fused_rnn.{name}(Cell)? by torch.nn.{name}.*restore") as caught:
        scripted = saved_and_loaded(torch.jit.script(model))
    replaced = [warning for warning in caught if "torch.jit.script replaces" in str(warning.message)]
    assert [warning.filename for warning in replaced] == [__file__] * 2
    torch.testing.assert_close(tensors(scripted(x)), expected)
    assert type(fused_rnn.swap(model).rnn) is getattr(fused_rnn, name)


def test_script_refuses_what_torch_has_no_layer_for():
    class Doubles(fused_rnn.LSTM):
        def forward(self, input):
            return super().forward(2 * input)

    with pytest.raises(NotImplementedError, match="cannot compile Doubles"):
        torch.jit.script(nn.Sequential(Doubles(3, 4)))
    with pytest.raises(NotImplementedError, match=r"cannot compile fused_rnn.Stack"):
        torch.jit.script(fused_rnn.Stack("lstm", 3, [4]))


# ---- torch.fx --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_fx_treats_a_layer_as_a_leaf(name):
    model, x = Net(name), torch.randn(5, 2, 3, dtype=F64)
    graph = torch.fx.symbolic_trace(model)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == ["enter", "rnn", "cell"]
    torch.testing.assert_close(tensors(graph(x)), tensors(model(x)))


def test_fx_refuses_to_enter_a_forward_that_calls_ours():
    class Doubles(fused_rnn.LSTM):
        def forward(self, input):
            return super().forward(2 * input)

    with pytest.raises(NotImplementedError, match=r"torch.fx cannot see into the forward of Doubles"):
        torch.fx.symbolic_trace(nn.Sequential(Doubles(3, 4)))


def test_fx_keeps_the_options_of_a_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.LSTM(3, 4)

        def forward(self, x, states, mask):
            output, _, cells = self.rnn(x, states, reset_mask=mask, return_cells=True)
            return output, cells

    model = Net()
    states = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    given = torch.randn(5, 2, 3), states, torch.rand(5, 2) < 0.5
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*given), model(*given))


# ---- ONNX, without a table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore")  # both exporters warn a lot
def test_onnx_exporters_need_no_table(name, dynamo, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs what was exported")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(fused_rnn, name)(3, 4, 2, bidirectional=True, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    model, x, file = Net().eval(), torch.randn(2, 5, 3), str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x,), file, dynamo=dynamo)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach())


class DoublesOfTorch(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class DoublesOfOurs(fused_rnn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("kind", [DoublesOfTorch, DoublesOfOurs])
def test_onnx_exporters_keep_the_forward_of_a_subclass(kind, dynamo, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs what was exported")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(3, 4)

        def forward(self, x):
            return self.rnn(x)[0]

    model, x, file = fused_rnn.swap(Net()).eval(), torch.randn(5, 2, 3), str(tmp_path / "model.onnx")
    former = type(model.rnn)
    if kind is DoublesOfOurs and not dynamo:
        with pytest.raises(NotImplementedError, match=r"dynamo=False\) cannot compile DoublesOfOurs, whose own"):
            torch.onnx.export(model, (x,), file, dynamo=dynamo)
        return
    torch.onnx.export(model, (x,), file, dynamo=dynamo)
    assert type(model.rnn) is former
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach())


@pytest.mark.filterwarnings("ignore")
def test_onnx_by_tracing_refuses_options_by_name():
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.GRU(3, 4)

        def forward(self, x, lengths):
            return self.rnn(x, lengths=lengths)[0]

    with pytest.raises(NotImplementedError, match="cannot export the options of fused_rnn"):
        torch.onnx.export(Net(), (torch.randn(5, 2, 3), torch.tensor([5, 2])), io.BytesIO(), dynamo=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_onnx_by_tracing_of_parametrized_layers(swapped, called_before):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs what was exported")

    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    layer = nn.LSTM(4, 5) if swapped else fused_rnn.LSTM(4, 5)
    nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", Half())
    if swapped:
        fused_rnn.swap(layer)
    nn.utils.parametrize.register_parametrization(layer, "weight_ih_l0", Half())
    model, x, file = nn.Sequential(layer).eval(), torch.randn(3, 2, 4), io.BytesIO()
    if called_before:
        model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        torch.onnx.export(model, (x,), file, dynamo=False)
        found = runtime.InferenceSession(file.getvalue()).run(None, _feed(file, x))
        torch.testing.assert_close(torch.from_numpy(found[0]), model(x)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
def test_onnx_by_tracing_of_a_single_layer(name):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs what was exported")
    layer, x, file = getattr(fused_rnn, name)(4, 5), torch.randn(3, 2, 4), io.BytesIO()
    torch.onnx.export(layer, (x,), file, dynamo=False)
    found = runtime.InferenceSession(file.getvalue()).run(None, _feed(file, x))
    torch.testing.assert_close(torch.from_numpy(found[0]), layer(x)[0].detach())


def test_a_trace_of_a_sliced_input_passes_torchs_own_check():
    torch.jit.trace(fused_rnn.LSTM(4, 5), (torch.randn(3, 2, 4)[:, 0],))
    torch.jit.trace(fused_rnn.GRU(4, 5), (torch.randn(3, 4, 4)[:, ::2],))


def test_fx_takes_attributes_of_its_inputs_and_states_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = fused_rnn.GRU(3, 4)
            self.register_buffer("x", torch.randn(5, 2, 3))

        def forward(self, y, h):
            return self.gru(y.mT)[0] + self.gru(self.x, h)[0]

    y, h = torch.randn(5, 3, 2), torch.randn(1, 2, 4)
    net = Net()
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(y, h), net(y, h))


def test_script_refuses_parametrized_layers():
    layer = nn.utils.parametrizations.weight_norm(fused_rnn.GRU(3, 4), "weight_hh_l0")
    with pytest.raises(NotImplementedError, match="cannot compile parametrized layers"):
        torch.jit.script(nn.Sequential(layer))
