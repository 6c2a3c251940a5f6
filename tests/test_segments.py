"""The log's tables: ids go on from one to the next, the full and the old are closed and indexed, and what is old goes."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.find import Query
from engadi_gateway.store.history import FIRST_SCHEMA, set_kinds_apart
from engadi_gateway.store.segments import COLUMNS, INDEXES, VIEW, Segment
from tests.logrows import a_row, random_rows
from tests.logtables import COLUMN, DAY_MS, NOW, closed, found, indexed, tables


def names(connection: Connection) -> set[int]:
    """The numbers of the tables there are."""
    query = "SELECT name FROM sqlite_schema WHERE name LIKE ?"
    found = [
        {int(name.removeprefix(kind)) for (name,) in connection.execute(query, (f"{kind}%",)) if name[-1].isdigit()}
        for kind in ("log_row_", "log_kind_", "gateway_log_")
    ]
    assert found[0] == found[1] == found[2], "two tables and a view of both"
    return found[0]


@pytest.mark.parametrize("count", [1, 2, 49, 50, 51, 100, 137, 500])
def test_a_batch_of_any_size_is_kept_in_its_order(count: int) -> None:
    rows = random_rows(count, NOW - DAY_MS, NOW)
    with tables() as connection:
        segments.add_rows(connection, rows)
        assert found(connection) == [(number, *row) for number, row in reversed(list(enumerate(rows, 1)))]


@pytest.mark.parametrize("count", [1, 60])
def test_no_error_message_is_stored_as_none(count: int) -> None:
    with tables() as connection:
        segments.add_rows(connection, [a_row(error_message="")] * count)
        assert {row[COLUMN["error_message"]] for row in found(connection)} == {None}


def test_ids_go_on_from_table_to_table_and_after_all_but_the_last_are_gone() -> None:
    rows = random_rows(12, NOW - DAY_MS, NOW)
    with tables() as connection:
        for start in range(0, 12, 4):
            closed(connection, rows[start : start + 4])
        assert names(connection) == {1, 2, 3, 4}
        assert [row[0] for row in found(connection)] == list(range(12, 0, -1))
        segments.set_summed_id(connection, 8)
        assert [segments.drop_oldest(connection, NOW) for _ in range(3)] == [4, 4, 0], "none that was not summed"
        segments.add_rows(connection, rows[:2])
        assert [row[0] for row in found(connection)] == [14, 13, 12, 11, 10, 9]
        assert len(list(iter(lambda: segments.clear_next(connection), False))) == 2
        assert names(connection) == {3, 4}


def test_ids_go_on_when_all_is_gone() -> None:
    with tables() as connection:
        closed(connection, [a_row()] * 4)
        segments.set_summed_id(connection, 4)
        assert segments.drop_oldest(connection, 1 << 62) == 4
        assert found(connection) == []
        assert segments.last_id(connection) == 4
        assert segments.add_rows(connection, [a_row()] * 2) == 5
        assert [row[0] for row in found(connection)] == [6, 5]


def test_rows_are_read_in_the_order_they_came() -> None:
    rows = random_rows(12, NOW - DAY_MS, NOW)
    with tables() as connection:
        for start in range(0, 8, 4):
            closed(connection, rows[start : start + 4])
        segments.add_rows(connection, rows[8:])
        for after in range(12):
            for count in (1, 3, 5, 100):
                assert segments.rows_after(connection, after, count) == (
                    min(12, after + count),
                    rows[after : after + count],
                )
        assert segments.rows_after(connection, 12, 5) == (12, [])


def test_the_open_table_has_a_name_that_stays() -> None:
    with tables() as connection:
        closed(connection, [a_row()] * 4)
        segments.add_rows(connection, [a_row(request_id="new")])
        assert connection.execute(f"SELECT id, request_id FROM {VIEW}").fetchall() == [(5, "new")]


@pytest.mark.parametrize("sizes", [[1], [3, 1, 2], [60, 2]])
def test_what_a_table_holds_is_known(sizes: list[int]) -> None:
    rows = random_rows(sum(sizes), NOW - DAY_MS, NOW)[::-1]
    with tables() as connection:
        segments.add_rows(connection, random_rows(5, NOW - DAY_MS, NOW))
        segments.close_open(connection)
        assert segments.segments(connection)[0].rows == 0
        begun_ms = max(row.created_at for row in rows[: sizes[0]])
        for size in sizes:
            segments.add_rows(connection, rows[:size])
            rows = [*rows[size:], *rows[:size]]
        last = 5 + sum(sizes)
        assert segments.segments(connection)[0] == Segment(
            2, 6, last, min(row.created_at for row in rows), max(row.created_at for row in rows), begun_ms, 0
        )


def test_an_empty_table_is_never_closed() -> None:
    with tables() as connection:
        assert not segments.close_open(connection)
        assert not segments.close_if_due(connection, NOW, 0, 0)
        assert names(connection) == {1}


@pytest.mark.parametrize(
    ("rows", "age_ms", "is_due"),
    [(9, 0, False), (10, 0, True), (11, 0, True), (1, 999, False), (1, 1000, True), (9, 5000, True)],
)
def test_a_table_is_closed_when_it_is_full_or_old(rows: int, age_ms: int, is_due: bool) -> None:
    with tables() as connection:
        segments.add_rows(connection, [a_row(created_at=NOW)] * rows)
        assert segments.close_if_due(connection, NOW + age_ms, 10, 1000) == is_due
        assert (names(connection) == {1, 2}) == is_due


def test_a_row_of_a_long_stream_makes_no_table_old() -> None:
    """It is written when it ends, and says when it began."""
    long = a_row(created_at=NOW - 5000)
    with tables() as connection:
        for rows in ([long, a_row(created_at=NOW)], [long], [long, a_row(created_at=NOW + 999)]):
            segments.add_rows(connection, rows)
            assert not segments.close_if_due(connection, rows[-1].created_at, 10, 1000)
        assert segments.close_if_due(connection, NOW + 1000, 10, 1000)
        assert segments.segments(connection)[1].first_ms == long.created_at


@pytest.mark.parametrize(("ahead_ms", "is_due"), [(-5000, False), (0, False), (999, False), (1000, True)])
@pytest.mark.parametrize("place", [0, 1])
def test_a_table_into_which_a_clock_wrote_that_was_ahead_is_closed(ahead_ms: int, is_due: bool, place: int) -> None:
    with tables() as connection:
        assert not segments.close_if_ahead(connection, NOW, 1000)
        rows = [a_row(created_at=NOW)]
        rows.insert(place, a_row(created_at=NOW + ahead_ms))
        for row in rows:
            segments.add_rows(connection, [row])
        assert segments.close_if_ahead(connection, NOW, 1000) == is_due
        assert (names(connection) == {1, 2}) == is_due


def test_the_larger_the_log_the_larger_its_tables() -> None:
    with tables() as connection:
        connection.execute("INSERT INTO log_segment VALUES (0, -2559, 0, ?, ?, 0, 0, ?)", (NOW, NOW, NOW))
        for added, is_due in ((19, False), (1, True)):
            segments.add_rows(connection, [a_row(created_at=NOW)] * added)
            assert segments.close_if_due(connection, NOW, 10, DAY_MS) == is_due


# indexes


def test_indexes_are_made_one_at_a_time_for_closed_tables_only() -> None:
    with tables() as connection:
        for _ in range(2):
            closed(connection, [a_row()] * 3)
        segments.add_rows(connection, [a_row()] * 3)
        count = "SELECT count(*) FROM sqlite_schema WHERE type = 'index'"
        for made in range(1, 2 * len(INDEXES) + 1):
            assert segments.index_next(connection)
            assert connection.execute(count).fetchone()[0] == made
        assert not segments.index_next(connection)
        on = connection.execute("SELECT tbl_name, count(*) FROM sqlite_schema WHERE type = 'index' GROUP BY 1")
        assert dict(on.fetchall()) == {"log_row_1": len(INDEXES), "log_row_2": len(INDEXES)}


@pytest.mark.parametrize("message", [None, "", "reset by peer"])
def test_the_view_of_a_table_shows_its_rows_whole(message: str | None) -> None:
    row = a_row(error_message=message)
    with tables() as connection:
        closed(connection, [row])
        segments.add_rows(connection, [row, row])
        shown = [
            connection.execute(f"SELECT * FROM {view} ORDER BY id").fetchall()
            for view in ("gateway_log_1", "gateway_log_2", VIEW)
        ]
    whole = row._replace(error_message=message or None)
    assert shown == [[(1, *whole)], [(2, *whole), (3, *whole)], [(2, *whole), (3, *whole)]]


# of a log that was begun before


def test_a_log_of_the_first_schema_says_the_same_once_its_kinds_are_set_apart() -> None:
    rows = random_rows(70, NOW - DAY_MS, NOW)
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in FIRST_SCHEMA:
            connection.execute(statement)
        connection.execute("ALTER TABLE gateway_log_1 RENAME TO gateway_log_4")
        whole = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'gateway_log_4'").fetchone()[0]
        connection.execute(whole.replace("gateway_log_4", "gateway_log_5"))
        insert = f"INSERT INTO gateway_log_{{}} VALUES ({', '.join('?' * len(COLUMNS))})"
        numbered = [(11 + number, *row) for number, row in enumerate(rows)]
        connection.executemany(insert.format(4), numbered[:40])
        connection.executemany(insert.format(5), numbered[40:])
        connection.execute("CREATE INDEX gateway_log_4_path ON gateway_log_4 (path)")
        connection.execute("DELETE FROM log_segment")
        last_ms, first_ms = rows[39].created_at, rows[40].created_at
        connection.execute("INSERT INTO log_segment VALUES (4, 11, 50, ?, ?, 1, 0)", (rows[0].created_at, last_ms))
        connection.execute("INSERT INTO log_segment VALUES (5, 51, 80, ?, ?, 0, 0)", (first_ms, rows[-1].created_at))
        set_kinds_apart(connection)
        assert names(connection) == {4, 5}
        assert found(connection) == numbered[::-1]
        assert connection.execute(f"SELECT * FROM {VIEW} ORDER BY id").fetchall() == numbered[40:]
        assert segments.add_rows(connection, [a_row()]) == 81
        segments.close_open(indexed(connection))
        wanted = Query(("path = ?",), (rows[7].path,))
        path = COLUMN["path"]
        assert found(connection, wanted) == [row for row in reversed(numbered) if row[path] == rows[7].path]


# retention


def test_a_table_goes_when_all_its_rows_are_old() -> None:
    with tables() as connection:
        closed(connection, [a_row(created_at=NOW + number) for number in (5, 1)])  # one of them took long
        closed(connection, [a_row(created_at=NOW + 3)])
        segments.set_summed_id(connection, 3)
        assert segments.drop_oldest(connection, NOW + 3) == 0
        assert segments.drop_oldest(connection, NOW + 5) == 1, "the other one is kept by its last row"
        assert segments.drop_oldest(connection, NOW + 5) == 0
        assert segments.drop_oldest(connection, NOW + 6) == 2
        assert found(connection) == []


def test_a_table_of_a_clock_that_was_ahead_goes_when_one_was_begun_after_it_long_ago() -> None:
    with tables() as connection:
        closed(connection, [a_row(created_at=NOW)])
        closed(connection, [a_row(created_at=NOW + 1), a_row(created_at=NOW + 9 * DAY_MS)])
        segments.add_rows(connection, [a_row(created_at=NOW + 9 * DAY_MS)])
        segments.set_summed_id(connection, 4)
        now_ms = NOW + 2 * DAY_MS
        assert segments.drop_oldest(connection, NOW, now_ms) == 0
        assert segments.drop_oldest(connection, NOW + 5, now_ms) == 1
        assert segments.drop_oldest(connection, NOW + 5, now_ms) == 0, "what came after it lies ahead too"
        segments.close_open(connection)
        assert segments.drop_oldest(connection, NOW + 5, now_ms) == 0, "nothing came after it"
        segments.add_rows(connection, [a_row(created_at=NOW + 5)])
        assert segments.drop_oldest(connection, NOW + 5, now_ms) == 0, "what came after it is not old enough"
        ids = [row[0] for row in found(connection, Query(start_ms=now_ms))]
        assert ids == [4, 3], "they are found until then"
        assert [segments.drop_oldest(connection, NOW + 6, now_ms) for _ in range(3)] == [2, 1, 0]
        assert [row[0] for row in found(connection)] == [5]


def test_a_clock_that_was_behind_takes_no_others_rows_with_its_own() -> None:
    with tables() as connection:
        for moment in (NOW, 1000, NOW + 1):
            closed(connection, [a_row(created_at=moment)])
        segments.set_summed_id(connection, 3)
        assert [segments.drop_oldest(connection, NOW - DAY_MS, NOW + 1) for _ in range(2)] == [1, 0]
        assert [row[0] for row in found(connection)] == [3, 1]


def test_a_dropped_table_is_found_no_more_and_cleared_in_two_steps() -> None:
    with tables() as connection:
        for number in range(3):
            closed(connection, [a_row(created_at=NOW + number)] * 4)
            segments.set_summed_id(connection, 4 * number + 4)
        for _ in range(len(INDEXES) + 3):
            segments.index_next(connection)
        assert not segments.clear_next(connection)
        assert segments.drop_oldest(connection, NOW + 2) == segments.drop_oldest(connection, NOW + 2) == 4
        assert segments.drop_oldest(connection, NOW + 2) == 0
        assert [row[0] for row in found(connection)] == [12, 11, 10, 9]
        left = "SELECT count(*) FROM sqlite_schema WHERE tbl_name LIKE '%_1' OR tbl_name LIKE '%_2'"
        for pieces in (9, 6, 3, 0):  # all indexes, the tables and their view, three indexes, the tables and their view
            assert segments.clear_next(connection)
            assert connection.execute(left).fetchone()[0] == pieces
        assert not segments.clear_next(connection)
        assert names(connection) == {3, 4}
        assert indexed(connection).execute("SELECT number, indexes FROM log_segment").fetchall() == [
            (3, len(INDEXES)),
            (4, 0),
        ]
