"""Statistics from sums: held against the rows themselves."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engadi_gateway.model import LogRow
from engadi_gateway.store import rollup
from engadi_gateway.store.database import Connection
from engadi_gateway.store.rollup import OTHER
from engadi_gateway.store.sums import HOUR_MS, MINUTE_MS, UNMATCHED, Sums, template_of
from tests.logrows import a_row, random_rows

DAY_MS = 24 * HOUR_MS
NOW = 1_790_000_000_000 + 12_345_678  # within an hour and a minute


@contextlib.contextmanager
def tables(*batches: list[LogRow]) -> Iterator[Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in rollup.SCHEMA:
            connection.execute(statement)
        connection.execute("BEGIN")
        for batch in batches:
            add(connection, batch)
        yield connection


def add(connection: Connection, rows: list[LogRow]) -> None:
    kept = Sums()
    kept.add(rows)
    rollup.add(connection, kept)


def in_batches(rows: list[LogRow], size: int) -> list[list[LogRow]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def asked_for(rows: list[LogRow], hours: int, now_ms: int) -> list[LogRow]:
    """Since `hours` ago, from the beginning of that minute."""
    begin = now_ms - hours * HOUR_MS
    return [row for row in rows if row.created_at >= begin - begin % MINUTE_MS]


# latencies


def exact(values: list[float], percent: int) -> float:
    """The nearest rank."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_within_one_percent_of_the_exact_ones(seed: int) -> None:
    rows = random_rows(10_000, NOW - 3 * HOUR_MS, NOW, seed)
    with tables(*in_batches(rows, 500)) as connection:
        answer = rollup.performance(connection, 24, NOW)
    groups = {name: [row for row in rows if row.target_service == name] for name in ("auth", "content", "search")}
    groups["none"] = [row for row in rows if row.target_service is None]
    assert set(answer["services"]) == set(groups)
    for part, mine in ((answer, rows), *((answer["services"][name], groups[name]) for name in groups)):
        times = [row.response_time for row in mine]
        for percent in (50, 90, 95, 99):
            assert part[f"p{percent}"] == pytest.approx(exact(times, percent), rel=0.01)
        assert (part["count"], part["min"], part["max"]) == (len(times), min(times), max(times))
        assert part["mean"] == pytest.approx(math.fsum(times) / len(times), abs=0.001)


def test_a_service_named_none_and_requests_without_one_are_one_figure() -> None:
    rows = [a_row(created_at=NOW, target_service=name, response_time=ms) for name, ms in (("none", 5.0), (None, 1.0))]
    with tables([rows[0]] * 3, [rows[1]] * 7) as connection:
        stats, timing = rollup.stats(connection, 24, NOW), rollup.performance(connection, 24, NOW)
    assert stats["requests_by_service"] == {"none": 10}
    assert timing["services"] == {"none": {name: timing[name] for name in timing["services"]["none"]}}
    assert [timing[name] for name in ("count", "min", "max", "mean")] == [10, 1.0, 5.0, 2.2]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100, 101])
def test_percentiles_of_few(count: int) -> None:
    rows = [a_row(response_time=float(number), created_at=NOW) for number in range(1, count + 1)]
    with tables(rows) as connection:
        answer = rollup.performance(connection, 1, NOW)
    for percent in (50, 90, 95, 99):
        assert answer[f"p{percent}"] == pytest.approx(exact([row.response_time for row in rows], percent), rel=0.01)
        assert 1 <= answer[f"p{percent}"] <= count, "never outside of what was seen"


def test_nothing_happened() -> None:
    with tables() as connection:
        stats, timing = rollup.stats(connection, 24, NOW), rollup.performance(connection, 24, NOW)
    assert (stats["total_requests"], stats["error_rate"], stats["top_endpoints"]) == (0, 0.0, [])
    assert timing == {
        "hours": 24,
        "count": 0,
        **dict.fromkeys(("p50", "p90", "p95", "p99", "min", "max", "mean")),
        "services": {},
    }


# counts


def brute_force(rows: list[LogRow], hours: int, now_ms: int) -> dict[str, Any]:
    mine = asked_for(rows, hours, now_ms)
    errors = sum(row.status_code >= 400 for row in mine)
    return {
        "hours": hours,
        "total_requests": len(mine),
        "success_count": len(mine) - errors,
        "error_count": errors,
        "server_error_count": sum(row.status_code >= 500 for row in mine),
        "error_rate": round(errors / len(mine), 6) if mine else 0.0,
        "bytes_in": sum(row.bytes_in for row in mine),
        "bytes_out": sum(row.bytes_out for row in mine),
        "requests_by_service": Counter(row.target_service or "none" for row in mine),
        "requests_by_status": Counter(str(row.status_code) for row in mine),
        "requests_by_reason": Counter(row.reason for row in mine),
        "average_response_time": math.fsum(row.response_time for row in mine) / max(1, len(mine)),
    }


