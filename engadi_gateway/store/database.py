"""The only door to sqlite3: one writer thread a file, a few readers, migrations.

All writes and checkpoints of a file go through one connection on one thread. That is a rule of safety: versions before
3.51.3 can corrupt a WAL when two connections write and checkpoint at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Connection = sqlite3.Connection
Work = Callable[[Connection], T]
#: A migration: SQL statements, or a function; each runs in a transaction of its own.
Migration = tuple[str, ...] | Callable[[Connection], None]

_READERS = 2
_READ_LIMIT_S = 5.0
_PROGRESS_STEPS = 10_000
_PRAGMAS = (
    "PRAGMA busy_timeout=5000",
    "PRAGMA foreign_keys=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-8000",
    "PRAGMA mmap_size=0",
)


class StoreError(Exception):
    """Raised when a database cannot be used or a statement fails; the message is safe to log."""


class CorruptError(StoreError):
    """Raised at opening when a file is no database, or a broken one."""


class Database:
    """One sqlite file.

    Args:
        path: the file; its folder must exist.
        migrations: in order; the file's `user_version` counts those that were applied.
        synchronous: FULL or NORMAL; NORMAL may lose the last commits on a power cut, never more.
        application_id: written into the file, and checked.
    """

    def __init__(self, path: str, migrations: Sequence[Migration], *, synchronous: str, application_id: int) -> None:
        self.path = path
        self._migrations = migrations
        self._synchronous = synchronous
        self._application_id = application_id
        self._queue: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._slots = asyncio.Semaphore(_READERS)
        self.is_open = False

    def open(self) -> None:
        """Create or migrate the file and start the writer. Blocking.

        Raises:
            CorruptError, StoreError: nothing is left open.
        """
        connection = self._connect()
        try:
            self._prepare(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise _store_error(self.path, error) from None
        except BaseException:
            connection.close()
            raise
        self._writer = threading.Thread(
            target=self._write_forever, args=(connection,), name="engadi-writer", daemon=True
        )
        self._writer.start()
        self.is_open = True

    def _connect(self) -> Connection:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            os.close(descriptor)
            return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from None

    def _prepare(self, connection: Connection) -> None:
        if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only works before the first table
        for pragma in _PRAGMAS:
            connection.execute(pragma)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute("PRAGMA journal_size_limit=67108864")
        self._check_owner(connection)
        self._migrate(connection)

    def _check_owner(self, connection: Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        if version > len(self._migrations):
            raise StoreError(
                f"{self.path}: made by a newer version (schema {version}, this knows {len(self._migrations)})"
            )
        has_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
        if has_tables and owner != self._application_id:
            raise StoreError(f"{self.path}: a database of another application")

    def _migrate(self, connection: Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        pending = self._migrations[version:]
        if pending and version > 0:
            self._back_up(connection, version)
        for number, migration in enumerate(pending, version + 1):
            with _transaction(connection):
                if callable(migration):
                    migration(connection)
                else:
                    for statement in migration:
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number}")
                connection.execute(f"PRAGMA application_id={self._application_id}")

    def _back_up(self, connection: Connection, version: int) -> None:
        copy = f"{self.path}.before-schema-{version + 1}"
        Path(copy).unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (copy,))
        Path(copy).chmod(0o600)

    # writing

    async def write(self, work: Work[T]) -> T:
        """Run `work` on the writer thread in one transaction; its result, or StoreError."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Work[T]) -> Future[T]:
        """As `write`, for callers that do not wait."""
        future: Future[T] = Future()
        self._queue.put((work, future))
        return future

    def _write_forever(self, connection: Connection) -> None:
        while (entry := self._queue.get()) is not None:
            work, future = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with _transaction(connection):
                    result = work(connection)
            except sqlite3.Error as error:
                future.set_exception(_store_error(self.path, error))
            except BaseException as error:  # the waiter gets it; this thread must live
                future.set_exception(error)
            else:
                future.set_result(result)
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA optimize")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    # reading

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a read-only connection in a thread, at most some seconds.

        Raises:
            StoreError: it failed or took too long.
        """
        async with self._slots:
            return await asyncio.to_thread(self._read, work)

    def _read(self, work: Work[T]) -> T:
        try:
            connection = self._reader()
            limit = time.monotonic() + _READ_LIMIT_S
            connection.set_progress_handler(lambda: time.monotonic() > limit, _PROGRESS_STEPS)
            try:
                return work(connection)
            finally:
                self._readers.put(connection)
        except sqlite3.Error as error:
            raise _store_error(self.path, error) from None

    def _reader(self) -> Connection:
        try:
            return self._readers.get_nowait()
        except queue.Empty:
            return read_only(self.path)

    def size_bytes(self) -> int:
        """The file with its WAL."""
        return sum(_size(f"{self.path}{suffix}") for suffix in ("", "-wal"))

    def close(self) -> None:
        """Finish what is queued, checkpoint, close. Blocking."""
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        self.is_open = False
        with contextlib.suppress(queue.Empty):
            while True:
                self._readers.get_nowait().close()


def read_only(path: str) -> Connection:
    """A read-only connection to an existing file."""
    uri = f"file:{Path(path).absolute().as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA busy_timeout=5000")
    return connection


@contextlib.contextmanager
def _transaction(connection: Connection) -> Any:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _store_error(path: str, error: sqlite3.Error) -> StoreError:
    code = getattr(error, "sqlite_errorname", "")
    if code in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
        return CorruptError(f"{path}: {error}")
    return StoreError(f"{path}: {error}")


def move_aside(path: str, stamp: str) -> str:
    """Rename a broken file and its companions out of the way; the new name."""
    aside = f"{path}.corrupt-{stamp}"
    for suffix in ("", "-wal", "-shm"):
        source = Path(f"{path}{suffix}")
        if source.exists():
            source.rename(f"{aside}{suffix}")
    return aside
