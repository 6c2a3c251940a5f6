"""What can go wrong with a database; messages are safe to log."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

_DISK_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO))


class StoreError(Exception):
    """Raised when a database cannot be used or a statement fails; the message is safe to log."""


class CorruptError(StoreError):
    """Raised when a file is no database, or a broken one."""


class UnavailableError(StoreError):
    """Raised when a disk is full or fails, or others hold a lock: the same may go well later."""


class UnfitError(StoreError):
    """Raised when what was to be written is at fault: trying again does not help."""


class HeldError(StoreError):
    """Raised when other processes have a file open that must not be shared, or not now."""


@contextlib.contextmanager
def file_errors_of(path: str) -> Iterator[None]:
    """An OSError of the block is a StoreError of that database, or of the file beside it that the error names."""
    try:
        yield
    except OSError as error:
        kind = UnavailableError if error.errno in _DISK_ERRNOS else StoreError
        raise kind(f"{error.filename or path}: {error.strerror}") from None
