"""The package with a library some of whose objects are compiled otherwise."""

import os
import re
import shlex
import shutil
import subprocess

import pytest

from support.paths import ROOT

OBJECTS = ROOT / "build/native"


def copy_with(folder, replaced):
    """Copies the package to ``folder`` and links its library there, next to it.

    Args:
        replaced: {object of the build, named from build/native on: (source, compiler's options)}, in place of which
            the source so compiled is linked; all are compiled at once.

    Returns:
        The library.
    """
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"{cxx[0]} is not installed")
    if not (OBJECTS / "build.ninja").exists():
        pytest.skip("fused_rnn was not built in this tree, so there is nothing to link the engine with")
    shutil.copytree(ROOT / "fused_rnn", folder / "fused_rnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = folder / "fused_rnn/_C.so"
    ninja = (OBJECTS / "build.ninja").read_text()
    (link,) = re.findall(r"^rule link\n  command = (.*)$", ninja, re.MULTILINE)
    (objects,) = re.findall(r"_C\.so: link ([^|\n]*)", ninja)
    compilers = []
    for number, (name, (source, options)) in enumerate(replaced.items()):
        own = folder / f"{number}.o"
        objects, count = re.subn(rf"(?<!\S)\S*/{re.escape(name)}(?!\S)", str(own), objects)
        assert count == 1, name
        command = [*cxx, "-std=c++20", "-fPIC", "-fvisibility=hidden", *options.split(), "-c", source, "-o", own]
        compilers.append(_start(command))
    for compiler in compilers:
        _finish(compiler)
    _finish(_start(shlex.split(link.replace("$out", str(library)).replace("$in", objects))))
    return library


def _start(command):
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process):
    out, _ = process.communicate()
    assert process.returncode == 0, out
