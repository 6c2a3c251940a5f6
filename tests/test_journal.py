"""The request log: rows in and out, its tables, what is asked of it, its age; and its file on bad days."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engadi_gateway.model import HealthStatus, LogRow, ServiceHealth
from engadi_gateway.store import journal as journal_module
from engadi_gateway.store import segments, tally
from engadi_gateway.store.database import Connection
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.find import Query
from engadi_gateway.store.journal import Journal
from engadi_gateway.store.kinds import KnownKinds
from engadi_gateway.store.pages import file_bytes
from engadi_gateway.store.questions import LogFilter, query_of
from tests.databases import damage
from tests.journals import (
    DAY_MS,
    NOW,
    asked,
    everything,
    journal_in,
    opened,
    put_in_batches,
    run,
    settled,
)
from tests.logrows import a_row, random_rows

HOUR_MS = 3_600_000


# rows in and out


def test_a_row_comes_back_with_all_its_fields(tmp_path: Path) -> None:
    row = a_row(error_message="Grüße", created_at=1_790_000_000_007, upstream_time=0.25)
    empty = a_row(target_service=None, user_id=None, route_id=None, upstream_time=None)
    with opened(tmp_path) as journal:
        assert journal.put([row, empty]) == 0
        settled(journal)
        second, first = everything(journal)
    assert first == {"id": 1, **row._asdict(), "created_at": "2026-09-21T14:13:20.007Z"}
    assert second == {"id": 2, **empty._asdict(), "created_at": "2026-09-21T14:13:20.000Z"}


def test_nothing_is_lost_at_a_clean_stop(tmp_path: Path) -> None:
    rows = random_rows(2_000, NOW, NOW + DAY_MS)
    with opened(tmp_path, segment_rows=300) as journal:
        put_in_batches(journal, rows)
    with opened(tmp_path, segment_rows=300) as journal:
        assert [row["request_id"] for row in everything(journal)] == [row.request_id for row in reversed(rows)]
        journal.put([a_row(request_id="later", created_at=NOW + DAY_MS)])
        settled(journal)
        assert everything(journal)[0]["request_id"] == "later"


def test_to_wait_until_written_is_to_see_what_was_put(tmp_path: Path) -> None:
    async def session(journal: Journal) -> None:
        for number in range(1, 6):
            journal.put([a_row()])
            await journal.written(5)
            assert len((await journal.logs(LogFilter())).items) == number

    with opened(tmp_path) as journal:
        asyncio.run(session(journal))


def test_the_wait_has_an_end(tmp_path: Path) -> None:
    hold = threading.Event()
    with opened(tmp_path) as journal:
        journal._database.submit(lambda connection: hold.wait(5))
        asyncio.run(journal.written(0.01))
        hold.set()
        journal.put([a_row()])
    asyncio.run(journal.written(5))  # closed: there is nothing to wait for


# a table after the other


def test_what_a_failed_transaction_added_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kinds are gone with it: rows of the second attempt must not refer to them."""
    add_rows, failures = segments.add_rows, [StoreError("once")]

    def failing(connection: Connection, rows: list[LogRow], known: KnownKinds | None) -> int:
        first_id = add_rows(connection, rows, known)
        if failures:
            raise failures.pop()
        return first_id

    monkeypatch.setattr(segments, "add_rows", failing)
    with opened(tmp_path) as journal:
        for number in range(2):
            journal.put([a_row(method=method) for method in ("A", "B")])
            assert settled(journal).rows_written == 2 * number + 2
        assert [row["method"] for row in everything(journal)] == ["B", "A", "B", "A"]
        assert run(journal, lambda connection: connection.execute("SELECT count(*) FROM log_kind_1").fetchone()) == (2,)


def test_closed_tables_are_indexed_while_rows_come(tmp_path: Path) -> None:
    rows = random_rows(1_000, NOW, NOW + HOUR_MS)
    with opened(tmp_path, segment_rows=300) as journal:
        put_in_batches(journal, rows)
        settled(journal)
        made = run(
            journal, lambda con: con.execute("SELECT last_id - first_id + 1, indexes FROM log_segment").fetchall()
        )
        assert made == [*[(300, len(segments.INDEXES))] * 3, (100, 0)]
        assert len(everything(journal)) == 1_000


