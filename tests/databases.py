"""Small databases for tests, and what a file holds or who has it open."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engadi_gateway.store.database import Connection
from engadi_gateway.store.in_use import Database
from engadi_gateway.store.schema import Migration, Schema

APPLICATION = 77
TABLE: Migration = ("CREATE TABLE item (n INTEGER PRIMARY KEY, text TEXT) STRICT",)
ENDLESS = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"
SCHEMA = Schema(APPLICATION, (TABLE,))


def database(
    path: Path, migrations: Sequence[Migration] = (TABLE,), *, is_expendable: bool = False, is_shared: bool = False
) -> Database:
    schema = Schema(APPLICATION, migrations)
    return Database(str(path), schema, synchronous="FULL", is_expendable=is_expendable, is_shared=is_shared)


@contextlib.contextmanager
def opened(
    path: Path, migrations: Sequence[Migration] = (TABLE,), *, is_expendable: bool = False, is_shared: bool = False
) -> Iterator[Database]:
    store = database(path, migrations, is_expendable=is_expendable, is_shared=is_shared)
    store.open()
    try:
        yield store
    finally:
        store.close()


def add(connection: Connection, text: str = "") -> None:
    connection.execute("INSERT INTO item (text) VALUES (?)", (text,))


def count(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM item").fetchone()[0])


def ask(path: Path, query: str) -> Any:
    """As the sqlite3 shell would see it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchone()[0]


def descriptors_of(path: Path) -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return [name for name in found if name.startswith(str(path))]


def names_in(folder: Path) -> list[str]:
    """Without the lock, which stays."""
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix != ".lock")


def damage(path: Path, first_page: int, pages: int = 0) -> None:
    """Scribble over so many pages (0: all) from that one (counted from 0) on."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(first_page * 4096)
        file.write(b"\xa5" * (pages * 4096 or size - first_page * 4096))


def filled(path: Path, *, is_expendable: bool = False) -> None:
    with opened(path, is_expendable=is_expendable) as store:
        store.submit(lambda con: con.executemany("INSERT INTO item (text) VALUES (?)", [("x" * 1000,)] * 200)).result()
