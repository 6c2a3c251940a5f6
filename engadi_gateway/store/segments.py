"""The request log's tables: rows go into an open one, which has no index; full or old, it is closed and indexed then.

Six indexes on values that come in no order touch six pages a row, when it is written and when it goes: that costs four
times the row itself. Sorted once, they cost little, and a closed table is dropped whole. The price: a question about
the newest rows reads the open table through, some ten milliseconds at most.

Row ids go on from table to table, so that a larger id is always a row that was written later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from engadi_gateway.model import LogRow
from engadi_gateway.store.database import Connection

OPEN = "gateway_log"
COLUMNS = ("id", *LogRow._fields)
#: What a closed table is indexed by, in this order. The conditions must stand in a query word by word to be of use.
INDEXES = (
    ("request_id", ""),
    ("path", ""),
    ("target_service", ""),
    ("user_id", ""),
    ("client_ip", ""),
    ("created_at", ""),
    ("reason", "reason <> 'ok'"),
    ("id", "status_code >= 400"),
    ("method", "method <> 'GET'"),
    ("status_code", "status_code <> 200"),
)
#: What most rows have: found soon without an index, which leaves it out and so stays small.
COMMON = {"reason": "ok", "method": "GET", "status_code": 200}
#: Closed tables stay in the hundreds: the more rows there are, the larger the next one.
_SHARE_OF_ALL = 128
_MOST_ROWS = 250_000

_TABLE = """CREATE TABLE gateway_log (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
    target_service TEXT, user_id TEXT, client_ip TEXT NOT NULL, status_code INTEGER NOT NULL,
    response_time REAL NOT NULL, error_message TEXT, created_at INTEGER NOT NULL, reason TEXT NOT NULL,
    route_id TEXT, attempts INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    upstream_time REAL, revision INTEGER NOT NULL
) STRICT"""
SCHEMA = (
    _TABLE,
    """CREATE TABLE log_segment (
        number INTEGER PRIMARY KEY, first_id INTEGER NOT NULL, last_id INTEGER NOT NULL, first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL, indexes INTEGER NOT NULL, is_dropped INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    # up to which id rows are in the statistics; ids go on from there when no row is left
    "CREATE TABLE log_summed (last_id INTEGER NOT NULL) STRICT",
    "INSERT INTO log_summed VALUES (0)",
)
_NAMES = ", ".join(LogRow._fields)
_MARKS = ", ".join("?" * len(LogRow._fields))
_INSERT = f"INSERT INTO {OPEN} ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608 - ours
_AT_ONCE = 50  # rows a statement: half the cost of one by one, and the interpreter's lock is passed on less often
_INSERT_MANY = f"{_INSERT}{f', ({_MARKS})' * (_AT_ONCE - 1)}"
_INSERT_FIRST = f"INSERT INTO {OPEN} (id, {_NAMES}) VALUES (?, {_MARKS})"  # noqa: S608 - ours


@dataclass(frozen=True, slots=True)
class Segment:
    """A table of the log, which ids it holds and of what time (epoch ms)."""

    table: str
    first_id: int
    last_id: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows: SQL conditions with their values, bounds of time (epoch ms, both inclusive) and of the id."""

    conditions: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    start_ms: int = 0
    end_ms: int = 1 << 62
    below_id: int = 1 << 62


# writing


def add_rows(connection: Connection, rows: Sequence[LogRow]) -> int:
    """Append to the open table; the id of the first one. The others follow it without a gap."""
    span = _span_of_ids(connection)
    first_id = last_id(connection) + 1
    if span is None:
        connection.execute(_INSERT_FIRST, (first_id, *rows[0]))
        rows = rows[1:]
    whole = len(rows) - len(rows) % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        connection.execute(_INSERT_MANY, list(chain.from_iterable(rows[start : start + _AT_ONCE])))
    connection.executemany(_INSERT, rows[whole:])
    return first_id


def last_id(connection: Connection) -> int:
    """The newest row's, also when that is gone."""
    query = f"SELECT max(id) FROM {OPEN}"  # noqa: S608 - ours
    newest = connection.execute(query).fetchone()[0]
    if newest is None:
        newest = connection.execute("SELECT coalesce(max(last_id), 0) FROM log_segment").fetchone()[0]
    return max(int(newest), summed_id(connection))


def summed_id(connection: Connection) -> int:
    """The last row that is in the statistics."""
    return int(connection.execute("SELECT last_id FROM log_summed").fetchone()[0])


def set_summed_id(connection: Connection, row_id: int) -> None:
    connection.execute("UPDATE log_summed SET last_id = ?", (row_id,))


