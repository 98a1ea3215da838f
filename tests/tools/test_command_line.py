"""``info`` and ``python -m fused_rnn``."""

import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn.__main__ import main
from fused_rnn.tools.verify import Report, Result
from support.paths import ROOT

ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
ISAS_OF_INT8 = ("baseline", "avx2", "avx_vnni", "avx512_vnni", "amx")


def test_info_has_what_a_bug_report_needs():
    info = fused_rnn.info()
    assert info["fused_rnn"] == fused_rnn.__version__
    assert info["torch"] == torch.__version__
    assert info["python"] == platform.python_version()
    assert info["CPU instruction set"] in ISAS
    assert info["CPU instruction set for bfloat16"] in ISAS
    assert info["CPU instruction set for int8"] in ISAS_OF_INT8
    assert Path(info["library"]).exists()
    assert all(isinstance(value, str) and value for value in info.values())


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
    del expected["threads"]  # this process may have changed it
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


@pytest.mark.parametrize("arguments", [["verify", "--cell", "transformer"], ["improve"]], ids=str)
def test_wrong_commands_fail(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m fused_rnn" in capsys.readouterr().err


def test_a_bare_call_shows_help(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {command} " in shown for command in ("info", "verify", "explain"))


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fused_rnn {fused_rnn.__version__}, torch {torch.__version__}\n"


def test_the_console_script_is_this_program():
    with (ROOT / "pyproject.toml").open() as lines:
        (script,) = (line for line in lines if line.startswith("fused-rnn = "))
    module, function = script.split('"')[1].split(":")
    assert getattr(importlib.import_module(module), function) is main


def test_info_is_aligned(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    column = max(len(line.split(":")[0]) for line in lines) + 2
    assert all(line[column - 1] == " " != line[column] for line in lines)


# What shows colours: a terminal, unless NO_COLOR or TERM says otherwise.
@pytest.mark.parametrize(
    ("is_terminal", "environment", "coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colours(is_terminal, environment, coloured, monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    results = [Result("lstm", "float32", "plain", error, 1e-5) for error in (1e-6, 0.5)]
    monkeypatch.setattr("fused_rnn.__main__.verify", lambda *_, **__: Report(results))
    assert main(["verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("\033[31m") for line in lines] == [False, False, coloured, False]


MODEL = """
import torch
import fused_rnn
from neighbour import SIZE


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = fused_rnn.LSTM(SIZE, 4, batch_first=True), torch.nn.GRUCell(4, 5)

    def forward(self, x, lengths=None):
        return self.decoder(self.encoder(x, lengths=lengths)[0][:, -1])


def alone():
    return Model()


def with_input():
    return Model(), torch.randn(2, 7, SIZE)


def with_inputs():
    return Model(), (torch.randn(2, 7, SIZE), [7, 5])


def layer():
    return fused_rnn.GRU(SIZE, 4), torch.nn.utils.rnn.pack_sequence([torch.randn(7, SIZE)])


def number():
    return 3


def plain():
    return torch.nn.Linear(3, 4)
"""


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "neighbour.py").write_text("SIZE = 3\n")
    (tmp_path / "my_model.py").write_text(MODEL)
    yield tmp_path / "my_model.py"
    for name in ("neighbour", "my_model"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["alone", "with_input", "with_inputs"])
def test_explain_command(function, model_file, capsys):
    assert main(["explain", f"{model_file}:{function}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("encoder  fused (") and lines[1].startswith("         CPU tensors run")
    assert lines[2:] == [
        "decoder  torch.nn",
        "         GRUCell is not one of fused_rnn's modules; fused_rnn.swap(model) replaces torch.nn's",
    ]


def test_explain_command_takes_a_layer(model_file, capsys):
    assert main(["explain", f"{model_file}:layer"]) == 0
    assert capsys.readouterr().out.startswith("GRU  fused (")


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (":number", "must return a torch.nn.Module, or (module, example input), got int"),
        (":plain", "Linear has no recurrent layer or cell"),
        (":nothing", "has no function nothing"),
        ("", "expected FILE.py:FUNCTION"),
        ("x:layer", "there is no file"),
    ],
)
def test_explain_command_says_what_it_needs(where, says, model_file, capsys):
    assert main(["explain", f"{model_file}{where}"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_verify_says_first_that_torch_lacks_cuda(capsys):
    assert main(["verify", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith(f"fused_rnn verify: this torch ({torch.__version__}) has no CUDA")


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
    assert (
        "FUSED_RNN_ISA must be amx, avx512_bf16, avx512_vnni, avx512, avx_vnni, avx2 or baseline, got 'nonsense'"
        in done.stderr
    )


# FUSED_RNN_ISA: what float32 layers and those with int8 weights run on.
@pytest.mark.parametrize(
    ("asked", "float32", "int8"),
    [
        ("baseline", "baseline", "baseline"),
        ("avx2", "avx2", "avx2"),
        ("avx_vnni", "avx2", "avx_vnni"),
        ("avx512", "avx512", ("avx2", "avx_vnni")),
        ("avx512_vnni", "avx512", "avx512_vnni"),
        ("amx", "amx", ("avx2", "avx_vnni", "avx512_vnni", "amx")),
    ],
)
def test_instruction_set_asked_for(asked, float32, int8):
    done = run("-m", "fused_rnn", "info", FUSED_RNN_ISA=asked)
    if "is not supported by this processor or build" in done.stderr:
        pytest.skip(f"this processor has no {asked}")
    found = info_shown(done.stdout)
    assert found["CPU instruction set"] == float32
    assert found["CPU instruction set for int8"] in (int8 if isinstance(int8, tuple) else (int8,))
