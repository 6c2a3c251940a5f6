"""The log's tables: ids go on, questions reach all of them, and each named filter has its index."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engadi_gateway.model import LogRow
from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.history import FIRST_SCHEMA, set_kinds_apart
from engadi_gateway.store.segments import COLUMNS, INDEXES, VIEW, Query, Segment
from tests.logrows import a_row, random_rows

NOW = 1_790_000_000_000
DAY_MS = 86_400_000


@contextlib.contextmanager
def tables() -> Iterator[Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in FIRST_SCHEMA:
            connection.execute(statement)
        set_kinds_apart(connection)
        yield connection


def found(connection: Connection, query: Query | None = None) -> list[tuple[Any, ...]]:
    return list(segments.find(connection, query or Query()))


def names(connection: Connection) -> set[int]:
    """The numbers of the tables there are."""
    query = "SELECT name FROM sqlite_schema WHERE name LIKE ?"
    found = [
        {int(name.removeprefix(kind)) for (name,) in connection.execute(query, (f"{kind}%",)) if name[-1].isdigit()}
        for kind in ("log_row_", "log_kind_", "gateway_log_")
    ]
    assert found[0] == found[1] == found[2], "two tables and a view of both"
    return found[0]


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
        assert dict(on.fetchall()) == {"log_row_1": len(INDEXES), "log_row_2": len(INDEXES)}


def plan_of(connection: Connection, query: Query) -> list[str]:
    """What sqlite does for the question in the oldest table, in the order in which it does it."""
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    found(connection, query)
    connection.set_trace_callback(None)
    statement = next(text for text in asked if " FROM log_row_1 " in text and "ORDER BY" in text)
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]


KIND = "SEARCH log_kind_1 USING INTEGER PRIMARY KEY (rowid=?)"
PLANS = {
    "request_id": (Query(("request_id = ?",), ("x",)), "log_row_1_request_id (request_id=?)"),
    "path": (Query(("path = ?",), ("/x",)), "log_row_1_path (path=?)"),
    "user_id": (Query(("user_id = ?",), ("x",)), "log_row_1_user_id (user_id=?)"),
    "client_ip": (Query(("client_ip = ?",), ("x",)), "log_row_1_client_ip (client_ip=?)"),
    "path, deep": (Query(("path = ?",), ("/x",), below_id=50), "log_row_1_path (path=? AND rowid<?)"),
    "path, of a time": (Query(("path = ?",), ("/x",), start_ms=NOW + 5), "log_row_1_path (path=?)"),
}


def a_hundred(**fields: Any) -> list[LogRow]:
    return [a_row(created_at=NOW + number, **fields) for number in range(100)]


@pytest.mark.parametrize(("query", "index"), PLANS.values(), ids=PLANS.keys())
def test_what_is_a_rows_own_is_found_by_its_index_and_nothing_sorted(query: Query, index: str) -> None:
    with tables() as connection:
        closed(connection, a_hundred())
        assert plan_of(indexed(connection), query) == [f"SEARCH log_row_1 USING INDEX {index}", KIND]


OF_KIND = {
    "method": ("method = ?", "PUT"),
    "service": ("target_service = ?", "ai"),
    "status": ("status_code = ?", 503),
    "errors": ("status_code >= ?", 400),
    "reason": ("reason = ?", "loop"),
}
RARE = {"method": "PUT", "target_service": "ai", "status_code": 503, "reason": "loop"}


@pytest.mark.parametrize(("condition", "value"), OF_KIND.values(), ids=OF_KIND.keys())
@pytest.mark.parametrize(
    ("rare", "first"),
    [
        (1, "SEARCH log_row_1 USING INDEX log_row_1_kind (kind=?)"),
        (2, "SEARCH log_row_1 USING INDEX log_row_1_kind (kind=?)"),
        (3, "SCAN log_row_1"),
    ],
)
def test_rows_of_a_kind_are_found_by_its_index_where_it_is_rare(
    condition: str, value: Any, rare: int, first: str
) -> None:
    """A common one is met soon on the way back from the newest."""
    with tables() as connection:
        closed(connection, [*a_hundred()[rare:], *a_hundred(**RARE)[:rare]])
        plan = plan_of(indexed(connection), Query(of_kind=(condition,), kind_values=(value,)))
        assert plan[0] == first
        assert ("USE TEMP B-TREE FOR ORDER BY" in plan) == (first != "SCAN log_row_1"), "few are sorted"


@pytest.mark.parametrize(
    ("paths", "kinds", "index"), [(1, 1, "path"), (1, 50, "path"), (2, 1, "kind"), (50, 2, "kind"), (50, 50, "path")]
)
def test_a_rows_own_and_its_kind_are_found_by_what_fewer_have(paths: int, kinds: int, index: str) -> None:
    query = Query(("path = ?",), ("/x",), ("status_code = ?",), (503,))
    rows = [
        a_row(created_at=NOW + n, path="/x" if n < paths else "/y", status_code=503 if n < kinds else 200)
        for n in range(100)
    ]
    with tables() as connection:
        closed(connection, rows)
        assert plan_of(indexed(connection), query)[0] == f"SEARCH log_row_1 USING INDEX log_row_1_{index} ({index}=?)"
        assert len(found(connection, query)) == min(paths, kinds)


PATHS = ["/a", "/a/", "/a/b", "/a/b/c", "/a-b", "/a.b", "/ab", "/a0", "/A", "/a/\U0001f600", "/", "*", "/b"]


@pytest.mark.parametrize(
    ("below", "fits"),
    [
        ("/a", {"/a", "/a/", "/a/b", "/a/b/c", "/a/\U0001f600"}),
        ("/a/b", {"/a/b", "/a/b/c"}),
        ("", set(PATHS) - {"*"}),
        ("/nobody", set()),
    ],
)
@pytest.mark.parametrize("rest", [1, 50])
@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize(
    "beside", [Query(), Query(("user_id = ?",), ("u",)), Query((), (), ("status_code = ?",), (503,))]
)
def test_a_path_and_what_is_below_it(below: str, fits: set[str], rest: int, is_closed: bool, beside: Query) -> None:
    rows = [a_row(path=path, user_id="u", status_code=503, created_at=NOW) for path in PATHS * rest]
    rows += [a_row(path="/a/b", user_id="other", status_code=200, created_at=NOW)] * 200
    with tables() as connection:
        if is_closed:
            closed(connection, rows)
            indexed(connection)
        else:
            segments.add_rows(connection, rows)
        brute = [
            (number, *row)
            for number, row in enumerate(rows, 1)
            if row.path in fits
            and (row.user_id == "u" or not beside.conditions)
            and (row.status_code == 503 or not beside.of_kind)
        ]
        assert found(connection, replace(beside, below_path=below)) == brute[::-1]


BELOW = {
    "few": (Query(below_path="/x"), 2, "SEARCH log_row_1 USING INDEX log_row_1_path (path>? AND path<?)", True),
    "many": (Query(below_path="/x"), 3, "SCAN log_row_1", False),
    "few of a kind": (
        Query(of_kind=("status_code = ?",), kind_values=(503,), below_path="/x"),
        3,
        "SEARCH log_row_1 USING INDEX log_row_1_kind (kind=?)",
        True,
    ),
    "one user's": (
        Query(("user_id = ?",), ("u",), below_path="/x"),
        3,
        "SEARCH log_row_1 USING INDEX log_row_1_user_id (user_id=?)",
        False,
    ),
}


@pytest.mark.parametrize(("query", "count", "first", "is_sorted"), BELOW.values(), ids=BELOW.keys())
def test_what_is_below_a_path_is_found_by_its_index_where_it_is_little(
    query: Query, count: int, first: str, is_sorted: bool
) -> None:
    rows = [a_row(created_at=NOW + n, path=f"/x/{n}" if n < count else "/y") for n in range(98)]
    with tables() as connection:
        closed(connection, [*rows, *[a_row(created_at=NOW + 98, status_code=503)] * 2])
        plan = plan_of(indexed(connection), query)
        assert plan[0] == first
        assert ("USE TEMP B-TREE FOR ORDER BY" in plan) == is_sorted


SLOW = Query(took_ms=900)
LONG = {
    "few": (SLOW, 2, "SEARCH log_row_1 USING INDEX log_row_1_response_time (response_time>?)"),
    "many": (SLOW, 3, "SCAN log_row_1"),
    "few, of a common kind": (
        replace(SLOW, of_kind=("status_code = ?",), kind_values=(200,)),
        2,
        "SEARCH log_row_1 USING INDEX log_row_1_response_time (response_time>?)",
    ),
    "of a rarer kind": (
        replace(SLOW, of_kind=("status_code = ?",), kind_values=(503,)),
        2,
        "SEARCH log_row_1 USING INDEX log_row_1_kind (kind=?)",
    ),
    "few, of somebody busy": (
        replace(SLOW, conditions=("user_id = ?",), values=("alice",)),
        2,
        "SEARCH log_row_1 USING INDEX log_row_1_response_time (response_time>?)",
    ),
    "many, of somebody busy": (
        replace(SLOW, conditions=("user_id = ?",), values=("alice",)),
        3,
        "SEARCH log_row_1 USING INDEX log_row_1_user_id (user_id=?)",
    ),
    "few, of a stranger": (
        replace(SLOW, conditions=("user_id = ?",), values=("mallory",)),
        2,
        "SEARCH log_row_1 USING INDEX log_row_1_user_id (user_id=?)",
    ),
    "few, below a busy path": (
        replace(SLOW, below_path="/api"),
        2,
        "SEARCH log_row_1 USING INDEX log_row_1_response_time (response_time>?)",
    ),
    "many, below a quiet path": (
        replace(SLOW, below_path="/x"),
        3,
        "SEARCH log_row_1 USING INDEX log_row_1_path (path>? AND path<?)",
    ),
}


@pytest.mark.parametrize(("query", "count", "first"), LONG.values(), ids=LONG.keys())
def test_what_took_long_is_found_by_what_is_rarest_of_all_that_is_asked(query: Query, count: int, first: str) -> None:
    rows = [a_row(created_at=NOW + n, response_time=900.0 if n < count else 899.9) for n in range(99)]
    with tables() as connection:
        closed(connection, [*rows, a_row(created_at=NOW + 99, status_code=503, user_id="mallory", path="/x")])
        plan = plan_of(indexed(connection), query)
        assert plan[0] == first


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_table_without_the_kind_is_not_looked_into(is_closed: bool) -> None:
    with tables() as connection:
        segments.add_rows(connection, a_hundred())
        if is_closed:
            segments.close_open(connection)
            indexed(connection)
        asked: list[str] = []
        connection.set_trace_callback(asked.append)
        assert found(connection, Query(of_kind=("status_code = ?",), kind_values=(503,))) == []
        connection.set_trace_callback(None)
    assert not any("log_row" in text for text in asked)


def test_a_time_reads_one_table_through_and_sorts_nothing() -> None:
    with tables() as connection:
        closed(connection, a_hundred())
        assert plan_of(indexed(connection), Query(start_ms=NOW + 50, end_ms=NOW + 52)) == ["SCAN log_row_1", KIND]


# kinds


def kinds(connection: Connection, number: int = 1) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {', '.join(segments.KIND)} FROM log_kind_{number} ORDER BY kind").fetchall()


def test_what_rows_have_in_common_stands_once_in_each_table() -> None:
    rows = [a_row(request_id=f"req-{number}", status_code=200 + number % 3) for number in range(90)]
    expected = [tuple(getattr(rows[number], name) for name in segments.KIND) for number in range(3)]
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
        assert [kind[segments.KIND.index("status_code")] for kind in kinds(connection)] == [201, 202, 203]


def test_kinds_are_remembered_from_batch_to_batch_in_the_table_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_READ_KINDS", 1)
    known = segments.KnownKinds()
    rows = [a_row(route_id=f"route-{number}") for number in range(50)]
    expected = [tuple(getattr(row, name) for name in segments.KIND) for row in rows]
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
    monkeypatch.setattr(segments, "_MOST_KINDS", 3)
    monkeypatch.setattr(segments, "_READ_KINDS", 1)
    known = segments.KnownKinds()
    with tables() as connection:
        for method in "ABCDA":
            segments.add_rows(connection, [a_row(method=method)], known)
        assert [kind[0] for kind in kinds(connection)] == ["A", "B", "C", "D", "A"]
        assert [row[COLUMN["method"]] for row in found(connection)] == [*"ADCBA"]


def test_whoever_invents_kinds_makes_no_batch_slower_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_READ_KINDS", 3)
    methods = ["GET", "A", "B", "C", "D", "GET", "A", "D"]
    with tables() as connection:
        for method in methods:
            segments.add_rows(connection, [a_row(method=method)])
        assert [row[COLUMN["method"]] for row in found(connection)] == methods[::-1]
        assert [kind[0] for kind in kinds(connection)] == ["GET", "A", "B", "C", "D", "GET", "A"], "two stand twice"
        segments.close_open(connection)
        rows = found(indexed(connection), Query(of_kind=("method = ?",), kind_values=("A",)))
        assert [row[0] for row in rows] == [7, 2]


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


@settings(max_examples=300)
@given(
    filters=FILTERS,
    start=st.none() | st.integers(-10, 310),
    end=st.none() | st.integers(-10, 310),
    below=st.none() | st.integers(0, 310),
    slow=st.none() | st.integers(0, 299),
    below_path=st.sampled_from([None, None, "/api/v1/content", "/api/v1/content/7"]),
    nudge=st.integers(-1, 1),
)
def test_a_question_is_answered_as_by_reading_everything(
    history: Connection,
    filters: dict[str, int],
    start: int | None,
    end: int | None,
    below: int | None,
    slow: int | None,
    below_path: str | None,
    nudge: int,
) -> None:
    def moment(number: int) -> int:
        return ROWS[min(max(number, 0), 299)].created_at + nudge

    wanted = {name: getattr(ROWS[number], name) for name, number in filters.items()}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    own = {name: value for name, value in wanted.items() if name not in segments.KIND}
    of_kind = {name: value for name, value in wanted.items() if name in segments.KIND}
    query = Query(
        tuple(f"{name} = ?" for name in own),
        tuple(own.values()),
        tuple(f"{name} = ?" for name in of_kind),
        tuple(of_kind.values()),
        0 if start is None else moment(start),
        1 << 62 if end is None else moment(end),
        1 << 62 if below is None else below,
        below_path,
        None if slow is None else ROWS[slow].response_time,
    )
    brute = [
        (number, *row)
        for number, row in enumerate(ROWS, 1)
        if all(getattr(row, name) == value for name, value in wanted.items())
        and query.start_ms <= row.created_at <= query.end_ms
        and number < query.below_id
        and row.response_time >= (query.took_ms or 0)
        and (below_path is None or f"{row.path}/".startswith(f"{below_path}/"))
    ]
    assert found(history, query) == brute[::-1]


@pytest.mark.parametrize(
    ("query", "conditions"),
    [
        (Query(), ""),
        (Query(start_ms=1000, end_ms=2000, below_id=21), ""),
        (Query(start_ms=1001), " WHERE created_at >= 1001"),
        (Query(start_ms=2000), " WHERE created_at >= 2000"),
        (Query(start_ms=2001), None),
        (Query(end_ms=1999), " WHERE created_at <= 1999"),
        (Query(end_ms=1000), " WHERE created_at <= 1000"),
        (Query(end_ms=999), None),
        (Query(below_id=20), " WHERE id < 20"),
        (Query(below_id=11), " WHERE id < 11"),
        (Query(below_id=10), None),
        (
            Query(("path = ?",), ("/x",), start_ms=1500, below_id=15),
            " WHERE path = '/x' AND created_at >= 1500 AND id < 15",
        ),
    ],
)
def test_a_table_is_asked_only_what_it_does_not_settle_itself(query: Query, conditions: str | None) -> None:
    asked: list[str] = []
    with tables() as connection:
        connection.execute("UPDATE log_segment SET first_id = 10, last_id = 9")
        segments.add_rows(connection, [a_row(created_at=1000 + 100 * number) for number in range(11)])
        connection.set_trace_callback(asked.append)
        found(connection, query)
        connection.set_trace_callback(None)
    statements = [text for text in asked if "log_row" in text]
    start = f"SELECT {', '.join(COLUMNS)} FROM log_row_1 CROSS JOIN log_kind_1 USING (kind)"
    assert statements == ([] if conditions is None else [f"{start}{conditions} ORDER BY id DESC"])


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
    assert [table for table in ("_1", "_2", "_3") if any(f"log_row{table} " in text for text in asked)] == [
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
