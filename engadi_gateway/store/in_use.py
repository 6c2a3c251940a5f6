"""One sqlite file in use: opened or begun, written by one thread, read by a few, closed.

All writes and checkpoints of a file go through one connection on one thread. That is a rule of safety: versions before
3.51.3 can corrupt a WAL when two connections write and checkpoint at once. So a second process is kept out, or, where
the file is shared, takes its turn (`store.locks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Literal, TypeVar

from engadi_gateway.store import database, files
from engadi_gateway.store.database import Connection, errors_of, pragma, transaction
from engadi_gateway.store.errors import CorruptError, HeldError, StoreError, UnavailableError, file_errors_of
from engadi_gateway.store.locks import Locks
from engadi_gateway.store.readers import Readers
from engadi_gateway.store.schema import Schema, back_up
from engadi_gateway.store.worker import Worker

T = TypeVar("T")
Work = Callable[[Connection], T]

_PAGE_BYTES = 4096
#: Rows that come by the thousand, and indexes written whole, are less work on fewer pages: 4096 costs 8 % more.
_LOG_PAGE_BYTES = 16_384
_CHECKPOINT_BYTES = 4 * 1024 * 1024
_CLOSING_S = 2.0  # others' locks hold up the end no longer, however much waits to be written
_OPENING_MS = 30_000  # others may be migrating or checking
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


class Database:
    """See the module.

    Args:
        path: the file; its folder must exist. A new one can be read by its owner only.
        schema: what its tables are to be; a file of an older version is brought up to date.
        synchronous: NORMAL may lose the last commits on a power cut, never more.
        is_expendable: a log: a broken file is moved aside and a new one begun, once in a run; one that cannot be had
            now is opened by a later write; its pages are large. One that is not is checked whole when it is opened (so
            it should be small), and left as it is.
        is_shared: other processes may have it open too, and all take turns to write.
    """

    def __init__(
        self,
        path: str,
        schema: Schema,
        *,
        synchronous: Literal["FULL", "NORMAL"],
        is_expendable: bool = False,
        is_shared: bool = False,
    ) -> None:
        path = self.path = files.at_home(path)
        self.moved_aside = ""  # where the broken file went
        self.missing = ""  # why it could not be opened yet
        self.times_removed = 0  # by somebody, while it was open; a new one was begun
        self._schema = schema
        self._synchronous = synchronous
        self._page_bytes = _LOG_PAGE_BYTES if is_expendable else _PAGE_BYTES
        self._is_expendable = is_expendable
        self.is_shared = is_shared
        self._locks = Locks(path, is_shared=is_shared)
        self._file: files.Identity | None = None  # which one is open
        self._wal: files.Identity | None = None  # and its companion, which is there as long as it is open
        self._broken: files.Identity | None = None  # which file it was
        self._connection: Connection | None = None  # the writer thread's, once that runs
        self._writer = Worker("engadi-writer", lambda: StoreError(f"{self.path}: closed"))
        self._readers = Readers(path, lambda: self._writer.is_closing)
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
        self._readers.start()
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
        with file_errors_of(self.path), errors_of(self.path):
            files.create(self.path)
            if not self._locks.enter():
                raise HeldError(f"{self.path}: another process has it open ([server] reuse_port = yes shares it)")
            connection = database.connect(self.path)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._file, self._wal = files.identity(self.path), files.wal_identity(self.path)
            return connection

    def _prepare(self, connection: Connection) -> None:
        if pragma(connection, "page_count") == 0:  # these only work before the first table
            pragma(connection, f"page_size={self._page_bytes}")
            pragma(connection, "auto_vacuum=INCREMENTAL")
        for text in (*_PRAGMAS, f"synchronous={self._synchronous}"):
            pragma(connection, text)
        pragma(connection, f"wal_autocheckpoint={_CHECKPOINT_BYTES // self._page_bytes}")
        version = self._schema.version_of(connection, self.path, is_all_read=not self._is_expendable)
        if pragma(connection, "journal_mode=WAL") != "wal":
            raise StoreError(f"{self.path}: no write-ahead log is possible here (a network file system?)")
        if 0 < version < self._schema.newest:
            self._enter_alone()
            back_up(connection, self.path, version)
        self._schema.bring_up_to_date(connection, version)
        pragma(connection, "schema_version")  # what was in another mode before, a backup say, has its WAL from here on
        self._locks.enter()

    def _enter_alone(self) -> None:
        """What others have open is not changed under them."""
        if not self._locks.is_alone():
            raise HeldError(f"{self.path}: of an older version that is still running; end all its processes first")

    def _move_aside(self) -> None:
        """Raises UnavailableError while other processes have it open: they would go on writing to it."""
        if not self._locks.is_alone():
            raise UnavailableError(f"{self.path}: damaged; moved aside when no other process has it open")
        with file_errors_of(self.path):
            self.moved_aside = files.move_aside(self.path)
        if self.is_shared:
            self._locks.leave()  # whoever comes first makes the new one, and shares it

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
        taken = self._writer.submit(lambda: self._take_turn(database.BUSY_MS, is_held=True))
        try:
            await asyncio.wrap_future(taken)
            yield
        finally:
            self._writer.submit(self._locks.end_turn)  # after what was taken, even if nobody waited for that any more

    def _take_turn(self, wait_ms: int, *, is_held: bool = False) -> None:
        with file_errors_of(self.path):
            if not self._locks.take_turn(wait_ms / 1000, is_held=is_held):
                raise UnavailableError(f"{self.path}: another process has been writing for {wait_ms} ms")

    @contextlib.contextmanager
    def _turn(self, wait_ms: int) -> Iterator[None]:
        self._take_turn(wait_ms)
        try:
            yield
        finally:
            self._locks.give_turn()

    def _finish(self) -> None:
        with contextlib.suppress(StoreError), self._turn(database.BUSY_MS):
            self._close_whole()
        if self._connection is not None:  # somebody is writing and has it open, so that this close changes nothing
            self._connection.close()
        self._locks.close()

    def _close_whole(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(StoreError), errors_of(self.path):
                pragma(self._connection, "optimize")
                pragma(self._connection, "wal_checkpoint(TRUNCATE)")
            self._connection.close()
            self._connection = None

    def _transact(self, work: Work[T]) -> T:
        busy_ms = database.BUSY_MS
        is_closing = self._writer.is_closing
        if is_closing:
            busy_ms = max(0, int((self._closing_until - time.monotonic()) * 1000))
        with self._turn(busy_ms):
            try:
                with errors_of(self.path):
                    connection = self._connected()
                    if is_closing:
                        pragma(connection, f"busy_timeout={busy_ms}")
                    with transaction(connection):
                        return work(connection)
            except CorruptError:
                self._begin_anew()
                raise

    def _connected(self) -> Connection:
        found = files.identity(self.path)
        if self._connection is not None and found != self._file:
            self._leave_what_is_gone(self._connection, is_removed=found is None)
        elif self._connection is not None and (wal := files.wal_identity(self.path)) != self._wal:
            self._save_what_wal_holds(self._connection, is_removed=wal is None)
        if self._connection is None:
            is_another = self._file is not None and found != self._file
            self._connection = self._usable()
            self._readers.leave()
            self.missing = ""
            self.times_removed += is_another
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
        if is_removed:
            with file_errors_of(self.path):
                files.remove_companions(self.path)

    def _save_what_wal_holds(self, connection: Connection, *, is_removed: bool) -> None:
        """The WAL has no name any more: what is written to it ends with the process, however often it was kept.

        Raises:
            UnavailableError: somebody reads just now; others have it open too, or there is another in its place.
        """
        if self.is_shared or not is_removed:
            raise UnavailableError(f"{self.path}-wal: removed or replaced while in use; this needs a restart")
        if pragma(connection, "wal_checkpoint(TRUNCATE)"):
            raise UnavailableError(f"{self.path}-wal: removed while in use, and somebody reads from it")
        connection.close()
        self._connection = None

    def _begin_anew(self) -> None:
        """The next write opens a new file; where the old one cannot be moved, every write says so."""
        if not self._is_expendable or self.moved_aside or self._connection is None:
            return
        self._connection.close()
        self._connection = self._file = None
        self._broken = files.identity(self.path)
        with contextlib.suppress(StoreError):
            self._move_aside()
        self._readers.leave()

    # reading

    async def read(self, work: Work[T]) -> T:
        """See `Readers.read`."""
        return await self._readers.read(work)

    def size_bytes(self) -> int:
        """The file with its WAL."""
        return files.size_bytes(self.path)

    def close(self) -> None:
        """Finish what was submitted, checkpoint, close; reads under way are cut short. Blocking."""
        self._closing_until = self._closing_until or time.monotonic() + _CLOSING_S
        if not self._writer.begin_closing():
            return
        self._readers.close()
        self._writer.join()  # last, because a reader that closes last leaves an empty WAL behind
