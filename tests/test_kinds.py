"""What rows have in common stands once a table, and is remembered no longer than it holds."""

from __future__ import annotations

from typing import Any

import pytest

from engadi_gateway.store import kinds as module
from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.find import Query
from engadi_gateway.store.kinds import KIND, KnownKinds
from tests.logrows import a_row
from tests.logtables import COLUMN, found, indexed, tables


def kinds(connection: Connection, number: int = 1) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {', '.join(KIND)} FROM log_kind_{number} ORDER BY kind").fetchall()


def test_what_rows_have_in_common_stands_once_in_each_table() -> None:
    rows = [a_row(request_id=f"req-{number}", status_code=200 + number % 3) for number in range(90)]
    expected = [tuple(getattr(rows[number], name) for name in KIND) for number in range(3)]
    with tables() as connection:
        for number in (1, 2):
            for start in range(0, 90, 30):
                segments.add_rows(connection, rows[start : start + 30])
            assert kinds(connection, number) == expected
            segments.close_open(connection)


def test_kinds_of_a_batch_that_was_not_committed_are_not_remembered() -> None:
    with tables() as connection:
        for way in ("ROLLBACK", "COMMIT"):
            connection.execute("BEGIN")
            segments.add_rows(connection, [a_row(status_code=201), a_row(status_code=202)])
            connection.execute(way)
        segments.add_rows(connection, [a_row(status_code=202), a_row(status_code=203)])
        assert [row[COLUMN["status_code"]] for row in found(connection)] == [203, 202, 202, 201]
        assert [kind[KIND.index("status_code")] for kind in kinds(connection)] == [201, 202, 203]


def test_kinds_are_remembered_from_batch_to_batch_in_the_table_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_KINDS", 1)
    known = KnownKinds()
    rows = [a_row(route_id=f"route-{number}") for number in range(50)]
    expected = [tuple(getattr(row, name) for name in KIND) for row in rows]
    with tables() as connection:
        for number in (1, 2):
            for _ in range(3):
                segments.add_rows(connection, rows, known)
            assert kinds(connection, number) == expected
            segments.close_open(connection)
        assert len(found(connection)) == 300
    with tables() as connection:
        segments.add_rows(connection, rows[:2], known)
        assert kinds(connection) == expected[:2], "another file's are others"


def test_no_more_kinds_are_remembered_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KINDS", 3)
    monkeypatch.setattr(module, "_READ_KINDS", 1)
    known = KnownKinds()
    with tables() as connection:
        for method in "ABCDA":
            segments.add_rows(connection, [a_row(method=method)], known)
        assert [kind[0] for kind in kinds(connection)] == ["A", "B", "C", "D", "A"]
        assert [row[COLUMN["method"]] for row in found(connection)] == [*"ADCBA"]


def test_whoever_invents_kinds_makes_no_batch_slower_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_KINDS", 3)
    methods = ["GET", "A", "B", "C", "D", "GET", "A", "D"]
    with tables() as connection:
        for method in methods:
            segments.add_rows(connection, [a_row(method=method)])
        assert [row[COLUMN["method"]] for row in found(connection)] == methods[::-1]
        assert [kind[0] for kind in kinds(connection)] == ["GET", "A", "B", "C", "D", "GET", "A"], "two stand twice"
        segments.close_open(connection)
        rows = found(indexed(connection), Query(of_kind=("method = ?",), kind_values=("A",)))
        assert [row[0] for row in rows] == [7, 2]