HISTORY = random_rows(6_000, NOW - 9 * DAY_MS, NOW)


@pytest.fixture(scope="module")
def history() -> Iterator[Connection]:
    with tables(*in_batches(HISTORY, 100)) as connection:
        yield connection


MOMENTS = {
    "now": NOW,
    "on the hour": NOW - NOW % HOUR_MS,
    "a millisecond before the hour": NOW - NOW % HOUR_MS - 1,
    "on the minute": NOW - NOW % MINUTE_MS,
    "a minute past the hour": NOW - NOW % HOUR_MS + MINUTE_MS,
}


@pytest.mark.parametrize("hours", [1, 2, 3, 24, 25, 168])
@pytest.mark.parametrize("now_ms", MOMENTS.values(), ids=MOMENTS.keys())
def test_hours_and_minutes_add_up_to_what_the_rows_say(history: Connection, hours: int, now_ms: int) -> None:
    answer = rollup.stats(history, hours, now_ms)
    end_ms = now_ms - now_ms % MINUTE_MS + MINUTE_MS
    wanted = brute_force([row for row in HISTORY if row.created_at < end_ms], hours, now_ms)
    assert wanted["total_requests"] > 0
    average = wanted.pop("average_response_time")
    assert answer["average_response_time"] == pytest.approx(average, abs=0.001)
    assert {name: answer[name] for name in wanted} == wanted
    assert rollup.performance(history, hours, now_ms)["count"] == wanted["total_requests"]


@pytest.mark.parametrize("hours", [1, 168])
def test_top_endpoints_are_the_busiest_with_ids_taken_out(history: Connection, hours: int) -> None:
    rows = asked_for(HISTORY, hours, NOW)
    names = [f"{row.method} {template_of(row.path)}" for row in rows]
    counts = Counter(names)
    assert "GET /api/v1/content/{id}/comments/{id}" in counts
    answer = rollup.stats(history, hours, NOW)["top_endpoints"]
    assert [(item["endpoint"], item["requests"]) for item in answer] == sorted(
        counts.items(), key=lambda item: (-item[1], item[0])
    )
    for item in answer:
        mine = [row for row, name in zip(rows, names, strict=True) if name == item["endpoint"]]
        assert item["errors"] == sum(row.status_code >= 400 for row in mine)
        mean = math.fsum(row.response_time for row in mine) / len(mine)
        assert item["average_response_time"] == pytest.approx(mean, abs=0.001)


@pytest.mark.parametrize("ahead_ms", [MINUTE_MS, HOUR_MS, 400 * DAY_MS])
def test_what_a_clock_wrote_that_was_ahead_stands_in_no_answer_until_then(ahead_ms: int) -> None:
    rows = [a_row(created_at=NOW), *[a_row(created_at=NOW + ahead_ms) for _ in range(7)]]
    with tables(rows) as connection:
        assert rollup.stats(connection, 1, NOW)["total_requests"] == 1
        assert rollup.performance(connection, 1, NOW)["count"] == 1
        (top,) = rollup.stats(connection, 1, NOW)["top_endpoints"]
        assert top["requests"] == 1
        assert rollup.stats(connection, 1, NOW + ahead_ms)["total_requests"] >= 7


def test_counts_are_told_largest_first() -> None:
    rows = [a_row(target_service=name, created_at=NOW) for name in ("b", "a", "c", "c")]
    with tables(rows) as connection:
        assert list(rollup.stats(connection, 1, NOW)["requests_by_service"].items()) == [("c", 2), ("a", 1), ("b", 1)]


def plainly(row: tuple[Any, ...]) -> list[Any]:
    """Sums of floats depend on their order, a little; the order of a histogram says nothing."""
    plain = [dict(rollup.unpacked(part)) if isinstance(part, bytes) else part for part in row]
    return [pytest.approx(part) if isinstance(part, float) else part for part in plain]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_it_makes_no_difference_how_rows_were_batched(sizes: list[int]) -> None:
    bounds = list(accumulate(sizes, initial=0))
    with tables(*(HISTORY[a:b] for a, b in pairwise(bounds))) as one, tables(HISTORY[: bounds[-1]]) as other:
        for table in rollup.TABLES:
            query = f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4"
            for got, wanted in zip(one.execute(query), other.execute(query), strict=True):
                assert plainly(got) == plainly(wanted)


