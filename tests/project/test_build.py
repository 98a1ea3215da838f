"""The build: one library for torch 2.11 and later and any Python 3, rebuilt only as needed."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fused_rnn
from support.paths import ROOT

LIBRARY = Path(fused_rnn.__file__).with_name("_C.so")
SYSTEM_LIBRARIES = r"(libstdc\+\+|libm|libgcc_s|libc|libdl|librt|libpthread|ld-linux.*)\.so\.\d+"


@pytest.fixture
def setup():
    """The functions of setup.py."""
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def tree(tmp_path):
    """A copy of the source tree with its build folder: a build there has nothing to do."""
    if not (ROOT / "build/native").exists():
        pytest.skip("built elsewhere: there is no build folder to look at")
    unrelated = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "lib.*", "dist", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path / "tree", ignore=unrelated))


def run(*command, env=None, cwd=ROOT):
    environment = os.environ | (env or {})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def output_of(tool, *arguments):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool}, of GNU binutils, is not installed")
    done = run(tool, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_library_needs_only_torch_and_the_system():
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d", str(LIBRARY)))
    assert {"libc10.so", "libtorch_cpu.so"} < set(needed)
    others = [name for name in needed if not re.fullmatch(SYSTEM_LIBRARIES, name)]
    assert sorted(others) == ["libc10.so", "libtorch_cpu.so"]


def test_library_uses_neither_torch_cpp_nor_python():
    symbols = output_of("nm", "-D", "-C", "--undefined-only", str(LIBRARY))
    assert "aoti_torch" in symbols, "the stable ABI is expected among the symbols"
    unstable = re.compile(r"\b(at|c10|torch)::|\bPy[A-Z_]")
    assert [line for line in symbols.splitlines() if unstable.search(line)] == []


def test_library_exports_no_symbols_of_its_own():
    symbols = output_of("nm", "-D", "-C", "--defined-only", str(LIBRARY))
    assert [line for line in symbols.splitlines() if "fused_rnn::" in line] == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("1", "FUSED_RNN_CUDA=1, but no nvcc in"),
        ("yes", "FUSED_RNN_CUDA must be auto, 0 or 1, got 'yes'"),
    ],
)
def test_build_fails_with_a_reason(tmp_path, wanted, message):
    without_nvcc = {"FUSED_RNN_CUDA": wanted, "CUDA_HOME": str(tmp_path), "PATH": str(tmp_path)}
    done = run(sys.executable, "setup.py", "build_ext", "--inplace", env=without_nvcc)
    assert done.returncode != 0
    assert f"fused_rnn: {message}" in done.stderr


@pytest.mark.parametrize(
    ("wanted", "cuda", "builds"),
    [("auto", "'13.0'", True), ("auto", "None", False), ("1", "None", True), ("0", "'13.0'", False)],
)
def test_auto_builds_for_cuda_only_what_torch_can_use(setup, monkeypatch, tmp_path, wanted, cuda, builds):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(0o755)
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\n")
    monkeypatch.setenv("FUSED_RNN_CUDA", wanted)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found, why = setup["nvcc_for"](tmp_path)
    assert found == (str(nvcc) if builds else None)
    assert why


def test_build_without_torch_says_so(setup, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install torch first, or drop --no-build-isolation"):
        setup["find_torch"]()


def test_build_with_an_old_torch_says_so(setup, monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    (tmp_path / "torch/version.py").write_text("__version__ = '2.10.1+cpu'\n")
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "torch/__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(SystemExit, match=r"torch >= 2\.11, found 2\.10\.1\+cpu"):
        setup["find_torch"]()


@pytest.mark.parametrize(
    ("given", "archs"),
    [
        ("90a 80", ["80", "90a"]),
        ("75;80;120", ["75", "80", "120"]),
        ("86 86", ["86"]),
        ("120 90 90a", ["90", "90a", "120"]),
    ],
)
def test_cuda_archs(setup, monkeypatch, given, archs):
    monkeypatch.setenv("FUSED_RNN_CUDA_ARCHS", given)
    assert setup["cuda_archs"]() == archs


@pytest.mark.parametrize(("gpus", "archs"), [("9.0\n9.0", ["90a"]), ("8.0\n12.0", ["80", "120"]), ("[N/A]", ["90a"])])
def test_cuda_archs_are_those_of_the_gpus_seen(setup, monkeypatch, tmp_path, gpus, archs):
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\nprintf '{gpus}\\n'\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("FUSED_RNN_CUDA_ARCHS", raising=False)
    assert setup["cuda_archs"]() == archs


def test_cuda_archs_rejects_unknown_names(setup, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CUDA_ARCHS", "80 hopper")
    with pytest.raises(SystemExit, match="got 'hopper' in it"):
        setup["cuda_archs"]()


def test_a_machine_gets_its_own_instruction_sets(setup):
    isas_of = setup["isas_of"]
    assert isas_of("AMD64") == isas_of("x86_64") and isas_of("arm64") == isas_of("aarch64")
    assert list(isas_of("aarch64").int8) == ["baseline", "neon_dot", "neon_i8mm"]
    assert list(isas_of("riscv64").engine) == list(isas_of("riscv64").int8) == ["baseline"]
    compiled = [str(target) for _, _, target, _ in setup["compile_steps"](with_cuda=False, machine="aarch64")]
    assert sum("/kernels.cpp." in target for target in compiled) == 2
    assert not any("avx" in target or "amx" in target for target in compiled)


def test_a_cross_compiler_gets_the_instruction_sets_of_its_target(setup, monkeypatch, tmp_path):
    cross = tmp_path / "g++"
    cross.write_text("#!/bin/sh\necho aarch64-linux-gnu\n")
    cross.chmod(0o755)
    monkeypatch.setenv("CXX", f"{cross} -O2")
    assert setup["target_machine"]() == "aarch64"
    assert "kernels.cpp.neon_bf16.o" in setup["ninja_file"](Path("/site-packages/torch"))


def test_build_without_cuda_mentions_no_cuda(setup):
    text = setup["ninja_file"](Path("/site-packages/torch"))
    for word in ("nvcc", "csrc/cuda", "FUSED_RNN_WITH_CUDA", ".cu"):
        assert word not in text


def test_build_with_cuda(setup):
    text = setup["ninja_file"](Path("/site-packages/torch"), "/opt/cuda/bin/nvcc", ["80", "90a"])
    assert re.search(r"^build \S+: nvcc csrc/cuda/\w+/\w+\.cu$", text, re.MULTILINE)
    assert re.search(r"^build \S+: cxx csrc/cuda/engine\.cpp$", text, re.MULTILINE)
    assert "arch=compute_80,code=sm_80" in text
    assert "arch=compute_90a,code=sm_90a" in text
    assert "arch=compute_80,code=compute_80" in text, "PTX of the newest architecture that has successors"
    assert '-DFUSED_RNN_CUDA_ARCHS="80 90a"' in text


def test_portable_objects_come_first_in_the_link(setup):
    """The linker keeps the first copy of an inline function, which must run on every CPU."""
    link = setup["ninja_file"](Path("/site-packages/torch")).splitlines()[-1]
    objects = [Path(name).name for name in link.split(": link ")[1].split()]
    portable = [name for name in objects if not re.search(r"\.(avx|amx)\w*\.o$", name)]
    assert objects[: len(portable)] == portable
    assert {"kernels.cpp.baseline.o", "int8_kernels.cpp.baseline.o"} <= set(portable)


@pytest.mark.parametrize(
    ("touched", "rebuilt", "untouched"),
    [
        ("csrc/ops/ops.cpp", r"ops\.cpp\.o", "kernels"),
        ("csrc/cpu/kernels.cpp", r"kernels\.cpp\.\w+\.o", "ops"),
        ("csrc/cells/math.h", r"kernels\.cpp\.\w+\.o", "isa"),
    ],
)
def test_build_is_incremental(tree, touched, rebuilt, untouched):
    pytest.importorskip("ninja", reason="ninja is not in this environment")

    def to_do():
        done = run(
            sys.executable,
            "-m",
            "ninja",
            "-n",
            "-v",
            "-d",
            "explain",
            "-f",
            "build/native/build.ninja",
            cwd=tree,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r" -o build/native/(\S+)", done.stdout)

    if to_do():
        pytest.skip("sources have changed since the last build")
    (tree / touched).touch()
    names = [Path(name).name for name in to_do()]
    assert "_C.so" in names
    assert any(re.fullmatch(rebuilt, name) for name in names)
    assert not any(name.startswith(untouched) for name in names)


def test_wheel_fits_every_python(tree):
    done = run(sys.executable, "setup.py", "bdist_wheel", "--dist-dir", "wheels", cwd=tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "wheels").iterdir()
    assert re.fullmatch(rf"fused_rnn-{re.escape(fused_rnn.__version__)}-py3-none-\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fused_rnn/_C.so", "fused_rnn/py.typed", "fused_rnn/__init__.py"} < set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fused_rnn"}
