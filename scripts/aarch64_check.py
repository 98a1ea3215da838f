"""Cross-compiles the wheel for aarch64, imports it in an emulator with an aarch64 Python and torch, and runs there
`verify --quick` and tests against torch.nn. Nothing here says how fast it is.

Needs Debian's packages qemu-user and g++-aarch64-linux-gnu. FOLDER keeps what is fetched, a gigabyte or three: Debian's
Python for aarch64 by apt, torch and what it imports by pip. The wheel stays in FOLDER/wheel. Not in CI.

Usage: python scripts/aarch64_check.py FOLDER [--torch VERSION] [--processor NAME ...] [--tests FILE ...]
"""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PROCESSORS = ("max", "neoverse-n1", "cortex-a72")  # all extensions; dot products; none
# Of those that start no other Python, which would be one for this machine.
TESTS = ("nn/test_parity.py", "nn/test_int8.py", "ops/test_lengths_resets.py")
PACKAGES = ("numpy", "pytest>=8.2", "hypothesis", "expecttest", "pybind11", "setuptools>=77")  # of conftest.py too
# torch reads these of Linux when it is imported, and crashes on those of an x86-64.
SYSTEM = {
    **dict.fromkeys((f"sys/devices/system/cpu/cpu{n}/regs/identification/midr_el1" for n in (0, 1)), "0x413fd0c1\n"),
    "proc/cpuinfo": "".join(
        f"processor\t: {n}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n"
        for n in (0, 1)
    ),
}
APT = """APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
"""


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], check=False, **options)
    if done.returncode:
        sys.exit(f"aarch64_check: {command[0]} failed, see the messages above")
    return done


def fetch_python(folder):
    """Debian's Python for aarch64 and what it loads, below folder/root. This system's packages stay as they are."""
    root, apt = folder / "root", folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "state/status").touch()
    (apt / "apt.conf").write_text(APT.format(folder=apt))
    environment = os.environ | {"APT_CONFIG": str(apt / "apt.conf")}
    wanted = ["python3", "libgomp1", "libstdc++6"]
    run("apt-get", "update", "--quiet=2", env=environment)
    install = ["apt-get", "install", "--quiet=2", "--download-only", "--yes", "--no-install-recommends", *wanted]
    run(*install, env=environment)
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, root)
    for name, text in SYSTEM.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def python_of(folder):
    """Its file, such as folder/root/usr/bin/python3.11; None if there is none yet."""
    found = [path for path in folder.glob("root/usr/bin/python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    return found[0] if found else None


def fetch_packages(folder, torch, version):
    """Into folder/site, for a Python of that version."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 29)]
    platforms.append("--platform=manylinux2014_aarch64")
    options = ["--quiet", "--only-binary", ":all:", "--python-version", version, *platforms]
    run(sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", f"torch=={torch}", *PACKAGES)


def build(folder):
    """The wheel, and what is in it below folder/installed."""
    for name in ("source", "plain", "wheel", "installed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "wheel").mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, tracked)):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "source" / name)
    cross = {"CXX": COMPILER, "PYTHONPATH": str(folder / "site"), "FUSED_RNN_CUDA": "0"}
    environment = os.environ | cross | {"_PYTHON_HOST_PLATFORM": "linux-aarch64"}
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", folder / "plain"]
    run(*command, cwd=folder / "source", env=environment)
    (plain,) = (folder / "plain").glob("*.whl")
    run(sys.executable, ROOT / "scripts/manylinux.py", plain, folder / "wheel")
    (wheel,) = (folder / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")


def emulate(folder, processor, *arguments):
    """Runs the aarch64 Python outside of the source tree."""
    clone = folder / "clone"
    environment = os.environ | {"PYTHONPATH": f"{folder / 'installed'}{os.pathsep}{folder / 'site'}"}
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # of this machine's processor
        environment.pop(name, None)
    print(f"== {processor}: python {' '.join(arguments)}", flush=True)
    command = [EMULATOR, "-cpu", processor, "-L", folder / "root", python_of(folder), *arguments]
    run(*command, cwd=clone, env=environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", default="2.13.0", help="which version to fetch (default: %(default)s)")
    parser.add_argument("--processor", nargs="+", default=PROCESSORS, help="names that qemu-aarch64 -cpu help lists")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="files below tests/")
    asked = parser.parse_args()
    if lacking := [tool for tool in (COMPILER, EMULATOR, "apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        parser.error(f"there is no {lacking[0]}: this needs Debian, with its qemu-user and g++-aarch64-linux-gnu")
    folder = asked.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if python_of(folder) is None:
        fetch_python(folder)
    if not (folder / "site/torch").exists():
        fetch_packages(folder, asked.torch, python_of(folder).name.removeprefix("python"))
    build(folder)
    shutil.rmtree(folder / "clone", ignore_errors=True)
    (folder / "clone").mkdir()
    runpy.run_path(str(ROOT / "scripts/torch_matrix.py"))["copy_tests"](folder / "clone")
    for processor in asked.processor:
        emulate(folder, processor, "-m", "fused_rnn", "info")
        emulate(folder, processor, "-m", "fused_rnn", "verify", "--quick")
    if asked.tests:
        tests = [f"tests/{name}" for name in asked.tests]
        emulate(folder, asked.processor[0], "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


if __name__ == "__main__":
    main()
