"""Rows on their way into the log: batches, the queue's bound, and what becomes of those that cannot be written.

A batch is handed over and forgotten: what cannot be queued is shed and counted, what cannot be written (a full disk, a
lock) is tried once more, then counted and dropped; or, for who stalls requests instead, kept until it can be written. A
row that no database would take is lost alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum, auto
from typing import Any, NamedTuple

from engadi_gateway.model import LogRow
from engadi_gateway.store.database import Connection
from engadi_gateway.store.errors import StoreError, UnfitError
from engadi_gateway.store.in_use import Database

_RETRY_S = 1.0
#: Batches that are halved with nothing written in between: after that it is not one row's fault.
_MOST_HALVED = 64


class Written(NamedTuple):
    """What became of a batch: the id of its first row, how long it took, whether its table was closed after it."""

    first_id: int
    took_ms: float
    is_closed: bool


class _Keeping(Enum):
    """What becomes of batches that are kept until they are written."""

    FLOWING = auto()  # there is a try on its way for each
    CATCHING_UP = auto()  # each that is written asks for the next
    WAITING = auto()  # the oldest could not be written


class Intake:
    """See the module. `put`, `sweep` and `is_full` are for the loop's thread; all else happens on the writer's.

    Args:
        queue_rows: rows that may wait for the writer; can be set anew.
        insert: writes a batch, in a transaction of the writer's thread.
        note_written: told of a batch once it is committed.
        note_failed: told after a transaction that failed: what it added is gone, perhaps the whole file is.

    Attributes:
        taken, shed, written, failed: rows so far.
        last_error: "" while all is well.
    """

    def __init__(
        self,
        database: Database,
        queue_rows: int,
        insert: Callable[[Connection, list[LogRow]], Written],
        note_written: Callable[[list[LogRow], Written], None],
        note_failed: Callable[[], None],
    ) -> None:
        self._database = database
        self.queue_rows = queue_rows
        self._insert = insert
        self._note_written = note_written
        self._note_failed = note_failed
        self._kept: deque[list[LogRow]] = deque()  # the loop's thread adds, the writer's takes
        self._keeping = _Keeping.FLOWING
        self._halved = 0
        self._retry: Future[Any] | None = None
        self._retry_at = 0.0
        # each counter is written by one thread alone: these two by the loop's, the others by the writer's
        self.taken = self.shed = 0
        self.written = self.failed = self._failed_before = 0
        self.last_error = self._said = ""
        self._is_ending = False
        self._log = logging.getLogger("engadi")

    @property
    def waiting(self) -> int:
        """Rows that were taken and are neither written nor lost."""
        return self.taken - self.written - self.failed

    def is_full(self, more: int) -> bool:
        """Whether there is no room beside so many rows that will come."""
        return self.waiting + more >= self.queue_rows

    def put(self, rows: list[LogRow], *, sheds: bool) -> int:
        """Hand over a batch; never blocks, never raises. Returns how many rows were shed: what found no room.

        sheds: False for who stalls requests instead; those under way may then be more than there is room for. What
            cannot be written is then kept, in its order, until it can be (see `sweep`) or until `end`.
        """
        room = max(0, self.queue_rows - self.waiting) if sheds else len(rows)
        kept, shed = rows[:room], max(0, len(rows) - room)
        self.shed += shed
        if kept:
            self.taken += len(kept)
            if sheds or self._is_ending:
                self._submit(kept, is_second=False)
            else:
                self._keep(kept)
        return shed

    # those that are not kept

    def _submit(self, rows: list[LogRow], *, is_second: bool) -> None:
        self._database.submit(
            lambda connection: self._insert(connection, rows),
            lambda future: self._inserted(future, rows, is_second=is_second),
        )

    def _inserted(self, future: Future[Written], rows: list[LogRow], *, is_second: bool) -> None:
        error = future.exception()
        if error is None:
            self._goes_well(rows, future.result())
        elif _is_of_rows(error):
            for part in self._without_lost(rows, error):
                self._submit(part, is_second=False)
        elif is_second:
            self._lost(rows, error)
        else:
            self._note_failed()
            self._submit(rows, is_second=True)

    # those that are

    def _keep(self, rows: list[LogRow]) -> None:
        self._kept.append(rows)
        if self._keeping is _Keeping.FLOWING:
            self._write_oldest()

    def sweep(self, now: float) -> None:
        """Try again to write what is kept, at most once a second."""
        is_trying = self._retry is not None and not self._retry.done()
        if self._keeping is _Keeping.WAITING and now >= self._retry_at and not is_trying:
            self._retry_at = now + _RETRY_S
            self._retry = self._write_oldest()

    def _write_oldest(self) -> Future[Any]:
        return self._database.submit(self._insert_oldest, self._oldest_inserted)

    def _insert_oldest(self, connection: Connection) -> Written | None:
        """None: others have written all."""
        return self._insert(connection, self._kept[0]) if self._kept else None

    def _oldest_inserted(self, future: Future[Written | None]) -> None:
        error = future.exception()
        if error is None:
            if (written := future.result()) is not None:
                self._goes_well(self._kept.popleft(), written)
        elif not _is_of_rows(error):
            self._keeping = _Keeping.WAITING
            self._fails(error, "rows wait, and requests once the queue is full,")
            return
        else:
            parts = self._without_lost(self._kept.popleft(), error)
            self._kept.extendleft(reversed(parts))
            for _ in parts if self._keeping is _Keeping.FLOWING else ():
                self._write_oldest()
        if self._keeping is not _Keeping.FLOWING:
            self._catch_up()

    def _catch_up(self) -> None:
        self._keeping = _Keeping.CATCHING_UP if self._kept else _Keeping.FLOWING
        if self._kept:  # also what came just now, when nothing flowed yet
            self._write_oldest()

    # how it goes

    def _goes_well(self, rows: list[LogRow], written: Written) -> None:
        self.written += len(rows)
        self._halved = 0
        if self.last_error:
            lost, self._failed_before, self.last_error = self.failed - self._failed_before, self.failed, ""
            self._said = ""
            self._log.warning("request log: rows are written again; %d were lost", lost)
        self._note_written(rows, written)

    def _without_lost(self, rows: list[LogRow], error: BaseException) -> list[list[LogRow]]:
        """What to try of rows one of which is at fault: their halves, until that one stands alone and is lost."""
        self._halved += 1
        if len(rows) == 1 or self._halved > _MOST_HALVED:
            self._lost(rows, error)
            return []
        self._note_failed()
        middle = len(rows) // 2
        return [rows[:middle], rows[middle:]]

    def _lost(self, rows: list[LogRow], error: BaseException) -> None:
        self.failed += len(rows)
        self._fails(error, "rows are lost")

    def _fails(self, error: BaseException, what: str) -> None:
        self._note_failed()
        self.last_error = str(error)
        if what != self._said:
            self._say(what)

    def begin(self, missing: str) -> None:
        """Rows may come; `missing` is why they cannot be written yet, or ""."""
        self.last_error = missing
        if missing:
            self._say("no row is written")

    def _say(self, what: str) -> None:
        self._said = what
        self._log.error("request log: %s until this ends: %s", what, self.last_error)

    # the end

    def end(self) -> None:
        """What is kept is tried a last time; from now on nothing is."""
        self._is_ending = True
        for _ in range(2 if self._kept else 0):  # the first may find that the file is broken
            self._write_oldest()

    def give_up(self) -> None:
        """The writer has ended: what it left is lost."""
        lost = sum(map(len, self._kept))
        self._kept.clear()
        if lost:
            self.failed += lost
            self._log.error("request log: %d rows are lost, they could not be written: %s", lost, self.last_error)


def _is_of_rows(error: BaseException) -> bool:
    """Whether it is the rows' fault, such that trying them again does not help."""
    return isinstance(error, UnfitError) or not isinstance(error, StoreError)
