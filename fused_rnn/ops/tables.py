"""Tables of measurements in files: the user's own, then those that come with the package."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from .._version import __version__
from . import library, measured, user_folder
from .measured import Table

SHIPPED = Path(__file__).parents[1] / "tables"  # made on the devices that they name, by `python -m fused_rnn tune`

_applied: dict[tuple[str, int], Table | None] = {}
_told: set[str] = set()


def tell_once(message: str) -> None:
    """A warning that a process gives once."""
    if message not in _told:
        _told.add(message)
        warnings.warn(f"fused_rnn: {message}", stacklevel=2)


# ---- devices ---------------------------------------------------------------------------------------------------------


@cache
def processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def device_name(kind: str, index: int = 0) -> str:
    return torch.cuda.get_device_name(index) if kind == "cuda" else processor()


def made_with(kind: str) -> dict[str, str]:
    """The versions on which measurements depend."""
    versions = {"fused_rnn": __version__, "torch": torch.__version__}
    if kind == "cuda":
        versions |= {"CUDA": torch.version.cuda or "none", "cuDNN": str(torch.backends.cudnn.version())}
    return versions


# ---- files -----------------------------------------------------------------------------------------------------------


def path_of(device: str) -> Path:
    """The file of a device's table among the user's."""
    return user_folder.folder() / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}.json"


def read(path: Path) -> Table:
    """Raises OSError, or ValueError for what is no table."""
    return measured.from_json(json.loads(path.read_text(encoding="utf-8")))


def write(table: Table, path: Path) -> None:
    """Whole or not at all: readers and other writers never see a part of it."""
    if path.parent == user_folder.folder():
        user_folder.make()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(measured.as_json(table), file, indent=1)
            file.write("\n")
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _sources(device: str) -> Iterator[Path]:
    own = path_of(device)
    yield from (path for path in (own, SHIPPED / own.name) if path.exists())


def find(device: str, versions: dict[str, str] | None = None) -> Table | None:
    """The first usable table of the device; each one that is not is named in a warning, once."""
    for path in _sources(device):
        try:
            table = read(path)
        except (OSError, ValueError) as error:
            tell_once(f"{path} is ignored: {error}; python -m fused_rnn tune writes a new one")
            continue
        reason = _misfit(table, device, versions)
        if reason is None:
            return table
        tell_once(f"{path} is ignored: {reason}; python -m fused_rnn tune measures again")
    return None


def _misfit(table: Table, device: str, versions: dict[str, str] | None) -> str | None:
    if table.device != device:
        return f"it is of {table.device}, not of {device}"
    for what, version in (versions or {}).items():
        if table.made_with.get(what) != version:
            return f"it was made with {what} {table.made_with.get(what, 'unknown')}, and this is {version}"
    return None


def find_by_name(name: str) -> Table | None:
    """The table of the first device whose name has this in it, such as "H200", for whatever versions it was made."""
    paths = [path for place in (user_folder.folder(), SHIPPED) for path in sorted(place.glob("*.json"))]
    for path in paths:
        try:
            table = read(path)
        except (OSError, ValueError):
            continue
        if name.lower() in table.device.lower():
            return table
    return None


# ---- in use ----------------------------------------------------------------------------------------------------------


def table_for(kind: str, index: int = 0) -> Table | None:
    """The table in use for a device, which is read the first time."""
    key = (kind, index)
    if key not in _applied:
        use(kind, index, find(device_name(kind, index), made_with(kind)))
    return _applied[key]


def use(kind: str, index: int, table: Table | None) -> None:
    """Takes a table into use, in this process."""
    _applied[kind, index] = table
    if kind == "cuda":
        give_to_cuda(index, table)
    elif table is not None and table.thresholds:
        set_thresholds(shipped_thresholds() | dict(table.thresholds))


def forget() -> None:
    """Tables are read again when they are needed; thresholds are as shipped until then."""
    _applied.clear()
    _told.clear()
    set_thresholds(shipped_thresholds())


def give_to_cuda(index: int, table: Table | None) -> None:
    numbers, reason = measured.rows_of_cuda(table) if table else [], ctypes.create_string_buffer(256)
    array = (ctypes.c_int64 * len(numbers))(*numbers)
    if library.compiled.fused_rnn_set_measured(index, array, len(numbers) // 8, reason, len(reason)):
        raise RuntimeError(reason.value.decode())


# In the order of csrc/cpu/schedule/select.h's Thresholds.
THRESHOLDS = (
    "least_work_for_threads",
    "least_rows_to_pack_half",
    "least_rows_to_pack_bfloat16",
    "least_rows_to_pack_few",
    "least_rows_to_pack_many",
    "least_rows_to_pack_most",
    "rows_to_share_some",
    "rows_to_share_many",
)


def shipped_thresholds() -> dict[str, int]:
    return _thresholds(shipped=True)


def current_thresholds() -> dict[str, int]:
    return _thresholds(shipped=False)


def _thresholds(shipped: bool) -> dict[str, int]:
    numbers = (ctypes.c_int64 * len(THRESHOLDS))()
    library.of_cpu.fused_rnn_cpu_thresholds(shipped, numbers)
    return dict(zip(THRESHOLDS, numbers, strict=True))


def set_thresholds(thresholds: dict[str, int]) -> None:
    """Of the CPU's plans, for all later calls of this process."""
    numbers = [thresholds[name] for name in THRESHOLDS]
    library.of_cpu.fused_rnn_set_cpu_thresholds((ctypes.c_int64 * len(numbers))(*numbers))


def use_for_cpu() -> None:
    """Takes this processor's table into use, if the user has made one."""
    try:
        is_there = path_of(processor()).exists()
    except (OSError, RuntimeError):  # no home, or one that may not be read
        return
    if is_there:
        table_for("cpu")
