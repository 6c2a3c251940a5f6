"""Whose a file is, of which version, and how it comes to the newest."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from engadi_gateway.store.database import Connection
from engadi_gateway.store.errors import HeldError, StoreError
from engadi_gateway.store.schema import Migration
from tests.databases import TABLE, add, ask, count, database, descriptors_of, opened


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path, (TABLE, ("CREATE TABLE later (n INTEGER) STRICT",))):
        pass
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer version \\(schema 2, this one knows 1\\)"):
        database(path).open()
    assert path.read_bytes() == before
    assert descriptors_of(path) == []


def test_a_database_of_another_application_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (n)")
        connection.execute("PRAGMA user_version=9")
    with pytest.raises(StoreError, match="another application"):
        database(path).open()
    assert ask(path, "PRAGMA journal_mode") == "delete", "not even switched to WAL"


def test_rows_are_there_after_reopening_and_migrations_are_not_run_again(tmp_path: Path) -> None:
    runs: list[int] = []

    def note(connection: Connection) -> None:
        runs.append(1)
        connection.execute("CREATE TABLE noted (n INTEGER) STRICT")

    for expected in (1, 2, 3):
        with opened(tmp_path / "a.db", (TABLE, note)) as store:
            store.submit(add).result()
            assert store.submit(count).result() == expected
    assert runs == [1]


def breaking(connection: Connection) -> None:
    connection.execute("CREATE TABLE half (n INTEGER) STRICT")
    connection.execute("UPDATE item SET text = 'changed'")
    raise RuntimeError("bug")


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (("CREATE TABLE half (n INTEGER) STRICT", "UPDATE item SET text = 'changed'", "no sql"), StoreError),
        (breaking, RuntimeError),
    ],
    ids=["statements", "function"],
)
def test_a_failed_migration_leaves_nothing_and_runs_again(
    tmp_path: Path, failing: Migration, error: type[Exception]
) -> None:
    path = tmp_path / "a.db"
    with opened(path) as store:
        store.submit(lambda con: add(con, "kept")).result()
    second: Migration = ("CREATE TABLE second (n INTEGER) STRICT",)
    with pytest.raises(error):
        database(path, (TABLE, second, failing)).open()
    assert descriptors_of(path) == []
    assert ask(path, "PRAGMA user_version") == 2, "those before it stay applied"
    assert ask(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'half'") == 0
    with opened(path, (TABLE, second, ("CREATE TABLE half (n INTEGER) STRICT",))) as store:
        assert store.submit(lambda con: con.execute("SELECT text FROM item").fetchall()).result() == [("kept",)]
    assert ask(path, "PRAGMA user_version") == 3


def test_a_file_is_copied_before_it_is_migrated(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.db", tmp_path / "a.db.schema-1"
    with opened(path) as store:
        store.submit(lambda con: add(con, "old")).result()
    assert not copy.exists(), "a new file needs none"
    copy.write_text("of an earlier attempt")
    with opened(path, (TABLE, ("UPDATE item SET text = 'new'",))):
        pass
    assert copy.stat().st_mode & 0o777 == 0o600
    assert (ask(copy, "SELECT text FROM item"), ask(copy, "PRAGMA user_version")) == ("old", 1)
    assert ask(path, "SELECT text FROM item") == "new"


def test_without_a_copy_it_is_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path):
        pass
    (tmp_path / "a.db.schema-1").mkdir()
    with pytest.raises(StoreError, match=r"a\.db\.schema-1: "):
        database(path, (TABLE, ("CREATE TABLE more (n INTEGER) STRICT",))).open()
    assert ask(path, "PRAGMA user_version") == 1
    assert descriptors_of(path) == []


def test_what_others_have_open_is_not_migrated(tmp_path: Path) -> None:
    path, newer = tmp_path / "a.db", (TABLE, ("CREATE TABLE more (n INTEGER) STRICT",))
    with opened(path, is_shared=True) as old:
        with pytest.raises(HeldError, match="end all its processes first"):
            database(path, newer, is_shared=True).open()
        old.submit(add).result()
    with opened(path, newer, is_shared=True) as new, opened(path, newer, is_shared=True) as other:
        for store in (new, other):
            store.submit(add).result()
    assert (ask(path, "PRAGMA user_version"), ask(path, "SELECT count(*) FROM item")) == (2, 3)