def test_a_week_is_read_from_few_rows(history: Connection) -> None:
    """Found through the key, and no more than the hours and the minutes of two edges."""
    condition, values = rollup._spans(168, NOW)
    for table in rollup.TABLES:
        plan = history.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE {condition}", values).fetchall()
        steps = [row[3] for row in plan]
        assert not any(step.startswith("SCAN") for step in steps), steps
        assert sum("USING PRIMARY KEY (span=? AND start>" in step for step in steps) == 3, steps
    starts = history.execute(f"SELECT count(DISTINCT start) FROM rollup WHERE {condition}", values).fetchone()[0]
    assert starts <= 168 + 2 * 60


# endpoints


def endpoints(connection: Connection, span: int) -> dict[str, int]:
    return dict(connection.execute("SELECT endpoint, requests FROM rollup_endpoint WHERE span = ?", (span,)).fetchall())


def test_strangers_cannot_fill_the_tables_with_paths() -> None:
    start = NOW - NOW % HOUR_MS
    real = [a_row(path="/api/v1/content/real", created_at=start)] * 3
    noise = [a_row(path=f"/api/v1/content/x{number}y", created_at=start + 30 * number) for number in range(6_000)]
    with tables(*([*batch, *real] for batch in in_batches(noise, 500))) as connection:
        minutes, hours = endpoints(connection, MINUTE_MS), endpoints(connection, HOUR_MS)
        per_minute = connection.execute(
            "SELECT max(n) FROM (SELECT count(*) AS n FROM rollup_endpoint WHERE span = ? GROUP BY start)", (MINUTE_MS,)
        ).fetchone()[0]
        assert rollup.stats(connection, 1, NOW)["top_endpoints"][0]["endpoint"] == OTHER
        sums = connection.execute("SELECT span, sum(requests) FROM rollup_endpoint GROUP BY span").fetchall()
    assert per_minute == rollup.MAX_ENDPOINTS[MINUTE_MS] + 1
    assert len(hours) == rollup.MAX_ENDPOINTS[HOUR_MS] + 1
    assert hours["GET /api/v1/content/real"] == 36, "the busiest of a batch has its place"
    assert OTHER in minutes
    assert dict(sums) == {MINUTE_MS: 6_036, HOUR_MS: 6_036}, "nobody is forgotten"


def test_what_matched_no_route_is_one_endpoint() -> None:
    rows = [a_row(path=f"/wp-admin/{name}.php", route_id=None, status_code=404, created_at=NOW) for name in "abc"]
    with tables(rows) as connection:
        assert endpoints(connection, MINUTE_MS) == {UNMATCHED: 3}


def test_a_long_path_is_cut() -> None:
    with tables([a_row(path="/a" * 4000, created_at=NOW)]) as connection:
        (name,) = endpoints(connection, MINUTE_MS)
    assert len(name) == 204


# histograms


@given(st.dictionaries(st.integers(-400, 1400), st.integers(1, 2**32 - 1), max_size=400))
def test_a_histogram_comes_back(buckets: dict[int, int]) -> None:
    assert dict(rollup.unpacked(rollup.packed(buckets))) == buckets


# retention


def test_old_spans_go_a_few_at_a_time_and_hours_stay(history: Connection) -> None:
    before_ms = NOW - 8 * DAY_MS
    hours = history.execute("SELECT * FROM rollup WHERE span = ?", (HOUR_MS,)).fetchall()
    history.execute("SAVEPOINT here")
    steps = []
    while gone := rollup.prune(history, MINUTE_MS, before_ms, 240):
        steps.append(gone)
    for table in rollup.TABLES:
        first = history.execute(f"SELECT min(start) FROM {table} WHERE span = ?", (MINUTE_MS,)).fetchone()[0]
        assert first >= before_ms
        assert first - before_ms < HOUR_MS, "no more than was asked"
    assert len(steps) >= 6, "a day is six times four hours"
    assert history.execute("SELECT * FROM rollup WHERE span = ?", (HOUR_MS,)).fetchall() == hours
    assert rollup.stats(history, 168, NOW)["total_requests"] == len(asked_for(HISTORY, 168, NOW))
    history.execute("ROLLBACK TO here")
