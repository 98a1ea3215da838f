"""The engine on AMX where the processor has none: a library whose tiles are software (software_tiles/)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.compiling import BUILD_FLAGS, CSRC, SOFTWARE_TILES, processor_lacks
from support.linking import copy_with
from support.paths import TESTS

AVX512 = f"-march=x86-64-v4 -mprefer-vector-width=512 {SOFTWARE_TILES} -I{CSRC}"
BFLOAT16 = f"-O1 {AVX512} -DFUSED_RNN_AMX=1 -mavx512bf16"  # compiled sooner than as setup.py compiles them
BUILDS = {
    # As setup.py compiles it: other optimisations may round a cell otherwise.
    "int8_kernels.cpp.amx_int8": (
        f"{BUILD_FLAGS} {AVX512} -mavx512vnni -DFUSED_RNN_AMX_INT8=1 -DFUSED_RNN_ISA=AmxInt8"
    ),
    "kernels.cpp.amx_bf16": f"{BFLOAT16} -DFUSED_RNN_BFLOAT16_PRODUCTS=1 -DFUSED_RNN_ISA=AmxBf16",
    "kernels.cpp.amx_fp32": f"{BFLOAT16} -DFUSED_RNN_SPLIT_PRODUCTS=1 -DFUSED_RNN_ISA=AmxFp32",
}
SUPPORT = "cpu/schedule/tile_support.cpp"

RUN_TESTS = """
import sys, pytest, fused_rnn
info = fused_rnn.info()
print(*(info[what] for what in info if "instruction set" in what), info["library"], flush=True)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""

# The bits of layers with int8 weights, whose rows and depths are below, at and above those of tiles.
PRINT_BITS = """
import hashlib, torch, fused_rnn
torch.manual_seed(0)
for make in (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN):
    for I, H in ((1, 1), (3, 16), (64, 64), (70, 130), (191, 257)):
        model = fused_rnn.freeze(make(I, H, bidirectional=H == 64), weights="int8")
        for T, B in ((1, 7), (1, 8), (3, 1), (20, 2), (2, 16), (2, 17), (3, 33)):
            with torch.inference_mode():
                output, states = model(torch.randn(T, B, I))
            states = states if isinstance(states, tuple) else (states,)
            bits = hashlib.sha256(b"".join(t.numpy().tobytes() for t in (output, *states))).hexdigest()
            print(make.__name__, I, H, T, B, bits)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    if lacking := processor_lacks("avx512_vnni", "avx512_bf16"):
        pytest.skip(f"this processor has no {lacking[0]}, whose vectors are used beside tiles")
    folder = tmp_path_factory.mktemp("software")
    kernels = {
        f"csrc/cpu/{name}.o": (CSRC / "cpu" / name.rpartition(".")[0], options) for name, options in BUILDS.items()
    }
    software = TESTS / "cpu/software_tiles" / SUPPORT
    copy_with(folder, {**kernels, f"csrc/{SUPPORT}.o": (software, f"-I{CSRC}")})
    return folder


def run(package, isa, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=package,
        env=os.environ | {"FUSED_RNN_ISA": isa, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "tests",
    [
        ("nn/test_int8.py", "-k", "sizes or same_bits or integers or alone or any_size"),
        ("cpu/test_bfloat16.py", "-k", "amx or split"),
        ("ops/test_engine.py", "-k", "not verify"),
    ],
    ids=lambda tests: Path(tests[0]).stem,
)
def test_the_engine(package, tests):
    """What passes on other instruction sets."""
    file, *options = tests
    first, *_ = run(package, "amx", "-c", RUN_TESTS, TESTS / file, *options)
    assert first == f"amx amx amx amx {package / 'fused_rnn/_C.so'}"


def test_int8_has_the_bits_of_vectors(package):
    assert run(package, "amx", "-c", PRINT_BITS) == run(package, "avx512_vnni", "-c", PRINT_BITS)
