"""Names of the functions in a kernel's PTX, short enough to look for."""

import ctypes
import functools
import re

NOISE = re.compile(r"\b_INTERNAL_\w+::|\(anonymous namespace\)::|\bfused_rnn::|\bcuda::|(?<=\)) const\b")
OPENING = "(<{"


def by_label(text: list[str], labels: set[str]) -> dict[str, str]:
    """Of functions to which .loc refers by labels. These stand before the bytes of mangled names, after all kernels."""
    mangled: dict[str, bytearray] = {}
    label = ""
    for line in text:
        if line.startswith("$L__info_string"):
            label = line[:-1]
        elif label in labels and line.startswith(".b8"):
            mangled.setdefault(label, bytearray()).extend(map(int, line[3:].split(",")))
    return {label: short(name.rstrip(b"\0").decode()) for label, name in mangled.items()}


@functools.cache
def short(mangled: str) -> str:
    """Without namespaces, parameters and result, and without a class's template arguments: ForwardCell::store,
    ForwardCell::store::lambda#2 of the second lambda there, Persistent::multiply<1>."""
    return _shortened(NOISE.sub("", _demangled(mangled)))


@functools.cache
def _runtime():
    """libstdc++, which torch is linked with."""
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    return library


def _demangled(mangled: str) -> str:
    if not mangled.startswith("_Z"):
        return mangled
    found = _runtime().__cxa_demangle(mangled.encode(), None, None, None)
    assert found, f"not a mangled name: {mangled}"
    try:
        return ctypes.string_at(found).decode()
    finally:
        _runtime().free(found)


def _shortened(name: str) -> str:
    made, at = "", 0
    while at < len(name):
        c, end = name[at], at + 1
        if c in OPENING and not made.endswith("operator"):
            end = _end_of_group(name, at)
            group = name[at + 1 : end - 1]
            if c == "{":  # {lambda(float&, float)#2}::operator()
                made += "lambda" + group[group.rindex("#") :]
                end += len("::operator()")
            elif c == "<" and not name.startswith("::", end):
                made += f"<{', '.join(_argument(each) for each in _split(group))}>"
        elif c == " ":
            made = made + " " if made.endswith("operator") else ""  # what came before is the result's type
        else:
            made += c
        at = end
    return made


def _argument(text: str) -> str:
    """Of a template: a function's lambda, or anything else."""
    return _shortened(text) if "{lambda" in text else text


def _split(group: str) -> list[str]:
    parts, first, at = [], 0, 0
    while at < len(group):
        if group[at] == ",":
            parts.append(group[first:at])
            first = at + 2
        at = _end_of_group(group, at) if group[at] in OPENING else at + 1
    return [*parts, group[first:]]


def _end_of_group(text: str, at: int) -> int:
    """After the bracket that closes the one that is there."""
    depth = 0
    while True:
        depth += (text[at] in OPENING) - (text[at] in ")>}")
        at += 1
        if depth == 0:
            return at
