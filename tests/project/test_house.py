"""The rules of the house: who may import whom in ``fused_rnn``, where imports stand, and how long a file may be.

All rules read the source text: nothing is imported, so a fault in one file hides no other.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT

PACKAGE = "fused_rnn"

# What each folder or top-level file may import from the others; nothing else may exist.
MAY_SEE = {
    "_version": set(),
    "_old_names": set(),
    "ops": {"_version"},
    "reference": {"ops"},
    "onnx": {"ops"},
    "autograd": {"ops", "reference"},
    "functional": {"ops", "autograd"},
    "nn": {"ops", "autograd", "functional"},
    "own": {"_version", "ops", "reference", "autograd", "nn"},
    "zoo": {"own"},
    "init": {"ops", "nn"},
    "tools": {"_version", "ops", "reference", "autograd", "functional", "nn", "own"},
}
MAY_SEE["__init__"] = MAY_SEE["__main__"] = {*MAY_SEE, "__init__"}

# Optional packages, imported where they are needed.
OPTIONAL = {"matplotlib", "onnx_ir", "onnxscript"}

MOST_LINES = 400
FOLDERS_OF_SHORT_FILES = (PACKAGE, "tests")


# ---- reading the files -----------------------------------------------------------------------------------------------


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, ``fused_rnn`` and ``fused_rnn.nn.layers`` alike."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(), str(path))
    return found


def imports(name: str, tree: ast.AST, known: dict[str, ast.Module]) -> Iterator[tuple[str, str | None, ast.stmt]]:
    """(module of the package, name taken from it or None, the statement) for every import of one of its modules."""
    is_package = any(other.startswith(f"{name}.") for other in known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield alias.name, None, node
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")
            above = node.level - is_package
            start = [] if not node.level else base[: len(base) - above]
            source = ".".join([*start, *([node.module] if node.module else [])])
            if source.split(".")[0] != PACKAGE:
                continue
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield (inner, None, node) if inner in known else (source, alias.name, node)


def unit(module: str) -> str:
    """The folder or top-level file that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


# ---- the rules -------------------------------------------------------------------------------------------------------


def forbidden_arrows(root: Path) -> list[str]:
    known = modules(root)
    found = []
    for name, tree in known.items():
        here = unit(name)
        if here not in MAY_SEE:
            found.append(f"{name}: no rule says what it may see")
            continue
        for source, _, node in imports(name, tree, known):
            if unit(source) != here and unit(source) not in MAY_SEE[here]:
                found.append(f"{name}:{node.lineno} imports {source}")
    return found


def circles(root: Path) -> list[str]:
    """Modules that import each other, directly or not."""
    known = modules(root)
    sees = {name: {source for source, *_ in imports(name, tree, known)} & known.keys() for name, tree in known.items()}
    found, done = [], set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in sorted(sees[name]):
                walk(other, [*path, name])
            done.add(name)

    for name in known:
        walk(name, [])
    return found


def hidden_imports(root: Path) -> list[str]:
    """Imports inside functions."""
    found = []
    for name, tree in modules(root).items():
        for function in ast.walk(tree):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    sources = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    sources = ["." * node.level + (node.module or "")]
                else:
                    continue
                found += [f"{name}:{node.lineno} {s}" for s in sources if s.split(".")[0] not in OPTIONAL]
    return found


def borrowed_private_names(root: Path) -> list[str]:
    """Private names that are used outside of their file."""
    known = modules(root)
    found = []
    for name, tree in known.items():
        of_package = {}
        for source, taken, node in imports(name, tree, known):
            if taken is not None and taken.startswith("_") and not taken.startswith("__"):
                found.append(f"{name}:{node.lineno} {source}.{taken}")
            for alias in node.names:
                if taken is None and source.split(".")[-1] == alias.name.split(".")[-1]:
                    of_package[alias.asname or alias.name] = source
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
                continue
            if node.value.id in of_package and node.attr.startswith("_") and not node.attr.startswith("__"):
                found.append(f"{name}:{node.lineno} {of_package[node.value.id]}.{node.attr}")
    return found


def long_files(root: Path) -> list[str]:
    found = []
    for folder in FOLDERS_OF_SHORT_FILES:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                lines = len(path.read_text().splitlines())
                if lines > MOST_LINES:
                    found.append(f"{path.relative_to(root)} has {lines} lines")
    return found


RULES = (forbidden_arrows, circles, hidden_imports, borrowed_private_names, long_files)


def test_every_folder_and_file_has_a_rule():
    assert {unit(name) for name in modules(ROOT)} == MAY_SEE.keys()


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_kept(rule):
    assert rule(ROOT) == []


# ---- the rules themselves --------------------------------------------------------------------------------------------

IN_FUNCTION = "\n\ndef _late():\n    {}\n"


@pytest.mark.parametrize(
    ("rule", "file", "addition", "found"),
    [
        (forbidden_arrows, "ops/layer.py", "from ..autograd import functions", "fused_rnn.autograd.functions"),
        (forbidden_arrows, "reference.py", "from .autograd.functions import run_layer", "fused_rnn.autograd.functions"),
        (forbidden_arrows, "nn/layers.py", "from ..tools.explain import explain", "fused_rnn.tools.explain"),
        (forbidden_arrows, "autograd/norms.py", "import fused_rnn.nn.layers", "fused_rnn.nn.layers"),
        (forbidden_arrows, "functional.py", "from . import nn", "fused_rnn.nn"),
        (forbidden_arrows, "ops/cells.py", "from fused_rnn import LSTM", "imports fused_rnn"),
        (forbidden_arrows, "tools/figure.py", IN_FUNCTION.format("from .. import init"), "fused_rnn.init"),
        (forbidden_arrows, "extras/new.py", "", "no rule"),
        (circles, "autograd/second_order.py", "from . import functions", "-> fused_rnn.autograd.functions"),
        (circles, "nn/freezable.py", IN_FUNCTION.format("from .freeze import freeze"), "fused_rnn.nn.freeze"),
        (hidden_imports, "tools/verify.py", IN_FUNCTION.format("from .. import reference"), " .."),
        (hidden_imports, "ops/plans.py", IN_FUNCTION.format("import fused_rnn.ops.library"), "fused_rnn.ops.library"),
        (hidden_imports, "nn/stack.py", IN_FUNCTION.format("import json"), "json"),
        (borrowed_private_names, "nn/stack.py", "from .convert import _SWAPS", "convert._SWAPS"),
        (borrowed_private_names, "nn/stack.py", "from . import convert\nx = convert._SWAPS", "convert._SWAPS"),
        (long_files, "ops/plans.py", "\n" * MOST_LINES, "plans.py has"),
    ],
)
def test_each_rule_finds_its_offender(tmp_path, rule, file, addition, found):
    for path in (ROOT / PACKAGE).rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    changed = tmp_path / PACKAGE / file
    changed.parent.mkdir(exist_ok=True)
    changed.write_text((changed.read_text() if changed.exists() else "") + f"\n{addition}\n")
    seen = rule(tmp_path)
    assert seen and found in seen[0], seen


def test_optional_packages_may_be_imported_late(tmp_path):
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "onnx.py").write_text(IN_FUNCTION.format("from onnxscript import opset18"))
    assert hidden_imports(tmp_path) == []
