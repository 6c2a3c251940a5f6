"""The request log: rows in by batches, queries, statistics, retention. Traffic never waits for it.

A batch is handed over and forgotten: what cannot be queued is shed and counted, what cannot be written (a full disk, a
lock) is tried once more, then counted and dropped. A broken file is moved aside and a new one begun.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from engadi_gateway.model import HealthStatus, LogRow, ServiceHealth
from engadi_gateway.store import rollup
from engadi_gateway.store.database import Connection, Database, Migration, StoreError

_APPLICATION_ID = 0x456E474C  # "EnGL"
_DAY_MS = 86_400_000
_PRUNE_ROWS = 2_000
_VACUUM_PAGES = 256
_COLUMNS = LogRow._fields

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE gateway_log (
            id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
            target_service TEXT, user_id TEXT, client_ip TEXT NOT NULL, status_code INTEGER NOT NULL,
            response_time REAL NOT NULL, error_message TEXT, created_at INTEGER NOT NULL, reason TEXT NOT NULL,
            route_id TEXT, attempts INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
            upstream_time REAL, revision INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX gateway_log_request_id ON gateway_log (request_id)",
        "CREATE INDEX gateway_log_path ON gateway_log (path)",
        "CREATE INDEX gateway_log_target_service ON gateway_log (target_service)",
        "CREATE INDEX gateway_log_user_id ON gateway_log (user_id)",
        "CREATE INDEX gateway_log_client_ip ON gateway_log (client_ip)",
        "CREATE INDEX gateway_log_created_at ON gateway_log (created_at)",
        "CREATE INDEX gateway_log_errors ON gateway_log (id) WHERE status_code >= 400",
        *rollup.SCHEMA,
        """CREATE TABLE service_health (
            service_name TEXT PRIMARY KEY, service_url TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
            response_time REAL, last_check INTEGER, error_count INTEGER NOT NULL, success_count INTEGER NOT NULL,
            consecutive_failures INTEGER NOT NULL, consecutive_successes INTEGER NOT NULL, last_error TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX service_health_status ON service_health (status)",
    ),
)
_INSERT = f"INSERT INTO gateway_log ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What GET /logs asks for; None: not asked. Times in epoch ms, `cursor` as a page gave it."""

    method: str | None = None
    path: str | None = None
    target_service: str | None = None
    user_id: str | None = None
    client_ip: str | None = None
    request_id: str | None = None
    status_code: int | None = None
    reason: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    limit: int = 100
    offset: int = 0
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class LogPage:
    """Rows as JSON objects, newest first; `next_cursor` None at the end."""

    items: list[dict[str, Any]]
    next_cursor: str | None


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


