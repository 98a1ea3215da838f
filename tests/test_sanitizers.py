"""The whole CUDA engine on the emulator under sanitizers: every kernel, and faults that they have to report.

For ThreadSanitizer every emulated thread is one of the system. It knows what orders two accesses of memory: a barrier
that is missing shows even where the result is right. To it accesses by relaxed words are never a race, though, so what
the blocks of a grid exchange is left to the emulator's orders of turns (test_cuda_mutation.py). AddressSanitizer sees
what lies outside an array.
"""

import os
import shlex
import shutil
import subprocess
from typing import NamedTuple

import emulating
import pytest
from compiling import CSRC, EMULATOR
from test_persistent import KINDS

WITHOUT_TORCH = EMULATOR / "without_torch"
SOURCES = [
    *(path for path in emulating.ENGINE if not path.name.startswith(("plan_info", "product", "persistent_half"))),
    EMULATOR / "engine.cpp",  # stands for what is left out
]
SANITIZERS = {
    "thread": "-fsanitize=thread -DEMULATOR_THREADS",
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
}
ENGINES = ("stepwise", *KINDS)


def program(sanitizer):
    flags = f"-std=c++20 -O1 -g1 {SANITIZERS[sanitizer]} -I{WITHOUT_TORCH} -include {EMULATOR}/few_cells.h"
    return emulating.Program("engine", SOURCES, f"{flags} -DFUSED_RNN_AHEAD_BYTES=6000", SANITIZERS[sanitizer])


def run(path, *engines):
    return subprocess.run(
        [path, *engines],
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module", params=SANITIZERS)
def built(request, tmp_path_factory):
    """(the sanitizer's name, the folder and the file of the program built with it)"""
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"{cxx[0]} is not installed")
    empty = tmp_path_factory.mktemp(request.param) / "empty"
    empty.with_suffix(".cpp").write_text("int main() {}")
    command = [*cxx, *SANITIZERS[request.param].split(), empty.with_suffix(".cpp"), "-o", empty]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or subprocess.run([empty], capture_output=True, check=False).returncode:
        pytest.skip(f"{cxx[0]} has no runtime of the {request.param} sanitizer here: {done.stderr[-200:]}")
    folder = emulating.ROOT / "build/sanitized" / request.param  # kept, like the emulated library
    return request.param, folder, emulating.build(folder, program=program(request.param))


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_reported(built, engine):
    _, _, path = built
    done = run(path, engine)
    assert (done.returncode, done.stderr) == (0, "")


# ---- faults --------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    file: str
    before: str
    after: str
    seen_by: dict[str, str]  # engine: a part of the report


# All in one copy of the sources, each made so that the engines of the others do not meet it.
FAULTS = {
    "thread": [
        Fault("exchange.cuh", "void wait(int) {\n    __syncthreads();\n", "void wait(int) {\n", {"one": "data race"}),
        Fault(
            "exchange.cuh",
            "    mbarrier_wait(counters_ + kParity, phase_, group_.scope);\n",
            "",
            {"cluster": "data race"},
        ),
        Fault(
            "persistent.cuh",
            "    __syncthreads();\n",
            "    if constexpr (Link::kRingIsShared) __syncthreads();\n",
            {"polling": "data race", "flags": "data race"},
        ),
        Fault("step_backward.cuh", "    __syncthreads();\n", "", {"stepwise": "data race"}),
    ],
    "address": [
        Fault(
            "persistent.cuh",
            "kBuffer = kParity * kSumCount;",
            "kBuffer = kParity * (Link::kCluster ? 2 : 1) * kSumCount;",
            {"cluster": "use-after-poison"},
        ),
        Fault(
            "persistent_cells.cuh",
            "a.gates_x, by_row * Cell::kGates * H + unit);",
            "a.gates_x, by_row * Cell::kGates * H + unit + 1);",
            {"one": "heap-buffer-overflow", "polling": "heap-buffer-overflow", "flags": "heap-buffer-overflow"},
        ),
    ],
}
FLOAT = {f"persistent_float_{way}.cu" for way in ("forward", "backward")}
CHANGED = {"thread": {*FLOAT, "stepwise.cu"}, "address": FLOAT}


@pytest.fixture(scope="module")
def faulty(built, tmp_path_factory):
    """(the sanitizer's name, its program with all its faults)"""
    sanitizer, right, _ = built
    folder = tmp_path_factory.mktemp("faulty")
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    for fault in FAULTS[sanitizer]:
        source = csrc / "cuda" / fault.file
        text = source.read_text()
        assert text.count(fault.before) == 1, f"{fault.before!r} occurs {text.count(fault.before)} times in {source}"
        source.write_text(text.replace(fault.before, fault.after))
    return sanitizer, emulating.build(folder / "build", csrc, CHANGED[sanitizer], right, program(sanitizer))


def test_faults_are_reported(faulty):
    sanitizer, path = faulty
    for fault in FAULTS[sanitizer]:
        for engine, report in fault.seen_by.items():
            done = run(path, engine)
            assert done.returncode != 0 and report in done.stderr, f"{engine}: {done.stderr[-2000:]}"
