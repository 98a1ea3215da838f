"""What mypy and pyright see: in a user's program, in the package, and in every public name."""

import inspect
import json
import os
import runpy
import subprocess
import sys

import pytest

import fused_rnn
from support.paths import ROOT

PROGRAM = ROOT / "tests/project/typed_program.py"
# A user's mistakes, each of which must be found.
MISTAKES = {
    "fused_rnn.GRU(4, 6, hidden=3)": "a constructor's argument",
    "fused_rnn.RNN(4, 6, device=1.5)": "a device",
    "fused_rnn.LSTM(4, 6)(x, lenghts=[5])": "a misspelt option",
    "fused_rnn.LSTM(4, 6)(x)[2]": "a third result that was not asked for",
    "fused_rnn.GRU(4, 6)(x, (x, x))": "two states for a GRU",
    "fused_rnn.swap(3)": "what is no module",
    "fused_rnn.LSTMCell(4, 6)(x)[0].no_such_method()": "a method of no tensor",
}


def run(*command, folder=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # pyright looks for packages where Python does
    command = [sys.executable, "-m", *command]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


def installed(checker):
    return pytest.importorskip(checker, reason=f"{checker} is not installed")


def mypy(*files, folder=ROOT):
    installed("mypy")
    done = run("mypy", "--config-file", str(ROOT / "pyproject.toml"), *map(str, files), folder=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def pyright(*arguments):
    installed("basedpyright")
    done = run("basedpyright", "--outputjson", "--pythonpath", sys.executable, *map(str, arguments))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return json.loads(done.stdout)


def errors_of_pyright(file, folder):
    """pyright's own standard rules, of this file alone, which lies in ``folder`` beside its settings."""
    settings = {"typeCheckingMode": "standard", "include": [file.name], "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    return [found for found in pyright("--project", folder)["generalDiagnostics"] if found["severity"] == "error"]


def test_the_program_runs():
    runpy.run_path(str(PROGRAM))


def test_mypy_agrees_with_the_program_and_with_the_package():
    assert mypy("fused_rnn", PROGRAM).startswith("Success: no issues found")


def test_pyright_agrees_with_the_program(tmp_path):
    copy = tmp_path / PROGRAM.name
    copy.write_text(PROGRAM.read_text())
    assert errors_of_pyright(copy, tmp_path) == []


def test_mistakes_are_found(tmp_path):
    wrong = tmp_path / "wrong.py"
    head = "import torch\n\nimport fused_rnn\n\nx = torch.zeros(5, 3, 4)\n"
    wrong.write_text(head + "".join(f"{mistake}\n" for mistake in MISTAKES))
    lines = range(head.count("\n") + 1, head.count("\n") + 1 + len(MISTAKES))
    by_mypy = {int(line.split(":")[1]) for line in mypy(wrong).splitlines() if ": error: " in line}
    assert by_mypy == set(lines)
    by_pyright = {found["range"]["start"]["line"] + 1 for found in errors_of_pyright(wrong, tmp_path)}
    assert by_pyright == set(lines)


def test_every_public_name_has_its_types():
    report = pyright("--verifytypes", "fused_rnn", "--ignoreexternal")["typeCompleteness"]
    found = {symbol["name"]: symbol for symbol in report["symbols"]}
    public = {name for place in places(found) for name in found if f"{name}.".startswith(f"{place}.")}
    assert len(public) > 150
    # Whether pyright knows torch's classes depends on the environment; what counts here is our own.
    of_torch = ("Type of base class", "Type of metaclass")
    unknown = {name: [d["message"] for d in found[name]["diagnostics"] if d["severity"] == "error"] for name in public}
    unknown = {
        name: [m for m in messages if not (m.startswith(of_torch) or is_of_own_cells(m))]
        for name, messages in unknown.items()
    }
    assert {name: messages for name, messages in unknown.items() if messages} == {}


def is_of_own_cells(message):
    """Whether all that it says is that a type is an own cell, or its layer, which is checked itself: the base that the
    layer has from torch makes every type with it partially unknown."""
    _, _, kind = message.rpartition(' type is "')
    return kind.rstrip('"') in ("OwnLayer", "OwnCell", "str | OwnCell")


def places(found):
    """The names in ``found`` of public functions, of public classes, and of their bases in this package."""
    things = [getattr(fused_rnn, name) for name in fused_rnn.__all__ if name not in ("reference", "__version__")]
    modules = [*filter(inspect.ismodule, things), fused_rnn.onnx]
    things += [value for value in vars(fused_rnn).values() if inspect.isclass(value)]
    things += [getattr(module, name) for module in modules for name in module.__all__]
    for thing in map(inspect.unwrap, things):
        if inspect.isfunction(thing):
            yield f"{thing.__module__}.{thing.__qualname__}"
        for part in thing.__mro__ if inspect.isclass(thing) else ():
            if part.__module__.startswith("fused_rnn"):  # where a class says it is, not where it is defined
                yield next(name for name in found if name.endswith(f".{part.__name__}") and name.count(".") > 1)
