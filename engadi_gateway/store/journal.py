"""The request log: rows in by batches, questions, statistics, retention, and the health that services had.

Traffic never waits for it, unless `when_full = stall` asks for that. A broken file is moved aside and a new one begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any

from engadi_gateway.model import HealthStatus, LogRow, ServiceHealth
from engadi_gateway.store import at_rest, history, questions, rollup, segments
from engadi_gateway.store.database import Connection, first_row
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.in_use import Database
from engadi_gateway.store.intake import Intake, Written
from engadi_gateway.store.kinds import KnownKinds
from engadi_gateway.store.pages import file_bytes, free_share, shrink, used_bytes
from engadi_gateway.store.questions import LogFilter, LogPage
from engadi_gateway.store.schema import Migration, Schema
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
SCHEMA = Schema(_APPLICATION_ID, MIGRATIONS)
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


def refuse_unusable(path: str) -> None:
    """For `--check`. Blocking.

    Raises:
        StoreError: a log is there that `Journal.open` would not take: a newer version's, another program's.
    """
    if at_rest.is_there(path):
        at_rest.vet(path, SCHEMA)


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
        self._database = Database(path, SCHEMA, synchronous="NORMAL", is_expendable=True, is_shared=is_shared)
        self.retention_days = retention_days
        self.max_bytes = max_bytes
        self._intake = Intake(self._database, queue_rows, self._insert, self._note_written, self._forget_failed)
        self._segment_rows = segment_rows
        self._tally = Tally(is_shared=is_shared)  # the writer thread's
        self._kinds = None if is_shared else KnownKinds()  # the writer thread's
        self._is_summing = False
        self._last_write_ms = 0.0
        self._moved_aside = ""
        self._times_removed = 0
        self._is_closing = False
        self._optimized_ms = 0
        self._log = logging.getLogger("engadi")

    def open(self) -> None:
        """Blocking. A corrupt file is moved aside, a full disk waited for; any other fault is a StoreError."""
        self._database.open()
        self._say_if_moved()
        self._intake.begin(self._database.missing)
        self._keep_up()
        self._index()

    def give_up(self) -> None:
        """See `Database.give_up`."""
        self._database.give_up()

    def _say_if_moved(self) -> None:
        if self._moved_aside != self._database.moved_aside:
            self._moved_aside = self._database.moved_aside
            self._log.error("request log is corrupt: moved to %s, a new one is begun", self._moved_aside)
        if self._times_removed != self._database.times_removed:
            self._times_removed = self._database.times_removed
            self._log.error("request log: somebody removed %s, a new one is begun", self._database.path)

    # rows in

    @property
    def queue_rows(self) -> int:
        """See `Intake`."""
        return self._intake.queue_rows

    @queue_rows.setter
    def queue_rows(self, rows: int) -> None:
        self._intake.queue_rows = rows

    def is_full(self, more: int) -> bool:
        """See `Intake.is_full`."""
        return self._intake.is_full(more)

    def put(self, rows: list[LogRow], *, sheds: bool = True) -> int:
        """See `Intake.put`."""
        return self._intake.put(rows, sheds=sheds)

    def sweep(self, now: float) -> None:
        """See `Intake.sweep`."""
        self._intake.sweep(now)

    def _insert(self, connection: Connection, rows: list[LogRow]) -> Written:
        began = time.perf_counter()
        first_id = segments.add_rows(connection, rows, self._kinds)
        is_closed = self._close_if_due(connection, rows[-1].created_at)
        return Written(first_id, (time.perf_counter() - began) * 1000, is_closed)

    def _close_if_due(self, connection: Connection, now_ms: int) -> bool:
        """A table is at most a share of what is kept, for it goes as a whole."""
        max_rows = self._segment_rows
        if self.max_bytes:
            max_rows = min(max_rows, max(_LEAST_ROWS, self.max_bytes // _SHARES // _ROW_BYTES))
        return segments.close_if_due(connection, now_ms, max_rows, self._max_age_ms)

    @property
    def _max_age_ms(self) -> int:
        return self.retention_days * _DAY_MS // _SHARES

    def _note_written(self, rows: list[LogRow], written: Written) -> None:
        self._last_write_ms = written.took_ms
        self._say_if_moved()
        self._tally.add(written.first_id, rows)
        if written.is_closed:
            self._index()
        if self._tally.is_due and not self._is_summing:
            self._keep_up()

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
        intake = self._intake
        return JournalStats(
            intake.written,
            intake.shed,
            intake.failed,
            intake.waiting,
            intake.last_error,
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

    async def prune(self, now_ms: int, old_by_ms: int | None = None) -> None:
        """Let old rows go, in small transactions between which batches are written.

        Args:
            old_by_ms: the moment by which they are old, where the clock, which says now_ms, is not believed.

        Raises:
            StoreError: the database did not answer.
        """
        old_by_ms = now_ms if old_by_ms is None else old_by_ms
        limit_ms = old_by_ms - self.retention_days * _DAY_MS
        while await asyncio.wrap_future(self._sum_up()):
            pass
        await self._database.write(lambda connection: self._close_if_due(connection, now_ms))
        await self._database.write(lambda connection: segments.close_if_ahead(connection, now_ms, self._max_age_ms))
        await self._repeat(lambda connection: segments.drop_oldest(connection, limit_ms, now_ms))
        await self._repeat(segments.clear_next)
        await self._repeat(lambda connection: self._shorten(connection, old_by_ms))
        minutes_ms = old_by_ms - _MINUTES_KEPT_MS
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

    def _shorten(self, connection: Connection, old_by_ms: int) -> int:
        """One step towards `max_bytes`: the oldest closed table; failing that the oldest minutes, the open table."""
        if not self.max_bytes or used_bytes(connection) <= self.max_bytes:
            return 0
        return (
            segments.clear_next(connection)
            or segments.drop_oldest(connection, 1 << 62)
            or rollup.prune(connection, MINUTE_MS, old_by_ms - HOUR_MS, _SPANS)
            or segments.close_open(connection)
        )

    def _shrink(self, connection: Connection) -> int:
        """Give pages back, unless rows to come will soon have use for them."""
        is_needed = free_share(connection) > _FREE_SHARE or 0 < self.max_bytes < file_bytes(connection)
        return shrink(connection, _VACUUM_PAGES) if is_needed else 0

    def close(self) -> None:
        """Write what waits, then close; what cannot be written now is lost. Blocking."""
        self._is_closing = True
        self._intake.end()
        self._sum_up()
        self._database.close()
        self._intake.give_up()


def _health_column(value: Any) -> Any:
    return str(value) if isinstance(value, HealthStatus) else value
