"""The error messages for a compiled library that is there but fits something else: the machine, torch, this package."""

from __future__ import annotations

import platform
import re
from pathlib import Path

# The field e_machine of an ELF file, by the names of platform.machine().
_ELF_MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_OTHER_FORMATS = {b"MZ": "Windows", b"\xcf\xfa\xed\xfe": "Darwin", b"\xca\xfe\xba\xbe": "Darwin"}
_BUILD = "in a clone with: pip install --no-build-isolation --force-reinstall ."


def why_not_loaded(library: Path, error: OSError, torch_version: str) -> str:
    """The message of the ImportError; ``error``: what the loader says of ``library``."""
    reason = error.__cause__ or error  # torch's own says no more than the path
    message = f"fused_rnn's compiled library could not be loaded: {reason}. "
    built_for, here = _built_for(library), f"{platform.system()} on {platform.machine()}"
    if not here.startswith(built_for):
        return (
            f"{message}It was built for {built_for}, and this is {here}. Install the wheel for that, or build {_BUILD}"
        )
    if b"GLIBC_2." in library.read_bytes() and platform.libc_ver()[0] != "glibc":
        return (
            f"{message}It was built for the C library glibc, as all wheels are, and this Python uses another one, musl "
            f"perhaps. Build {_BUILD}"
        )
    if newer := re.search(r"version `((?:GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+)' not found", str(reason)):
        return (
            f"{message}It was built where the system's libraries are newer: these lack {newer[1]}. Install a manylinux "
            f"wheel, or build {_BUILD}"
        )
    if symbol := re.search(r"undefined symbol: (\w+)", str(reason)):
        return (
            f"{message}The torch here, {torch_version}, has no {symbol[1]}: the library was built for another ABI. "
            f"Build for this torch {_BUILD}"
        )
    return f"{message}Build another {_BUILD}"


def why_other_version(version: str | None, package: str) -> str:
    """``version``: the library's; None where it is too old to tell it."""
    return (
        f"fused_rnn {package} found the compiled library of {f'version {version}' if version else 'an older version'}: "
        f"they were not installed together. Reinstall fused_rnn, or build {_BUILD}"
    )


def _built_for(library: Path) -> str:
    """Such as "Linux on x86_64", or the system alone."""
    with library.open("rb") as file:
        head = file.read(20)
    if head[:4] == b"\x7fELF" and len(head) == 20:
        machine = int.from_bytes(head[18:], "little" if head[5] == 1 else "big")
        return f"Linux on {_ELF_MACHINES.get(machine, f'machine {machine} of ELF')}"
    return next(
        (name for start, name in _OTHER_FORMATS.items() if head.startswith(start)), "no system: it is no library"
    )
