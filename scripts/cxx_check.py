"""Checks what g++ accepts when it builds the library. Fails if

  clang   clang does not compile csrc (syntax only; the oldest supported version is 14)
  odr     two files define different types of the same name, which linking with -flto detects
  weak    an object for one instruction set has a weak function, which the linker may use for another
  targets clang with the headers of other systems (of the package ziglang, which pip installs) does not compile what has
          no part in CUDA, or warns; nothing is linked or run

Usage: python scripts/cxx_check.py [clang] [odr] [weak] [targets]
       without names the first three; CLANG: which clang++
"""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETUP = runpy.run_path(str(ROOT / "setup.py"))
CLANGS = ("clang++-14", "clang++")  # the oldest one first
# torch's macros that register operators count by __COUNTER__, which newer versions of clang call an extension.
PEDANTIC = ("-Wpedantic", "-Werror", "-Wno-unknown-warning-option", "-Wno-c2y-extensions")
TARGETS = ("aarch64-linux-gnu", "aarch64-macos", "x86_64-windows-gnu", "x86_64-linux-musl")


def compile_all(compiler, flags, folder, steps, cuda=True):
    """The objects of all C++ sources; fails with the compiler's messages."""
    common = shlex.split(SETUP["cxx_flags"](SETUP["find_torch"](), "nvcc" if cuda else None, ["90a"]))

    def compile_one(step):
        number, (_, source, _, own) = step
        target = Path(folder) / f"{number}.o"
        command = [*compiler, *common, *shlex.split(own), *flags, "-c", str(source), "-o", str(target)]
        return source, target, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(compile_one, enumerate(steps)))
    wrong = [f"{source}:\n{process.stderr}" for source, _, process in done if process.returncode]
    if wrong:
        sys.exit("cxx_check: " + "\n".join(wrong))
    return [str(target) for _, target, _ in done]


def cxx_steps():
    return [step for step in SETUP["compile_steps"](with_cuda=True) if step[0] == "cxx"]


def check_clang(steps):
    clang = os.environ.get("CLANG") or next(filter(shutil.which, CLANGS), None)
    if clang is None:
        sys.exit(f"cxx_check: there is no {' or '.join(CLANGS)}; install clang, or name one in CLANG")
    with tempfile.TemporaryDirectory() as folder:
        compile_all([clang], ["-fsyntax-only", *PEDANTIC], folder, steps)
    print(f"{clang} has nothing to say of {len(steps)} compilations")


def for_zig(flags):
    """zig takes what stands after -march= for the name of a processor, and spells these in its own way."""
    flags = re.sub(r"-march=armv(\d+)\.(\d+)-a\b", r"-mcpu=generic+v\1_\2a", flags)
    return re.sub(r"-march=x86-64-v(\d)", r"-mcpu=x86_64_v\1", flags)


def check_targets():
    if importlib.util.find_spec("ziglang") is None:
        sys.exit("cxx_check: the headers of other systems are in the package ziglang: pip install ziglang")
    for target in TARGETS:
        steps = [
            (*step, for_zig(flags))
            for *step, flags in SETUP["compile_steps"](with_cuda=False, machine=target.split("-")[0])
        ]
        print(f"{target}: {len(steps)} compilations, several minutes", flush=True)
        compiler = [sys.executable, "-m", "ziglang", "c++", "-target", target]
        with tempfile.TemporaryDirectory() as folder:
            compile_all(compiler, ["-O0", *PEDANTIC], folder, steps, cuda=False)


def some_of(steps):
    """Without most of the instruction sets, for which the engines are the same text: two of each engine are left."""
    kept = {}
    for step in steps:
        kept.setdefault(step[1], []).append(step)
    return [step for same in kept.values() for step in (same if len(same) < 3 else (same[0], same[-1]))]


def check_odr(steps):
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    with tempfile.TemporaryDirectory() as folder:
        objects = compile_all(compiler, ["-O0", "-flto"], folder, some_of(steps))
        # Types are merged without generating code.
        merge = ["-flto=auto", "-r", "-flinker-output=rel", "-Werror=odr"]
        command = [*compiler, "-O0", *merge, *objects, "-o", f"{folder}/all.o"]
        linked = subprocess.run(command, capture_output=True, text=True, check=False)
    if linked.returncode:
        sys.exit(f"cxx_check: {linked.stderr}")
    print(f"{len(objects)} objects agree on every type")


def check_weak(objects):
    """The objects of the library as built."""
    for path in objects:
        listed = subprocess.run(["nm", "--demangle", path], capture_output=True, text=True, check=True).stdout
        weak = [line for line in listed.splitlines() if line.split(maxsplit=2)[-2] in tuple("WVu")]
        if weak:
            sys.exit("cxx_check: {} may be another instruction set's:\n{}".format(path, "\n".join(weak)))
    print(f"{len(objects)} objects have no weak symbol")


def main():
    wanted = sys.argv[1:] or ["clang", "odr", "weak"]
    steps = cxx_steps()
    if "clang" in wanted:
        check_clang(steps)
    if "targets" in wanted:
        check_targets()
    if "odr" in wanted:
        check_odr(steps)
    if "weak" in wanted:
        check_weak(
            [ROOT / target for _, source, target, _ in steps if source in (SETUP["ENGINE"], SETUP["INT8_ENGINE"])]
        )


if __name__ == "__main__":
    main()
