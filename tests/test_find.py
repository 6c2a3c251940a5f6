"""Questions reach all tables, are answered as by reading everything, and each named filter has its index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engadi_gateway.model import LogRow
from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.find import Query, find
from engadi_gateway.store.kinds import KIND as KIND_FIELDS
from engadi_gateway.store.segments import COLUMNS
from tests.logrows import a_row, random_rows
from tests.logtables import DAY_MS, NOW, closed, found, indexed, tables


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
    "fewer than of somebody quiet": (
        replace(SLOW, conditions=("user_id = ?",), values=("bob",)),
        1,
        "SEARCH log_row_1 USING INDEX log_row_1_response_time (response_time>?)",
    ),
    "as few as of somebody quiet": (
        replace(SLOW, conditions=("user_id = ?",), values=("bob",)),
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
    rows = [a_row(created_at=NOW + n, response_time=900.0 if n < count else 899.9) for n in range(97)]
    rows += [a_row(created_at=NOW + n, user_id="bob") for n in (97, 98)]
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


ROWS = random_rows(300, NOW, NOW + DAY_MS)

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
    own = {name: value for name, value in wanted.items() if name not in KIND_FIELDS}
    of_kind = {name: value for name, value in wanted.items() if name in KIND_FIELDS}
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
        rows = find(connection, Query())
        assert [next(rows)[0] for _ in range(5)] == [12, 11, 10, 9, 8]
        rows.close()
        connection.set_trace_callback(None)
    assert [table for table in ("_1", "_2", "_3") if any(f"log_row{table} " in text for text in asked)] == [
        "_2",
        "_3",
    ]
