"""The request log's tables: rows go into an open one, which has no index; full or old, it is closed and indexed then.

Indexes on values that come in no order touch as many pages a row as there are indexes, when it is written and when it
goes: that costs four times the row itself. Sorted once, they cost little, and a closed table is dropped whole. The
price: a question about the newest rows reads the open table through, some ten milliseconds at most.

What many rows have in common (`KIND`) stands once beside them, in a table of kinds: a row is written, and indexed, with
one number for all that. `gateway_log_1` and so on are views that show both as one.

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
#: What makes a row's kind. Paths, people and addresses would make more kinds than it saves rows.
KIND = ("method", "target_service", "status_code", "error_message", "reason", "route_id", "attempts", "revision")
_OWN = (
    "request_id", "path", "user_id", "client_ip", "created_at", "response_time", "upstream_time", "bytes_in",
    "bytes_out",
)  # fmt: skip
#: What a closed table is indexed by, in this order (a new one comes last, and is made of old tables too); with the last
#: one, the rows of each kind are counted. Not by created_at: rows lie in its order, and only the tables at a question's
#: ends are read through, 20 ms the largest.
INDEXES = ("request_id", "path", "user_id", "client_ip", "kind", "response_time")
#: Kinds that have more than this share of a table's rows are found soon without their index.
_FEW = 1 / 50
#: Strangers choose methods: so many kinds are remembered, others may stand there twice, which harms nobody; and so many
#: are read from the table by who remembers none.
_MOST_KINDS = 16_384
_READ_KINDS = 1000
#: Closed tables stay in the hundreds: the more rows there are, the larger the next one.
_SHARE_OF_ALL = 128
_MOST_ROWS = 250_000

_OF_ROW = """(
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, request_id TEXT NOT NULL, path TEXT NOT NULL, user_id TEXT,
    client_ip TEXT NOT NULL, created_at INTEGER NOT NULL, response_time REAL NOT NULL, upstream_time REAL,
    bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL
) STRICT"""
_OF_KIND = """(
    kind INTEGER PRIMARY KEY, method TEXT NOT NULL, target_service TEXT, status_code INTEGER NOT NULL,
    error_message TEXT, reason TEXT NOT NULL, route_id TEXT, attempts INTEGER NOT NULL, revision INTEGER NOT NULL,
    row_count INTEGER NOT NULL DEFAULT 0
) STRICT"""
_SHOWN = ", ".join(COLUMNS)
_SEGMENTS = "SELECT number, first_id, last_id, first_ms, last_ms, begun_ms, indexes FROM log_segment"
_IS_CLOSED = "NOT is_dropped AND number < (SELECT max(number) FROM log_segment)"
_AT_ONCE = 50  # rows a statement: half the cost of one by one, and the interpreter's lock is passed on less often
_kind_of = itemgetter(*map(LogRow._fields.index, KIND))
_own_of = itemgetter(*map(LogRow._fields.index, _OWN))
_created = itemgetter(LogRow._fields.index("created_at"))
_MESSAGE = KIND.index("error_message")


def _rows(number: int) -> str:
    return f"log_row_{number}"


def _kinds(number: int) -> str:
    return f"log_kind_{number}"


def _both(number: int, hint: str = "") -> str:
    """Rows with their kinds; in this order, or sqlite may begin with the kinds and sort."""
    return f"{_rows(number)}{hint} CROSS JOIN {_kinds(number)} USING (kind)"


def create(connection: Connection, number: int) -> None:
    """Make the tables of that number, and the view of both."""
    connection.execute(f"CREATE TABLE {_rows(number)} {_OF_ROW}")
    connection.execute(f"CREATE TABLE {_kinds(number)} {_OF_KIND}")
    connection.execute(f"CREATE VIEW {VIEW}_{number} AS SELECT {_SHOWN} FROM {_both(number)}")  # noqa: S608 - ours


def show(connection: Connection, number: int) -> None:
    """That one has the name that stays."""
    connection.execute(f"DROP VIEW IF EXISTS {VIEW}")
    connection.execute(f"CREATE VIEW {VIEW} AS SELECT * FROM {VIEW}_{number}")  # noqa: S608 - ours


@dataclass(frozen=True, slots=True)
class Segment:
    """A table of the log, which ids it holds and of what time (epoch ms); empty: the last id is below the first.

    begun_ms: when its first rows were written, by the newest of them: one of a long stream began hours before.
    """

    number: int
    first_id: int
    last_id: int
    first_ms: int
    last_ms: int
    begun_ms: int
    indexes: int

    @property
    def rows(self) -> int:
        return self.last_id - self.first_id + 1

    @property
    def is_indexed(self) -> bool:
        """And the rows of its kinds are counted."""
        return self.indexes == len(INDEXES)


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows: SQL conditions with their values, bounds of time (epoch ms, both inclusive) and of the id.

    conditions: equalities of what is a row's own, and indexed. of_kind: of what is its kind's. below_path: that path,
    and those below it. took_ms: a response_time of at least so much.
    """

    conditions: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    of_kind: tuple[str, ...] = ()
    kind_values: tuple[Any, ...] = ()
    start_ms: int = 0
    end_ms: int = 1 << 62
    below_id: int = 1 << 62
    below_path: str | None = None
    took_ms: float | None = None