def test_what_was_not_indexed_is_indexed_at_the_next_start(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.put([a_row()] * 10)
        run(journal, segments.close_open)
    with opened(tmp_path) as journal:
        for _ in range(len(segments.INDEXES) + 1):
            run(journal, lambda connection: None)
        assert not run(journal, segments.index_next)


# questions

ROWS = random_rows(500, NOW, NOW + 10 * DAY_MS)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    with opened(tmp_path_factory.mktemp("journal"), segment_rows=150) as journal:
        put_in_batches(journal, ROWS, 50)
        settled(journal)
        yield journal


Test = Callable[[LogRow], bool]
MIDDLE = ROWS[250].created_at
FILTERS: dict[str, tuple[LogFilter, Test]] = {
    "method": (LogFilter(method="POST"), lambda row: row.method == "POST"),
    "path": (LogFilter(path="/api/v1/search"), lambda row: row.path == "/api/v1/search"),
    "target_service": (LogFilter(target_service="auth"), lambda row: row.target_service == "auth"),
    "user_id": (LogFilter(user_id="bob"), lambda row: row.user_id == "bob"),
    "client_ip": (LogFilter(client_ip="192.0.2.3"), lambda row: row.client_ip == "192.0.2.3"),
    "request_id": (LogFilter(request_id="req-77"), lambda row: row.request_id == "req-77"),
    "status": (LogFilter(status_code=201), lambda row: row.status_code == 201),
    "error status": (LogFilter(status_code=404), lambda row: row.status_code == 404),
    "class of status": (LogFilter(status_class=4), lambda row: 400 <= row.status_code <= 499),
    "class of status of a method": (
        LogFilter(status_class=5, method="GET"),
        lambda row: row.method == "GET" and 500 <= row.status_code <= 599,
    ),
    "reason": (LogFilter(reason="rate_limited"), lambda row: row.reason == "rate_limited"),
    "reason with a word": (LogFilter(reason="auth_invalid"), lambda row: row.reason.startswith("auth_invalid.")),
    "path and below": (LogFilter(path="/api/v1/*"), lambda row: row.path.startswith("/api/v1/")),
    "path below of a user": (
        LogFilter(path="/api/v1/search/*", user_id="bob"),
        lambda row: (row.path, row.user_id) == ("/api/v1/search", "bob"),
    ),
    "route": (LogFilter(route_id=ROWS[7].route_id), lambda row: row.route_id == ROWS[7].route_id),
    "reason ok": (LogFilter(reason="ok"), lambda row: row.reason == "ok"),
    "from": (LogFilter(start_ms=MIDDLE), lambda row: row.created_at >= MIDDLE),
    "to": (LogFilter(end_ms=MIDDLE), lambda row: row.created_at <= MIDDLE),
    "one moment": (LogFilter(start_ms=MIDDLE, end_ms=MIDDLE), lambda row: row.created_at == MIDDLE),
    "several": (
        LogFilter(method="GET", user_id="alice", status_code=502, start_ms=MIDDLE),
        lambda row: (row.method, row.user_id, row.status_code) == ("GET", "alice", 502) and row.created_at >= MIDDLE,
    ),
    "nobody": (LogFilter(user_id="' OR 1 = 1 --"), lambda row: False),
    "before all": (LogFilter(end_ms=NOW - 1), lambda row: False),
}


@pytest.mark.parametrize(("wanted", "fits"), FILTERS.values(), ids=FILTERS.keys())
def test_each_filter_selects_what_it_says_newest_first(history: Journal, wanted: LogFilter, fits: Test) -> None:
    page = asyncio.run(history.logs(replace(wanted, limit=1_000)))
    assert [row["request_id"] for row in page.items] == [row.request_id for row in reversed(ROWS) if fits(row)]
    assert page.next_cursor is None


@pytest.mark.parametrize(
    ("wanted", "query"),
    [
        (LogFilter(), Query()),
        (LogFilter(method="PUT"), Query(of_kind=("method = ?",), kind_values=("PUT",))),
        (LogFilter(user_id="alice"), Query(("user_id = ?",), ("alice",))),
        (
            LogFilter(user_id="alice", method="PUT", status_code=404, path="/x", reason="loop", target_service="ai"),
            Query(
                ("path = ?", "user_id = ?"),
                ("/x", "alice"),
                ("method = ?", "target_service = ?", "status_code = ?", "(reason = ? OR reason GLOB ?)"),
                ("PUT", "ai", 404, "loop", "loop.*"),
            ),
        ),
    ],
    ids=str,
)
def test_a_filter_is_of_what_is_a_rows_own_or_of_its_kind(wanted: LogFilter, query: Query) -> None:
    assert query_of(wanted) == query


@pytest.mark.parametrize("limit", [1, 7, 149, 150, 151, 500])
def test_cursors_lead_through_all_rows_once(history: Journal, limit: int) -> None:
    async def walk() -> list[str]:
        seen: list[str] = []
        page = await history.logs(LogFilter(method="GET", limit=limit))
        seen += [row["request_id"] for row in page.items]
        while page.next_cursor is not None:
            page = await history.logs(LogFilter(method="GET", limit=limit, cursor=page.next_cursor))
            assert page.items
            seen += [row["request_id"] for row in page.items]
        return seen

    assert asyncio.run(walk()) == [row.request_id for row in reversed(ROWS) if row.method == "GET"]


@pytest.mark.parametrize(("offset", "limit"), [(0, 3), (1, 3), (49, 3), (149, 200), (498, 5), (500, 5), (10**6, 5)])
def test_an_offset_skips_so_many(history: Journal, offset: int, limit: int) -> None:
    page = asyncio.run(history.logs(LogFilter(offset=offset, limit=limit)))
    wanted = [row.request_id for row in reversed(ROWS)]
    assert [row["request_id"] for row in page.items] == wanted[offset : offset + limit]
    assert (page.next_cursor is not None) == (offset + limit < 500)


@pytest.mark.parametrize(
    "cursor", ["", "abc", "%", "WzFd!", "WzEsMl0", "W10", "WyJhIl0", "W3RydWVd", "Wy0xXQ", "WzEuNV0", "W251bGxd", "ä"]
)
def test_a_cursor_of_somebody_else_is_a_value_error(history: Journal, cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor of this API"):
        asyncio.run(history.logs(LogFilter(cursor=cursor)))


def test_errors_are_the_newest_of_400_and_above(history: Journal) -> None:
    wanted = [row.request_id for row in reversed(ROWS) if row.status_code >= 400]
    assert [row["request_id"] for row in asyncio.run(history.errors(200))] == wanted[:200]


def test_statistics_are_those_of_the_rows(history: Journal) -> None:
    now_ms = NOW + 10 * DAY_MS
    begin = now_ms - 168 * HOUR_MS
    mine = [row for row in ROWS if row.created_at >= begin - begin % 60_000]
    stats = asyncio.run(history.stats_of(168, now_ms))
    assert stats["total_requests"] == len(mine)
    assert stats["requests_by_status"] == Counter(str(row.status_code) for row in mine)
    assert asyncio.run(history.performance(168, now_ms))["max"] == max(row.response_time for row in mine)


# the statistics follow the rows


def summed(path: Path) -> int:
    """Up to which row the file itself has them."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT last_id FROM log_summed").fetchone()[0])


def test_they_are_stored_when_many_wait_when_asked_for_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "STORED_ROWS", 250)
    rows = random_rows(600, NOW - HOUR_MS, NOW)
    with opened(tmp_path) as journal:
        journal.put(rows[:100])
        settled(journal)
        assert summed(tmp_path / "log.db") == 0
        put_in_batches(journal, rows[100:400])
        settled(journal)
        assert 250 <= summed(tmp_path / "log.db") <= 400
        journal.put(rows[400:500])
        assert asked(journal) == 500
        assert summed(tmp_path / "log.db") == 500
        journal.put(rows[500:])
    assert summed(tmp_path / "log.db") == 600


@pytest.mark.parametrize("asks", [False, True])
def test_after_a_kill_nothing_is_missing_and_nothing_counted_twice(tmp_path: Path, asks: bool) -> None:
    rows = random_rows(700, NOW - HOUR_MS, NOW)
    with opened(tmp_path, segment_rows=150) as journal:
        put_in_batches(journal, rows[:300])
        if asks:
            assert asked(journal) == 300
        put_in_batches(journal, rows[300:600])
        settled(journal)
        (tmp_path / "killed").mkdir()
        for name in ("log.db", "log.db-wal"):  # what a kill leaves: the file and its log, as they are
            shutil.copy(tmp_path / name, tmp_path / "killed" / name)
    with opened(tmp_path / "killed", segment_rows=150) as journal:
        journal.put(rows[600:])
        assert asked(journal) == 700
        assert len(everything(journal)) == 700


def test_several_may_write_into_one_file(tmp_path: Path) -> None:
    rows = random_rows(1_200, NOW - HOUR_MS, NOW)
    with (
        opened(tmp_path, segment_rows=300, is_shared=True) as one,
        opened(tmp_path, segment_rows=300, is_shared=True) as other,
    ):
        for start in range(0, 1_200, 100):
            (one if start % 300 else other).put(rows[start : start + 100])
            assert start % 400 or asked(one) <= start + 100
        assert settled(one).rows_failed == settled(other).rows_failed == 0
        assert asked(one) == asked(other) == 1_200
        assert len(everything(one)) == 1_200


def test_what_cannot_be_summed_now_is_answered_from_what_is_there(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        run(journal, lambda connection: connection.execute("PRAGMA busy_timeout=10"))
        journal.put([a_row(created_at=NOW)] * 3)
        assert asked(journal) == 3
        journal.put([a_row(created_at=NOW)] * 4)
        settled(journal)
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert asked(journal) == 3
            with pytest.raises(StoreError, match="locked"):
                asyncio.run(journal.prune(NOW))
            other.execute("ROLLBACK")
        assert asked(journal) == 7


def test_whoever_asks_does_not_wait_for_a_busy_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_SUMMED_S", 0.01)
    hold = threading.Event()
    with opened(tmp_path) as journal:
        journal.put([a_row(created_at=NOW)] * 3)
        settled(journal)
        journal._database.submit(lambda connection: hold.wait(5))
        assert asked(journal) == 0
        hold.set()
        settled(journal)
        monkeypatch.setattr(journal_module, "_SUMMED_S", 5.0)
        assert asked(journal) == 3


# a broken file, or one of another version


def test_a_corrupt_log_is_moved_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    with caplog.at_level(logging.ERROR, "engadi"), opened(tmp_path) as journal:
        aside = journal.stats().moved_aside
        journal.put([a_row()])
        assert settled(journal).rows_written == 1
    assert aside.startswith(str(tmp_path / "log.db.corrupt-"))
    assert [record.getMessage() for record in caplog.records] == [
        f"request log is corrupt: moved to {aside}, a new one is begun"
    ]


def test_a_log_that_breaks_while_open_is_moved_aside_and_no_row_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as journal:
        put_in_batches(journal, random_rows(2_000, NOW, NOW + DAY_MS))
    damage(tmp_path / "log.db", 2)
    with caplog.at_level(logging.ERROR, "engadi"), opened(tmp_path) as journal:
        journal.put([a_row(request_id="after", created_at=NOW + DAY_MS)])
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed) == (1, 0)
        assert asked(journal, NOW + DAY_MS) == 1
        assert Path(stats.moved_aside).exists()
        assert [row["request_id"] for row in everything(journal)] == ["after"]
    assert any(stats.moved_aside in record.getMessage() for record in caplog.records)


def _open_files() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return found


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal", "-shm")], ids=["the file", "with its companions"])
def test_a_log_that_somebody_removes_is_begun_anew_and_its_room_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffixes: tuple[str, ...]
) -> None:
    """`rm` on a full disk: without that, rows went on into a file without a name, which is gone with the process."""
    with caplog.at_level(logging.ERROR, "engadi"), opened(tmp_path) as journal:
        put_in_batches(journal, random_rows(200, NOW, NOW + DAY_MS))
        settled(journal)
        assert len(everything(journal)) == 200
        for suffix in suffixes:
            (tmp_path / f"log.db{suffix}").unlink()
        for request_id in ("one", "two"):
            journal.put([a_row(request_id=request_id, created_at=NOW + DAY_MS)])
            stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed) == (202, 0)
        assert [row["request_id"] for row in everything(journal)] == ["two", "one"]
        assert asked(journal, NOW + DAY_MS) == 2, "the statistics begin anew too"
        assert not [name for name in _open_files() if name.startswith(str(tmp_path)) and name.endswith("(deleted)")]
    assert [text for text in caplog.messages if "removed" in text] == [
        f"request log: somebody removed {tmp_path / 'log.db'}, a new one is begun"
    ]
    with opened(tmp_path) as journal:
        assert len(everything(journal)) == 2


def test_a_log_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="newer version"):
        journal_in(tmp_path).open()


def test_a_log_that_was_begun_with_the_first_schema_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            journal_module, "SCHEMA", replace(journal_module.SCHEMA, migrations=journal_module.MIGRATIONS[:1])
        )
        with opened(tmp_path) as journal:
            insert = f"INSERT INTO gateway_log_1 VALUES ({', '.join('?' * len(segments.COLUMNS))})"
            rows = [(number, *row) for number, row in enumerate(random_rows(40, NOW, NOW + DAY_MS), 1)]
            run(journal, lambda connection: connection.executemany(insert, rows) and None)
            run(journal, lambda con: con.execute("UPDATE log_segment SET last_id = 40, last_ms = ?", (NOW + DAY_MS,)))
    with opened(tmp_path) as journal:
        journal.put([a_row(request_id="new")])
        settled(journal)
        assert [row["request_id"] for row in everything(journal)] == ["new", *[row[1] for row in reversed(rows)]]
        stats = asyncio.run(journal.stats_of(48, NOW + DAY_MS))
        assert stats["total_requests"] == 41
    assert (tmp_path / "log.db.schema-1").exists(), "the old one is kept beside it"


# retention


def test_rows_go_by_their_age(tmp_path: Path) -> None:
    now_ms = NOW + 60 * DAY_MS
    rows = random_rows(3_000, NOW, now_ms)
    with opened(tmp_path, retention_days=10) as journal:
        put_in_batches(journal, rows, 20)
        settled(journal)
        asyncio.run(journal.prune(now_ms))
        settled(journal)
        kept = {row["request_id"] for row in everything(journal)}
        assert not run(journal, segments.clear_next), "what went has left nothing"
        young = {row.request_id for row in rows if row.created_at >= now_ms - 10 * DAY_MS}
        old = {row.request_id for row in rows if row.created_at < now_ms - 10 * DAY_MS * 26 // 24}
        assert young <= kept, "none too early"
        assert not old & kept, "none later than a share of the time, and a batch's"
        assert 0 < len(kept) < 700


def test_an_idle_log_ages_too(tmp_path: Path) -> None:
    with opened(tmp_path, retention_days=2) as journal:
        journal.put([a_row(created_at=NOW)])
        asyncio.run(journal.prune(NOW + 2 * DAY_MS))
        assert len(everything(journal)) == 1
        asyncio.run(journal.prune(NOW + 2 * DAY_MS + 1))
        assert everything(journal) == []


def test_rows_go_by_their_age_also_when_a_clock_was_ahead_once(tmp_path: Path) -> None:
    ahead = a_row(request_id="ahead", created_at=NOW + 50 * 365 * DAY_MS)
    with opened(tmp_path, retention_days=10) as journal:
        journal.put([ahead])
        for day in range(30):
            rows = [a_row(created_at=NOW + day * DAY_MS + hour * HOUR_MS) for hour in range(24)]
            journal.put(rows if day != 5 else [*rows, ahead])
            settled(journal)
            asyncio.run(journal.prune(NOW + (day + 1) * DAY_MS))
            if day == 9:
                found = asyncio.run(journal.logs(LogFilter(start_ms=ahead.created_at))).items
                assert [row["request_id"] for row in found] == ["ahead"] * 2, "found until then"
        settled(journal)
        moments = [row["created_at"] for row in everything(journal)]
    assert len(moments) < 12 * 24
    assert moments == sorted(moments, reverse=True)
    assert moments[0] < "2027"


def test_the_oldest_rows_go_when_the_log_is_too_large(tmp_path: Path) -> None:
    rows = random_rows(40_000, NOW, NOW + HOUR_MS)
    max_bytes = 4 * 1024 * 1024
    with opened(tmp_path, max_bytes=max_bytes, queue_rows=100_000) as journal:
        put_in_batches(journal, rows, 500)
        settled(journal)
        assert journal.stats().size_bytes > max_bytes
        asyncio.run(journal.prune(NOW + HOUR_MS))
        settled(journal)
        kept = [row["request_id"] for row in everything(journal)]
        size = run(journal, file_bytes)
        assert asyncio.run(journal.stats_of(2, NOW + HOUR_MS))["total_requests"] == 40_000, "sums stay"
    assert size <= max_bytes
    assert kept == [row.request_id for row in reversed(rows)][: len(kept)], "the newest are those that stay"
    assert len(kept) > 40_000 * 0.1
    assert (tmp_path / "log.db").stat().st_size <= max_bytes


@pytest.mark.parametrize("max_bytes", [1, 200_000])
def test_a_size_that_cannot_be_met_ends_nevertheless(tmp_path: Path, max_bytes: int) -> None:
    with opened(tmp_path, max_bytes=max_bytes) as journal:
        put_in_batches(journal, random_rows(3_000, NOW - DAY_MS, NOW))
        asyncio.run(journal.prune(NOW))
        journal.put([a_row(created_at=NOW)])
        assert settled(journal).rows_failed == 0


def test_space_is_given_back_when_traffic_falls(tmp_path: Path) -> None:
    with opened(tmp_path, retention_days=1, queue_rows=100_000) as journal:
        put_in_batches(journal, random_rows(20_000, NOW, NOW + HOUR_MS), 500)
        full = settled(journal).size_bytes
        asyncio.run(journal.prune(NOW + 3 * DAY_MS))
        settled(journal)
    assert (tmp_path / "log.db").stat().st_size < full / 2


def test_minutes_are_forgotten_after_eight_days_and_hours_with_the_log(tmp_path: Path) -> None:
    now_ms = NOW + 40 * DAY_MS

    def oldest(journal: Journal, span: int) -> int:
        query = "SELECT min(start) FROM rollup WHERE span = ?"
        return int(run(journal, lambda con: con.execute(query, (span,)).fetchone()[0]))

    with opened(tmp_path, retention_days=20) as journal:
        put_in_batches(journal, random_rows(3_000, NOW, now_ms))
        asyncio.run(journal.prune(now_ms))
        for span, days in ((60_000, 8), (HOUR_MS, 20)):
            assert 0 <= oldest(journal, span) - (now_ms - days * DAY_MS) < DAY_MS
        week = asyncio.run(journal.stats_of(168, now_ms))["total_requests"]
    assert week > 300


def test_a_failing_prune_is_a_store_error(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        pass
    with pytest.raises(StoreError):
        asyncio.run(journal.prune(NOW))


# several processes


def test_two_that_share_a_file_keep_one_log_and_its_statistics(tmp_path: Path) -> None:
    async def run() -> None:
        with opened(tmp_path, is_shared=True, segment_rows=150) as one, opened(tmp_path, is_shared=True) as two:
            for number in range(20):
                for journal in (one, two):
                    journal.put([a_row(request_id=f"{id(journal)}-{number}-{row}") for row in range(25)])
                await asyncio.gather(one.written(20), two.written(20))
            await one.prune(NOW)
            for journal in (one, two):
                page = await journal.logs(LogFilter(limit=2000))
                assert len({row["request_id"] for row in page.items}) == len(page.items) == 1000
                assert (await journal.stats_of(24 * 7, NOW))["total_requests"] == 1000

    asyncio.run(run())


# health

HEALTH = [
    ServiceHealth("auth", "http://a", HealthStatus.HEALTHY, 1.5, NOW, 1, 2, 0, 2, ""),
    ServiceHealth("content", "http://c", HealthStatus.UNKNOWN, None, None, 0, 0, 0, 0, ""),
    ServiceHealth("search", "http://s", HealthStatus.UNHEALTHY, 5000.0, NOW, 9, 0, 9, 0, "refused"),
]


def test_who_has_not_looked_yet_forgets_nothing_of_what_another_saw(tmp_path: Path) -> None:
    known = HEALTH[0]
    unseen = ServiceHealth(known.service_name, known.service_url)
    moved = replace(unseen, service_url="http://elsewhere")
    with opened(tmp_path) as journal:
        for saved, kept in ((known, known), (unseen, known), (moved, moved), (known, known)):
            asyncio.run(journal.save_health([saved]))
            assert asyncio.run(journal.load_health()) == [kept]


def test_health_is_kept_as_it_was_last_saved(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert asyncio.run(journal.load_health()) == []
        asyncio.run(journal.save_health(HEALTH))
    with opened(tmp_path) as journal:
        assert asyncio.run(journal.load_health()) == HEALTH
        asyncio.run(journal.save_health(HEALTH[1:]))
        assert asyncio.run(journal.load_health()) == HEALTH[1:]


def test_sqlites_statistics_are_renewed_once_a_day(tmp_path: Path) -> None:
    statements: list[str] = []
    with opened(tmp_path) as journal:
        run(journal, lambda connection: connection.set_trace_callback(statements.append))
        for now_ms in (NOW, NOW + HOUR_MS, NOW + DAY_MS, NOW + DAY_MS + HOUR_MS):
            asyncio.run(journal.prune(now_ms))
        assert statements.count("PRAGMA optimize") == 2
