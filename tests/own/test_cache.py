"""The folder of compiled cells: who may write to it, what makes an entry whole, and what one depends on."""

import io
import os
import re
import stat
import subprocess
import sys

import pytest
import torch

from fused_rnn.ops import library
from fused_rnn.own import build, cache
from support.own_cells import header_of
from support.paths import ROOT, TESTS

WIDE = (torch.float32, torch.float64)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What would be compiled, in a cache of its own."""
    calls = []

    def pretend(folder, compiler, builds, id, what):
        calls.append(what)
        (folder / cache.PLUG_IN).write_bytes(b"code")

    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cells"))
    monkeypatch.setattr(build, "_compile", pretend)
    monkeypatch.setattr(build, "_compiler", lambda: ["c++"])
    return calls


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_cell_is_compiled_once(compiled, tmp_path):
    header = header_of("min_gru")
    first = build.load(header, WIDE, "min_gru")
    assert build.load(header, reversed(WIDE)) == first and first.read_bytes() == b"code"
    assert compiled == ["min_gru for float32, float64"]
    assert first.with_name(cache.HEADER).read_text() == header
    assert first.is_relative_to(tmp_path / "cells")


def test_nobody_else_may_read_or_write_it(compiled, tmp_path):
    before = os.umask(0)
    try:
        path = build.load(header_of("min_gru"), WIDE)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "cells") == mode_of(path.parent) == 0o700
    assert {mode_of(file) for file in path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("place", ["cache", "entry", "plug-in", "header", "digest"])
@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
def test_what_others_may_write_is_refused(compiled, tmp_path, place, bit):
    path = build.load(header_of("min_gru"), WIDE)
    places = {"cache": tmp_path / "cells", "entry": path.parent, "plug-in": path}
    places |= {"header": path.with_name(cache.HEADER), "digest": path.with_name("cell.sha256")}
    places[place].chmod(mode_of(places[place]) | bit)
    with pytest.raises(PermissionError, match=r"other users may write to it \(mode 0.*chmod go-w"):
        build.load(header_of("min_gru"), WIDE)


@pytest.mark.parametrize("place", ["cache", "entry", "plug-in"])
def test_what_another_user_owns_is_refused(compiled, tmp_path, monkeypatch, place):
    path = build.load(header_of("min_gru"), WIDE)
    owned = {"cache": tmp_path / "cells", "entry": path.parent, "plug-in": path}[place]
    if os.getuid() == 0:
        os.chown(owned, 12345, -1)
    else:  # only root may give files away: then everything is somebody else's
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        build.load(header_of("min_gru"), WIDE)


def test_a_link_is_refused(compiled, tmp_path):
    path = build.load(header_of("min_gru"), WIDE)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="is a link"):
        build.load(header_of("min_gru"), WIDE)


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "no digest"])
def test_a_damaged_entry_is_compiled_again(compiled, damage):
    path = build.load(header_of("min_gru"), WIDE)
    if damage == "missing":
        path.unlink()
    elif damage == "no digest":
        path.with_name("cell.sha256").unlink()
    else:
        path.write_bytes(b"" if damage == "cut" else b"other code")
    assert build.load(header_of("min_gru"), WIDE) == path
    assert len(compiled) == 2 and path.read_bytes() == b"code"


def test_an_entry_depends_on_everything_that_went_into_it(compiled, monkeypatch, tmp_path):
    header = header_of("min_gru")
    paths = {build.load(header, WIDE), build.load(header + "// other\n", WIDE), build.load(header, [torch.bfloat16])}
    changes = {
        "version_of": lambda compiler: "another compiler",
        "digest_of_sources": lambda folder: "other sources",
        "__version__": "other",
        "CXX_FLAGS": "-O0",
    }
    for name, value in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(build, name, value)
            paths.add(build.load(header, WIDE))
    monkeypatch.setenv("CXXFLAGS", "-O0")
    paths.add(build.load(header, WIDE))
    monkeypatch.setattr(library, "instruction_sets", lambda dtype, gates: ["baseline"])
    paths.add(build.load(header, WIDE))
    assert len(paths) == len(compiled) == 3 + len(changes) + 2


def test_a_failed_compilation_leaves_nothing(compiled, monkeypatch, tmp_path):
    def fail(*args):
        raise RuntimeError("no")

    monkeypatch.setattr(build, "_compile", fail)
    with pytest.raises(RuntimeError, match="no"):
        build.load(header_of("min_gru"), WIDE)
    assert [path.suffix for path in (tmp_path / "cells").iterdir()] == [".lock"]


def test_a_refused_header_is_shown_with_the_compilers_message(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    header = "static constexpr int kGates = 2;\n#error not a cell\n"
    with pytest.raises(RuntimeError, match=r"(?s)mine for float16 does not compile\..*not a cell"):
        build.load(header, [torch.float16], "mine")


def test_a_header_names_its_gates():
    with pytest.raises(ValueError, match="kGates"):
        build.load("struct Own {};", WIDE)


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/such/compiler -m64")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler.*/no/such/compiler.*compiled=False"):
        build.load(header_of("min_gru"), WIDE)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"looked for g\+\+, c\+\+ and clang\+\+"):
        build.load(header_of("min_gru"), WIDE)


def test_ids_are_hashes_that_fit():
    ids = {build.cell_id(str(i)) for i in range(1000)}
    assert len(ids) == 1000 and all(1 << 32 <= id < 1 << 61 for id in ids)
    assert build.cell_id("a") == build.cell_id("a")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stderr", [Terminal, io.StringIO])
def test_a_terminal_shows_what_is_compiled(stderr, monkeypatch):
    shown = stderr()
    monkeypatch.setattr(sys, "stderr", shown)
    with build.Watch("mine for float32") as watch:
        watch.run([[sys.executable, "-c", "import time; time.sleep(1.2)"]])
    if stderr is Terminal:
        assert "fused_rnn: compiling mine for float32: 1 s" in shown.getvalue()
        assert shown.getvalue().endswith("\r\033[K"), "nothing stays"
    else:
        assert shown.getvalue() == ""


def test_the_package_has_all_that_a_cell_is_compiled_from(tmp_path):
    """An installed one, which has no source tree beside it."""
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    include = tmp_path / "fused_rnn/include"
    assert {path.name for path in include.iterdir()} == {"core", "cells", "cpu", "cuda"}
    header = tmp_path / "cell.h"
    header.write_text(header_of("wide_cell"))
    own = [f'-DFUSED_RNN_OWN_CELL="{header}"', "-DFUSED_RNN_OWN_ID=4294967296", f"-I{include}", "-std=c++20"]
    for source in ("kernels.cpp", "plug_in.cpp"):
        preprocess = [*build._compiler(), *own, "-M", str(include / "cpu" / source)]
        assert subprocess.run(preprocess, check=False, capture_output=True).returncode == 0
    assert build.sources() == ROOT / "csrc"
    of_cuda, seen = ["cuda/stepwise/plug_in.cu"], set()
    while of_cuda:  # nvcc may not be here
        seen.add(name := of_cuda.pop())
        of_cuda += set(re.findall(r'^#include "(.*)"', (include / name).read_text(), re.MULTILINE)) - seen
    assert {"cells/lstm.h", "cuda/stepwise/forward.cuh", "core/plug_in.h"} < seen


WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from fused_rnn.own import build, cache
from support.own_cells import header_of
import torch

def slow(folder, compiler, builds, id, what):
    print("compiled", flush=True)
    time.sleep(0.5)
    (folder / cache.PLUG_IN).write_bytes(b"code")

build._compile, build._compiler = slow, lambda: ["c++"]
print(build.load(header_of("min_gru"), [torch.float64]).read_bytes())
"""


def test_many_processes_at_once_compile_it_once(tmp_path):
    environment = os.environ | {"FUSED_RNN_CACHE": str(tmp_path / "cells"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER, str(TESTS)]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [worker.communicate()[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    assert sorted("".join(said).split()) == ["b'code'"] * 3 + ["compiled"]
