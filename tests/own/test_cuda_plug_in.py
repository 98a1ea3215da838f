"""Plug-ins with the kernels of a cell for CUDA: compiled by nvcc, kept, loaded and refused; none is launched here."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

import fused_rnn
from fused_rnn import zoo
from fused_rnn.ops import library
from fused_rnn.own import build, cuda
from support.own_cells import header_of, own_cell
from support.paths import ROOT

F32, F64 = torch.float32, torch.float64
NO_NVCC = r"there is no nvcc to compile this cell for CUDA with \(looked in /no/such/bin\).*compiled=False"
PRETENDER = """#!/bin/sh
case "$*" in *--version*) echo "release $NVCC_RELEASE"; exit;; esac
echo "$*" >> "{log}"
sleep 0.3
for last; do :; done
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo code > "$2"; shift; done
"""


@pytest.fixture
def nvcc(monkeypatch, tmp_path):
    """Stands in for nvcc, with a cache of its own: the commands it got."""
    log, home = tmp_path / "log", tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "bin/nvcc").write_text(PRETENDER.format(log=log))
    (home / "bin/nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("NVCC_RELEASE", "13.0")
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cells"))
    monkeypatch.setattr(library, "cuda_archs", lambda: ["80", "90a"])
    build.version_of.cache_clear()
    yield lambda: log.read_text().splitlines() if log.exists() else []
    build.version_of.cache_clear()


@pytest.fixture
def no_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", "/no/such")
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))


def test_a_cell_is_compiled_once_for_each_dtype(nvcc):
    header = header_of("min_gru")
    assert cuda.find(header, F32) is None
    path = cuda.load(header, F32, "min_gru")
    assert cuda.load(header, F32) == cuda.find(header, F32) == path and path.read_text() == "code\n"
    assert path.with_name("cell.h").read_text() == header
    assert {file.name for file in path.parent.iterdir()} == {"cell.so", "cell.h", "cell.sha256"}
    compiled, linked = nvcc()
    assert "arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90" in compiled
    assert "arch=compute_90,code=compute_90" in compiled, "PTX, for GPUs to come"
    assert "-DFUSED_RNN_OWN_DTYPE=0" in compiled and "-cudart static" in linked
    assert cuda.load(header, F64) != path and "-DFUSED_RNN_OWN_DTYPE=1" in nvcc()[2]
    path.write_text("damaged")
    assert cuda.find(header, F32) is None
    assert cuda.load(header, F32).read_text() == "code\n"


def test_an_entry_depends_on_everything_that_went_into_it(nvcc, monkeypatch):
    header = header_of("min_gru")
    paths = {cuda.load(header, F32), cuda.load(header + "// other\n", F32), build.sources()}
    changes = [
        lambda patch: patch.setenv("NVCC_RELEASE", "13.1"),
        lambda patch: patch.setenv("NVCC_APPEND_FLAGS", "-O0"),
        lambda patch: patch.setattr(library, "cuda_archs", lambda: ["75"]),
        lambda patch: patch.setattr(cuda, "__version__", "other"),
        lambda patch: patch.setattr(build, "digest_of_sources", lambda folder: "other sources"),
    ]
    for change in changes:
        with monkeypatch.context() as patch:
            change(patch)
            build.version_of.cache_clear()
            paths.add(cuda.load(header, F32))
    assert len(paths) == 3 + len(changes)


def test_the_gpus_at_hand_are_compiled_for(nvcc, monkeypatch):
    capabilities = [(12, 0), (9, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    cuda.load(header_of("min_gru"), F32)
    assert "arch=compute_90,code=sm_90 -gencode arch=compute_120,code=sm_120" in nvcc()[0]
    assert "sm_80" not in nvcc()[0]


WORKER = """
import sys
from fused_rnn.ops import library
library.cuda_archs = lambda: ["90a"]
import torch
from fused_rnn.own import cuda
print(cuda.load(open(sys.argv[1]).read(), torch.float32).read_text().strip())
"""


def test_processes_at_once_compile_it_once(nvcc, tmp_path):
    (tmp_path / "header.h").write_text(header_of("min_gru"))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "header.h")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [worker.communicate()[0] for worker in workers] == ["code\n"] * 2
    assert len(nvcc()) == 2, "one compiles, and links"


def test_without_nvcc(no_nvcc):
    with pytest.raises(RuntimeError, match=NO_NVCC):
        cuda.load(header_of("min_gru"), F32)


def test_without_nvcc_a_call_says_so(no_nvcc, machine, monkeypatch, tmp_path):
    """Of a cell and dtype that was not compiled before."""
    monkeypatch.setattr(fused_rnn.own.cell.OwnCell, "load", lambda *_: None)
    layer = fused_rnn.cell(lambda x, r, h: (x + r + h)[0].sin(), gates=1, states=("h",), name="sine").layer(2, 3)
    with pytest.raises(RuntimeError, match=NO_NVCC):
        layer(torch.randn(2, 1, 2))


@pytest.fixture
def with_cuda():
    if not library.cuda_archs():
        pytest.skip("this library was built without CUDA")


def test_what_nvcc_refuses_is_shown(monkeypatch, tmp_path, with_nvcc):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)mine for float32 on CUDA does not compile\..*not a cell"):
        cuda.load("#error not a cell\n", F32, "mine")


@pytest.fixture
def with_nvcc(with_cuda):
    try:
        cuda.find_nvcc()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_a_real_plug_in(with_nvcc):
    """As it is linked for a GPU: loaded where there is none, and refused where it is not what it says."""
    cell = own_cell("min_gru")
    path = cuda.load(header_of("min_gru"), F32)
    exported = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in exported.splitlines()] == ["fused_rnn_cuda_plug_in"]
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert "cuda" not in needed
    assert library.add_cuda_cell(path) == cell.id
    with pytest.raises(RuntimeError, match="is no plug-in with a cell"):
        library.add_cell(path)
    plug_in = ctypes.CDLL(str(path)).fused_rnn_cuda_plug_in
    plug_in.restype = ctypes.POINTER(ctypes.c_int64)
    for number, wrong, message in [
        (0, plug_in()[0] + 1, "compiled from other sources"),
        (1, 7, "needs an id of at least"),
        (1, own_cell("slstm").id, "there is another cell with the id"),
        (2, 5, "there is another cell with the id"),  # gates
    ]:
        numbers = (ctypes.c_int64 * 13)(*plug_in()[:13])
        numbers[number] = wrong
        error = ctypes.create_string_buffer(256)
        assert library.compiled.fused_rnn_add_cuda_cell(numbers, error, len(error)) == 0
        assert message in error.value.decode()


# ---- what users are told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 1)])
def test_without_cuda_in_the_library(device, monkeypatch):
    monkeypatch.setattr(library, "cuda_archs", list)
    with pytest.raises(NotImplementedError, match=r"built without CUDA.*compiled=False"):
        zoo.slstm.layer(2, 3, device=device)
    with pytest.raises(NotImplementedError, match=r"built without CUDA.*compiled=False"):
        zoo.slstm.load(F32, "cuda")


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.setattr(fused_rnn.own.cell.OwnCell, "load", lambda *_: None)
    return zoo.peephole_lstm.layer(3, 5)


def test_explain(layer, plans, nvcc):
    x = torch.randn(4, 2, 3)
    found = fused_rnn.explain(layer, x, gpu="H200")
    assert found.engine == "stepwise"
    assert "step by step, as cells of your own have no persistent kernel" in found.reason
    assert "will be compiled from its formula, by nvcc" in found.reason and nvcc() == []
    path = cuda.load(zoo.peephole_lstm.header, F32)
    assert f"compiled from its formula: {path}" in fused_rnn.explain(layer, x, gpu="H200").reason
    for engine in ("ours", "best", "stepwise"):
        assert fused_rnn.explain(layer, x, gpu="H200", engine=engine).engine == "stepwise"
    refused = fused_rnn.explain(layer, x, gpu="H200", engine="persistent")
    assert refused.engine == "none" and "asked for, but cells of your own have no persistent kernel" in refused.reason


def test_explain_without_nvcc(layer, plans, no_nvcc):
    found = fused_rnn.explain(layer, torch.randn(4, 2, 3), gpu="H200")
    assert found.engine == "none" and "there is no nvcc" in found.reason