class Journal:
    """The log's database.

    Args:
        retention_days, max_bytes: older rows, and the oldest beyond that size, go; 0 bytes: no limit.
        queue_rows: rows that may wait for the writer.
    """

    def __init__(self, path: str, *, retention_days: int, max_bytes: int, queue_rows: int) -> None:
        self._path = path
        self._database = self._make()
        self.retention_days = retention_days
        self.max_bytes = max_bytes
        self._queue_rows = queue_rows
        self._waiting = 0
        self._written = self._shed = self._failed = 0
        self._last_error = ""
        self._last_write_ms = 0.0
        self._log = logging.getLogger("engadi")

    def _make(self) -> Database:
        return Database(
            self._path, MIGRATIONS, synchronous="NORMAL", application_id=_APPLICATION_ID, is_expendable=True
        )

    def open(self) -> None:
        """Blocking. A corrupt file is moved aside; any other fault is a StoreError."""
        self._database.open()
        if self._database.moved_aside:
            self._log.error("request log is corrupt: moved to %s, a new one is begun", self._database.moved_aside)

    # rows in

    @property
    def is_full(self) -> bool:
        return self._waiting >= self._queue_rows

    def put(self, rows: list[LogRow]) -> int:
        """Hand over a batch; never blocks, never raises. Returns how many rows were shed."""
        room = max(0, self._queue_rows - self._waiting)
        kept, shed = rows[:room], max(0, len(rows) - room)
        self._shed += shed
        if kept:
            self._waiting += len(kept)
            future = self._database.submit(lambda connection: self._insert(connection, kept))
            future.add_done_callback(lambda done: self._inserted(done, kept, is_second=False))
        return shed

    @staticmethod
    def _insert(connection: Connection, rows: list[LogRow]) -> float:
        began = time.perf_counter()
        connection.executemany(_INSERT, rows)
        rollup.add_rows(connection, rows)
        return (time.perf_counter() - began) * 1000

    def _inserted(self, future: Future[float], rows: list[LogRow], *, is_second: bool) -> None:
        """Runs on the writer thread: plain counters, each written by this thread alone but for `_waiting`."""
        error = None if future.cancelled() else future.exception()
        if error is None:
            self._waiting -= len(rows)
            self._written += len(rows)
            self._last_write_ms = future.result()
            self._last_error = ""
        elif is_second:
            self._waiting -= len(rows)
            self._failed += len(rows)
            self._last_error = str(error)
        else:
            again = self._database.submit(lambda connection: self._insert(connection, rows))
            again.add_done_callback(lambda done: self._inserted(done, rows, is_second=True))

    async def written(self, timeout_s: float) -> None:
        """Wait until what was put so far is written, at most so long."""
        done = asyncio.wrap_future(self._database.submit(lambda connection: None))
        await asyncio.wait([done], timeout=timeout_s)

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
        query, values = _query_of(wanted)
        rows = await self._database.read(lambda connection: connection.execute(query, values).fetchall())
        items = [_row_as_json(row) for row in rows[: wanted.limit]]
        more = len(rows) > wanted.limit
        return LogPage(items, _cursor_of(items[-1]["id"]) if more else None)

    async def errors(self, limit: int) -> list[dict[str, Any]]:
        """The newest rows with a status of 400 and above."""
        query = f"SELECT id, {', '.join(_COLUMNS)} FROM gateway_log WHERE status_code >= 400 ORDER BY id DESC LIMIT ?"  # noqa: S608
        rows = await self._database.read(lambda connection: connection.execute(query, (limit,)).fetchall())
        return [_row_as_json(row) for row in rows]

    async def stats_of(self, hours: int, now_ms: int) -> dict[str, Any]:
        return await self._database.read(lambda connection: rollup.stats(connection, hours, now_ms))

    async def performance(self, hours: int, now_ms: int) -> dict[str, Any]:
        return await self._database.read(lambda connection: rollup.performance(connection, hours, now_ms))

    # health

    async def save_health(self, rows: list[ServiceHealth]) -> None:
        values = [tuple({**asdict(row), "status": str(row.status)}.values()) for row in rows]
        marks = ", ".join("?" * 10)

        def work(connection: Connection) -> None:
            connection.executemany(f"INSERT OR REPLACE INTO service_health VALUES ({marks})", values)  # noqa: S608

        await self._database.write(work)

    async def load_health(self) -> list[ServiceHealth]:
        names = "service_name, service_url, status, response_time, last_check, error_count, success_count"
        query = f"SELECT {names}, consecutive_failures, consecutive_successes, last_error FROM service_health"  # noqa: S608
        rows = await self._database.read(lambda connection: connection.execute(query).fetchall())
        return [ServiceHealth(row[0], row[1], HealthStatus(row[2]), *row[3:]) for row in rows]

    # retention

    async def prune(self, now_ms: int) -> int:
        """Let old rows go, in small transactions between which batches are written; how many went.

        Raises:
            StoreError: the database did not answer.
        """
        limit_ms = now_ms - self.retention_days * _DAY_MS
        hours_ms = now_ms - 8 * _DAY_MS
        await self._database.write(lambda connection: rollup.prune(connection, hours_ms, min(limit_ms, hours_ms)))
        gone = await self._repeat(lambda connection: _delete_before(connection, limit_ms))
        return gone + await self._repeat(self._delete_beyond_size)

    async def _repeat(self, step: Callable[[Connection], int]) -> int:
        gone = 0
        while count := await self._database.write(step):
            gone += count
        return gone

    def _delete_beyond_size(self, connection: Connection) -> int:
        if not self.max_bytes or _used_bytes(connection) <= self.max_bytes:
            return 0
        oldest = "SELECT id FROM gateway_log ORDER BY id LIMIT ?"
        return _delete(connection, f"DELETE FROM gateway_log WHERE id IN ({oldest})", (_PRUNE_ROWS,))  # noqa: S608

    def close(self) -> None:
        """Write what waits, then close. Blocking."""
        self._database.close()


def _used_bytes(connection: Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _delete_before(connection: Connection, limit_ms: int) -> int:
    old = "SELECT id FROM gateway_log WHERE created_at < ? LIMIT ?"
    return _delete(connection, f"DELETE FROM gateway_log WHERE id IN ({old})", (limit_ms, _PRUNE_ROWS))  # noqa: S608


def _delete(connection: Connection, statement: str, values: tuple[int, ...]) -> int:
    count = connection.execute(statement, values).rowcount
    if count:
        connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
    return count


#: Filters that compare a column for equality. Each narrow one has an index.
_EQUAL = ("method", "path", "target_service", "user_id", "client_ip", "request_id", "status_code", "reason")


def _query_of(wanted: LogFilter) -> tuple[str, list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for name in _EQUAL:
        value = getattr(wanted, name)
        if value is not None:
            conditions.append(f"{name} = ?")
            values.append(value)
    for condition, value in (("created_at >= ?", wanted.start_ms), ("created_at <= ?", wanted.end_ms)):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if wanted.cursor is not None:
        conditions.append("id < ?")
        values.append(_id_of(wanted.cursor))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    query = f"SELECT id, {', '.join(_COLUMNS)} FROM gateway_log {where}ORDER BY id DESC LIMIT ? OFFSET ?"  # noqa: S608
    return query, [*values, wanted.limit + 1, wanted.offset]


def _cursor_of(row_id: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([row_id]).encode()).decode("ascii").rstrip("=")


def _id_of(cursor: str) -> int:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        (row_id,) = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError):
        raise ValueError("not a cursor of this API") from None
    if not isinstance(row_id, int) or isinstance(row_id, bool) or not 0 <= row_id < 1 << 62:
        raise ValueError("not a cursor of this API")
    return row_id


def _row_as_json(row: tuple[Any, ...]) -> dict[str, Any]:
    document = dict(zip(("id", *_COLUMNS), row, strict=True))
    created = document["created_at"]
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created // 1000))
    document["created_at"] = f"{text}.{created % 1000:03d}Z"
    return document


__all__ = ["Journal", "JournalStats", "LogFilter", "LogPage", "StoreError"]
