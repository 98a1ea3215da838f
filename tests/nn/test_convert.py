"""swap and restore, explain and info, the command line."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn
from fused_rnn.__main__ import main
from fused_rnn.tools.verify import Report, Result
from support.modules import F64, KINDS, LAYERS, assert_close, make_input, make_packed, make_pair

every_kind = pytest.mark.parametrize("kind", KINDS)
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")


class OwnLSTM(nn.LSTM):
    """A user's subclass with a forward of its own."""

    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


class Tagger(nn.Module):
    """What a real model has: an encoder, a cell in a loop, a submodule in two places, layers that cannot be swapped."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(6, 5, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True)
        self.shared = nn.RNN(10, 10, batch_first=True)
        self.blocks = nn.ModuleList([self.shared, nn.Tanh(), self.shared])
        self.own = OwnLSTM(10, 7, batch_first=True)
        self.normed = parametrizations.weight_norm(nn.GRU(7, 7, batch_first=True), "weight_hh_l0")
        self.cell = nn.GRUCell(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, words):
        x = self.encoder(self.embedding(words))[0]
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        x = self.normed(self.own(x)[0])[0]
        state = x.new_zeros(x.shape[0], 4)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


PASSED_OVER = ("own", "normed")
WARNING = "passed over subclasses"


@pytest.fixture
def model():
    return Tagger().double()


def swap(model):
    with pytest.warns(UserWarning, match=WARNING):
        return fused_rnn.swap(model)


def train(model, swap_at=None, restore_at=None, steps=8):
    """Losses and final parameters of a run that may swap and restore in its middle, under one and the same Adam."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(11, (4, 6), generator=draw)
    labels = torch.randint(3, (4,), generator=draw)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    torch.manual_seed(2)  # of the dropout
    for step in range(steps):
        if step == swap_at:
            swap(model)
        if step == restore_at:
            fused_rnn.restore(model)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(words), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), **model.state_dict()}


# ---- swap and restore ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("swap_at", "restore_at"), [(0, None), (4, None), (3, 6)])
def test_training_goes_on_as_if_nothing_had_been_swapped(model, swap_at, restore_at):
    swapped = Tagger().double()
    swapped.load_state_dict(model.state_dict())
    expected = train(model)
    assert expected["losses"][-1] < expected["losses"][0]
    # Adam divides by the root of the second moment: rounding of a tiny gradient shows undiminished in its step.
    assert_close(train(swapped, swap_at, restore_at), expected, tolerance=1e-8)
    assert type(swapped.encoder) is (fused_rnn.LSTM if restore_at is None else nn.LSTM)


