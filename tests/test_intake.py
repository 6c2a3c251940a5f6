"""Rows on their way into the log on bad days: what is shed, tried again, kept or lost."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from engadi_gateway.model import LogRow
from engadi_gateway.store import segments
from engadi_gateway.store.journal import Journal, JournalStats
from tests.databases import damage
from tests.journals import (
    DAY_MS,
    NOW,
    asked,
    everything,
    fill_disk,
    free_disk,
    opened,
    put_in_batches,
    run,
    settled,
)
from tests.logrows import a_row, random_rows


def test_counters(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert journal.stats() == replace(JournalStats(), size_bytes=journal.stats().size_bytes)
        journal.put([a_row()] * 3)
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_shed, stats.rows_failed, stats.queue_depth) == (3, 0, 0, 0)
        assert stats.last_write_ms > 0
        assert stats.size_bytes > 4096


def test_a_full_queue_sheds_and_counts_and_traffic_goes_on(tmp_path: Path) -> None:
    hold = threading.Event()
    rows = [a_row(request_id=str(number)) for number in range(30)]
    with opened(tmp_path, queue_rows=20) as journal:
        journal._database.submit(lambda connection: hold.wait(5))
        assert (journal.put(rows[:15]), journal.is_full(0)) == (0, False)
        assert (journal.put(rows[15:25]), journal.is_full(0)) == (5, True)
        assert journal.put(rows[25:]) == 5
        assert journal.stats().queue_depth == 20
        hold.set()
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_shed, stats.rows_failed, journal.is_full(0)) == (20, 10, 0, False)
        assert (journal.is_full(19), journal.is_full(20)) == (False, True), "what is still to come counts"
        assert journal.put(rows[:25], sheds=False) == 0, "of who stalls requests nothing is lost"
        assert settled(journal).rows_written == 45
        assert journal.put(rows[20:]) == 0
        settled(journal)
        assert {row["request_id"] for row in everything(journal)} == {row.request_id for row in rows}


def test_a_lock_of_others_costs_rows_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as journal:
        run(journal, lambda connection: connection.execute("PRAGMA busy_timeout=10"))
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with caplog.at_level(logging.ERROR, "engadi"):
                for _ in range(2):
                    journal.put([a_row()] * 5)
                while journal.stats().queue_depth:
                    threading.Event().wait(0.005)
            assert everything(journal) == [], "reading goes on"
            other.execute("ROLLBACK")
        stats = journal.stats()
        assert (stats.rows_written, stats.rows_failed) == (0, 10)
        assert "locked" in stats.last_error
        assert [record.getMessage().split(":")[0] for record in caplog.records] == ["request log"], "said once"
        journal.put([a_row()])
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed, stats.last_error) == (1, 10, "")


def test_a_full_disk_costs_rows_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        run(journal, fill_disk)
        big = [a_row(path="/" + "x" * 4_000)] * 50
        journal.put([a_row()])
        journal.put(big)
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed) == (1, 50)
        assert "full" in stats.last_error
        assert len(everything(journal)) == 1, "no half of a batch"
        run(journal, free_disk)
        journal.put(big)
        assert settled(journal).rows_written == 51


def test_a_batch_that_failed_is_tried_once_more(tmp_path: Path) -> None:
    hold = threading.Event()
    with opened(tmp_path) as journal:
        run(journal, fill_disk)
        journal._database.submit(lambda connection: hold.wait(5))
        journal.put([a_row(path="/" + "x" * 4_000)] * 50)
        journal._database.submit(free_disk)
        hold.set()
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed, stats.last_error) == (50, 0, "")
        assert asked(journal) == 50, "counted once"


BIG = [a_row(path="/" + "x" * 4_000)] * 50


def _keep(journal: Journal, *batches: list[LogRow]) -> None:
    """Put, and let the writer try."""
    for batch in batches:
        assert journal.put(batch, sheds=False) == 0
    run(journal, lambda connection: None)


def _traced(journal: Journal) -> list[str]:
    """The statements from now on."""
    statements: list[str] = []
    run(journal, lambda connection: connection.set_trace_callback(statements.append))
    run(journal, lambda connection: None)
    statements.clear()
    return statements


def _failures(statements: list[str]) -> int:
    """Transactions that were begun and not ended; a full disk rolls them back by itself."""
    return statements.count("BEGIN IMMEDIATE") - statements.count("COMMIT")


def test_what_cannot_be_written_is_kept_and_fills_the_queue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"req-{number}" for number in range(103)]
    with caplog.at_level(logging.WARNING, "engadi"), opened(tmp_path, queue_rows=100) as journal:
        run(journal, fill_disk)
        _keep(journal, [row._replace(request_id=name) for row, name in zip(BIG, names, strict=False)])
        assert not journal.is_full(0)
        _keep(journal, [a_row(request_id=name) for name in names[50:100]], [a_row(request_id=names[100])])
        assert journal.is_full(0)
        stats = journal.stats()
        assert (stats.rows_written, stats.rows_failed, stats.rows_shed, stats.queue_depth) == (0, 0, 0, 101)
        assert "full" in stats.last_error
        run(journal, free_disk)
        _keep(journal, [a_row(request_id=names[101])])
        assert journal.stats().rows_written == 0, "nothing goes before what came first"
        journal.sweep(100.0)
        _keep(journal, [a_row(request_id=names[102])])
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed, stats.last_error) == (103, 0, "")
        assert not journal.is_full(0)
        assert [row["request_id"] for row in everything(journal)] == names[::-1]
        assert asked(journal) == 103
        _keep(journal, [a_row()])
        assert journal.stats().rows_written == 104, "and all is as before"
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("request log: rows wait, and requests once the queue is full, until this ends: ")
    assert said[1:] == ["request log: rows are written again; 0 were lost"]


def test_it_is_tried_once_a_second_and_other_work_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        run(journal, fill_disk)
        _keep(journal, BIG)
        statements = _traced(journal)
        for now, tries in ((10.0, 1), (10.1, 1), (10.9, 1), (11.0, 2), (11.5, 2), (12.1, 3)):
            for _ in range(3):
                _keep(journal, [a_row()])
                journal.sweep(now)
            assert run(journal, lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
            assert _failures(statements) == tries
        run(journal, free_disk)
        journal.sweep(14.0)
        assert settled(journal).rows_written == 50 + 18
        del statements[:]
        journal.sweep(20.0)
        run(journal, lambda connection: None)
        assert [text for text in statements if text.startswith("INSERT")] == [], "all is written"


def test_a_try_that_takes_long_is_not_joined_by_others(tmp_path: Path) -> None:
    hold = threading.Event()
    with opened(tmp_path) as journal:
        run(journal, fill_disk)
        _keep(journal, BIG)
        statements = _traced(journal)
        journal._database.submit(lambda connection: hold.wait(20))
        for now in range(10):
            journal.sweep(float(now))
        hold.set()
        run(journal, lambda connection: None)
        assert _failures(statements) == 1


@pytest.mark.parametrize("has_room", [True, False])
def test_what_is_kept_is_tried_a_last_time_at_the_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, has_room: bool
) -> None:
    with opened(tmp_path) as journal:
        run(journal, fill_disk)
        _keep(journal, BIG, [a_row()] * 7, [a_row()])
        if has_room:
            run(journal, free_disk)
    stats = journal.stats()
    assert (stats.rows_written, stats.rows_failed, stats.queue_depth) == ((58, 0, 0) if has_room else (0, 58, 0))
    assert ("58 rows are lost, they could not be written" in caplog.text) is not has_room
    assert journal.put([a_row()], sheds=False) == 0
    assert journal.stats().rows_failed == stats.rows_failed + 1, "after the end"
    with opened(tmp_path) as journal:
        assert len(everything(journal)) == stats.rows_written


@pytest.mark.parametrize(
    "poison",
    [a_row(path="\ud800"), a_row(bytes_in=1 << 70), a_row(status_code="many"), a_row(path=object())],
    ids=["no Unicode", "too large", "against the schema", "no value at all"],
)
@pytest.mark.parametrize("sheds", [True, False])
@pytest.mark.parametrize("place", [0, 7, 12])
def test_a_row_that_no_database_would_take_is_lost_alone_and_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, poison: LogRow, sheds: bool, place: int
) -> None:
    names = [f"row-{number}" for number in range(12)]
    batch = [a_row(request_id=name) for name in names]
    batch.insert(place, poison)
    with caplog.at_level(logging.WARNING, "engadi"), opened(tmp_path) as journal:
        journal.put(batch, sheds=sheds)
        journal.put([a_row(request_id="next")], sheds=sheds)
        assert (settled(journal).rows_written, journal.stats().rows_failed) == (13, 1)
        journal.put([a_row(request_id="last")], sheds=sheds)
        assert settled(journal).last_error == ""
        found = [row["request_id"] for row in everything(journal)][::-1]
        if not sheds:
            assert found == [*names, "next", "last"], "in their order"
        assert sorted(found) == sorted([*names, "next", "last"])
        assert asked(journal) == 14
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("request log: rows are lost until this ends: ")
    assert said[1:] == ["request log: rows are written again; 1 were lost"]


def test_where_no_row_fits_batches_are_not_tried_in_pieces_for_ever(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        number = run(journal, lambda connection: segments._open(connection).number)
        run(journal, lambda connection: connection.execute(f"ALTER TABLE log_row_{number} RENAME COLUMN path TO way"))
        run(journal, lambda connection: connection.execute(f"ALTER TABLE log_row_{number} ADD COLUMN path BLOB"))
        statements = _traced(journal)
        for _ in range(20):
            journal.put([a_row()] * 100)
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed) == (0, 2_000)
        assert 64 < _failures(statements) < 200
        run(journal, lambda connection: connection.execute(f"ALTER TABLE log_row_{number} DROP COLUMN path"))
        run(journal, lambda connection: connection.execute(f"ALTER TABLE log_row_{number} RENAME COLUMN way TO path"))
        journal.put([a_row()])
        journal.put([a_row(), a_row(bytes_in=1 << 70)])
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed) == (2, 2_001)


def test_rows_at_fault_behind_a_full_disk_hold_nobody_up(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        run(journal, fill_disk)
        _keep(journal, BIG, [a_row(), a_row(bytes_in=1 << 70), a_row()], [a_row(request_id="next")])
        run(journal, free_disk)
        journal.sweep(100.0)
        stats = settled(journal)
        assert (stats.rows_written, stats.rows_failed, stats.queue_depth, stats.last_error) == (53, 1, 0, "")
        assert everything(journal)[0]["request_id"] == "next", "in their order"


def test_a_log_that_breaks_loses_nothing_that_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        put_in_batches(journal, random_rows(2_000, NOW, NOW + DAY_MS))
    damage(tmp_path / "log.db", 2)
    with opened(tmp_path) as journal:
        assert journal.put([a_row(request_id="after", created_at=NOW + DAY_MS)], sheds=False) == 0
    stats = journal.stats()
    assert (stats.rows_written, stats.rows_failed) == (1, 0)
    assert Path(stats.moved_aside).exists()


def test_rows_after_the_end_are_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        pass
    assert journal.put([a_row()] * 3) == 0
    assert journal.stats().rows_failed == 3
    assert "closed" in journal.stats().last_error
