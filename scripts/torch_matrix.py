"""Installs a wheel beside each torch from 2.11 on, on each Python from 3.10 on, and runs the tests there that depend on
torch's inner parts: of Dynamo, traces and pickles. At the end it lists what ran, and why the rest did not.

Usage: python scripts/torch_matrix.py WHEEL [--python PATH ...] [--torch VERSION ...] [--cuda]

The Pythons are those on the PATH and pyenv's, the torches the newest of each minor release that pip finds
(TORCH_INDEX_URL: in that index). A build with CUDA, gigabytes of it, is left out unless --cuda asks for it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("integration/test_compile.py", "integration/test_tracing.py", "nn/test_pickles.py")
NEEDED = ("pytest>=8.2", "hypothesis", "expecttest", "numpy", "pybind11", "setuptools>=77")  # of tests/conftest.py too
OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 11)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


def last_line(text):
    """What a program that failed said last, without pip's warnings."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("WARNING", "[notice]"))]
    return lines[-1] if lines else "it said nothing"


def index_options():
    index = os.environ.get("TORCH_INDEX_URL")
    return ["--index-url", index] if index else []


def version_of(python):
    """(3, 12), say; None if it does not run, has no venv, or is none that the package supports."""
    done = run(python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])")
    version = tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()
    return version if version >= OLDEST_PYTHON else None


def pythons():
    """{version: path}, oldest first, one for each minor version."""
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    folders += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    found = {sys.version_info[:2]: Path(sys.executable)}
    for folder in folders:
        for path in sorted(folder.glob("python3.*")):
            if re.fullmatch(r"python3\.\d+", path.name) and (version := version_of(path)):
                found.setdefault(version, path)
    return dict(sorted(found.items()))


def torch_versions(said):
    """The newest of each minor release, oldest first, out of what `pip index versions torch` said."""
    listed = re.search(r"^Available versions: (.*)$", said, re.MULTILINE)
    newest = {}
    for version in listed[1].split(", ") if listed else ():
        if parts := re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(\+\w+)?", version):
            number = tuple(int(part) for part in parts.groups()[:3])
            if number[:2] >= OLDEST_TORCH:
                newest[number[:2]] = max(newest.get(number[:2], number), number)
    return [".".join(map(str, newest[minor])) for minor in sorted(newest)]


def available_torches():
    done = run(sys.executable, "-m", "pip", "index", "versions", "torch", *index_options())
    versions = torch_versions(done.stdout)
    if not versions:
        sys.exit(f"torch_matrix: pip finds no torch: {last_line(done.stderr)}")
    return versions


def needs_cuda(report):
    """Whether the one package of pip's report wants CUDA's libraries."""
    wanted = report["install"][0]["metadata"].get("requires_dist", [])
    return any(re.match(r"(nvidia|cuda)-", requirement) for requirement in wanted)


def why_not(python, torch, folder, cuda):
    """Why this torch is not installed, or None."""
    report = folder / "report.json"
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--report", report]
    done = run(python, "-m", "pip", "install", "--quiet", *options, *index_options(), f"torch=={torch}")
    if done.returncode:
        return f"not to be had: {last_line(done.stderr)}"
    if not cuda and needs_cuda(json.loads(report.read_text())):
        return "only as a build with CUDA"
    return None


def copy_tests(folder):
    """The tests and what they read when they are imported; there is no fused_rnn to import there."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fused_rnn/own").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "fused_rnn/_version.py", "fused_rnn/own/flags.py"):
        shutil.copy(ROOT / name, folder / name)


def test(python, torch, wheel, folder):
    """(whether the tests passed, a line about it)"""
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    copy = folder / "clone"
    copy_tests(copy)
    for command in (
        [python, "-m", "venv", folder],
        [*pip, *index_options(), f"torch=={torch}"],
        [*pip, "--only-binary", ":all:", wheel, *NEEDED],
    ):
        done = run(*command)
        if done.returncode:
            return False, f"could not be set up: {last_line(done.stderr)}"
    tests = [f"tests/{name}" for name in TESTS]
    done = subprocess.run([folder / "bin/python", "-m", "pytest", "--color=no", *tests], cwd=copy, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0, last_line(done.stdout).strip("= ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", nargs="+", type=Path, help="instead of all that are found")
    parser.add_argument("--torch", nargs="+", help="such as 2.13.0, instead of all that are found")
    parser.add_argument("--cuda", action="store_true", help="install builds of torch with CUDA too")
    asked = parser.parse_args()
    if not asked.wheel.is_file():
        parser.error(f"WHEEL must be the file of a wheel, got {asked.wheel}")
    wrong = [str(path) for path in asked.python or () if version_of(path) is None]
    if wrong:
        parser.error(f"--python wants interpreters of Python 3.10 or newer, got {', '.join(wrong)}")
    found = {version_of(path): path for path in asked.python} if asked.python else pythons()
    torches = asked.torch or available_torches()
    lines, failed, ran = [], 0, 0
    for version, python in found.items():
        for torch in torches:
            name = f"Python {'.'.join(map(str, version))}, torch {torch}"
            with tempfile.TemporaryDirectory() as folder:
                reason = why_not(python, torch, Path(folder), asked.cuda)
                if reason is None:
                    print(f"{name}: installing, then a minute or two of tests", flush=True)
                    passed, reason = test(python.absolute(), torch, asked.wheel.absolute(), Path(folder))
                    ran, failed = ran + 1, failed + (not passed)
                    reason = f"{'passed' if passed else 'FAILED'}: {reason}"
            lines.append(f"{name}: {reason}")
            print(lines[-1], flush=True)
    print("", f"{asked.wheel.name} ran on {ran} of {len(lines)}:", *lines, sep="\n")
    sys.exit(failed > 0 or ran == 0)


if __name__ == "__main__":
    main()
