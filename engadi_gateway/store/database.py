"""The only door to sqlite3: one writer thread a file, a few readers, migrations.

All writes and checkpoints of a file go through one connection on one thread. That is a rule of safety: versions before
3.51.3 can corrupt a WAL when two connections write and checkpoint at once. So a second process is kept out, or, where
the file is shared, takes its turn (`store.locks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from engadi_gateway.store import files
from engadi_gateway.store.locks import Locks
from engadi_gateway.store.worker import Worker

T = TypeVar("T")
Connection = sqlite3.Connection
Work = Callable[[Connection], T]
#: A migration: SQL statements, or a function; each runs in a transaction of its own.
Migration = tuple[str, ...] | Callable[[Connection], None]

SQLITE_VERSION = sqlite3.sqlite_version
_READERS = 2
_READ_LIMIT_S = 5.0
_PROGRESS_STEPS = 10_000
_PAGE_BYTES = 4096
#: Rows that come by the thousand, and indexes written whole, are less work on fewer pages: 4096 costs 8 % more.
_LOG_PAGE_BYTES = 16_384
_CHECKPOINT_BYTES = 4 * 1024 * 1024
_BUSY_MS = 5000
_CLOSING_S = 2.0  # others' locks hold up the end no longer, however much waits to be written
_OPENING_MS = 30_000  # others may be migrating or checking
_DISK_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO))
_PRAGMAS = (
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "temp_store=MEMORY",
    "cache_size=-8000",
    "mmap_size=0",
    "journal_size_limit=67108864",
    "analysis_limit=400",
)


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


class Database:
    """One sqlite file.

    Args:
        path: the file; its folder must exist. A new one can be read by its owner only.
        migrations: in order; the file's `user_version` counts those that were applied.
        synchronous: NORMAL may lose the last commits on a power cut, never more.
        application_id: written into the file, and checked.
        is_expendable: a log: a broken file is moved aside and a new one begun, once in a run; one that cannot be had
            now is opened by a later write; its pages are large. One that is not is checked whole when it is opened (so
            it should be small), and left as it is.
        is_shared: other processes may have it open too, and all take turns to write.
    """

    def __init__(
        self,
        path: str,
        migrations: Sequence[Migration],
        *,
        synchronous: Literal["FULL", "NORMAL"],
        application_id: int,
        is_expendable: bool = False,
        is_shared: bool = False,
    ) -> None:
        path = self.path = files.at_home(path)
        self.moved_aside = ""  # where the broken file went
        self.missing = ""  # why it could not be opened yet
        self.times_removed = 0  # by somebody, while it was open; a new one was begun
        self._migrations = migrations
        self._synchronous = synchronous
        self._application_id = application_id
        self._page_bytes = _LOG_PAGE_BYTES if is_expendable else _PAGE_BYTES
        self._is_expendable = is_expendable
        self.is_shared = is_shared
        self._locks = Locks(path, is_shared=is_shared)
        self._file: tuple[int, int] | None = None  # which one is open
        self._broken: tuple[int, int] | None = None  # which file it was
        self._connection: Connection | None = None  # the writer thread's, once that runs
        self._writer = Worker("engadi-writer", lambda: StoreError(f"{self.path}: closed"))
        self._readers: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        self._era = 0  # a new one begins when the file is left
        self._pool: ThreadPoolExecutor | None = None
        self._closing_until = 0.0

    # opening

    def open(self) -> None:
        """Create or migrate the file and start the writer. Blocking.

        Raises:
            HeldError, CorruptError, StoreError: nothing is left open.
        """
        try:
            with self._turn(_OPENING_MS):
                self._connection = self._usable()
        except UnavailableError as error:
            if not self._is_expendable:
                self._locks.close()
                raise
            self.missing = str(error)
        except BaseException:
            self._locks.close()
            raise
        self._pool = ThreadPoolExecutor(_READERS, "engadi-reader")
        self._writer.start(self._finish)

    def give_up(self) -> None:
        """Whoever opens it in another thread need not go on waiting for others to end their turn."""
        self._locks.give_up()

    def _usable(self) -> Connection:
        """The file opened, or what takes its place."""
        if self._broken is None or self._broken != files.identity(self.path):
            try:
                return self._opened()
            except CorruptError:
                if not self._is_expendable or self.moved_aside:
                    raise
                self._broken = files.identity(self.path)
        self._move_aside()
        return self._opened()

    def _opened(self) -> Connection:
        try:
            files.create(self.path)
            if not self._locks.enter():
                raise HeldError(f"{self.path}: another process has it open ([server] reuse_port = yes shares it)")
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False
            )
        except OSError as error:
            raise _os_error(self.path, error) from None
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
        self._file = files.identity(self.path)
        return connection

    def _prepare(self, connection: Connection) -> None:
        if _pragma(connection, "page_count") == 0:  # these only work before the first table
            _pragma(connection, f"page_size={self._page_bytes}")
            _pragma(connection, "auto_vacuum=INCREMENTAL")
        for pragma in (*_PRAGMAS, f"synchronous={self._synchronous}"):
            _pragma(connection, pragma)
        _pragma(connection, f"wal_autocheckpoint={_CHECKPOINT_BYTES // self._page_bytes}")
        version = self._check(connection)
        if _pragma(connection, "journal_mode=WAL") != "wal":
            raise StoreError(f"{self.path}: no write-ahead log is possible here (a network file system?)")
        if 0 < version < len(self._migrations):
            self._enter_alone()
            self._back_up(connection, version)
        self._bring_up_to_date(connection, version)
        self._locks.enter()

    def _enter_alone(self) -> None:
        """What others have open is not changed under them."""
        if not self._locks.is_alone():
            raise HeldError(f"{self.path}: of an older version that is still running; end all its processes first")

    def _check(self, connection: Connection) -> int:
        """The file's schema version, if the file is whole, ours and not too new."""
        if not self._is_expendable and _pragma(connection, "quick_check(1)") != "ok":
            raise CorruptError(f"{self.path}: the file is damaged (PRAGMA quick_check says more)")
        has_tables = first_row(connection, "SELECT count(*) FROM sqlite_schema")[0] > 0
        if has_tables and _pragma(connection, "application_id") != self._application_id:
            raise StoreError(f"{self.path}: a database of another application")
        version, known = int(_pragma(connection, "user_version")), len(self._migrations)
        if version > known:
            raise StoreError(f"{self.path}: made by a newer version (schema {version}, this one knows {known})")
        return version

    def _bring_up_to_date(self, connection: Connection, version: int) -> None:
        for number, migration in enumerate(self._migrations[version:], version + 1):
            self._migrate(connection, number, migration)

    def _migrate(self, connection: Connection, number: int, migration: Migration) -> None:
        with _transaction(connection):
            if callable(migration):
                migration(connection)
            else:
                for statement in migration:
                    connection.execute(statement)
            _pragma(connection, f"user_version={number}")
            _pragma(connection, f"application_id={self._application_id}")

    def _back_up(self, connection: Connection, version: int) -> None:
        copy = Path(f"{self.path}.schema-{version}")
        copy.unlink(missing_ok=True)
        copy.touch(0o600)  # VACUUM INTO takes an empty file, and would make a readable one
        connection.execute("VACUUM INTO ?", (str(copy),))

    def _move_aside(self) -> None:
        """Raises UnavailableError while other processes have it open: they would go on writing to it."""
        if not self._locks.is_alone():
            raise UnavailableError(f"{self.path}: damaged; moved aside when no other process has it open")
        try:
            self.moved_aside = files.move_aside(self.path)
        except OSError as error:
            raise _os_error(self.path, error) from None
        if self.is_shared:
            self._locks.leave()  # whoever comes first makes the new one, and shares it

    def is_there(self) -> bool:
        """Whether there is a file yet. Raises StoreError: one that cannot be used."""
        try:
            self._locks.refuse_unusable()
            return files.is_there(self.path)
        except OSError as error:
            raise _os_error(self.path, error) from None

    def vet(self) -> None:
        """Look whether `open` would take the file as it lies there, a log that it moves aside too. Blocking.

        Raises:
            StoreError: it would not, or there is none.
        """
        try:
            with contextlib.closing(self._at_rest()) as connection:
                self._check(connection)
        except sqlite3.Error as error:
            failure = _store_error(self.path, error)
            if not (self._is_expendable and isinstance(failure, CorruptError | UnavailableError)):
                raise failure from None

    def peek(self, work: Work[T]) -> T:
        """Run `work` on the file as it lies there; for commands that only look. Blocking.

        One of an older version is brought up to date in memory, as opening it would in the file.

        Raises:
            StoreError: it cannot be read, or is not as this version would have it.
        """
        try:
            with (
                contextlib.closing(self._at_rest()) as connection,
                contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy,
            ):
                version = self._check(connection)
                if version == len(self._migrations):
                    return work(connection)
                connection.backup(copy)
                self._bring_up_to_date(copy, version)
                return work(copy)
        except sqlite3.Error as error:
            raise _store_error(self.path, error) from None

    def _at_rest(self) -> Connection:
        """Where nobody has it open, it can be read without making the companions of a WAL."""
        return _read_only(self.path, "" if Path(f"{self.path}-wal").exists() else "&immutable=1")

    # writing

    async def write(self, work: Work[T]) -> T:
        """Run `work` on the writer thread in one transaction; its result, or StoreError."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Work[T], done: Callable[[Future[T]], None] | None = None) -> Future[T]:
        """As `write`, for callers that do not wait. Never blocks; a closed database fails the future.

        `done` is called on the writer thread after the commit or failure, before the next work; if closed, at once.
        """
        return self._writer.submit(lambda: self._transact(work), done)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Until the end of the block nobody else writes, in any process; one block at a time.

        Raises:
            StoreError: another process did not end its turn in time.
        """
        taken = self._writer.submit(lambda: self._take_turn(_BUSY_MS, is_held=True))
        try:
            await asyncio.wrap_future(taken)
            yield
        finally:
            self._writer.submit(self._locks.end_turn)  # after what was taken, even if nobody waited for that any more

    def _take_turn(self, wait_ms: int, *, is_held: bool = False) -> None:
        try:
            if not self._locks.take_turn(wait_ms / 1000, is_held=is_held):
                raise UnavailableError(f"{self.path}: another process has been writing for {wait_ms} ms")
        except OSError as error:
            raise _os_error(self.path, error) from None

    @contextlib.contextmanager
    def _turn(self, wait_ms: int) -> Iterator[None]:
        self._take_turn(wait_ms)
        try:
            yield
        finally:
            self._locks.give_turn()

    def _finish(self) -> None:
        with contextlib.suppress(StoreError), self._turn(_BUSY_MS):
            self._close_whole()
        if self._connection is not None:  # somebody is writing and has it open, so that this close changes nothing
            self._connection.close()
        self._locks.close()

    def _close_whole(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                _pragma(self._connection, "optimize")
                _pragma(self._connection, "wal_checkpoint(TRUNCATE)")
            self._connection.close()
            self._connection = None

    def _transact(self, work: Work[T]) -> T:
        busy_ms = _BUSY_MS
        is_closing = self._writer.is_closing
        if is_closing:
            busy_ms = max(0, int((self._closing_until - time.monotonic()) * 1000))
        with self._turn(busy_ms):
            try:
                connection = self._connected()
                if is_closing:
                    _pragma(connection, f"busy_timeout={busy_ms}")
                with _transaction(connection):
                    return work(connection)
            except sqlite3.Error as error:
                failure = _store_error(self.path, error)
                if isinstance(failure, CorruptError):
                    self._begin_anew()
                raise failure from None

    def _connected(self) -> Connection:
        found = files.identity(self.path)
        if self._connection is not None and found != self._file:
            self._leave_what_is_gone(self._connection, is_removed=found is None)
        if self._connection is None:
            self._connection = self._usable()
            self._era += 1
            self.missing = ""
        return self._connection

    def _leave_what_is_gone(self, connection: Connection, *, is_removed: bool) -> None:
        """The file has no name any more: what is written to it ends with the process, and its room is not free before.

        Raises:
            UnavailableError: what is in its place, or would be, is not for this process to take or to make.
        """
        if not self._is_expendable or not (is_removed or self.is_shared):
            raise UnavailableError(f"{self.path}: removed or replaced while in use; this needs a restart")
        connection.close()
        self._connection = None
        try:
            if is_removed:
                files.remove_companions(self.path)
        except OSError as error:
            raise _os_error(self.path, error) from None
        self.times_removed += 1

    def _begin_anew(self) -> None:
        """The next write opens a new file; where the old one cannot be moved, every write says so."""
        if not self._is_expendable or self.moved_aside or self._connection is None:
            return
        self._connection.close()
        self._connection = None
        self._broken = files.identity(self.path)
        with contextlib.suppress(StoreError):
            self._move_aside()
        self._era += 1

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
                connection.set_progress_handler(
                    lambda: self._writer.is_closing or time.monotonic() > limit, _PROGRESS_STEPS
                )
                connection.execute("BEGIN")  # so that all its queries see the same
                result = work(connection)
                connection.execute("COMMIT")
                return result
        except sqlite3.Error as error:
            raise _store_error(self.path, error) from None

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Connection]:
        era, connection = self._idle_reader()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._readers.put((era, connection))

    def _idle_reader(self) -> tuple[int, Connection]:
        while True:
            try:
                era, connection = self._readers.get_nowait()
            except queue.Empty:
                return self._era, _read_only(self.path)
            if era == self._era:
                return era, connection
            connection.close()  # of a file that was left

    def size_bytes(self) -> int:
        """The file with its WAL."""
        return files.size_bytes(self.path)

    def close(self) -> None:
        """Finish what was submitted, checkpoint, close; reads under way are cut short. Blocking."""
        self._closing_until = self._closing_until or time.monotonic() + _CLOSING_S
        if not self._writer.begin_closing():
            return
        pool, self._pool = self._pool, None
        assert pool is not None
        pool.shutdown()
        while not self._readers.empty():
            self._readers.get()[1].close()
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
        _pragma(connection, "incremental_vacuum(1)")  # sqlite3 takes one step of it, and a step is a page
    return before - int(_pragma(connection, "freelist_count"))


