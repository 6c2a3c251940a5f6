"""The only door to sqlite3: connections, transactions, pragmas, and its errors in words of ours."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engadi_gateway.store.errors import CorruptError, StoreError, UnavailableError, UnfitError

Connection = sqlite3.Connection

SQLITE_VERSION = sqlite3.sqlite_version
BUSY_MS = 5000
_PROGRESS_STEPS = 10_000
#: By the primary code; what extends it stands in the bits above.
_KINDS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_CORRUPT: CorruptError,
    sqlite3.SQLITE_NOTADB: CorruptError,
    sqlite3.SQLITE_IOERR: UnavailableError,
    sqlite3.SQLITE_FULL: UnavailableError,
    sqlite3.SQLITE_BUSY: UnavailableError,
    sqlite3.SQLITE_CONSTRAINT: UnfitError,
    sqlite3.SQLITE_MISMATCH: UnfitError,
    sqlite3.SQLITE_TOOBIG: UnfitError,
    sqlite3.SQLITE_OK: UnfitError,  # the module itself refused: a value of a type that it does not know, say
}


# connections; whoever has one may use it in any thread, one at a time


def connect(path: str) -> Connection:
    """To write; transactions are begun by hand. Raises sqlite3.Error: see `errors_of`."""
    return sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)


def connect_to_read(path: str, *, is_at_rest: bool = False) -> Connection:
    """To look only. `is_at_rest`: nobody has it open, and no companions of a WAL are made. Raises sqlite3.Error."""
    uri = f"{Path(path).absolute().as_uri()}?mode=ro{'&immutable=1' if is_at_rest else ''}"
    connection = sqlite3.connect(uri, timeout=BUSY_MS / 1000, uri=True, isolation_level=None, check_same_thread=False)
    try:
        pragma(connection, "query_only=ON")
        pragma(connection, "trusted_schema=OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_memory() -> Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


# statements


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Of the block's writes all are kept, or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def first_row(connection: Connection, query: str, values: Sequence[Any] = ()) -> Any:
    """The first row of what a query finds, as a tuple, or None.

    Ends the statement: one left half-way holds its transaction's view, and locks, until its cursor is collected, which
    only CPython does at once.
    """
    with contextlib.closing(connection.execute(query, values)) as cursor:
        return cursor.fetchone()


def pragma(connection: Connection, text: str) -> Any:
    """What it says; None where it says nothing."""
    row = first_row(connection, f"PRAGMA {text}")
    return row and row[0]


def end_when(connection: Connection, is_over: Callable[[], bool]) -> None:
    """From now on ask that every some steps of a statement; one that is over fails with "took too long"."""
    connection.set_progress_handler(is_over, _PROGRESS_STEPS)


# errors


@contextlib.contextmanager
def errors_of(path: str) -> Iterator[None]:
    """What sqlite3 raises in the block is a StoreError of that database."""
    try:
        yield
    except sqlite3.Error as error:
        raise _store_error(path, error) from None


def _store_error(path: str, error: sqlite3.Error) -> StoreError:
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    code = extended & 0xFF
    text = "took too long" if code == sqlite3.SQLITE_INTERRUPT else str(error)
    if code == sqlite3.SQLITE_IOERR:
        text = f"{text} ({getattr(error, 'sqlite_errorname', extended)}; is the disk full?)"
    return _KINDS.get(code, StoreError)(f"{path}: {text}")
