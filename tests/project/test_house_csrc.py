"""The rules of the house for csrc: which folder may include which, and how long a file may be."""

import re
from pathlib import Path

import pytest

from support.paths import ROOT

MOST_LINES = 400

# What the files of a folder may include besides each other; deeper folders follow the rule of the one they are in.
MAY_SEE = {
    "cells": set(),
    "core": {"cells"},
    "ops": {"core"},
    "cpu/simd": {"core", "cells"},
    "cpu/gemm": {"cpu/simd", "cpu/schedule", "core", "cells"},  # of schedule: tuning.h
    "cpu/schedule": {"core", "cells"},
    "cpu/passes": {"cpu/gemm", "cpu/simd", "cpu/schedule", "core", "cells"},
    "cpu": {"cpu/passes", "cpu/schedule", "cpu/gemm", "cpu/simd", "core"},
    "cuda/device": {"core", "cells"},
    "cuda/plan": {"cuda/device", "core"},
    "cuda/stepwise": {"cuda/device", "core", "cells"},
    "cuda/persistent": {"cuda/plan", "cuda/device", "core", "cells"},
    "cuda/host": {"cuda/stepwise", "cuda/persistent", "cuda/plan", "cuda/device", "core"},
    "cuda": {"cuda/host", "cuda/device", "core"},
}


def sources(root: Path) -> list[Path]:
    return sorted(path for path in (root / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cuh", ".cu"))


def folder_of(path: str) -> str | None:
    """The folder with a rule that a file, named from csrc on, is in."""
    parts = path.split("/")[:-1]
    while parts and "/".join(parts) not in MAY_SEE:
        parts.pop()
    return "/".join(parts) or None


def forbidden_arrows(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        name = path.relative_to(root / "csrc").as_posix()
        here = folder_of(name)
        if here is None:
            found.append(f"{name}: no rule says what it may include")
            continue
        for included in re.findall(r'^#include "(.*)"', path.read_text(), re.MULTILINE):
            if not (root / "csrc" / included).is_file():
                found.append(f"{name} includes {included}, which is not named from csrc on")
            elif folder_of(included) not in {here, *MAY_SEE[here]}:
                found.append(f"{name} includes {included}")
    return found


def long_files(root: Path) -> list[str]:
    lengths = {path: path.read_text().count("\n") for path in sources(root)}
    return [f"{path.relative_to(root)}: {lines} lines" for path, lines in lengths.items() if lines > MOST_LINES]


def test_includes_go_one_way():
    assert forbidden_arrows(ROOT) == []


def test_no_file_is_long():
    assert long_files(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("cells/lstm.h", '#include "cpu/simd/vector.h"\n', "cells/lstm.h includes cpu/simd/vector.h"),
        ("cpu/gemm/product.h", '#include "cpu/passes/saved.h"\n', "cpu/gemm/product.h includes cpu/passes/saved.h"),
        ("cpu/gemm/product.h", '#include "panels.h"\n', "cpu/gemm/product.h includes panels.h, which is not named"),
        ("tricks/fast.h", "", "tricks/fast.h: no rule"),
    ],
)
def test_a_forbidden_include_is_found(tmp_path, file, text, fault):
    for name in ("cpu/simd/vector.h", "cpu/passes/saved.h", "cpu/gemm/panels.h"):
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).touch()
    path = tmp_path / "csrc" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (found,) = forbidden_arrows(tmp_path)
    assert found.startswith(fault)
    path.write_text(text + "\n" * 401)
    assert len(long_files(tmp_path)) == 1
