"""Builds fused_rnn/_C.so with ninja: g++ compiles csrc/**/*.cpp; nvcc, where there is one, csrc/cuda/**/*.cu.

Read from the environment:
  FUSED_RNN_CUDA        auto (default): with CUDA if there is nvcc and this torch has CUDA; 1: with it, whatever torch
                        has; 0: without
  FUSED_RNN_CUDA_ARCHS  such as "75 80 86 89 90a 100 120"; default: this machine's GPUs, or 90a if it has none
  CUDA_HOME, CXX, CXXFLAGS, MAX_JOBS
"""

import importlib.util
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUILD = Path("build/native")  # fixed, so that the next build is incremental: setuptools' own may be temporary
LIBRARY = BUILD / "_C.so"
OLDEST_TORCH = (2, 11)  # its stable ABI is what the library is compiled for
VERSION = runpy.run_path(str(ROOT / "fused_rnn/_version.py"))["__version__"]
TELLS_VERSION = Path("csrc/ops/info.cpp")

# Linux's linker accepts undefined symbols unless told otherwise.
LINKING = "-ldl -Xlinker --no-undefined" if sys.platform.startswith("linux") else ""

# The CPU engine is compiled once per instruction set; the library picks one of them when it runs.
ENGINE, INT8_ENGINE = Path("csrc/cpu/kernels.cpp"), Path("csrc/cpu/int8_kernels.cpp")
# Compiled by the library, for cells that are defined at run time.
PLUG_IN, CUDA_PLUG_IN = Path("csrc/cpu/plug_in.cpp"), Path("csrc/cuda/stepwise/plug_in.cu")
FLAGS = runpy.run_path(str(ROOT / "fused_rnn/own/flags.py"))  # those of such cells, too
isas_of = FLAGS["isas_of"]


def compiler():
    return os.environ.get("CXX") or ("clang++" if sys.platform == "win32" else "g++")


def target_machine():
    """The one that is compiled for: this one, unless CXX is a cross compiler."""
    command = shlex.split(compiler())
    if shutil.which(command[0]) is None:
        return platform.machine()
    done = subprocess.run([*command, "-dumpmachine"], capture_output=True, text=True, check=False)
    return done.stdout.split("-")[0] if done.returncode == 0 else platform.machine()


def fail(message):
    sys.exit(f"fused_rnn: {message}")