def test_swap_changes_classes_and_nothing_else(model):
    before = {name: parameter for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    assert swap(model) is model
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(module is modules[name] for name, module in model.named_modules())
    assert type(model.encoder) is fused_rnn.LSTM
    assert type(model.shared) is fused_rnn.RNN
    assert model.blocks[0] is model.blocks[2] is model.shared
    assert type(model.cell) is fused_rnn.GRUCell
    assert type(model.own) is OwnLSTM
    assert isinstance(model.normed, nn.GRU)
    assert not isinstance(model.encoder, nn.LSTM)

    assert fused_rnn.restore(model) is model
    assert type(model.encoder) is nn.LSTM
    assert type(model.shared) is nn.RNN
    assert type(model.cell) is nn.GRUCell
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_swap_names_what_it_passes_over(model):
    with pytest.warns(UserWarning, match=WARNING) as caught:
        fused_rnn.swap(model)
    message = str(caught[0].message)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for name in PASSED_OVER:
        assert f"{name} ({type(getattr(model, name)).__name__})" in message
    for name in ("encoder", "shared", "cell", "blocks"):
        assert name not in message
    with pytest.warns(UserWarning, match=r"the model itself \(OwnLSTM\)"):
        fused_rnn.swap(OwnLSTM(3, 4))


def test_swap_twice_changes_nothing_more(model):
    classes = {name: type(module) for name, module in swap(model).named_modules()}
    assert {name: type(module) for name, module in swap(model).named_modules()} == classes
    assert fused_rnn.restore(fused_rnn.restore(model)) is model
    assert type(model.encoder) is nn.LSTM


@every_kind
def test_the_root_module_itself_is_swapped(kind):
    our_class, torch_class, options = KINDS[kind]
    module, twin = (torch_class(3, 4, **options, dtype=F64) for _ in range(2))
    twin.load_state_dict(module.state_dict())
    input = make_input(module)
    assert fused_rnn.swap(module) is module
    assert type(module) is our_class
    assert repr(module) == repr(twin)
    outputs = [tensor for tensor in (module(input)[0], twin(input)[0])]
    assert torch.allclose(*outputs, rtol=0, atol=1e-14)
    assert fused_rnn.restore(module) is module
    assert type(module) is torch_class
    assert torch.equal(module(input)[0], twin(input)[0])


def test_our_own_layers_restore_too_and_subclasses_of_them_stay():
    class OwnGRU(fused_rnn.GRU):
        pass

    model = nn.Sequential(fused_rnn.GRU(3, 4), OwnGRU(3, 4), fused_rnn.RNN(3, 4, nonlinearity="relu"))
    fused_rnn.restore(model)
    assert [type(module) for module in model] == [nn.GRU, OwnGRU, nn.RNN]
    assert model[2](torch.ones(2, 1, 3))[0].min() >= 0
    fused_rnn.swap(model)
    assert type(model[1]) is OwnGRU


def test_hooks_stay_through_swap_and_restore():
    module = nn.GRU(3, 4, num_layers=2)
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append("forward pre"))
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module.weight_hh_l1.register_post_accumulate_grad_hook(lambda *_: calls.append("accumulated"))
    module.register_state_dict_post_hook(lambda *_: calls.append("state dict"))
    seen = []
    for change in (lambda m: m, fused_rnn.swap, fused_rnn.restore):
        calls.clear()
        change(module)(torch.ones(5, 2, 3, requires_grad=True))[0].sum().backward()
        module.state_dict()
        seen.append(sorted(calls))
    assert seen[0] == sorted({"forward pre", "forward", "backward", "accumulated", "state dict"})
    assert seen[1] == seen[2] == seen[0]


def test_layers_pickled_by_old_versions_of_torch_swap():
    module = nn.RNN(3, 4, nonlinearity="relu", dtype=F64)
    input = make_input(module)
    expected = module(input)[0]
    del module.nonlinearity
    assert torch.allclose(fused_rnn.swap(module)(input)[0], expected, rtol=0, atol=1e-14)


