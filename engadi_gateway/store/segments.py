"""The request log's tables: rows go into an open one, which has no index; full or old, it is closed and indexed then.

Indexes on values that come in no order touch as many pages a row as there are indexes, when it is written and when it
goes: that costs four times the row itself. Sorted once, they cost little, and a closed table is dropped whole. The
price: a question about the newest rows reads the open table through, some ten milliseconds at most.

What many rows have in common stands once beside them, in a table of kinds (`store.kinds`): a row is written, and
indexed, with one number for all that. `gateway_log_1` and so on are views that show both as one.

The tables are numbered, and `log_segment` says what each holds; the last one is open. None is ever renamed, because
sqlite looks through the whole schema then. Row ids go on from table to table, so that a larger id is always a row that
was written later. Who asks for rows goes by `store.find`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

from engadi_gateway.model import LogRow
from engadi_gateway.store.database import Connection, first_row
from engadi_gateway.store.kinds import KIND, Kinds, KnownKinds, create_kinds, kind_table

#: The open table, by a name that stays.
VIEW = "gateway_log"
COLUMNS = ("id", *LogRow._fields)
_OWN = (
    "request_id", "path", "user_id", "client_ip", "created_at", "response_time", "upstream_time", "bytes_in",
    "bytes_out",
)  # fmt: skip
#: What a closed table is indexed by, in this order (a new one comes last, and is made of old tables too); with the last
#: one, the rows of each kind are counted. Not by created_at: rows lie in its order, and only the tables at a question's
#: ends are read through, 20 ms the largest.
INDEXES = ("request_id", "path", "user_id", "client_ip", "kind", "response_time")
#: Closed tables stay in the hundreds: the more rows there are, the larger the next one.
_SHARE_OF_ALL = 128
_MOST_ROWS = 250_000

_OF_ROW = """(
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, request_id TEXT NOT NULL, path TEXT NOT NULL, user_id TEXT,
    client_ip TEXT NOT NULL, created_at INTEGER NOT NULL, response_time REAL NOT NULL, upstream_time REAL,
    bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL
) STRICT"""
SHOWN = ", ".join(COLUMNS)
_SEGMENTS = "SELECT number, first_id, last_id, first_ms, last_ms, begun_ms, indexes FROM log_segment"
_IS_CLOSED = "NOT is_dropped AND number < (SELECT max(number) FROM log_segment)"
_AT_ONCE = 50  # rows a statement: half the cost of one by one, and the interpreter's lock is passed on less often
_kind_of = itemgetter(*map(LogRow._fields.index, KIND))
_own_of = itemgetter(*map(LogRow._fields.index, _OWN))
_created = itemgetter(LogRow._fields.index("created_at"))


def row_table(number: int) -> str:
    return f"log_row_{number}"


def both(number: int, hint: str = "") -> str:
    """Rows with their kinds; in this order, or sqlite may begin with the kinds and sort."""
    return f"{row_table(number)}{hint} CROSS JOIN {kind_table(number)} USING (kind)"


def create(connection: Connection, number: int) -> None:
    """Make the tables of that number, and the view of both."""
    connection.execute(f"CREATE TABLE {row_table(number)} {_OF_ROW}")
    create_kinds(connection, number)
    connection.execute(f"CREATE VIEW {VIEW}_{number} AS SELECT {SHOWN} FROM {both(number)}")  # noqa: S608 - ours


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
    connection: Connection, number: int, rows: Sequence[LogRow], *, first_id: int | None, kinds: Kinds | None = None
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
    one = f"INSERT INTO {row_table(number)} ({names}) VALUES ({marks})"  # noqa: S608 - ours
    first = f"INSERT INTO {row_table(number)} ({names}, id) VALUES ({marks}, ?)"  # noqa: S608 - ours
    return one, f"{one}{f', ({marks})' * (_AT_ONCE - 1)}", first


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
    connection.execute(f"CREATE INDEX {row_table(number)}_{INDEXES[made]} ON {row_table(number)} ({INDEXES[made]})")
    if made + 1 == len(INDEXES):
        count = f"SELECT count(*) FROM {row_table(number)} AS r WHERE r.kind = {kind_table(number)}.kind"  # noqa: S608 - ours
        connection.execute(f"UPDATE {kind_table(number)} SET row_count = ({count})")  # noqa: S608 - ours
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
            connection.execute(f"DROP INDEX {row_table(number)}_{column}")
        connection.execute("UPDATE log_segment SET indexes = 0 WHERE number = ?", (number,))
    else:
        connection.execute(f"DROP VIEW {VIEW}_{number}")
        connection.execute(f"DROP TABLE {row_table(number)}")
        connection.execute(f"DROP TABLE {kind_table(number)}")
        connection.execute("DELETE FROM log_segment WHERE number = ?", (number,))
    return True


# reading


def rows_after(connection: Connection, row_id: int, count: int) -> tuple[int, list[LogRow]]:
    """So many rows at most that were written next after that one, in their order, and the id of the last of them."""
    found: list[tuple[Any, ...]] = []
    for segment in reversed(segments(connection)):
        if segment.last_id > row_id and len(found) < count:
            query = f"SELECT {SHOWN} FROM {both(segment.number)} WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608
            found += connection.execute(query, (row_id, count - len(found))).fetchall()
    return found[-1][0] if found else last_id(connection), [LogRow._make(row[1:]) for row in found]


def segments(connection: Connection) -> list[Segment]:
    """The tables, newest first."""
    return [Segment(*row) for row in connection.execute(f"{_SEGMENTS} WHERE NOT is_dropped ORDER BY number DESC")]
