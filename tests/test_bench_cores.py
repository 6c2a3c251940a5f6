"""Throughput over processes: what is started, and what is said."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from tests.bench.accounting import ANYWHERE, members
from tests.bench.cores import Row, measure, parse, report, rows_for, started
from tests.bench.rounds import Bench, Plan


def test_so_many_processes_share_one_folder_and_end_together(tmp_path: Path) -> None:
    with Bench(tmp_path, Plan(1, 0.1, 0.0, ANYWHERE, ANYWHERE)) as bench:
        running = started(bench, 0, rows_for([2])[1])
        assert len(members(running.process.group)) == 3, "with what started them"
        running.process.stop()
        assert members(running.process.group) == []
    for path in tmp_path.glob("*/*.db"):
        assert not path.with_name(f"{path.name}-wal").exists(), "they closed it"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_one_and_two_are_measured_side_by_side() -> None:
    rows = measure(parse(["--processes", "2", "--rounds", "1", "--seconds", "0.3", "--warm", "0"]))
    assert [(row.name, row.rounds[0]["requests"] > 0) for row in rows] == [("1, alone", True), ("2, sharing", True)]


def test_medians_are_said() -> None:
    names = ("p50_ms", "p99_ms", "core_share", "load_core_share")
    one, two = (
        Row(name, 1, {}, [{**dict.fromkeys(names, 1.0), "cpu_us": 50.0, "requests_per_s": n} for n in numbers])
        for name, numbers in (("1, alone", (900.0, 1000.0, 9000.0)), ("2, sharing", (1500.0,)))
    )
    assert report([one, two]).splitlines()[2:] == [
        "| 1, alone | 1,000 | 1.00 | 1.0 | 1.0 | 50 | 1.00 | 1.00 | 20,000/s |",
        "| 2, sharing | 1,500 | 1.50 | 1.0 | 1.0 | 50 | 1.00 | 1.00 | 20,000/s |",
    ]
