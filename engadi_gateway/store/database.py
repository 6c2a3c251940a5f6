"""The only door to sqlite3: one writer thread a file, a few readers, migrations.

All writes and checkpoints of a file go through one connection on one thread. That is a rule of safety: versions before
3.51.3 can corrupt a WAL when two connections write and checkpoint at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Connection = sqlite3.Connection
Work = Callable[[Connection], T]
#: A migration: SQL statements, or a function; each runs in a transaction of its own.
Migration = tuple[str, ...] | Callable[[Connection], None]

_READERS = 2
_READ_LIMIT_S = 5.0
_PROGRESS_STEPS = 10_000
_BUSY_MS = 5000
_BUSY_CLOSING_MS = 500
_DISK_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO))
_PRAGMAS = (
    "PRAGMA foreign_keys=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-8000",
    "PRAGMA mmap_size=0",
    "PRAGMA journal_size_limit=67108864",
    "PRAGMA analysis_limit=400",
)


class StoreError(Exception):
    """Raised when a database cannot be used or a statement fails; the message is safe to log."""


class CorruptError(StoreError):
    """Raised when a file is no database, or a broken one."""


class UnavailableError(StoreError):
    """Raised when a disk is full or fails, or others hold a lock: the same may go well later."""


class Database:
    """One sqlite file.

    Args:
        path: the file; its folder must exist. A new one can be read by its owner only.
        migrations: in order; the file's `user_version` counts those that were applied.
        synchronous: NORMAL may lose the last commits on a power cut, never more.
        application_id: written into the file, and checked.
        is_expendable: a broken file is moved aside and a new one begun, once in a run; one that cannot be had now is
            opened by a later write. One that is not is checked whole when it is opened (so it should be small), and
            left as it is.
    """

    def __init__(
        self,
        path: str,
        migrations: Sequence[Migration],
        *,
        synchronous: Literal["FULL", "NORMAL"],
        application_id: int,
        is_expendable: bool = False,
    ) -> None:
        self.path = path
        self.moved_aside = ""  # where the broken file went
        self.missing = ""  # why it could not be opened yet
        self._migrations = migrations
        self._synchronous = synchronous
        self._application_id = application_id
        self._is_expendable = is_expendable
        self._connection: Connection | None = None  # the writer thread's, once that runs
        self._writer: threading.Thread | None = None
        self._queue: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._readers: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        self._gate = threading.Lock()  # between the last submit and close
        self._is_closing = False

    # opening

    def open(self) -> None:
        """Create or migrate the file and start the writer. Blocking.

        Raises:
            CorruptError, StoreError: nothing is left open.
        """
        try:
            self._connection = self._opened()
        except CorruptError:
            if not self._is_expendable:
                raise
            self._move_aside()
            self._connection = self._opened()
        except UnavailableError as error:
            if not self._is_expendable:
                raise
            self.missing = str(error)
        self._pool = ThreadPoolExecutor(_READERS, "engadi-reader")
        self._writer = threading.Thread(target=self._write_forever, name="engadi-writer", daemon=True)
        self._writer.start()

    def _opened(self) -> Connection:
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self.path, _BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        except OSError as error:
            kind = UnavailableError if error.errno in _DISK_ERRNOS else StoreError
            raise kind(f"{self.path}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise _store_error(self.path, error) from None
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            raise _store_error(self.path, error) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        if _pragma(connection, "page_count") == 0:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only works before the first table
        for pragma in (*_PRAGMAS, f"PRAGMA synchronous={self._synchronous}"):
            connection.execute(pragma)
        version = self._check(connection)
        if _pragma(connection, "journal_mode=WAL") != "wal":
            raise StoreError(f"{self.path}: no write-ahead log is possible here (a network file system?)")
        if 0 < version < len(self._migrations):
            self._back_up(connection, version)
        for number, migration in enumerate(self._migrations[version:], version + 1):
            self._migrate(connection, number, migration)

    def _check(self, connection: Connection) -> int:
        """The file's schema version, if the file is whole, ours and not too new."""
        if not self._is_expendable and _pragma(connection, "quick_check(1)") != "ok":
            raise CorruptError(f"{self.path}: the file is damaged (PRAGMA quick_check says more)")
        has_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
        if has_tables and _pragma(connection, "application_id") != self._application_id:
            raise StoreError(f"{self.path}: a database of another application")
        version, known = int(_pragma(connection, "user_version")), len(self._migrations)
        if version > known:
            raise StoreError(f"{self.path}: made by a newer version (schema {version}, this one knows {known})")
        return version

    def _migrate(self, connection: Connection, number: int, migration: Migration) -> None:
        with _transaction(connection):
            if callable(migration):
                migration(connection)
            else:
                for statement in migration:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute(f"PRAGMA application_id={self._application_id}")

    def _back_up(self, connection: Connection, version: int) -> None:
        copy = Path(f"{self.path}.schema-{version}")
        copy.unlink(missing_ok=True)
        copy.touch(0o600)  # VACUUM INTO takes an empty file, and would make a readable one
        connection.execute("VACUUM INTO ?", (str(copy),))

    def _move_aside(self) -> None:
        stem = aside = f"{self.path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        number = 1
        while Path(aside).exists():
            number += 1
            aside = f"{stem}-{number}"
        for suffix in ("", "-wal", "-shm"):
            source = Path(f"{self.path}{suffix}")
            if source.exists():
                source.rename(f"{aside}{suffix}")
        self.moved_aside = aside

    def peek(self, work: Work[T]) -> T:
        """Run `work` on the file as it lies there; for commands that only look. Blocking.

        Raises:
            StoreError: it cannot be read, or is not as this version would have it.
        """
        try:
            # nobody has it open: then it can be read without making the companions of a WAL
            is_at_rest = not Path(f"{self.path}-wal").exists()
            with contextlib.closing(_read_only(self.path, "&immutable=1" if is_at_rest else "")) as connection:
                if self._check(connection) < len(self._migrations):
                    raise StoreError(f"{self.path}: made by an older version; serving once brings it up to date")
                return work(connection)
        except sqlite3.Error as error:
            raise _store_error(self.path, error) from None

    # writing

    async def write(self, work: Work[T]) -> T:
        """Run `work` on the writer thread in one transaction; its result, or StoreError."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Work[T]) -> Future[T]:
        """As `write`, for callers that do not wait. Never blocks; a closed database fails the future."""
        future: Future[T] = Future()
        with self._gate:
            # what the writer itself adds while it finishes is still done
            if self._writer is None or (self._is_closing and threading.current_thread() is not self._writer):
                future.set_exception(StoreError(f"{self.path}: closed"))
            else:
                self._queue.put((work, future))
        return future

    def _write_forever(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._run(*entry)
        while not self._queue.empty():
            entry = self._queue.get()
            assert entry is not None
            self._run(*entry)
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA optimize")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()

    def _run(self, work: Work[T], future: Future[T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            connection = self._connected()
            if self._is_closing:  # others' locks must not hold up the end
                connection.execute(f"PRAGMA busy_timeout={_BUSY_CLOSING_MS}")
            with _transaction(connection):
                result = work(connection)
        except sqlite3.Error as error:
            failure = _store_error(self.path, error)
            if isinstance(failure, CorruptError):
                self._begin_anew()
            future.set_exception(failure)
        except BaseException as error:  # the waiter gets it; this thread must live
            future.set_exception(error)
        else:
            future.set_result(result)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._opened()
            self.missing = ""
        return self._connection

    def _begin_anew(self) -> None:
        """The next write opens a new file; where the old one cannot be moved, every write says so."""
        if not self._is_expendable or self.moved_aside or self._connection is None:
            return
        self._connection.close()
        self._connection = None
        with contextlib.suppress(OSError):
            self._move_aside()

    # reading

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a read-only connection in a thread, in one transaction, at most some seconds.

        Raises:
            StoreError: it failed, took too long, or the database is closed.
        """
        try:
            if self._pool is None:
                raise RuntimeError
            future = self._pool.submit(self._read, work)
        except RuntimeError:  # the pool's word for having been shut
            raise StoreError(f"{self.path}: closed") from None
        return await asyncio.wrap_future(future)

    def _read(self, work: Work[T]) -> T:
        try:
            with self._reader() as connection:
                limit = time.monotonic() + _READ_LIMIT_S
                connection.set_progress_handler(lambda: self._is_closing or time.monotonic() > limit, _PROGRESS_STEPS)
                connection.execute("BEGIN")  # so that all its queries see the same
                result = work(connection)
                connection.execute("COMMIT")
                return result
        except sqlite3.Error as error:
            raise _store_error(self.path, error) from None

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Connection]:
        era = self.moved_aside
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = _read_only(self.path)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if era == self.moved_aside:
            self._readers.put(connection)
        else:
            connection.close()

    def size_bytes(self) -> int:
        """The file with its WAL."""
        return sum(_size(f"{self.path}{suffix}") for suffix in ("", "-wal"))

    def close(self) -> None:
        """Finish what was submitted, checkpoint, close; reads under way are cut short. Blocking."""
        with self._gate:
            if self._writer is None or self._is_closing:
                return
            self._is_closing = True
        pool, self._pool = self._pool, None
        assert pool is not None
        pool.shutdown()
        while not self._readers.empty():
            self._readers.get().close()
        self._queue.put(None)
        self._writer.join()  # last, because a reader that closes last leaves an empty WAL behind