def find_torch():
    """The folder of the installed torch. It is not imported: only its headers and libraries are needed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        fail("building needs torch: pip install torch first, or drop --no-build-isolation")
    folder = Path(spec.origin).parent
    version = re.search(r"__version__ = '((\d+)\.(\d+).*)'", (folder / "version.py").read_text())
    if (int(version[2]), int(version[3])) < OLDEST_TORCH:
        fail("building needs torch >= {}.{}, found {} in {}".format(*OLDEST_TORCH, version[1], folder))
    return folder


def cuda_wanted():
    wanted = os.environ.get("FUSED_RNN_CUDA") or "auto"
    if wanted not in ("auto", "0", "1"):
        fail(f"FUSED_RNN_CUDA must be auto, 0 or 1, got {wanted!r}")
    return wanted


def find_nvcc():
    """None: there is none, or FUSED_RNN_CUDA=0."""
    wanted = cuda_wanted()
    if wanted == "0":
        return None
    places = FLAGS["nvcc_places"]()
    nvcc = shutil.which("nvcc", path=places)
    if nvcc is None and wanted == "1":
        fail(f"FUSED_RNN_CUDA=1, but no nvcc in {places}: install the CUDA toolkit, or set CUDA_HOME")
    return nvcc


def nvcc_for(torch):
    """The nvcc to build with, or None for a build without CUDA, and why so."""
    nvcc, wanted = find_nvcc(), cuda_wanted()
    if nvcc is None:
        return None, "FUSED_RNN_CUDA=0" if wanted == "0" else "there is no nvcc"
    if wanted == "auto" and not re.search(r"^cuda\b[^=]*= '", (torch / "version.py").read_text(), re.MULTILINE):
        return None, "this torch has none, so it could not use the kernels; FUSED_RNN_CUDA=1 builds them anyway"
    return nvcc, f"with {nvcc} for {cuda_archs()}"


def find_ninja():
    if importlib.util.find_spec("ninja"):  # before the PATH: another version there would not know what is built
        return [sys.executable, "-m", "ninja"]
    return [shutil.which("ninja") or fail("building needs ninja: pip install ninja")]


def cuda_archs():
    """The GPU architectures to build for, oldest first, such as ["80", "90a"]."""
    archs = os.environ.get("FUSED_RNN_CUDA_ARCHS", "").replace(";", " ").split()
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            fail(f'FUSED_RNN_CUDA_ARCHS must look like "80 90a 120", got {arch!r} in it')
    if not archs and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        seen = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        archs = [major + minor for major, minor in re.findall(r"^(\d+)\.(\d)$", seen, re.MULTILINE)]
        archs = ["90a" if arch == "90" else arch for arch in archs]  # only 90a has Hopper's own instructions
    return sorted(set(archs) or {"90a"}, key=lambda arch: (int(arch.rstrip("af")), arch))


def cxx_flags(torch, nvcc, archs):
    flags = [f"{FLAGS['CXX_FLAGS']} -Wall -Wextra"]
    flags.append(f"-Icsrc -isystem {shlex.quote(f'{torch}/include')}")
    flags.append("-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH))
    if nvcc:
        quoted_archs = '"{}"'.format(" ".join(archs))
        flags.append(f"-DFUSED_RNN_WITH_CUDA=1 {shlex.quote(f'-DFUSED_RNN_CUDA_ARCHS={quoted_archs}')}")
    return " ".join([*flags, os.environ.get("CXXFLAGS", "")])


def nvcc_flags(archs):
    host = f"{FLAGS['NVCC_HOST_FLAGS']},-Wall,-Wextra"
    return f"{FLAGS['NVCC_FLAGS']} -Icsrc -Xcompiler {host} {FLAGS['gencode'](archs)}"


def compression(nvcc):
    """What makes kernels a fifth as large. Before CUDA 13 a library so packed needs a newer driver than CUDA does."""
    if not shutil.which(nvcc):
        return ""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", said)
    return "--compress-mode=size" if release and int(release[1]) >= 13 else ""


# Measured: CPU time of a whole build, for who waits.
EXPECTED = ("about 4 minutes of one core", "about 5 minutes of one core")

# CUDA's runtime, linked statically, would otherwise need the glibc of the building machine.
OLD_GLIBC = (Path("scripts/old_glibc.py"), BUILD / "glibc/old.ld")

COMPILED = "$flags -MD -MF $out.d -c $in -o $out"  # of a rule for ninja, how a source becomes an object

# What nvcc leaves beside an object: the PTX that it was made from, which tests execute, of all its intermediate files;
# and what ptxas says of every kernel, for scripts/cuda_check.py. The rest of its words are for whoever builds.
KEEP_PTX = (
    " --keep --keep-dir $out.keep 2> $out.log; code=$$?; find $out.keep -type f ! -name '*.ptx' -delete;"
    ' grep -vE "^ptxas info|bytes stack frame" $out.log; exit $$code'
)


def nvcc_command(nvcc, archs):
    """Of a rule for ninja."""
    # PTX with the lines of its source, which the machine code goes without: it would be more than twice as large.
    flags = f"{nvcc_flags(archs)} {compression(nvcc)} -lineinfo -Xptxas -v,-suppress-debug-info"
    return f"rm -rf $out.keep; mkdir -p $out.keep; {shlex.quote(nvcc)} {flags} {COMPILED}{KEEP_PTX}"


# The persistent kernels of each dtype and direction take a compiler a while: a file of its own for each.
PERSISTENT = BUILD / "persistent"
DTYPES = {"float": "float", "double": "double", "bfloat16": "BFloat16", "half": "Half"}


def persistent_sources():
    """{file: its text}, which ``write_sources`` puts there."""
    return {
        PERSISTENT / f"{name}_{way.lower()}.cu": (
            '#include "cuda/persistent/instances.cuh"\n\n' + f"FUSED_RNN_LAUNCHES({way}, {storage}, {name})\n"
        )
        for name, storage in DTYPES.items()
        for way in ("Forward", "Backward")
    }


def write_sources():
    (ROOT / PERSISTENT).mkdir(parents=True, exist_ok=True)
    for path, text in persistent_sources().items():
        if not (ROOT / path).exists() or (ROOT / path).read_text() != text:
            (ROOT / path).write_text(text)


def cuda_sources():
    """All that nvcc compiles, relative to ROOT."""
    files = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.cu")]
    return sorted([*(file for file in files if file != CUDA_PLUG_IN), *persistent_sources()])


def object_of(source):
    return Path(f"{source}.o") if source.is_relative_to(BUILD) else BUILD / f"{source}.o"


def compile_steps(with_cuda, machine=None):
    """Yields (rule, source, object, extra flags), in the order of the link; ``machine``: not that of the compiler."""
    isas = isas_of(machine or target_machine())
    for source in sorted(path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.cpp")):
        if source not in (ENGINE, INT8_ENGINE, PLUG_IN) and (with_cuda or "cuda" not in source.parts):
            flags = [isas.chooses] if isas.chooses else []
            if source == TELLS_VERSION:
                quoted_version = f'"{VERSION}"'
                flags.append(f"-DFUSED_RNN_VERSION={shlex.quote(quoted_version)}")
            yield "cxx", source, object_of(source), " ".join(flags)
    for source in cuda_sources() if with_cuda else ():
        yield "nvcc", source, object_of(source), ""
    # Last: of an inline function in several objects the linker keeps the first, which must run on every CPU.
    of_isas = [(ENGINE, *isa) for isa in isas.engine.items()] + [(INT8_ENGINE, *isa) for isa in isas.int8.items()]
    for engine, isa, flags in sorted(of_isas, key=lambda kernels: kernels[1] != "baseline"):
        yield "cxx", engine, f"{BUILD}/{engine}.{isa}.o", f"-DFUSED_RNN_ISA={FLAGS['camel'](isa)} {flags}"


def ninja_file(torch, nvcc=None, archs=()):
    """The text of build.ninja, its paths relative to ROOT. Without nvcc there is no trace of CUDA in it."""
    cxx = compiler()
    commands = {"cxx": f"{cxx} {cxx_flags(torch, nvcc, archs)} {COMPILED}"}
    if nvcc:
        commands["nvcc"] = nvcc_command(nvcc, archs)
    text = f"builddir = {BUILD}\n"
    for rule, command in commands.items():
        text += f"rule {rule}\n  command = {command}\n  depfile = $out.d\n  deps = gcc\n  description = {rule} $out\n"
    linker = f"{shlex.quote(nvcc)} -cudart static" if nvcc else cxx
    libraries = f"-L{shlex.quote(f'{torch}/lib')} -lc10 -ltorch_cpu {LINKING}"
    script, old_symbols = OLD_GLIBC
    if nvcc:
        libraries = f"-Xlinker --no-as-needed -Xlinker {old_symbols} {libraries}"
        text += f"rule old_glibc\n  command = {shlex.quote(sys.executable)} $in {shlex.quote(cxx)} $out\n"
        text += f"build {old_symbols}: old_glibc {script}\n"
    text += f"rule link\n  command = {linker} -shared -o $out $in {libraries}\n"
    text += "  description = link $out\n"

    steps = list(compile_steps(with_cuda=bool(nvcc)))
    for rule, source, target, flags in steps:
        text += f"build {target}: {rule} {source}\n  flags = {flags}\n"
    needs = f" | {old_symbols}" if nvcc else ""
    return f"{text}build {LIBRARY}: link {' '.join(str(target) for _, _, target, _ in steps)}{needs}\n"


class NinjaBuild(build_ext):
    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"  # no Python inside, so no Python version in the name

    def build_extension(self, ext):
        torch = find_torch()
        nvcc, why = nvcc_for(torch)
        archs = cuda_archs() if nvcc else []
        print(f"fused_rnn: building {why if nvcc else f'without CUDA: {why}'}; {EXPECTED[bool(nvcc)]}", flush=True)
        write_sources()
        (ROOT / BUILD / "build.ninja").write_text(ninja_file(torch, nvcc, archs))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([*find_ninja(), "-f", f"{BUILD}/build.ninja", *jobs], cwd=ROOT, check=False).returncode:
            fail("the build failed, see the messages above")
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(ROOT / LIBRARY), str(output))


class WithHeaders(build_py):
    """The package, with the sources that cells which are defined at run time are compiled from."""

    def run(self):
        super().run()
        if self.editable_mode:  # they are in the source tree
            return
        for folder in FLAGS["OF_CELLS"]:
            for path in sorted((ROOT / "csrc" / folder).rglob("*")):
                if path.suffix in (".h", ".cuh") or path.relative_to(ROOT) in (ENGINE, PLUG_IN, CUDA_PLUG_IN):
                    to = Path(self.build_lib, "fused_rnn/include", path.relative_to(ROOT / "csrc"))
                    to.parent.mkdir(parents=True, exist_ok=True)
                    self.copy_file(str(path), str(to))


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]  # no Python inside: one wheel for every Python 3


if __name__ == "__main__":  # the tests and scripts/cuda_check.py read this file for its functions
    commands = {"build_ext": NinjaBuild, "build_py": WithHeaders, "bdist_wheel": Wheel}
    setup(ext_modules=[Extension("fused_rnn._C", [])], cmdclass=commands)
