"""Questions to a database: a few read-only connections, each used by one thread at a time."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engadi_gateway.store.database import Connection, connect_to_read, end_when, errors_of
from engadi_gateway.store.errors import StoreError

T = TypeVar("T")
_READERS = 2
_READ_LIMIT_S = 5.0


class Readers:
    """See the module.

    Args:
        is_closing: whether questions under way are to be cut short.
    """

    def __init__(self, path: str, is_closing: Callable[[], bool]) -> None:
        self._path = path
        self._is_closing = is_closing
        self._idle: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        self._era = 0
        self._pool: ThreadPoolExecutor | None = None

    def start(self) -> None:
        self._pool = ThreadPoolExecutor(_READERS, "engadi-reader")

    def leave(self) -> None:
        """Another file has that name: from the next question on it is asked, and nothing is left open of the other.

        From any thread.
        """
        self._era += 1
        self._close_idle()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection in a thread, in one transaction, at most some seconds.

        Raises:
            StoreError: it failed, took too long, or has not started, or is closed.
        """
        try:
            if self._pool is None:
                raise RuntimeError
            future = self._pool.submit(self._read, work)
        except RuntimeError:  # the pool's word for having been shut
            raise StoreError(f"{self._path}: closed") from None
        return await asyncio.wrap_future(future)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with errors_of(self._path), self._reader() as connection:
            limit = time.monotonic() + _READ_LIMIT_S
            end_when(connection, lambda: self._is_closing() or time.monotonic() > limit)
            connection.execute("BEGIN")  # so that all its queries see the same
            result = work(connection)
            connection.execute("COMMIT")
            return result

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Connection]:
        era, connection = self._idle_reader()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.put((era, connection))
        if era != self._era:  # left meanwhile
            self._close_idle()

    def _idle_reader(self) -> tuple[int, Connection]:
        while True:
            try:
                era, connection = self._idle.get_nowait()
            except queue.Empty:
                return self._era, connect_to_read(self._path)
            if era == self._era:
                return era, connection
            connection.close()  # of a file that was left

    def close(self) -> None:
        """Wait for questions under way, which `is_closing` cuts short. Blocking."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        self._close_idle()

    def _close_idle(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait()[1].close()