def file_bytes(connection: Connection) -> int:
    """The file without its WAL."""
    return int(_pragma(connection, "page_count") * _pragma(connection, "page_size"))


def free_share(connection: Connection) -> float:
    """How much of the file is free pages, which are reused before it grows."""
    return float(_pragma(connection, "freelist_count") / _pragma(connection, "page_count"))


def used_bytes(connection: Connection) -> int:
    """What the file's content takes."""
    return round(file_bytes(connection) * (1 - free_share(connection)))


def shrink(connection: Connection, pages: int) -> int:
    """Give up to `pages` free pages back to the file system; how many."""
    before = int(_pragma(connection, "freelist_count"))
    for _ in range(min(pages, before)):
        connection.execute("PRAGMA incremental_vacuum(1)")  # sqlite3 takes one step of it, and a step is a page
    return before - int(_pragma(connection, "freelist_count"))


def _pragma(connection: Connection, text: str) -> Any:
    return connection.execute(f"PRAGMA {text}").fetchone()[0]


def _read_only(path: str, more: str = "") -> Connection:
    uri = f"{Path(path).absolute().as_uri()}?mode=ro{more}"
    connection = sqlite3.connect(uri, _BUSY_MS / 1000, uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
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
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_CORRUPT") or name == "SQLITE_NOTADB":
        return CorruptError(f"{path}: {error}")
    if name.startswith("SQLITE_IOERR"):
        return UnavailableError(f"{path}: {error} ({name}; is the disk full?)")
    if name.startswith(("SQLITE_FULL", "SQLITE_BUSY")):
        return UnavailableError(f"{path}: {error}")
    return StoreError(f"{path}: {'took too long' if name == 'SQLITE_INTERRUPT' else error}")