def first_row(connection: Connection, query: str, values: Sequence[Any] = ()) -> Any:
    """The first row of what a query finds, as a tuple, or None.

    Ends the statement: one left half-way holds its transaction's view, and locks, until its cursor is collected, which
    only CPython does at once.
    """
    with contextlib.closing(connection.execute(query, values)) as cursor:
        return cursor.fetchone()


def _pragma(connection: Connection, text: str) -> Any:
    """What it says; None where it says nothing."""
    row = first_row(connection, f"PRAGMA {text}")
    return row and row[0]


def _read_only(path: str, more: str = "") -> Connection:
    uri = f"{Path(path).absolute().as_uri()}?mode=ro{more}"
    connection = sqlite3.connect(uri, timeout=_BUSY_MS / 1000, uri=True, isolation_level=None, check_same_thread=False)
    try:
        _pragma(connection, "query_only=ON")
        _pragma(connection, "trusted_schema=OFF")
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


def _os_error(path: str, error: OSError) -> StoreError:
    """Of that database, or of the file beside it that the error names."""
    kind = UnavailableError if error.errno in _DISK_ERRNOS else StoreError
    return kind(f"{error.filename or path}: {error.strerror}")


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


def _store_error(path: str, error: sqlite3.Error) -> StoreError:
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    code = extended & 0xFF
    text = "took too long" if code == sqlite3.SQLITE_INTERRUPT else str(error)
    if code == sqlite3.SQLITE_IOERR:
        text = f"{text} ({getattr(error, 'sqlite_errorname', extended)}; is the disk full?)"
    return _KINDS.get(code, StoreError)(f"{path}: {text}")