# writing


def add_rows(connection: Connection, rows: Sequence[LogRow], known: KnownKinds | None = None) -> int:
    """Append to the open table; the id of the first one. The others follow it without a gap.

    known: what is remembered from batch to batch, for whoever writes alone.
    """
    table = _open(connection)
    kinds = (known or KnownKinds()).of(connection, table.number)
    fill(connection, table.number, rows, first_id=None if table.rows else table.first_id, kinds=kinds)
    moments = [*map(_created, rows), *((table.first_ms, table.last_ms) if table.rows else ())]
    last_ms = max(moments)
    connection.execute(
        "UPDATE log_segment SET last_id = ?, first_ms = ?, last_ms = ?, begun_ms = ? WHERE number = ?",
        (table.last_id + len(rows), min(moments), last_ms, table.begun_ms if table.rows else last_ms, table.number),
    )
    return table.last_id + 1


def fill(
    connection: Connection, number: int, rows: Sequence[LogRow], *, first_id: int | None, kinds: _Kinds | None = None
) -> None:
    """Put rows into the table of that number: the first one with that id, or after what is there."""
    if kinds is None:
        kinds = KnownKinds().of(connection, number)
    values = [(*_own_of(row), kinds[_kind_of(row)]) for row in rows]
    kinds.store()
    one, many, first = _inserts(number)
    if first_id is not None:
        connection.execute(first, (*values.pop(0), first_id))
    whole = len(values) - len(values) % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        connection.execute(many, list(chain.from_iterable(values[start : start + _AT_ONCE])))
    connection.executemany(one, values[whole:])


@lru_cache(maxsize=2)
def _inserts(number: int) -> tuple[str, str, str]:
    """A row, many rows, a row with its id."""
    names = ", ".join((*_OWN, "kind"))
    marks = ", ".join("?" * (len(_OWN) + 1))
    one = f"INSERT INTO {_rows(number)} ({names}) VALUES ({marks})"  # noqa: S608 - ours
    first = f"INSERT INTO {_rows(number)} ({names}, id) VALUES ({marks}, ?)"  # noqa: S608 - ours
    return one, f"{one}{f', ({marks})' * (_AT_ONCE - 1)}", first


class KnownKinds:
    """Kinds of the open table, remembered from one batch to the next: with thousands of routes there are thousands.

    What a transaction has added is there only once that is committed: `forget` when it fails. Not for several
    processes over the same file.
    """

    def __init__(self) -> None:
        self._kinds: _Kinds | None = None

    def forget(self) -> None:
        self._kinds = None

    def of(self, connection: Connection, number: int) -> _Kinds:
        known = self._kinds
        if known is None or known.number != number or known.connection is not connection or len(known) > _MOST_KINDS:
            known = self._kinds = _Kinds(connection, number)
        return known


class _Kinds(dict[tuple[Any, ...], int]):
    """The numbers of a table's kinds; one that it has not gets the next number, and is added by `store`."""

    def __init__(self, connection: Connection, number: int) -> None:
        names = ", ".join(KIND)
        newest = f"SELECT kind, {names} FROM {_kinds(number)} ORDER BY kind DESC LIMIT {_READ_KINDS}"  # noqa: S608
        super().__init__((row[1:], row[0]) for row in connection.execute(newest))
        self.connection = connection
        self.number = number
        self._insert = f"INSERT INTO {_kinds(number)} (kind, {names}) VALUES (?{', ?' * len(KIND)})"  # noqa: S608 - ours
        self._newest = max(self.values(), default=0)
        self._added: list[tuple[Any, ...]] = []

    def __missing__(self, kind: tuple[Any, ...]) -> int:
        if kind[_MESSAGE] == "":
            number = self[*kind[:_MESSAGE], None, *kind[_MESSAGE + 1 :]]
        else:
            number = self._newest = self._newest + 1
            self._added.append((number, *kind))
        self[kind] = number
        return number

    def store(self) -> None:
        """Put those that were missing into the table: together, for one by one each takes three times as long."""
        if self._added:
            self.connection.executemany(self._insert, self._added)
            self._added.clear()


def _open(connection: Connection) -> Segment:
    return Segment(*first_row(connection, f"{_SEGMENTS} ORDER BY number DESC LIMIT 1"))