def test_swapped_layers_may_be_parametrized_afterwards():
    ours, theirs = (nn.GRU(3, 4, dtype=F64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fused_rnn.swap(ours)
    for module in (ours, theirs):
        parametrizations.weight_norm(module, "weight_hh_l0")
    input = make_input(theirs)
    assert torch.allclose(ours(input)[0], theirs(input)[0], rtol=0, atol=1e-14)
    assert isinstance(ours, fused_rnn.GRU)


# ---- explain and info ------------------------------------------------------------------------------------------------


@every_kind
def test_explain_says_fused_for_our_modules(kind):
    ours, theirs = make_pair(kind)
    inputs = [make_input(ours), make_input(ours, batch=None)]
    inputs += [make_packed([3, 5])] if kind in LAYERS else []
    for input in inputs:
        found = fused_rnn.explain(ours, input)
        assert (found.engine, found.instruction_set) == ("fused", fused_rnn.info()["CPU instruction set"])
        assert str(found) == f"fused ({found.instruction_set}): {found.reason}"
        other = fused_rnn.explain(theirs, input)
        assert (other.engine, other.instruction_set) == ("torch.nn", None)
        assert f"{type(theirs).__name__} is not one of fused_rnn's modules" in other.reason
        assert "fused_rnn.swap" in other.reason


@every_kind
def test_explain_says_none_where_a_call_computes_nothing(kind, monkeypatch):
    ours, _ = make_pair(kind)
    meta = fused_rnn.explain(ours.to("meta"), make_input(ours).to("meta"))
    assert (meta.engine, meta.instruction_set) == ("none", None)
    assert "meta" in meta.reason
    monkeypatch.setattr(fused_rnn.ops.library, "cuda_archs", list)
    with torch._subclasses.FakeTensorMode():
        on_cuda = torch.empty(make_input(ours).shape, device="cuda")
    found = fused_rnn.explain(ours, on_cuda)
    assert found.engine == "none"
    assert "built without CUDA" in found.reason


@every_kind
def test_explain_names_the_cuda_engine(kind, plans, monkeypatch):
    """Of a GPU that is not there."""
    monkeypatch.delenv("FUSED_RNN_CUDA_ENGINE", raising=False)
    ours, _ = make_pair(kind)
    with torch._subclasses.FakeTensorMode():
        for name, parameter in list(ours.named_parameters()):
            setattr(ours, name, torch.nn.Parameter(torch.empty(parameter.shape, device="cuda")))
        found = fused_rnn.explain(ours, torch.empty(make_input(ours).shape, device="cuda"))
    assert (found.engine, found.instruction_set) == ("stepwise", None)
    assert "step by step" in found.reason


def test_explain_asks_for_the_input():
    with pytest.raises(TypeError, match=r"explain needs the input that forward would get"):
        fused_rnn.explain(fused_rnn.GRU(3, 4))


@pytest.mark.parametrize(
    "inputs",
    [
        (None,),
        ([[1.0]],),
        (torch.randn(5),),
        (torch.randn(5, 2, 7),),
        (torch.ones(5, 2, 3, dtype=torch.int),),
        (torch.randn(0, 2, 3),),
        (torch.randn(5, 2, 3), torch.randn(1, 3, 4)),
    ],
)
def test_explain_says_what_a_call_would_raise(inputs):
    module = fused_rnn.GRU(3, 4)
    with pytest.raises(Exception) as raised:  # of any type: the message is compared
        module(*inputs)
    found = fused_rnn.explain(module, *inputs)
    assert (found.engine, found.reason) == ("none", str(raised.value))


def test_explain_speaks_for_subclasses_whose_forward_is_inherited():
    class Inherited(fused_rnn.GRU):
        pass

    class Own(fused_rnn.GRU):
        def forward(self, input, hx=None):
            return super().forward(input * 2, hx)

    input = torch.randn(5, 2, 3)
    assert fused_rnn.explain(Inherited(3, 4), input) == fused_rnn.explain(fused_rnn.GRU(3, 4), input)
    for module in (Own(3, 4), Inherited(3, 4)):
        module.forward = module.forward  # of this object alone
        found = fused_rnn.explain(module, input)
        assert found.engine == "unknown"
        assert "has a forward of its own, which may compute anything" in found.reason
    assert fused_rnn.explain(OwnLSTM(10, 7), torch.randn(5, 2, 10)).engine == "unknown"


@every_kind
def test_explain_speaks_for_parametrized_layers(kind):
    ours, theirs = make_pair(kind, dtype=torch.float32)
    input, plain = make_input(ours), fused_rnn.explain(ours, make_input(ours))
    name = "weight_hh_l0" if kind in LAYERS else "weight_hh"
    for module in (ours, theirs):
        parametrizations.weight_norm(module, name)
    assert fused_rnn.explain(ours, input) == plain
    assert fused_rnn.explain(theirs, input).engine == "torch.nn"


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.ReLU())])
def test_explain_of_what_has_no_recurrent_layer(module):
    found = fused_rnn.explain(module, torch.randn(5, 2, 3))
    assert (found.engine, found.reason) == (
        "unknown",
        f"{type(module).__name__} is no recurrent layer or cell, and has none",
    )


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.encoder = fused_rnn.LSTM(3, 4, 2, dropout=0.5)
        self.stack = fused_rnn.Stack("gru", 4, [4, 4], skip="residual")
        self.cell = fused_rnn.GRUCell(4, 4)
        self.decoder = nn.GRU(4, 4)
        self.spare = fused_rnn.RNN(3, 4)

    def forward(self, input):
        output, _ = self.encoder(input=self.norm(input.transpose(1, 2)).transpose(1, 2), lengths=[5, 4])
        output, _ = self.stack(output)
        h = None
        for step in output:
            h = self.cell(step, h)
        return self.decoder(h.unsqueeze(0))


