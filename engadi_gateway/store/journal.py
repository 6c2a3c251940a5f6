"""The request log: rows in by batches, queries, statistics, retention. Traffic never waits for it.

A batch is handed over and forgotten: what cannot be queued is shed and counted, what cannot be written (a full disk, a
lock) is tried once more, then counted and dropped; or, for who stalls requests instead, kept until it can be written. A
row that no database would take is lost alone. A broken file is moved aside and a new one begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, fields
from enum import Enum, auto
from typing import Any

from engadi_gateway.model import HealthStatus, LogRow, ServiceHealth
from engadi_gateway.store import history, questions, rollup, segments
from engadi_gateway.store.database import (
    Connection,
    Database,
    Migration,
    StoreError,
    UnfitError,
    file_bytes,
    first_row,
    free_share,
    shrink,
    used_bytes,
)
from engadi_gateway.store.questions import LogFilter, LogPage
from engadi_gateway.store.sums import HOUR_MS, MINUTE_MS
from engadi_gateway.store.tally import Tally

_APPLICATION_ID = 0x456E474C  # "EnGL"
_DAY_MS = 86_400_000
#: Rows of one table: few enough to be read through and to be indexed in the cache, so many that there are few tables.
SEGMENT_ROWS = 25_000
_LEAST_ROWS = 1_000
_ROW_BYTES = 300  # a common row with its indexes
_SHARES = 24  # at least so many tables of what is kept by age or size
_SPANS = 240  # forgotten at once
_MINUTES_KEPT_MS = 8 * _DAY_MS  # questions reach a week back
_VACUUM_PAGES = 64
_FREE_SHARE = 0.25
_SUMMED_S = 1.0
_RETRY_S = 1.0
#: Batches that are halved with nothing written in between: after that it is not one row's fault.
_MOST_HALVED = 64

MIGRATIONS: tuple[Migration, ...] = (
    (
        *history.FIRST_SCHEMA,
        *rollup.SCHEMA,
        """CREATE TABLE service_health (
            service_name TEXT PRIMARY KEY, service_url TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
            response_time REAL, last_check INTEGER, error_count INTEGER NOT NULL, success_count INTEGER NOT NULL,
            consecutive_failures INTEGER NOT NULL, consecutive_successes INTEGER NOT NULL, last_error TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX service_health_status ON service_health (status)",
    ),
    history.set_kinds_apart,
)
_HEALTH = tuple(field.name for field in fields(ServiceHealth))


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Counters since the start; `last_error` "" while all is well."""

    rows_written: int = 0
    rows_shed: int = 0
    rows_failed: int = 0
    queue_depth: int = 0
    last_error: str = ""
    last_write_ms: float = 0.0
    size_bytes: int = 0
    moved_aside: str = ""


def _database(path: str, *, is_shared: bool = False) -> Database:
    return Database(
        path,
        MIGRATIONS,
        synchronous="NORMAL",
        application_id=_APPLICATION_ID,
        is_expendable=True,
        is_shared=is_shared,
    )


def refuse_unusable(path: str) -> None:
    """For `--check`. Blocking.

    Raises:
        StoreError: a log is there that `Journal.open` would not take: a newer version's, another program's.
    """
    database = _database(path)
    if database.is_there():
        database.vet()


class _Keeping(Enum):
    """What becomes of batches that are kept until they are written."""

    FLOWING = auto()  # there is a try on its way for each
    CATCHING_UP = auto()  # each that is written asks for the next
    WAITING = auto()  # the oldest could not be written


class Journal:
    """The log's database.

    Args:
        retention_days, max_bytes: older rows, and the oldest beyond that size, go, a table at a time; 0: any size.
        queue_rows: rows that may wait for the writer.
        segment_rows: rows of one table, at least.
        is_shared: other processes write to it too.
    """

    def __init__(
        self,
        path: str,
        *,
        retention_days: int,
        max_bytes: int,
        queue_rows: int,
        segment_rows: int = SEGMENT_ROWS,
        is_shared: bool = False,
    ) -> None:
        self._database = _database(path, is_shared=is_shared)
        self.retention_days = retention_days
        self.max_bytes = max_bytes
        self._queue_rows = queue_rows
        self._segment_rows = segment_rows
        self._tally = Tally(is_shared=is_shared)  # the writer thread's
        self._kinds = None if is_shared else segments.KnownKinds()  # the writer thread's
        self._is_summing = False
        self._kept: deque[list[LogRow]] = deque()  # the loop's thread adds, the writer's takes
        self._keeping = _Keeping.FLOWING  # the writer thread's
        self._halved = 0  # the writer thread's
        self._retry: Future[Any] | None = None
        self._retry_at = 0.0
        # each counter is written by one thread alone: these two by the loop's, the others by the writer's
        self._taken = self._shed = 0
        self._written = self._failed = self._failed_before = 0
        self._last_error = self._said = ""
        self._last_write_ms = 0.0
        self._moved_aside = ""
        self._is_closing = False
        self._optimized_ms = 0
        self._log = logging.getLogger("engadi")

    def open(self) -> None:
        """Blocking. A corrupt file is moved aside, a full disk waited for; any other fault is a StoreError."""
        self._database.open()
        self._say_if_moved()
        self._last_error = self._database.missing
        if self._last_error:
            self._say_failing("no row is written")
        self._keep_up()
        self._index()

    def give_up(self) -> None:
        """See `Database.give_up`."""
        self._database.give_up()

    def _say_failing(self, what: str) -> None:
        self._said = what
        self._log.error("request log: %s until this ends: %s", what, self._last_error)

    def _say_if_moved(self) -> None:
        if self._moved_aside != self._database.moved_aside:
            self._moved_aside = self._database.moved_aside
            self._log.error("request log is corrupt: moved to %s, a new one is begun", self._moved_aside)

    # rows in

    @property
    def _waiting(self) -> int:
        return self._taken - self._written - self._failed

    def is_full(self, more: int) -> bool:
        """Whether there is no room beside so many rows that will come."""
        return self._waiting + more >= self._queue_rows

    def put(self, rows: list[LogRow], *, sheds: bool = True) -> int:
        """Hand over a batch; never blocks, never raises. Returns how many rows were shed: what found no room.

        sheds: False for who stalls requests instead; those under way may then be more than there is room for. What
            cannot be written is then kept, in its order, until it can be (see `sweep`) or the log is closed.
        """
        room = max(0, self._queue_rows - self._waiting) if sheds else len(rows)
        kept, shed = rows[:room], max(0, len(rows) - room)
        self._shed += shed
        if kept:
            self._taken += len(kept)
            if sheds or self._is_closing:
                self._submit(kept, is_second=False)
            else:
                self._keep(kept)
        return shed

    def _keep(self, rows: list[LogRow]) -> None:
        self._kept.append(rows)
        if self._keeping is _Keeping.FLOWING:
            self._write_oldest()

    def sweep(self, now: float) -> None:
        """Try again to write what is kept, at most once a second; called from the loop's thread, as `put`."""
        is_trying = self._retry is not None and not self._retry.done()
        if self._keeping is _Keeping.WAITING and now >= self._retry_at and not is_trying:
            self._retry_at = now + _RETRY_S
            self._retry = self._write_oldest()

    def _write_oldest(self) -> Future[Any]:
        return self._database.submit(self._insert_oldest, self._oldest_inserted)

    def _insert_oldest(self, connection: Connection) -> tuple[int, float, bool] | None:
        """None: others have written all."""
        return self._insert(connection, self._kept[0]) if self._kept else None

    def _oldest_inserted(self, future: Future[tuple[int, float, bool] | None]) -> None:
        error = future.exception()
        if error is None:
            if (result := future.result()) is not None:
                self._note_written(self._kept.popleft(), result)
        elif not _is_of_rows(error):
            self._keeping = _Keeping.WAITING
            self._note_failing(error, "rows wait, and requests once the queue is full,")
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

    def _submit(self, rows: list[LogRow], *, is_second: bool) -> None:
        self._database.submit(
            lambda connection: self._insert(connection, rows),
            lambda future: self._inserted(future, rows, is_second=is_second),
        )

    def _insert(self, connection: Connection, rows: list[LogRow]) -> tuple[int, float, bool]:
        began = time.perf_counter()
        first_id = segments.add_rows(connection, rows, self._kinds)
        is_closed = self._close_if_due(connection, rows[-1].created_at)
        return first_id, (time.perf_counter() - began) * 1000, is_closed

    def _close_if_due(self, connection: Connection, now_ms: int) -> bool:
        """A table is at most a share of what is kept, for it goes as a whole."""
        max_rows, max_age_ms = self._segment_rows, self.retention_days * _DAY_MS // _SHARES
        if self.max_bytes:
            max_rows = min(max_rows, max(_LEAST_ROWS, self.max_bytes // _SHARES // _ROW_BYTES))
        return segments.close_if_due(connection, now_ms, max_rows, max_age_ms)

    def _inserted(self, future: Future[tuple[int, float, bool]], rows: list[LogRow], *, is_second: bool) -> None:
        error = future.exception()
        if error is None:
            self._note_written(rows, future.result())
        elif _is_of_rows(error):
            for part in self._without_lost(rows, error):
                self._submit(part, is_second=False)
        elif is_second:
            self._note_lost(rows, error)
        else:
            self._forget_failed()
            self._submit(rows, is_second=True)

    def _without_lost(self, rows: list[LogRow], error: BaseException) -> list[list[LogRow]]:
        """What to try of rows one of which is at fault: their halves, until that one stands alone and is lost."""
        self._halved += 1
        if len(rows) == 1 or self._halved > _MOST_HALVED:
            self._note_lost(rows, error)
            return []
        self._forget_failed()
        middle = len(rows) // 2
        return [rows[:middle], rows[middle:]]

    def _note_written(self, rows: list[LogRow], result: tuple[int, float, bool]) -> None:
        first_id, self._last_write_ms, is_closed = result
        self._tally.add(first_id, rows)
        self._written += len(rows)
        self._halved = 0
        if self._last_error:
            lost, self._failed_before, self._last_error = self._failed - self._failed_before, self._failed, ""
            self._said = ""
            self._log.warning("request log: rows are written again; %d were lost", lost)
        if is_closed:
            self._index()
        if self._tally.is_due and not self._is_summing:
            self._keep_up()

    def _note_lost(self, rows: list[LogRow], error: BaseException) -> None:
        self._failed += len(rows)
        self._note_failing(error, "rows are lost")

    def _note_failing(self, error: BaseException, what: str) -> None:
        self._forget_failed()
        self._last_error = str(error)
        if what != self._said:
            self._say_failing(what)

    def _forget_failed(self) -> None:
        """What a transaction that failed has added is gone; perhaps the whole file is."""
        if self._kinds is not None:
            self._kinds.forget()
        self._say_if_moved()

    def _sum_up(self) -> Future[bool]:
        """Take rows into the statistics; whether there are more."""
        return self._database.submit(self._tally.store, self._summed)

    def _summed(self, future: Future[bool]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._tally.stored()

    def _keep_up(self) -> None:
        """Take all rows into the statistics, batches going in between; what fails is tried again with a later batch."""
        self._is_summing = True
        self._database.submit(self._tally.store, self._kept_up)

    def _kept_up(self, future: Future[bool]) -> None:
        self._summed(future)
        self._is_summing = False
        if future.exception() is not None:
            self._say_if_moved()
        elif future.result():
            self._keep_up()

    async def _up_to_date(self) -> None:
        """As far as that can be had soon; whoever asks gets what is there."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_SUMMED_S):
                while await asyncio.wrap_future(self._sum_up()):
                    pass

    def _index(self) -> None:
        """Index closed tables, batches of rows going in between; what fails is tried again by `prune`."""
        if not self._is_closing:
            self._database.submit(segments.index_next, self._indexed)

    def _indexed(self, future: Future[bool]) -> None:
        if future.exception() is not None:
            self._say_if_moved()
        elif future.result():
            self._index()

    async def written(self, timeout_s: float) -> None:
        """Wait until what was put so far is written, at most so long."""
        done = asyncio.wrap_future(self._database.submit(lambda connection: None))
        await asyncio.wait([done], timeout=timeout_s)
        if done.done() and not done.cancelled():
            done.exception()  # it failed: the counters say so
        else:
            done.cancel()

    def stats(self) -> JournalStats:
        return JournalStats(
            self._written,
            self._shed,
            self._failed,
            self._waiting,
            self._last_error,
            round(self._last_write_ms, 3),
            self._database.size_bytes(),
            self._database.moved_aside,
        )

    # questions

    async def logs(self, wanted: LogFilter) -> LogPage:
        """A page of rows, newest first. A cursor costs the same however deep; an offset does not.

        Raises:
            ValueError: the cursor is none of ours. StoreError: the database did not answer.
        """
        query = questions.query_of(wanted)
        rows = await self._database.read(
            lambda connection: questions.take(connection, query, wanted.offset, wanted.limit + 1)
        )
        items = [questions.as_json(row) for row in rows[: wanted.limit]]
        more = len(rows) > wanted.limit
        return LogPage(items, questions.cursor_of(items[-1]["id"]) if more else None)

    async def errors(self, limit: int) -> list[dict[str, Any]]:
        """The newest rows that `errors.is_error`."""
        return [
            questions.as_json(row)
            for row in await self._database.read(lambda con: questions.take(con, questions.ERRORS, 0, limit))
        ]

    async def stats_of(self, hours: int, now_ms: int) -> dict[str, Any]:
        await self._up_to_date()
        return await self._database.read(lambda connection: rollup.stats(connection, hours, now_ms))

    async def performance(self, hours: int, now_ms: int) -> dict[str, Any]:
        await self._up_to_date()
        return await self._database.read(lambda connection: rollup.performance(connection, hours, now_ms))

    # health

    async def save_health(self, rows: list[ServiceHealth]) -> None:
        """Keep these, and no others; what somebody saw stays until somebody sees more."""
        values = [tuple(_health_column(getattr(row, name)) for name in _HEALTH) for row in rows]
        names, marks = ", ".join(_HEALTH), ", ".join("?" * len(_HEALTH))
        changed = ", ".join(f"{name} = excluded.{name}" for name in _HEALTH)
        upsert = (
            f"INSERT INTO service_health ({names}) VALUES ({marks}) ON CONFLICT (service_name) DO UPDATE SET {changed}"  # noqa: S608
            " WHERE excluded.last_check IS NOT NULL OR excluded.service_url <> service_url"
        )
        forget = f"DELETE FROM service_health WHERE service_name NOT IN ({', '.join('?' * len(rows))})"  # noqa: S608

        def work(connection: Connection) -> None:
            connection.execute(forget, [row.service_name for row in rows])
            connection.executemany(upsert, values)

        await self._database.write(work)

    async def load_health(self) -> list[ServiceHealth]:
        query = f"SELECT {', '.join(_HEALTH)} FROM service_health ORDER BY service_name"  # noqa: S608 - ours
        rows = await self._database.read(lambda connection: connection.execute(query).fetchall())
        return [ServiceHealth(row[0], row[1], HealthStatus(row[2]), *row[3:]) for row in rows]

    # retention

    async def prune(self, now_ms: int) -> None:
        """Let old rows go, in small transactions between which batches are written.

        Raises:
            StoreError: the database did not answer.
        """
        limit_ms = now_ms - self.retention_days * _DAY_MS
        while await asyncio.wrap_future(self._sum_up()):
            pass
        await self._database.write(lambda connection: self._close_if_due(connection, now_ms))
        await self._repeat(lambda connection: segments.drop_oldest(connection, limit_ms))
        await self._repeat(segments.clear_next)
        await self._repeat(lambda connection: self._shorten(connection, now_ms))
        minutes_ms = now_ms - _MINUTES_KEPT_MS
        for span, before_ms in ((MINUTE_MS, minutes_ms), (HOUR_MS, min(limit_ms, minutes_ms))):
            await self._repeat(lambda connection, s=span, b=before_ms: rollup.prune(connection, s, b, _SPANS))  # type: ignore[misc]
        await self._repeat(self._shrink)
        if now_ms - self._optimized_ms >= _DAY_MS:
            self._optimized_ms = now_ms
            await self._database.write(lambda connection: first_row(connection, "PRAGMA optimize"))
        self._index()

    async def _repeat(self, step: Callable[[Connection], int]) -> None:
        while await self._database.write(step):
            pass

    def _shorten(self, connection: Connection, now_ms: int) -> int:
        """One step towards `max_bytes`: the oldest closed table; failing that the oldest minutes, the open table."""
        if not self.max_bytes or used_bytes(connection) <= self.max_bytes:
            return 0
        return (
            segments.clear_next(connection)
            or segments.drop_oldest(connection, 1 << 62)
            or rollup.prune(connection, MINUTE_MS, now_ms - HOUR_MS, _SPANS)
            or segments.close_open(connection)
        )

    def _shrink(self, connection: Connection) -> int:
        """Give pages back, unless rows to come will soon have use for them."""
        is_needed = free_share(connection) > _FREE_SHARE or 0 < self.max_bytes < file_bytes(connection)
        return shrink(connection, _VACUUM_PAGES) if is_needed else 0

    def close(self) -> None:
        """Write what waits, then close; what cannot be written now is lost. Blocking."""
        self._is_closing = True
        for _ in range(2 if self._kept else 0):  # the first may find that the file is broken
            self._write_oldest()
        self._sum_up()
        self._database.close()
        self._give_up()

    def _give_up(self) -> None:
        """The writer has ended."""
        lost = sum(map(len, self._kept))
        self._kept.clear()
        if lost:
            self._failed += lost
            self._log.error("request log: %d rows are lost, they could not be written: %s", lost, self._last_error)


def _is_of_rows(error: BaseException) -> bool:
    """Whether it is the rows' fault, such that trying them again does not help."""
    return isinstance(error, UnfitError) or not isinstance(error, StoreError)


def _health_column(value: Any) -> Any:
    return str(value) if isinstance(value, HealthStatus) else value
