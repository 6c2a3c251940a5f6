"""The log's tables in memory, for tests."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from engadi_gateway.model import LogRow
from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.find import Query, find
from engadi_gateway.store.history import FIRST_SCHEMA, set_kinds_apart
from engadi_gateway.store.segments import COLUMNS

NOW = 1_790_000_000_000
DAY_MS = 86_400_000
COLUMN = {name: number for number, name in enumerate(COLUMNS)}


@contextlib.contextmanager
def tables() -> Iterator[Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in FIRST_SCHEMA:
            connection.execute(statement)
        set_kinds_apart(connection)
        yield connection


def found(connection: Connection, query: Query | None = None) -> list[tuple[Any, ...]]:
    return list(find(connection, query or Query()))


def closed(connection: Connection, rows: list[LogRow]) -> None:
    segments.add_rows(connection, rows)
    segments.close_open(connection)


def indexed(connection: Connection) -> Connection:
    while segments.index_next(connection):
        pass
    return connection