def test_explain_has_a_line_for_each_layer_of_a_model():
    model, input = Mixed(), torch.randn(5, 2, 3)
    before, state = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    found = fused_rnn.explain(model, input)
    after = torch.get_rng_state()
    layers = dict(found.layers)
    assert list(layers) == ["encoder", "stack.layers.0", "stack.layers.1", "cell", "decoder", "spare"]
    engines = [explanation.engine for explanation in layers.values()]
    assert engines == ["fused", "fused", "fused", "fused", "torch.nn", "none"]
    assert layers["encoder"] == fused_rnn.explain(model.encoder, input, lengths=[5, 4])
    assert layers["cell"] == fused_rnn.explain(model.cell, torch.randn(2, 4))
    assert "did not call" in layers["spare"].reason
    assert str(found).splitlines() == [f"{name}: {explanation}" for name, explanation in layers.items()]
    # As the model was: its mode, its statistics, its hooks, and the random numbers.
    assert model.training and model.norm.training and model.encoder.training
    assert torch.equal(after, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model.encoder._forward_pre_hooks


def test_explain_of_a_sequential_and_of_a_stack():
    class Output(nn.Module):
        def forward(self, results):
            return results[0]

    input = torch.randn(5, 2, 3)
    layer = fused_rnn.freeze(fused_rnn.LSTM(3, 3))
    found = fused_rnn.explain(nn.Sequential(nn.Linear(3, 3), layer, Output()), input)
    with torch.no_grad():
        assert found.layers == (("1", fused_rnn.explain(layer, input)),)
    assert "fused" in str(found) and "frozen" in str(found)
    stack = fused_rnn.Stack("lstm", 3, [3, 3], batch_first=True)
    names = [name for name, _ in fused_rnn.explain(stack, input, lengths=torch.tensor([2, 1, 0, 2, 2])).layers]
    assert names == ["layers.0", "layers.1"]


def test_explain_of_a_model_that_fails():
    found = dict(fused_rnn.explain(Mixed(), torch.randn(5, 3, 3)).layers)
    assert found["encoder"].engine == "none" and "lengths must have one entry" in found["encoder"].reason
    assert found["decoder"].engine == "none"
    assert "raised before it was called: lengths must have one entry" in found["decoder"].reason


def test_explain_says_nothing_of_second_derivatives():
    assert "plain PyTorch" not in str(fused_rnn.explain(fused_rnn.GRU(3, 4), torch.randn(5, 2, 3)))


def explained(module, input, threads):
    """(threads, directions, how many what) that explain tells of."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        reason = fused_rnn.explain(module, input).reason
    finally:
        torch.set_num_threads(before)
    pattern = r"on (\d+) threads?: (\d+) directions? x (\d+) (runs? of batch rows|shares of the hidden units), which"
    counts = re.search(pattern, reason)
    assert counts, reason
    return (*map(int, counts.groups()[:3]), counts[4])


def test_explain_says_how_a_call_is_spread():
    both, one = fused_rnn.LSTM(200, 200, bidirectional=True), fused_rnn.GRU(200, 200, batch_first=True)
    many = torch.ones(64, 64, 200)
    assert explained(both, many, 4) == (4, 2, 2, "runs of batch rows")
    assert explained(one, many, 2) == (2, 1, 2, "runs of batch rows")
    assert explained(one, many, 1) == (1, 1, 1, "run of batch rows")
    assert explained(one, many[:1], 2) == (2, 1, 2, "shares of the hidden units")
    assert explained(fused_rnn.GRUCell(3, 4), torch.ones(2, 3), 4) == (1, 1, 1, "run of batch rows")


def test_explain_takes_the_arguments_of_forward():
    module, input = fused_rnn.LSTM(3, 4), torch.ones(5, 1, 3)
    states = torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)
    mask = torch.zeros(5, 1, dtype=torch.bool)
    assert fused_rnn.explain(module, input, states, lengths=[5], reset_mask=mask) == fused_rnn.explain(module, input)


def test_info_has_what_a_bug_report_needs():
    info = fused_rnn.info()
    assert info["fused_rnn"] == fused_rnn.__version__
    assert info["torch"] == torch.__version__
    assert info["python"] == platform.python_version()
    assert info["CPU instruction set"] in ISAS
    assert info["CPU instruction set for bfloat16"] in ISAS
    assert Path(info["library"]).exists()
    assert all(isinstance(value, str) and value for value in info.values())


# ---- the command line ------------------------------------------------------------------------------------------------


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=Path(fused_rnn.__file__).parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def info_shown(output):
    return {key: value.strip() for key, value in (line.split(":", 1) for line in output.splitlines())}


def test_info_command():
    done = run("-m", "fused_rnn", "info")
    assert done.returncode == 0, done.stderr
    shown, expected = info_shown(done.stdout), fused_rnn.info()
    assert shown.pop("threads").isdigit()
    del expected["threads"]  # this process may have set its own
    assert shown == expected


def test_verify_command():
    done = run("-m", "fused_rnn", "verify", "--cell", "gru", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("gru ")]
    assert {row.split()[1] for row in rows} == {"float64", "float32", "bfloat16", "float16"}
    assert done.stdout.splitlines()[-1] == f"{len(rows)} checks passed, 0 failed"


def test_verify_command_fails_when_a_check_does(monkeypatch, capsys):
    results = [Result("lstm", "float32", "plain", error, 1e-5, "in output 0") for error in (1e-6, 0.5, float("nan"))]
    monkeypatch.setattr("fused_rnn.__main__.verify", lambda *_, **__: Report(results))
    assert main(["verify"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("FAILED in output 0") == 2
    assert "1 checks passed, 2 failed" in shown


@pytest.mark.parametrize("arguments", [[], ["verify", "--cell", "transformer"], ["improve"]], ids=str)
def test_wrong_commands_fail(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m fused_rnn" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to verify on")
def test_verify_on_a_missing_device_fails(capsys):
    assert main(["verify", "--device", "cuda", "--quick"]) == 2
    assert "fused_rnn verify: " in capsys.readouterr().err


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512_bf16", "amx"])
def test_verify_passes_with_every_instruction_set(isa):
    script = "import sys; from fused_rnn.__main__ import main; main(['info']); sys.exit(main(sys.argv[1:]))"
    done = run("-c", script, "verify", "--quick", "--cell", "lstm", "gru", FUSED_RNN_ISA=isa)
    unsupported = "is not supported by this processor or build"
    if unsupported in done.stderr:
        pytest.skip(f"{isa} {unsupported}")
    assert done.returncode == 0, done.stdout + done.stderr
    info, checks = done.stdout.split("cell      dtype", 1)
    assert info_shown(info)["CPU instruction set for bfloat16"] == isa
    assert "lstm      float64" in checks


@pytest.mark.parametrize("command", ["info", "verify"])
def test_unknown_instruction_set_is_named(command):
    done = run("-m", "fused_rnn", command, FUSED_RNN_ISA="nonsense")
    assert done.returncode != 0
    assert "FUSED_RNN_ISA must be baseline, avx2, avx512, avx512_bf16 or amx, got 'nonsense'" in done.stderr
