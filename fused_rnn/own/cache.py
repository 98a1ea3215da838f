"""A folder of compiled cells. They are code, which a process runs: nobody but its user may be able to change them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..ops import user_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PLUG_IN, HEADER = "cell.so", "cell.h"
_DIGEST = "cell.sha256"


def refuse_others(path: Path) -> None:
    """Raises if another user owns this file or folder, or may write to it."""
    if sys.platform == "win32":
        return
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise PermissionError(f"fused_rnn: {path} holds code that would be run, but it is a link: remove it")
    if found.st_uid != os.getuid():
        raise PermissionError(
            f"fused_rnn: {path} holds code that would be run, but it belongs to another user (id {found.st_uid}): "
            "let FUSED_RNN_CACHE name a folder of your own"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"fused_rnn: {path} holds code that would be run, but other users may write to it (mode "
            f"{stat.S_IMODE(found.st_mode):04o}): chmod go-w {path}"
        )


class Entry:
    """One compiled cell: a folder with its plug-in, its source and their digest."""

    def __init__(self, key: str):
        self.cache = user_folder.folder()
        self.path = self.cache / key

    @property
    def plug_in(self) -> Path:
        return self.path / PLUG_IN

    def is_whole(self) -> bool:
        """Whether it is there as it was written; raises if somebody else could have written it."""
        if not self.path.exists():
            return False
        refuse_others(self.cache)
        files = [self.path / name for name in (PLUG_IN, HEADER, _DIGEST)]
        if not all(file.is_file() for file in files):
            return False
        for place in (self.path, *files):
            refuse_others(place)
        return (self.path / _DIGEST).read_text() == _digest(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing this entry."""
        user_folder.make()
        refuse_others(self.cache)
        if fcntl is None:
            yield
            return
        lock = os.open(self.cache / f"{self.path.name}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def written(self) -> Iterator[Path]:
        """A new folder to write plug-in and source to, which becomes this entry, in place of one that is not whole."""
        new = Path(tempfile.mkdtemp(prefix=f"{self.path.name}.", dir=self.cache))  # mode 0700
        try:
            yield new
            for name in (PLUG_IN, HEADER):
                (new / name).chmod(0o600)
            (new / _DIGEST).write_text(_digest(new))
            (new / _DIGEST).chmod(0o600)
            shutil.rmtree(self.path, ignore_errors=True)
            os.replace(new, self.path)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _digest(path: Path) -> str:
    return hashlib.sha256((path / PLUG_IN).read_bytes() + (path / HEADER).read_bytes()).hexdigest()
