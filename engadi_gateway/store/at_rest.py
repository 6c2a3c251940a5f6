"""A database's file as it lies there, for commands that only look: it is not written, and nobody is kept from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engadi_gateway.store import files
from engadi_gateway.store.database import Connection, connect_to_memory, connect_to_read, errors_of
from engadi_gateway.store.errors import CorruptError, UnavailableError, file_errors_of
from engadi_gateway.store.locks import refuse_unusable
from engadi_gateway.store.schema import Schema

T = TypeVar("T")


def is_there(path: str) -> bool:
    """Whether there is a file yet. Raises StoreError: one that cannot be used."""
    path = files.at_home(path)
    with file_errors_of(path):
        refuse_unusable(path)
        return files.is_there(path)


def vet(path: str, schema: Schema) -> None:
    """Look whether a log would be taken as it lies there, or moved aside, or waited for. Blocking.

    Raises:
        StoreError: it would not, or there is none.
    """
    path = files.at_home(path)
    with (
        contextlib.suppress(CorruptError, UnavailableError),
        errors_of(path),
        contextlib.closing(_connect(path)) as connection,
    ):
        schema.version_of(connection, path, is_all_read=False)


def peek(path: str, schema: Schema, work: Callable[[Connection], T]) -> T:
    """Run `work` on a file that is no log. Blocking.

    One of an older version is brought up to date in memory, as opening it would in the file.

    Raises:
        StoreError: it cannot be read, or is not as this version would have it.
    """
    path = files.at_home(path)
    with (
        errors_of(path),
        contextlib.closing(_connect(path)) as connection,
        contextlib.closing(connect_to_memory()) as copy,
    ):
        version = schema.version_of(connection, path, is_all_read=True)
        if version == schema.newest:
            return work(connection)
        connection.backup(copy)
        schema.bring_up_to_date(copy, version)
        return work(copy)


def _connect(path: str) -> Connection:
    """Where nobody has it open, it can be read without making the companions of a WAL."""
    return connect_to_read(path, is_at_rest=not Path(f"{path}-wal").exists())
