"""The statistics are those of the rows: nothing lost, nothing counted twice, whatever becomes of the memory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engadi_gateway.store import rollup, segments, tally
from engadi_gateway.store.database import Connection
from engadi_gateway.store.history import FIRST_SCHEMA, set_kinds_apart
from engadi_gateway.store.sums import HOUR_MS
from engadi_gateway.store.tally import Tally
from tests.logrows import random_rows

NOW = 1_790_000_000_000
ROWS = random_rows(3_000, NOW, NOW + 2 * HOUR_MS)
Batch = list[Any]


@contextlib.contextmanager
def tables() -> Iterator[Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in (*FIRST_SCHEMA, *rollup.SCHEMA):
            connection.execute(statement)
        set_kinds_apart(connection)
        yield connection


def counted(connection: Connection) -> dict[int, int]:
    return dict(connection.execute("SELECT span, sum(requests) FROM rollup GROUP BY span").fetchall())


def stored(connection: Connection, part: Tally) -> int:
    """How many steps it took."""
    steps = 1
    while part.store(connection):
        part.stored()
        steps += 1
    part.stored()
    return steps


def written(connection: Connection, rows: Batch, part: Tally | None) -> None:
    """`None`: by somebody else."""
    first_id = segments.add_rows(connection, rows)
    if part is not None:
        part.add(first_id, rows)


def reads(connection: Connection, part: Tally) -> list[str]:
    """The statements about rows that storing takes."""
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    stored(connection, part)
    connection.set_trace_callback(None)
    return [text for text in asked if "request_id" in text]


def test_what_is_in_memory_is_not_read_again() -> None:
    part = Tally()
    with tables() as connection:
        for start in range(0, 300, 100):
            written(connection, ROWS[start : start + 100], part)
        assert counted(connection) == {}
        assert reads(connection, part) == []
        assert set(counted(connection).values()) == {300}
        written(connection, ROWS[300:310], part)
        assert reads(connection, part) == []
        assert set(counted(connection).values()) == {310}


@pytest.mark.parametrize("is_shared", [False, True])
def test_rows_of_others_are_read(is_shared: bool) -> None:
    part = Tally(is_shared=is_shared)
    with tables() as connection:
        written(connection, ROWS[:100], part)
        written(connection, ROWS[100:150], None)
        written(connection, ROWS[150:200], part)
        assert len(reads(connection, part)) == 1
        assert set(counted(connection).values()) == {200}


def test_what_was_rolled_back_counts_nothing() -> None:
    part = Tally()
    with tables() as connection:
        written(connection, ROWS[:100], part)
        connection.execute("BEGIN")
        segments.add_rows(connection, ROWS[100:200])
        connection.execute("ROLLBACK")
        written(connection, ROWS[100:200], part)
        connection.execute("BEGIN")
        part.store(connection)
        connection.execute("ROLLBACK")
        assert counted(connection) == {}
        assert reads(connection, part) == [], "it was not forgotten"
        assert set(counted(connection).values()) == {200}


def test_after_a_kill_all_is_read_some_of_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "STORED_ROWS", 70)
    with tables() as connection:
        for start in range(0, 300, 50):
            written(connection, ROWS[start : start + 50], Tally())
            if start == 100:
                segments.close_open(connection)
        part = Tally()
        written(connection, ROWS[300:350], part)
        assert stored(connection, part) == 5
        assert set(counted(connection).values()) == {350}
        assert segments.summed_id(connection) == 350


def test_a_new_file_begins_with_its_own_rows() -> None:
    part = Tally()
    with tables() as connection:
        written(connection, ROWS[:100], part)
    with tables() as connection:
        assert stored(connection, part) == 1
        assert counted(connection) == {}
        written(connection, ROWS[100:130], part)
        stored(connection, part)
        assert set(counted(connection).values()) == {30}


def test_sums_that_cannot_be_stored_do_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_MOST_ROWS", 500)
    part = Tally()
    with tables() as connection:
        for start in range(0, 3_000, 100):
            written(connection, ROWS[start : start + 100], part)
            assert part._last_id - part._first_id < 600
        assert part.is_due is False
        stored(connection, part)
        assert set(counted(connection).values()) == {3_000}


def test_sums_are_due_after_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "STORED_ROWS", 200)
    for part in (Tally(), Tally(is_shared=True)):
        with tables() as connection:
            written(connection, ROWS[:150], part)
            assert not part.is_due
            written(connection, ROWS[150:200], part)
            assert part.is_due
            stored(connection, part)
            assert not part.is_due


STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 60)),
    st.tuples(st.just("others write"), st.integers(1, 60)),
    st.tuples(st.sampled_from(["store", "fail to store", "fail to write", "kill", "close", "drop"]), st.just(0)),
)


@settings(max_examples=150)
@given(st.lists(STEPS, max_size=25), st.booleans())
def test_whatever_happens_each_row_is_counted_once(steps: list[tuple[str, int]], is_shared: bool) -> None:
    part, taken = Tally(is_shared=is_shared), 0
    with tables() as connection:
        for what, count in steps:
            rows = ROWS[taken : taken + count]
            if what == "write":
                written(connection, rows, part)
            elif what == "others write":
                written(connection, rows, None)
            elif what == "store":
                stored(connection, part)
            elif what == "kill":
                part = Tally(is_shared=is_shared)
            elif what == "close":
                segments.close_open(connection)
            elif what == "drop":
                segments.drop_oldest(connection, 1 << 62)
                segments.clear_next(connection)
            else:
                connection.execute("BEGIN")
                part.store(connection) if what == "fail to store" else segments.add_rows(connection, ROWS[:9])
                connection.execute("ROLLBACK")
            taken += len(rows)
        stored(connection, part)
        assert set(counted(connection).values()) == ({taken} if taken else set())
        by_status = connection.execute(
            f"SELECT status, sum(requests) FROM rollup WHERE span = {HOUR_MS} GROUP BY status"
        ).fetchall()
        wanted = {row.status_code for row in ROWS[:taken]}
        assert dict(by_status) == {code: sum(row.status_code == code for row in ROWS[:taken]) for code in wanted}
