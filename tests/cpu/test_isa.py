"""ops/test_engine.py, which includes verify, on every instruction set of this processor and without vectors."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fused_rnn
from support.compiling import CSRC
from support.paths import ROOT, TESTS

ENGINE_TESTS = TESTS / "ops/test_engine.py"
OBJECTS = ROOT / "build/native"
ISAS = ("baseline", "avx2", "avx512", "amx") if platform.machine() in ("x86_64", "AMD64") else ("baseline",)
BEST = fused_rnn.info()["CPU instruction set"]


SCRIPT = """
import sys, pytest, fused_rnn
info = fused_rnn.info()
print(info["CPU instruction set"], info["library"], flush=True)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]]))
"""


def start(*command, isa, package):
    """Starts Python with ``package``, the folder that holds fused_rnn, first on its path."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=package,
        env=os.environ | {"FUSED_RNN_ISA": isa, "PYTHONPATH": str(package)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def started():
    """{isa: its tests, running in parallel}; they print too little to block."""
    package = Path(fused_rnn.__file__).resolve().parent.parent
    command = ["-c", SCRIPT, str(ENGINE_TESTS)]
    return {isa: start(*command, isa=isa, package=package) for isa in ISAS if isa != BEST}


def test_without_vectors(started, tmp_path):
    """The engine compiled with vectors of one lane, in place of the baseline one."""
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"{cxx[0]} is not installed")
    if not (OBJECTS / "build.ninja").exists():
        pytest.skip("fused_rnn was not built in this tree, so there is nothing to link the engine with")
    shutil.copytree(ROOT / "fused_rnn", tmp_path / "fused_rnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    scalar, library = tmp_path / "scalar.o", tmp_path / "fused_rnn/_C.so"
    defines = ["-DFUSED_RNN_VECTOR_BYTES=4", "-DFUSED_RNN_ISA=Baseline"]
    options = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{CSRC}", *defines]
    ninja = (OBJECTS / "build.ninja").read_text()
    (link,) = re.findall(r"^rule link\n  command = (.*)$", ninja, re.MULTILINE)
    (objects,) = re.findall(r"_C\.so: link (.*)$", ninja, re.MULTILINE)
    objects, count = re.subn(r"\S*kernels\.cpp\.baseline\.o", str(scalar), objects)
    assert count == 1
    for command in (
        [*cxx, *options, "-c", str(CSRC / "cpu/kernels.cpp"), "-o", str(scalar)],
        shlex.split(link.replace("$out", str(library)).replace("$in", objects)),
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    process = start("-c", SCRIPT, str(ENGINE_TESTS), isa="baseline", package=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert out.splitlines()[0] == f"baseline {library}"


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != BEST])
def test_instruction_set(started, isa):
    out, err = started[isa].communicate()
    if "is not supported by this processor" in err:
        pytest.skip(f"this processor has no {isa}")
    assert started[isa].returncode == 0, out + err
    assert out.splitlines()[0] == f"{isa} {fused_rnn.info()['library']}"


def test_unknown_instruction_set():
    process = start("-c", "import fused_rnn; fused_rnn.info()", isa="sse9", package=ROOT)
    _, err = process.communicate()
    assert process.returncode != 0 and "FUSED_RNN_ISA must be " in err and "got 'sse9'" in err
