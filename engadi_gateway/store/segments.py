"""The request log's tables: rows go into an open one, which has no index; full or old, it is closed and indexed then.

Six indexes on values that come in no order touch six pages a row, when it is written and when it goes: that costs four
times the row itself. Sorted once, they cost little, and a closed table is dropped whole. The price: a question about
the newest rows reads the open table through, some ten milliseconds at most.

The tables are numbered, and `log_segment` says what each holds; the last one is open. None is ever renamed, because
sqlite looks through the whole schema then. Row ids go on from table to table, so that a larger id is always a row that
was written later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

from engadi_gateway.model import LogRow
from engadi_gateway.store.database import Connection, first_row

#: The open table, by a name that stays.
VIEW = "gateway_log"
COLUMNS = ("id", *LogRow._fields)
#: What a closed table is indexed by, in this order. The conditions must stand in a query word by word to be of use.
#: Not by time: rows lie in its order, and only the tables at a question's ends are read through, 20 ms the largest.
INDEXES = (
    ("request_id", ""),
    ("path", ""),
    ("target_service", ""),
    ("user_id", ""),
    ("client_ip", ""),
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

_COLUMNS = """(
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
    target_service TEXT, user_id TEXT, client_ip TEXT NOT NULL, status_code INTEGER NOT NULL,
    response_time REAL NOT NULL, error_message TEXT, created_at INTEGER NOT NULL, reason TEXT NOT NULL,
    route_id TEXT, attempts INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    upstream_time REAL, revision INTEGER NOT NULL
) STRICT"""
_NAMES = ", ".join(LogRow._fields)
#: Most rows have no error message, and sqlite3 takes five times as long to bind None as to bind "".
_MARKS = ", ".join("nullif(?, '')" if name == "error_message" else "?" for name in LogRow._fields)
_IS_CLOSED = "NOT is_dropped AND number < (SELECT max(number) FROM log_segment)"
_AT_ONCE = 50  # rows a statement: half the cost of one by one, and the interpreter's lock is passed on less often
_CREATED = itemgetter(LogRow._fields.index("created_at"))


def _table(number: int) -> str:
    return f"gateway_log_{number}"


def _opening(number: int, first_id: int) -> tuple[str, ...]:
    """The statements that open a table."""
    return (
        f"CREATE TABLE {_table(number)} {_COLUMNS}",
        f"DROP VIEW IF EXISTS {VIEW}",
        f"CREATE VIEW {VIEW} AS SELECT * FROM {_table(number)}",  # noqa: S608 - ours
        f"INSERT INTO log_segment VALUES ({number}, {first_id}, {first_id - 1}, 0, 0, 0, 0)",  # noqa: S608 - ours
    )


SCHEMA = (
    """CREATE TABLE log_segment (
        number INTEGER PRIMARY KEY, first_id INTEGER NOT NULL, last_id INTEGER NOT NULL, first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL, indexes INTEGER NOT NULL, is_dropped INTEGER NOT NULL
    ) STRICT""",
    *_opening(1, 1),
    # up to which id rows are in the statistics
    "CREATE TABLE log_summed (last_id INTEGER NOT NULL) STRICT",
    "INSERT INTO log_summed VALUES (0)",
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A table of the log, which ids it holds and of what time (epoch ms); empty: the last id is below the first."""

    number: int
    first_id: int
    last_id: int
    first_ms: int
    last_ms: int

    @property
    def table(self) -> str:
        return _table(self.number)

    @property
    def rows(self) -> int:
        return self.last_id - self.first_id + 1


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
    table = _open(connection)
    one, many, first = _inserts(table.number)
    rest = rows
    if not table.rows:
        connection.execute(first, (table.first_id, *rows[0]))
        rest = rows[1:]
    whole = len(rest) - len(rest) % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        connection.execute(many, list(chain.from_iterable(rest[start : start + _AT_ONCE])))
    connection.executemany(one, rest[whole:])
    moments = [*map(_CREATED, rows), *((table.first_ms, table.last_ms) if table.rows else ())]
    connection.execute(
        "UPDATE log_segment SET last_id = ?, first_ms = ?, last_ms = ? WHERE number = ?",
        (table.last_id + len(rows), min(moments), max(moments), table.number),
    )
    return table.last_id + 1