def last_id(connection: Connection) -> int:
    """The newest row's, also when that is gone."""
    return _open(connection).last_id


def summed_id(connection: Connection) -> int:
    """The last row that is in the statistics."""
    return int(first_row(connection, "SELECT last_id FROM log_summed")[0])


def set_summed_id(connection: Connection, row_id: int) -> None:
    connection.execute("UPDATE log_summed SET last_id = ?", (row_id,))


def close_if_due(connection: Connection, now_ms: int, max_rows: int, max_age_ms: int) -> bool:
    """Close the open table if it has that many rows (more in a large log) or was begun so long ago."""
    table = _open(connection)
    oldest_id = first_row(connection, "SELECT first_id FROM log_segment ORDER BY number LIMIT 1")[0]
    most = max(max_rows, min((table.last_id - oldest_id) // _SHARE_OF_ALL, _MOST_ROWS))
    return (table.rows >= most or now_ms - table.begun_ms >= max_age_ms) and close_open(connection)


def close_if_ahead(connection: Connection, now_ms: int, max_age_ms: int) -> bool:
    """Close the open table if a clock that was so far ahead has written into it, or it would be young for ever."""
    return _open(connection).last_ms - now_ms >= max_age_ms and close_open(connection)


def close_open(connection: Connection) -> bool:
    """Close the open table, unless it is empty, and begin another."""
    table = _open(connection)
    if not table.rows:
        return False
    number = table.number + 1
    create(connection, number)
    show(connection, number)
    connection.execute(
        "INSERT INTO log_segment VALUES (?, ?, ?, 0, 0, 0, 0, 0)", (number, table.last_id + 1, table.last_id)
    )
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
    connection.execute(f"CREATE INDEX {_rows(number)}_{INDEXES[made]} ON {_rows(number)} ({INDEXES[made]})")
    if made + 1 == len(INDEXES):
        count = f"SELECT count(*) FROM {_rows(number)} AS r WHERE r.kind = {_kinds(number)}.kind"  # noqa: S608 - ours
        connection.execute(f"UPDATE {_kinds(number)} SET row_count = ({count})")  # noqa: S608 - ours
    connection.execute("UPDATE log_segment SET indexes = indexes + 1 WHERE number = ?", (number,))
    return True


def drop_oldest(connection: Connection, before_ms: int, now_ms: int = 1 << 62) -> int:
    """Drop one closed table whose rows are all from before, and in the statistics; how many rows went.

    What lies ahead of now says nothing of a table's age; that a later one was begun before does. Nobody finds the rows
    any more; the table itself is left to `clear_next`.
    """
    begun = "SELECT max(number) FROM log_segment WHERE begun_ms > 0 AND begun_ms < ?"
    is_old = f"(last_ms < ? OR (last_ms > ? AND number < ({begun}))) AND last_id <= ?"
    query = f"SELECT number, last_id - first_id + 1 FROM log_segment WHERE {is_old} AND {_IS_CLOSED}"  # noqa: S608 - ours
    values = (before_ms, now_ms, before_ms, summed_id(connection))
    row = first_row(connection, f"{query} ORDER BY number LIMIT 1", values)
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
    if indexes:
        for column in INDEXES[:indexes]:
            connection.execute(f"DROP INDEX {_rows(number)}_{column}")
        connection.execute("UPDATE log_segment SET indexes = 0 WHERE number = ?", (number,))
    else:
        connection.execute(f"DROP VIEW {VIEW}_{number}")
        connection.execute(f"DROP TABLE {_rows(number)}")
        connection.execute(f"DROP TABLE {_kinds(number)}")
        connection.execute("DELETE FROM log_segment WHERE number = ?", (number,))
    return True


# reading


def rows_after(connection: Connection, row_id: int, count: int) -> tuple[int, list[LogRow]]:
    """So many rows at most that were written next after that one, in their order, and the id of the last of them."""
    found: list[tuple[Any, ...]] = []
    for segment in reversed(segments(connection)):
        if segment.last_id > row_id and len(found) < count:
            query = f"SELECT {_SHOWN} FROM {_both(segment.number)} WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608
            found += connection.execute(query, (row_id, count - len(found))).fetchall()
    return found[-1][0] if found else last_id(connection), [LogRow._make(row[1:]) for row in found]


def find(connection: Connection, query: Query) -> Generator[tuple[Any, ...], None, None]:
    """The rows (`COLUMNS`) that fit, newest first; a table is looked into when it is reached."""
    for segment in segments(connection):
        bounds = _bounds(segment, query)
        at_most = 0 if bounds is None else _count_of_kinds(connection, segment, query)
        if bounds is not None and at_most:
            with contextlib.closing(connection.execute(*_select(connection, segment, query, bounds, at_most))) as rows:
                yield from rows


def segments(connection: Connection) -> list[Segment]:
    """The tables, newest first."""
    return [Segment(*row) for row in connection.execute(f"{_SEGMENTS} WHERE NOT is_dropped ORDER BY number DESC")]


def _bounds(segment: Segment, query: Query) -> dict[str, int] | None:
    """Conditions of time and id with their values; without those that all rows keep, None where none does."""
    bounds = (
        ("created_at >= ?", query.start_ms, query.start_ms <= segment.first_ms, query.start_ms > segment.last_ms),
        ("created_at <= ?", query.end_ms, query.end_ms >= segment.last_ms, query.end_ms < segment.first_ms),
        ("id < ?", query.below_id, query.below_id > segment.last_id, query.below_id <= segment.first_id),
    )
    if any(is_kept_by_none for *_, is_kept_by_none in bounds):
        return None
    return {condition: value for condition, value, is_kept_by_all, _ in bounds if not is_kept_by_all}


def _count_of_kinds(connection: Connection, segment: Segment, query: Query) -> int:
    """How many rows are of the kinds asked for; where nobody has counted yet: none, or all."""
    if not query.of_kind:
        return segment.rows
    kinds = f"SELECT count(*), total(row_count) FROM {_wanted_kinds(segment, query)}"  # noqa: S608 - ours
    count, rows = first_row(connection, kinds, query.kind_values)
    return int(rows) if segment.is_indexed else segment.rows * bool(count)


def _wanted_kinds(segment: Segment, query: Query) -> str:
    return f"{_kinds(segment.number)} WHERE {' AND '.join(query.of_kind)}"


def _select(
    connection: Connection, segment: Segment, query: Query, bounds: dict[str, int], at_most: int
) -> tuple[str, list[Any]]:
    """The statement for one table, of whose rows so many are of the kinds asked for."""
    hint = _hint(connection, segment, query, at_most)
    conditions, values = list(query.conditions), list(query.values)
    for column, condition, bounded in _ranges(query):
        is_told = hint.endswith(f"_{column}")
        conditions.append(condition.format(column if is_told else f"+{column}"))  # the sign keeps sqlite from the index
        values += bounded
    if query.of_kind:
        kind = "kind" if hint else "+kind"
        conditions.append(f"{kind} IN (SELECT kind FROM {_wanted_kinds(segment, query)})")  # noqa: S608 - ours
        values += query.kind_values
    where = f" WHERE {' AND '.join([*conditions, *bounds])}" if conditions or bounds else ""
    statement = f"SELECT {_SHOWN} FROM {_both(segment.number, hint)}{where} ORDER BY id DESC"  # noqa: S608 - ours
    return statement, [*values, *bounds.values()]


def _hint(connection: Connection, segment: Segment, query: Query, at_most: int) -> str:
    """Which index is told to sqlite, by numbers that it does not have; "": its choice among those of equalities.

    One that few rows are found by; where there is none, the newest that fit are met soon on the way back.
    """
    few = int(segment.rows * _FEW)
    is_rare = bool(query.of_kind) and at_most <= few
    ranges = _ranges(query)
    if not segment.is_indexed or len(query.conditions) > 1 or not (is_rare or ranges):
        return ""
    most = at_most if is_rare else few
    if query.conditions and not _has_more(connection, segment, query.conditions[0], query.values, most):
        return ""
    for column, condition, values in ranges:
        if not _has_more(connection, segment, condition.format(column), values, most):
            return f" INDEXED BY {_rows(segment.number)}_{column}"
    if is_rare:
        return f" INDEXED BY {_rows(segment.number)}_kind"
    return "" if query.conditions else " NOT INDEXED"


def _ranges(query: Query) -> list[tuple[str, str, tuple[Any, ...]]]:
    """What is a row's own and asked for by bounds: the column, the condition with `{0}` for its name, the values."""
    ranges: list[tuple[str, str, tuple[Any, ...]]] = []
    path = query.below_path
    if path is not None:
        below = "({0} >= ? AND {0} < ? AND ({0} = ? OR {0} >= ?))"  # "0" is what comes after "/"
        ranges.append(("path", below, (path, f"{path}0", path, f"{path}/")))
    if query.took_ms is not None:
        ranges.append(("response_time", "{0} >= ?", (query.took_ms,)))
    return ranges


def _has_more(connection: Connection, segment: Segment, condition: str, values: Sequence[Any], count: int) -> bool:
    """Whether more than so many rows fit; the index alone says it."""
    rows = f"SELECT 1 FROM {_rows(segment.number)} WHERE {condition} LIMIT ?"  # noqa: S608 - ours
    return int(first_row(connection, f"SELECT count(*) FROM ({rows})", (*values, count + 1))[0]) > count  # noqa: S608
