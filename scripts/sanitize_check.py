"""Tests the library under AddressSanitizer and UndefinedBehaviorSanitizer.

Builds it in a temporary copy of the tree, and runs the tests of kernels and operators on it with every instruction set
that this processor has.

Usage: python scripts/sanitize_check.py [pytest arguments]    twenty minutes; needs g++ with its sanitizers
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
TESTS = [
    f"tests/ops/test_{name}.py"
    for name in ("memory", "engine", "lengths_resets", "step_operators", "inference", "infer_operator")
]
SANITIZE = "-fsanitize=address,undefined"
# Python leaks by itself; a test asks for more memory than there is.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def runtime(compiler, name):
    """The shared library of a sanitizer, which must be there before Python starts."""
    found = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    return str(Path(found.strip()).resolve())


def main():
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fused_rnn"
        built = ("build", ".git", ".venv", "*.so", "__pycache__", "results")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*built))
        flags = f"{SANITIZE} -fno-sanitize-recover=undefined -O1 -g1"
        build = os.environ | {"CXX": shlex.join([*compiler, SANITIZE]), "CXXFLAGS": flags, "FUSED_RNN_CUDA": "0"}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=copy, env=build, check=True)
        preload = " ".join(runtime(compiler, name) for name in ("libasan.so", "libubsan.so"))
        for isa in ISAS:
            environment = os.environ | OPTIONS | {"LD_PRELOAD": preload, "FUSED_RNN_ISA": isa, "PYTHONPATH": str(copy)}
            probe = [sys.executable, "-c", "import fused_rnn; print(fused_rnn.info())"]
            done = subprocess.run(probe, cwd=copy, env=environment, capture_output=True, text=True, check=False)
            if re.search("is not supported by this processor", done.stderr):
                print(f"{isa}: not on this processor", flush=True)
                continue
            if done.returncode:
                sys.exit(f"sanitize_check: {isa}: {done.stderr}")
            print(f"{isa}:", flush=True)
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not fork"]
            tests = subprocess.run([*command, *TESTS, *sys.argv[1:]], cwd=copy, env=environment, check=False)
            if tests.returncode:
                sys.exit(f"sanitize_check: failed on {isa}")


if __name__ == "__main__":
    main()
