"""The CPU engine under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import platform
import shlex
import subprocess
from pathlib import Path

import pytest

from support.compiling import CSRC, FLAGS
from support.own_cells import header_of

SANITIZE = "-std=c++20 -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -DFUSED_RNN_ISA=Baseline"
SOURCE = Path(__file__).parent / "sanitize_check.cpp"


def compiled(folder, flags, name="check"):
    """The path of the program, or None where the compiler has no sanitizers."""
    program = folder / name
    command = [*shlex.split(os.environ.get("CXX", "g++")), *shlex.split(SANITIZE), *shlex.split(flags), f"-I{CSRC}"]
    done = subprocess.run([*command, str(SOURCE), "-o", str(program)], capture_output=True, text=True, check=False)
    if "asan" in done.stderr and "cannot find" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return program


def run(program, cases):
    done = subprocess.run([program, str(cases)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.mark.skipif(platform.system() != "Linux", reason="sanitizers are tried on Linux")
def test_random_layers(tmp_path):
    run(compiled(tmp_path, "-DFUSED_RNN_ONE_DTYPE=float"), 300)


@pytest.mark.exhaustive
@pytest.mark.skipif(platform.system() != "Linux", reason="sanitizers are tried on Linux")
def test_random_layers_of_a_cell_with_everything(tmp_path):
    """Six gates, three states, parameters: tests/cells/wide_cell.h."""
    header = tmp_path / "cell.h"
    header.write_text(header_of("wide_cell"))
    own = f"-DFUSED_RNN_OWN_CELL='\"{header}\"' -DFUSED_RNN_OWN_ID=4294967296"
    run(compiled(tmp_path, f"-DFUSED_RNN_ONE_DTYPE {own}"), 300)


@pytest.mark.skipif(platform.system() != "Linux", reason="sanitizers are tried on Linux")
def test_random_layers_with_weights_of_8_bits(tmp_path):
    run(compiled(tmp_path, "-DFUSED_RNN_INT8"), 500)


@pytest.mark.exhaustive
@pytest.mark.skipif(platform.system() != "Linux", reason="sanitizers are tried on Linux")
@pytest.mark.parametrize("isa", FLAGS)
def test_random_layers_on_every_vector(tmp_path, isa):
    """In every dtype. With AMX and bfloat16 products: ``scripts/sanitize_check.py``."""
    kept = [flag for flag in FLAGS[isa].split() if flag.startswith(("-m", "-D"))]
    run(compiled(tmp_path, " ".join(kept)), 2000)
    run(compiled(tmp_path, " ".join([*kept, "-DFUSED_RNN_INT8"]), "int8"), 2000)
