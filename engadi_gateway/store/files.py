"""A database's files as the file system has them: made, told apart, moved aside, measured. Raises OSError."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

#: Which file it is, by whatever name: device and inode.
Identity = tuple[int, int]


def at_home(path: str) -> str:
    """The name of the file itself, where `path` is a link to it: sqlite has its companions there, and so have we."""
    try:
        return os.path.realpath(path) if Path(path).is_symlink() else path
    except OSError:  # a name that there cannot be: whoever opens it says so
        return path


def create(path: str) -> None:
    """A new file is its owner's alone. One that is there is not opened: to close it would lose this process's locks."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        is_there(path)


def is_there(path: str) -> bool:
    """Whether there is one to open; what is there and cannot be read and written is an OSError."""
    try:
        Path(path).lstat()  # a link that leads nowhere is there
    except (FileNotFoundError, NotADirectoryError):
        return False
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return True


def identity(path: str) -> Identity | None:
    """None: there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - at each transaction; a Path costs three times as much as what it asks
    except OSError:
        return None
    return status.st_dev, status.st_ino


def wal_identity(path: str) -> Identity | None:
    """The same of its WAL."""
    return identity(f"{path}-wal")


def move_aside(path: str) -> str:
    """Rename it and its companions; to what."""
    stem = aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    number = 1
    while Path(aside).exists():
        number += 1
        aside = f"{stem}-{number}"
    for suffix in ("", "-wal", "-shm"):
        source = Path(f"{path}{suffix}")
        if source.exists():
            source.rename(f"{aside}{suffix}")
    return aside


def remove_companions(path: str) -> None:
    """Those of a file that was removed: sqlite would hold them for the next one's."""
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def size_bytes(path: str) -> int:
    """With its WAL."""
    total = 0
    for suffix in ("", "-wal"):
        try:
            total += Path(f"{path}{suffix}").stat().st_size
        except OSError:
            continue
    return total
