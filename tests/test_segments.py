"""The log's tables: ids go on, questions reach all of them, and each named filter has its index."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engadi_gateway.model import LogRow
from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.segments import COLUMNS, INDEXES, VIEW, Query, Segment
from tests.logrows import a_row, random_rows

NOW = 1_790_000_000_000
DAY_MS = 86_400_000


@contextlib.contextmanager
def tables() -> Iterator[Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in segments.SCHEMA:
            connection.execute(statement)
        yield connection


def found(connection: Connection, query: Query | None = None) -> list[tuple[Any, ...]]:
    return list(segments.find(connection, query or Query()))


def names(connection: Connection) -> set[int]:
    """The numbers of the tables there are."""
    query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'gateway_log_%'"
    return {int(row[0].removeprefix("gateway_log_")) for row in connection.execute(query)}


def closed(connection: Connection, rows: list[LogRow]) -> None:
    segments.add_rows(connection, rows)
    segments.close_open(connection)


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
        for size in sizes:
            segments.add_rows(connection, rows[:size])
            rows = [*rows[size:], *rows[:size]]
        last = 5 + sum(sizes)
        assert segments.segments(connection)[0] == Segment(
            2, 6, last, min(row.created_at for row in rows), max(row.created_at for row in rows)
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


def test_the_larger_the_log_the_larger_its_tables() -> None:
    with tables() as connection:
        connection.execute("INSERT INTO log_segment VALUES (0, -2559, 0, ?, ?, 0, 0)", (NOW, NOW))
        for added, is_due in ((19, False), (1, True)):
            segments.add_rows(connection, [a_row(created_at=NOW)] * added)
            assert segments.close_if_due(connection, NOW, 10, DAY_MS) == is_due


# indexes


def indexed(connection: Connection) -> Connection:
    while segments.index_next(connection):
        pass
    return connection


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
        assert dict(on.fetchall()) == {"gateway_log_1": len(INDEXES), "gateway_log_2": len(INDEXES)}


PLANS = {
    "request_id": (Query(("request_id = ?",), ("x",)), "gateway_log_1_request_id (request_id=?)"),
    "path": (Query(("path = ?",), ("/x",)), "gateway_log_1_path (path=?)"),
    "target_service": (Query(("target_service = ?",), ("x",)), "gateway_log_1_target_service (target_service=?)"),
    "user_id": (Query(("user_id = ?",), ("x",)), "gateway_log_1_user_id (user_id=?)"),
    "client_ip": (Query(("client_ip = ?",), ("x",)), "gateway_log_1_client_ip (client_ip=?)"),
    "reason": (Query(("reason = ?", "reason <> 'ok'"), ("loop",)), "gateway_log_1_reason (reason=?)"),
    "method": (Query(("method = ?", "method <> 'GET'"), ("PUT",)), "gateway_log_1_method (method=?)"),
    "status": (Query(("status_code = ?", "status_code <> 200"), (404,)), "gateway_log_1_status_code (status_code=?)"),
    "path, deep": (Query(("path = ?",), ("/x",), below_id=50), "gateway_log_1_path (path=? AND rowid<?)"),
    "path, of a time": (Query(("path = ?",), ("/x",), start_ms=NOW + 5), "gateway_log_1_path (path=?)"),
}


@pytest.mark.parametrize(("query", "index"), PLANS.values(), ids=PLANS.keys())
def test_each_named_filter_uses_its_index_and_sorts_nothing(query: Query, index: str) -> None:
    with tables() as connection:
        closed(connection, [a_row(created_at=NOW + number) for number in range(100)])
        statement, values = segments.select(segments.segments(indexed(connection))[-1], query)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert plan == [f"SEARCH gateway_log_1 USING INDEX {index}"]


@pytest.mark.parametrize(
    ("query", "plan"),
    [
        (Query(("status_code >= 400",)), ["SCAN gateway_log_1 USING INDEX gateway_log_1_id"]),
        (Query(start_ms=NOW + 50, end_ms=NOW + 52), ["SCAN gateway_log_1"]),
    ],
    ids=["errors", "a time"],
)
def test_errors_have_an_index_and_a_time_reads_one_table_through(query: Query, plan: list[str]) -> None:
    """Nothing is sorted for either."""
    with tables() as connection:
        closed(connection, [a_row(created_at=NOW + number) for number in range(100)])
        statement, values = segments.select(segments.segments(indexed(connection))[-1], query)
        assert [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)] == plan


# questions

ROWS = random_rows(300, NOW, NOW + DAY_MS)
COLUMN = {name: number for number, name in enumerate(COLUMNS)}
FILTERS = st.dictionaries(
    st.sampled_from(["method", "path", "target_service", "user_id", "client_ip", "request_id", "status_code"]),
    st.integers(0, 299),
    max_size=2,
)


@pytest.fixture(scope="module")
def history() -> Iterator[Connection]:
    """Closed and indexed, closed and not yet indexed, and open."""
    with tables() as connection:
        closed(connection, ROWS[:100])
        closed(connection, ROWS[100:120])
        indexed(connection)
        closed(connection, ROWS[120:250])
        segments.add_rows(connection, ROWS[250:])
        yield connection


@settings(max_examples=300, deadline=None)
@given(
    filters=FILTERS,
    start=st.none() | st.integers(-10, 310),
    end=st.none() | st.integers(-10, 310),
    below=st.none() | st.integers(0, 310),
    nudge=st.integers(-1, 1),
)
def test_a_question_is_answered_as_by_reading_everything(
    history: Connection, filters: dict[str, int], start: int | None, end: int | None, below: int | None, nudge: int
) -> None:
    def moment(number: int) -> int:
        return ROWS[min(max(number, 0), 299)].created_at + nudge

    wanted = {name: getattr(ROWS[number], name) for name, number in filters.items()}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    query = Query(
        tuple(f"{name} = ?" for name in wanted),
        tuple(wanted.values()),
        0 if start is None else moment(start),
        1 << 62 if end is None else moment(end),
        1 << 62 if below is None else below,
    )
    brute = [
        (number, *row)
        for number, row in enumerate(ROWS, 1)
        if all(getattr(row, name) == value for name, value in wanted.items())
        and query.start_ms <= row.created_at <= query.end_ms
        and number < query.below_id
    ]
    assert found(history, query) == brute[::-1]


SEGMENT = Segment(7, 10, 20, 1000, 2000)


@pytest.mark.parametrize(
    ("query", "where", "values"),
    [
        (Query(), "", []),
        (Query(start_ms=1000, end_ms=2000, below_id=21), "", []),
        (Query(start_ms=1001), " WHERE created_at >= ?", [1001]),
        (Query(start_ms=2000), " WHERE created_at >= ?", [2000]),
        (Query(start_ms=2001), None, []),
        (Query(end_ms=1999), " WHERE created_at <= ?", [1999]),
        (Query(end_ms=1000), " WHERE created_at <= ?", [1000]),
        (Query(end_ms=999), None, []),
        (Query(below_id=20), " WHERE id < ?", [20]),
        (Query(below_id=11), " WHERE id < ?", [11]),
        (Query(below_id=10), None, []),
        (Query(("a = ?",), (1,), start_ms=1500, below_id=15), " WHERE a = ? AND created_at >= ? AND id < ?",
         [1, 1500, 15]),
    ],
)  # fmt: skip
def test_a_table_is_asked_only_what_it_does_not_settle_itself(
    query: Query, where: str | None, values: list[int]
) -> None:
    wanted = "" if where is None else f"SELECT {', '.join(COLUMNS)} FROM gateway_log_7{where} ORDER BY id DESC"
    assert segments.select(SEGMENT, query) == (wanted, values)


def test_tables_are_looked_into_when_they_are_reached() -> None:
    with tables() as connection:
        for _ in range(3):
            closed(connection, [a_row()] * 4)
        asked: list[str] = []
        connection.set_trace_callback(asked.append)
        rows = segments.find(connection, Query())
        assert [next(rows)[0] for _ in range(5)] == [12, 11, 10, 9, 8]
        rows.close()
        connection.set_trace_callback(None)
    assert [table for table in ("_1", "_2", "_3") if any(f"gateway_log{table} " in text for text in asked)] == [
        "_2",
        "_3",
    ]


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
        left = "SELECT count(*) FROM sqlite_schema WHERE tbl_name IN ('gateway_log_1', 'gateway_log_2')"
        for pieces in (5, 4, 1, 0):  # ten indexes, a table, three indexes, a table
            assert segments.clear_next(connection)
            assert connection.execute(left).fetchone()[0] == pieces
        assert not segments.clear_next(connection)
        assert names(connection) == {3, 4}
        assert indexed(connection).execute("SELECT number, indexes FROM log_segment").fetchall() == [
            (3, len(INDEXES)),
            (4, 0),
        ]
