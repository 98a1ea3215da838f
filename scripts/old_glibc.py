"""Writes what to link with so that a library built with a new glibc also loads with an old one.

glibc 2.34 moved libpthread, libdl and librt into libc, under new versions of their symbols. CUDA's runtime, which is
linked statically, uses many of them. The old versions are still in libc, for programs linked before: so the linker is
shown three libraries without code that have these symbols under their old versions, as a system of that time has them.
Where glibc is older, or the C library is another one, there is nothing to show.

Usage: python scripts/old_glibc.py CXX OUTPUT    OUTPUT: a linker script that names the libraries, in its folder
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

OLD = (2, 28)  # of manylinux_2_28
LIBRARIES = {
    "libpthread.so.0": r"(pthread|sem)_\w+",
    "libdl.so.2": r"dl\w+",
    "librt.so.1": r"(shm|mq|timer|aio|lio)_\w+",
}


def moved_symbols(table):
    """{name: its version of OLD's time} of the symbols whose default version is newer, out of objdump -T's table."""
    versions = {}
    for version, name in re.findall(r"\s\.text\s+[0-9a-f]+\s+(\(?GLIBC_[0-9.]+\)?)\s+(\w+)$", table, re.MULTILINE):
        number = tuple(int(part) for part in version.strip("()").removeprefix("GLIBC_").split("."))
        versions.setdefault(name, []).append((number, version.startswith("(")))
    moved = {}
    for name, found in versions.items():
        default = max(number for number, _ in found)
        old = [number for number, hidden in found if number <= OLD and hidden]
        if default > OLD and old:
            moved[name] = "GLIBC_" + ".".join(map(str, max(old)))
    return moved


def assembly(moved):
    """One library's text for the assembler, and its version script."""
    lines = [".text"]
    for name, version in sorted(moved.items()):
        own = f"old_{name}"
        lines += [f".globl {own}", f".type {own}, %function", f"{own}:", f".symver {own}, {name}@@{version}"]
    versions = "".join(f"{version} {{ }};\n" for version in sorted(set(moved.values())))
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits', ""]), versions


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table_of_libc(cxx):
    path = output_of(*cxx, "-print-file-name=libc.so.6").strip()
    if not Path(path).is_absolute():  # the compiler answers with the name alone where there is none
        return ""
    return output_of("objdump", "-T", path)


def write_library(cxx, folder, name, moved):
    source, script = folder / f"{name}.s", folder / f"{name}.map"
    text, versions = assembly(moved)
    source.write_text(text)
    script.write_text(versions)
    options = ["-shared", "-nostdlib", f"-Wl,-soname,{name}", f"-Wl,--version-script,{script}"]
    subprocess.run([*cxx, *options, str(source), "-o", str(folder / name)], check=True)


def main():
    cxx, output = shlex.split(sys.argv[1]), Path(sys.argv[2])
    output.parent.mkdir(parents=True, exist_ok=True)
    moved = moved_symbols(table_of_libc(cxx))
    written = []
    for name, pattern in LIBRARIES.items():
        if of_library := {symbol: moved[symbol] for symbol in moved if re.fullmatch(pattern, symbol)}:
            write_library(cxx, output.parent, name, of_library)
            written.append(str(output.parent / name))
    output.write_text(
        f"/* {len(written)} libraries of old symbols */\n" + f"INPUT({' '.join(written)})\n" * bool(written)
    )


if __name__ == "__main__":
    main()