def close_if_due(connection: Connection, now_ms: int, max_rows: int, max_age_ms: int) -> bool:
    """Close the open table if it has that many rows (more in a large log) or its first one is that old."""
    span = _span_of_ids(connection)
    if span is None:
        return False
    first_id, last_id = span
    oldest_id = connection.execute("SELECT coalesce(min(first_id), ?) FROM log_segment", (first_id,)).fetchone()[0]
    most = max(max_rows, min((last_id - oldest_id) // _SHARE_OF_ALL, _MOST_ROWS))
    first_ms = connection.execute(f"SELECT created_at FROM {OPEN} WHERE id = ?", (first_id,)).fetchone()[0]  # noqa: S608
    is_due = bool(last_id - first_id + 1 >= most or now_ms - first_ms >= max_age_ms)
    if is_due:
        close_open(connection)
    return is_due


def close_open(connection: Connection) -> bool:
    """Close the open table, unless it is empty, and begin another."""
    span = _span_of_ids(connection)
    if span is None:
        return False
    times = connection.execute(f"SELECT min(created_at), max(created_at) FROM {OPEN}").fetchone()  # noqa: S608
    number = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM log_segment").fetchone()[0]
    connection.execute(f"ALTER TABLE {OPEN} RENAME TO {_table(number)}")
    connection.execute(_TABLE)
    connection.execute("INSERT INTO log_segment VALUES (?, ?, ?, ?, ?, 0, 0)", (number, *span, *times))
    return True


def index_next(connection: Connection) -> bool:
    """Make one index that a closed table still lacks; whether there was one. One at a time, for rows are waiting."""
    row = connection.execute(
        "SELECT number, indexes FROM log_segment WHERE indexes < ? AND NOT is_dropped ORDER BY number LIMIT 1",
        (len(INDEXES),),
    ).fetchone()
    if row is None:
        return False
    number, made = row
    column, condition = INDEXES[made]
    where = f" WHERE {condition}" if condition else ""
    connection.execute(f"CREATE INDEX {_table(number)}_{column} ON {_table(number)} ({column}){where}")
    connection.execute("UPDATE log_segment SET indexes = indexes + 1 WHERE number = ?", (number,))
    return True


def drop_oldest(connection: Connection, before_ms: int) -> int:
    """Drop one closed table whose rows are all from before, and in the statistics; how many rows went.

    Nobody finds them any more; the table itself is left to `clear_next`.
    """
    query = "SELECT number, last_id - first_id + 1 FROM log_segment WHERE last_ms < ? AND last_id <= ?"
    query = f"{query} AND NOT is_dropped ORDER BY number LIMIT 1"
    row = connection.execute(query, (before_ms, summed_id(connection))).fetchone()
    if row is None:
        return 0
    connection.execute("UPDATE log_segment SET is_dropped = 1 WHERE number = ?", (row[0],))
    return int(row[1])


def clear_next(connection: Connection) -> bool:
    """Free the pages of one index of a dropped table, at last its own; whether there was one. Rows are waiting."""
    row = connection.execute(
        "SELECT number, indexes FROM log_segment WHERE is_dropped ORDER BY number LIMIT 1"
    ).fetchone()
    if row is None:
        return False
    number, indexes = row
    if indexes:
        connection.execute(f"DROP INDEX {_table(number)}_{INDEXES[indexes - 1][0]}")
        connection.execute("UPDATE log_segment SET indexes = indexes - 1 WHERE number = ?", (number,))
    else:
        connection.execute(f"DROP TABLE {_table(number)}")
        connection.execute("DELETE FROM log_segment WHERE number = ?", (number,))
    return True


def _table(number: int) -> str:
    return f"{OPEN}_{number}"


def _span_of_ids(connection: Connection) -> tuple[int, int] | None:
    """Of the open table. Two questions, because sqlite answers both in one by reading all rows."""
    query = f"SELECT (SELECT min(id) FROM {OPEN}), (SELECT max(id) FROM {OPEN})"  # noqa: S608 - ours
    first, last = connection.execute(query).fetchone()
    return None if first is None else (first, last)


# reading


def rows_after(connection: Connection, row_id: int, count: int) -> tuple[int, list[LogRow]]:
    """So many rows at most that were written next after that one, in their order, and the id of the last of them."""
    found: list[tuple[Any, ...]] = []
    for segment in reversed(segments(connection)):
        if segment.last_id > row_id and len(found) < count:
            query = f"SELECT id, {_NAMES} FROM {segment.table} WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - ours
            found += connection.execute(query, (row_id, count - len(found))).fetchall()
    return found[-1][0] if found else last_id(connection), [LogRow._make(row[1:]) for row in found]


def find(connection: Connection, query: Query) -> Iterator[tuple[Any, ...]]:
    """The rows (`COLUMNS`) that fit, newest first; a table is looked into when it is reached."""
    for segment in segments(connection):
        statement, values = select(segment, query)
        if statement:
            yield from connection.execute(statement, values)


def segments(connection: Connection) -> list[Segment]:
    """The tables, newest first; of the open one nothing is known."""
    rows = connection.execute("SELECT * FROM log_segment WHERE NOT is_dropped ORDER BY number DESC").fetchall()
    return [Segment(OPEN, 0, 1 << 62, 0, 1 << 62), *(Segment(_table(number), *rest[:4]) for number, *rest in rows)]


def select(segment: Segment, query: Query) -> tuple[str, list[Any]]:
    """The statement for one table; "" when none of its rows can fit. Bounds that all its rows keep are left out."""
    bounds = (
        ("created_at >= ?", query.start_ms, query.start_ms <= segment.first_ms, query.start_ms > segment.last_ms),
        ("created_at <= ?", query.end_ms, query.end_ms >= segment.last_ms, query.end_ms < segment.first_ms),
        ("id < ?", query.below_id, query.below_id > segment.last_id, query.below_id <= segment.first_id),
    )
    conditions, values = list(query.conditions), list(query.values)
    for condition, value, is_kept_by_all, is_kept_by_none in bounds:
        if is_kept_by_none:
            return "", []
        if not is_kept_by_all:
            conditions.append(condition)
            values.append(value)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {', '.join(COLUMNS)} FROM {segment.table}{where} ORDER BY id DESC", values  # noqa: S608 - ours
