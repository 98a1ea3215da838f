"""Wheels that fit other machines: the symbols they need, the libraries of old symbols, the matrix of torches."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fused_rnn
from support import emulated
from support.paths import ROOT

LIBRARY = Path(fused_rnn.__file__).with_name("_C.so")
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8,)}  # of manylinux_2_28 on x86-64


def functions(name):
    return runpy.run_path(str(ROOT / "scripts" / name))


def run(*command):
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)


def symbol_table(library):
    if shutil.which("objdump") is None:
        pytest.skip("objdump, of GNU binutils, is not installed")
    done = run("objdump", "-T", library)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_library_needs_no_symbol_newer_than_its_wheel_promises():
    needed = re.findall(r"\*UND\*.*\(([A-Z]+)_([0-9.]+)\)\s+(\w+)$", symbol_table(LIBRARY), re.MULTILINE)
    assert needed, "the library is expected to need versioned symbols"
    newer = [
        f"{name} of {family}_{version}"
        for family, version, name in needed
        if tuple(map(int, version.split("."))) > NEWEST[family]
    ]
    assert newer == []


TABLE = """
00000000000855b0 g    DF .text	00000000000000b9  GLIBC_2.34  dlsym
00000000000855b0 g    DF .text	00000000000000b9 (GLIBC_2.2.5) dlsym
0000000000089380 g    DF .text	0000000000000eed (GLIBC_2.1) pthread_create
0000000000089380 g    DF .text	0000000000000eed (GLIBC_2.2.5) pthread_create
0000000000089380 g    DF .text	0000000000000eed  GLIBC_2.34  pthread_create
0000000000038230 g    DF .text	0000000000000072  GLIBC_2.2.5 qsort
0000000000038230 g    DF .text	0000000000000072  GLIBC_2.36  arc4random
0000000000038230 g    DF .text	0000000000000072 (GLIBC_2.30) sem_clockwait
0000000000038230 g    DF .text	0000000000000072  GLIBC_2.34  sem_clockwait
"""


def test_moved_symbols_are_those_that_old_glibcs_have_elsewhere():
    assert functions("old_glibc.py")["moved_symbols"](TABLE) == {
        "dlsym": "GLIBC_2.2.5",
        "pthread_create": "GLIBC_2.2.5",
    }


def test_a_program_linked_with_the_old_symbols_needs_an_old_glibc(tmp_path):
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    (tmp_path / "starts.cpp").write_text(
        "#include <dlfcn.h>\n#include <pthread.h>\nvoid* body(void* p) { return dlsym(p, nullptr); }\n"
        'extern "C" int start(pthread_t* t) { return pthread_create(t, nullptr, body, nullptr); }\n'
    )
    script = tmp_path / "old.ld"
    done = run(sys.executable, ROOT / "scripts/old_glibc.py", "g++", script)
    assert done.returncode == 0, done.stderr
    library = tmp_path / "starts.so"
    linked = [
        "-shared",
        "-fPIC",
        tmp_path / "starts.cpp",
        "-o",
        library,
        "-Xlinker",
        "--no-as-needed",
        "-Xlinker",
        script,
    ]
    done = run("g++", *linked)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"\(GLIBC_([0-9.]+)\)\s+(dlsym|pthread_create)$", symbol_table(library), re.MULTILINE)
    assert {name for _, name in found} == {"dlsym", "pthread_create"}
    assert all(tuple(map(int, version.split("."))) <= (2, 28) for version, _ in found)
    loaded = run(sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r}).start")
    assert loaded.returncode == 0, loaded.stderr


def test_only_builds_with_cuda_link_the_old_symbols():
    ninja_file = runpy.run_path(str(ROOT / "setup.py"))["ninja_file"]
    assert "old_glibc" not in ninja_file(Path("/site-packages/torch"))
    text = ninja_file(Path("/site-packages/torch"), "/opt/cuda/bin/nvcc", ["90a"])
    assert re.search(r"^build \S+/old\.ld: old_glibc scripts/old_glibc\.py$", text, re.MULTILINE)
    assert re.search(r"^build \S+_C\.so: link .* \| \S+/old\.ld$", text, re.MULTILINE)
    assert re.search(r"^  command = .*-Xlinker \S+/old\.ld", text, re.MULTILINE)


def plain_wheel(folder, library, machine):
    """A wheel as setup.py makes it, of this library."""
    path = folder / f"fused_rnn-0-py3-none-linux_{machine}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(library, "fused_rnn/_C.so")
        info = "fused_rnn-0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fused_rnn\nVersion: 0\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-linux_{machine}\n")
        wheel.writestr(f"{info}/RECORD", "fused_rnn/_C.so,,\n")
    return path


def test_the_wheel_is_stripped_and_named_for_old_systems(tmp_path):
    pytest.importorskip("auditwheel", reason="auditwheel, of the dev extra, is not installed")
    done = run(
        sys.executable, ROOT / "scripts/manylinux.py", plain_wheel(tmp_path, LIBRARY, platform.machine()), tmp_path
    )
    assert done.returncode == 0, done.stderr
    new = tmp_path / f"fused_rnn-0-py3-none-manylinux_2_28_{platform.machine()}.whl"
    assert re.search(rf"^{re.escape(new.name)}: \d+\.\d MB", done.stdout, re.MULTILINE)
    assert not [name for name in zipfile.ZipFile(new).namelist() if ".libs/" in name], "torch is not packed"
    unpacked = zipfile.ZipFile(new).extract("fused_rnn/_C.so", tmp_path)
    assert ".symtab" not in run("readelf", "-S", unpacked).stdout


@pytest.mark.skipif(platform.machine() == "aarch64", reason="aarch64 is no other machine here")
def test_a_wheel_for_aarch64_is_stripped_and_named_for_old_systems(tmp_path):
    pytest.importorskip("auditwheel", reason="auditwheel, of the dev extra, is not installed")
    emulated.skip_without_tools()
    source, library = tmp_path / "allocates.cpp", tmp_path / "_C.so"
    source.write_text('extern "C" int* allocate() { return new int; }\n')
    assert run(emulated.COMPILER, "-shared", "-fPIC", source, "-o", library).returncode == 0
    done = run(sys.executable, ROOT / "scripts/manylinux.py", plain_wheel(tmp_path, library, "aarch64"), tmp_path)
    assert done.returncode == 0, done.stderr
    (new,) = tmp_path.glob("fused_rnn-0-py3-none-manylinux*_aarch64.whl")
    assert f"{new.name}: " in done.stdout
    assert ".symtab" in run("readelf", "-S", library).stdout
    unpacked = zipfile.ZipFile(new).extract("fused_rnn/_C.so", tmp_path / "unpacked")
    assert ".symtab" not in run("readelf", "-S", unpacked).stdout


@pytest.mark.parametrize("script", ["manylinux.py", "torch_matrix.py"])
def test_a_wheel_that_is_none_is_refused(script, tmp_path):
    done = run(sys.executable, ROOT / "scripts" / script, tmp_path / "no.whl", *[tmp_path] * (script == "manylinux.py"))
    assert done.returncode != 0
    assert f"WHEEL must be the file of a wheel, got {tmp_path / 'no.whl'}" in done.stderr


def test_the_matrix_takes_the_newest_of_each_minor_release():
    said = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.14.1, 2.14.0, 2.13.0+cpu, 2.13.0, 2.11.0, 2.10.0, 1.13.1\n"
    matrix = functions("torch_matrix.py")
    assert matrix["torch_versions"](said) == ["2.11.0", "2.13.0", "2.14.1", "2.15.0"]
    assert matrix["torch_versions"]("ERROR: no such package") == []


@pytest.mark.parametrize(
    ("requires", "cuda"),
    [(["sympy", "cuda-toolkit[cublas]==13.0.2"], True), (["nvidia-cudnn-cu13==9.1"], True), (["sympy"], False)],
)
def test_the_matrix_knows_builds_with_cuda(requires, cuda):
    report = {"install": [{"metadata": {"requires_dist": requires}}]}
    assert functions("torch_matrix.py")["needs_cuda"](report) is cuda


def test_the_tests_of_the_matrix_are_collected_where_there_is_no_source(tmp_path):
    matrix = functions("torch_matrix.py")
    matrix["copy_tests"](tmp_path)
    tests = [f"tests/{name}" for name in matrix["TESTS"]]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(LIBRARY.parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests collected" in done.stdout


@pytest.mark.parametrize("script", ["torch_matrix.py", "aarch64_check.py"])
def test_the_tests_that_scripts_run_exist(script):
    assert [name for name in functions(script)["TESTS"] if not (ROOT / "tests" / name).is_file()] == []


@pytest.mark.parametrize(("script", "names"), [("torch_matrix.py", "NEEDED"), ("aarch64_check.py", "PACKAGES")])
def test_scripts_install_setuptools_as_new_as_the_build_needs(script, names):
    """setup.py, which the tests read, imports a command that the setuptools of a new environment may lack."""
    requirement = re.search(r'^requires = .*"(setuptools[^"]*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert requirement[1] in functions(script)[names]


def test_flags_are_put_into_zigs_words():
    for_zig = functions("cxx_check.py")["for_zig"]
    assert for_zig("-march=armv8.2-a+dotprod+i8mm -DX=1") == "-mcpu=generic+v8_2a+dotprod+i8mm -DX=1"
    assert for_zig("-march=x86-64-v4 -mavx512bf16") == "-mcpu=x86_64_v4 -mavx512bf16"


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_are_marked_as_never_run(path):
    assert path.read_text().startswith("# Never run")
