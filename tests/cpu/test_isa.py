"""ops/test_engine.py, which includes verify, on every instruction set of this processor and without vectors.

And nn/test_int8.py on those for weights of 8 bits: its reference is the same for all.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import fused_rnn
from support.compiling import CSRC
from support.linking import copy_with
from support.paths import ROOT, TESTS

ENGINE, INT8 = "CPU instruction set", "CPU instruction set for int8"  # as info calls them
TESTS_OF = {
    ENGINE: (str(TESTS / "ops/test_engine.py"),),
    # The layouts of a call are no matter of the instruction set.
    INT8: (str(TESTS / "nn/test_int8.py"), "-k", "sizes or same_bits or integers or alone or any_size or deep or ids"),
}
ISAS_OF = {
    ENGINE: ("baseline", "avx2", "avx512", "amx"),
    INT8: ("baseline", "avx2", "avx_vnni", "avx512_vnni", "amx"),
}
if platform.machine() not in ("x86_64", "AMD64"):
    ISAS_OF = {ENGINE: ("baseline",), INT8: ("baseline", "neon_dot", "neon_i8mm")}
BEST = fused_rnn.info()
OTHERS = [(what, isa) for what, isas in ISAS_OF.items() for isa in isas if isa != BEST[what]]


SCRIPT = """
import sys, pytest, fused_rnn
info = fused_rnn.info()
what, *arguments = sys.argv[1:]
print(info[what], info["library"], flush=True)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *arguments]))
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
    """{(what, isa): its tests, running in parallel}; they print too little to block."""
    package = Path(fused_rnn.__file__).resolve().parent.parent
    processes = {
        (what, isa): start("-c", SCRIPT, what, *TESTS_OF[what], isa=isa, package=package) for what, isa in OTHERS
    }
    yield processes
    for process in processes.values():  # those whose tests were deselected
        if process.returncode is None:
            process.kill()
            process.communicate()


@pytest.mark.exhaustive
def test_without_vectors(started, tmp_path):
    """The engine compiled with vectors of one lane, in place of the baseline one."""
    options = f"-O1 -I{CSRC} -DFUSED_RNN_VECTOR_BYTES=4 -DFUSED_RNN_ISA=Baseline"
    sources = [CSRC / "cpu" / name for name in ("kernels.cpp", "int8_kernels.cpp")]
    library = copy_with(tmp_path, {f"csrc/cpu/{source.name}.baseline.o": (source, options) for source in sources})
    for what, tests in TESTS_OF.items():
        process = start("-c", SCRIPT, what, *tests, isa="baseline", package=tmp_path)
        out, err = process.communicate()
        assert process.returncode == 0, out + err
        assert out.splitlines()[0] == f"baseline {library}"


@pytest.mark.parametrize(("what", "isa"), OTHERS)
def test_instruction_set(started, what, isa):
    process = started[what, isa]
    out, err = process.communicate()
    if "is not supported by this processor" in err:
        pytest.skip(f"this processor has no {isa}")
    assert process.returncode == 0, out + err
    assert out.splitlines()[0] == f"{isa} {fused_rnn.info()['library']}"


def test_unknown_instruction_set():
    process = start("-c", "import fused_rnn; fused_rnn.info()", isa="sse9", package=ROOT)
    _, err = process.communicate()
    assert process.returncode != 0 and "FUSED_RNN_ISA must be " in err and "got 'sse9'" in err