@lru_cache(maxsize=2)
def _inserts(number: int) -> tuple[str, str, str]:
    """A row, many rows, a row with its id."""
    one = f"INSERT INTO {_table(number)} ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608 - ours
    first = f"INSERT INTO {_table(number)} (id, {_NAMES}) VALUES (?, {_MARKS})"  # noqa: S608 - ours
    return one, f"{one}{f', ({_MARKS})' * (_AT_ONCE - 1)}", first


def _open(connection: Connection) -> Segment:
    query = "SELECT number, first_id, last_id, first_ms, last_ms FROM log_segment ORDER BY number DESC LIMIT 1"
    return Segment(*first_row(connection, query))


def last_id(connection: Connection) -> int:
    """The newest row's, also when that is gone."""
    return _open(connection).last_id


def summed_id(connection: Connection) -> int:
    """The last row that is in the statistics."""
    return int(first_row(connection, "SELECT last_id FROM log_summed")[0])


def set_summed_id(connection: Connection, row_id: int) -> None:
    connection.execute("UPDATE log_summed SET last_id = ?", (row_id,))


def close_if_due(connection: Connection, now_ms: int, max_rows: int, max_age_ms: int) -> bool:
    """Close the open table if it has that many rows (more in a large log) or its oldest one is that old."""
    table = _open(connection)
    oldest_id = first_row(connection, "SELECT first_id FROM log_segment ORDER BY number LIMIT 1")[0]
    most = max(max_rows, min((table.last_id - oldest_id) // _SHARE_OF_ALL, _MOST_ROWS))
    return (table.rows >= most or now_ms - table.first_ms >= max_age_ms) and close_open(connection)


def close_open(connection: Connection) -> bool:
    """Close the open table, unless it is empty, and begin another."""
    table = _open(connection)
    if not table.rows:
        return False
    for statement in _opening(table.number + 1, table.last_id + 1):
        connection.execute(statement)
    return True


def index_next(connection: Connection) -> bool:
    """Make one index that a closed table still lacks; whether there was one. One at a time, for rows are waiting."""
    row = first_row(
        connection,
        f"SELECT number, indexes FROM log_segment WHERE indexes < ? AND {_IS_CLOSED} ORDER BY number LIMIT 1",  # noqa: S608
        (len(INDEXES),),
    )
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
    query = f"{query} AND {_IS_CLOSED} ORDER BY number LIMIT 1"
    row = first_row(connection, query, (before_ms, summed_id(connection)))
    if row is None:
        return 0
    connection.execute("UPDATE log_segment SET is_dropped = 1 WHERE number = ?", (row[0],))
    return int(row[1])


def clear_next(connection: Connection) -> bool:
    """Free the pages of a dropped table's indexes, in a second step its own; whether there was one."""
    row = first_row(connection, "SELECT number, indexes FROM log_segment WHERE is_dropped ORDER BY number LIMIT 1")
    if row is None:
        return False
    number, indexes = row
    for column, _ in INDEXES[:indexes]:  # of a log that an earlier build began, one may not be there
        connection.execute(f"DROP INDEX IF EXISTS {_table(number)}_{column}")
    if indexes:
        connection.execute("UPDATE log_segment SET indexes = 0 WHERE number = ?", (number,))
    else:
        connection.execute(f"DROP TABLE {_table(number)}")
        connection.execute("DELETE FROM log_segment WHERE number = ?", (number,))
    return True


# reading


def rows_after(connection: Connection, row_id: int, count: int) -> tuple[int, list[LogRow]]:
    """So many rows at most that were written next after that one, in their order, and the id of the last of them."""
    found: list[tuple[Any, ...]] = []
    for segment in reversed(segments(connection)):
        if segment.last_id > row_id and len(found) < count:
            query = f"SELECT id, {_NAMES} FROM {segment.table} WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - ours
            found += connection.execute(query, (row_id, count - len(found))).fetchall()
    return found[-1][0] if found else last_id(connection), [LogRow._make(row[1:]) for row in found]


def find(connection: Connection, query: Query) -> Generator[tuple[Any, ...], None, None]:
    """The rows (`COLUMNS`) that fit, newest first; a table is looked into when it is reached."""
    for segment in segments(connection):
        statement, values = select(segment, query)
        if statement:
            with contextlib.closing(connection.execute(statement, values)) as rows:
                yield from rows


def segments(connection: Connection) -> list[Segment]:
    """The tables, newest first."""
    query = "SELECT number, first_id, last_id, first_ms, last_ms FROM log_segment"
    rows = connection.execute(f"{query} WHERE NOT is_dropped ORDER BY number DESC").fetchall()
    return [Segment(*row) for row in rows]


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
