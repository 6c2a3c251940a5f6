"""The benchmark of the log, on a small one: rows as it says, every question answered, nothing lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bench.log import RARE_EVERY, SLOW_EVERY, SLOW_MS, VALUES, Log, filters, measure, report, row_of


def test_rows_are_the_same_for_the_same_number_and_differ_otherwise() -> None:
    assert row_of(5, 1) == row_of(5, 1)
    assert len({row_of(number, 1) for number in range(1000)}) == 1000


def test_there_are_many_few_and_none_of_each_value() -> None:
    rows = [row_of(number, 1) for number in range(0, 2 * RARE_EVERY)]
    for name, (many, few, none) in VALUES.items():
        found = Counter(getattr(row, name) for row in rows)
        assert (found[many] > 5, found[few], found[none]) == (True, 2, 0), name
    assert sum(row.response_time >= SLOW_MS for row in rows) == 2 * (2 * RARE_EVERY // SLOW_EVERY)


def test_a_log_is_filled_over_a_week_and_asked(tmp_path: Path) -> None:
    async def run() -> None:
        log = Log(tmp_path / "log.db", 1200)
        try:
            assert await log.fill() > 0
            assert await log.more(300) > 0
            pages = {name: (await log.journal.logs(wanted)).items for name, wanted in filters(log)}
            everything = await log.journal.stats_of(7 * 24 + 1, log.now_ms)
        finally:
            log.journal.close()
        assert everything["total_requests"] == 1500
        assert [row["id"] for row in pages["all"]] == list(range(1500, 1400, -1))
        assert len(pages["method, few"]) == 1 and len(pages["method, many"]) == 100
        assert [row["id"] for row in pages["request_id, oldest"]] == [1]

    asyncio.run(run())


def test_what_was_measured_is_said_side_by_side(tmp_path: Path) -> None:
    log: dict[str, Any] = asyncio.run(measure(tmp_path / "log.db", 600, 100, quiet_s=0.05))
    assert log["retention"]["pruning"]["seconds"] > 0
    text = report([log, {**log, "rows": 10_000_000}])
    assert text.startswith("| rows | 600 | 10,000,000 |\n")
    assert "| /logs reason, none, ms | " in text
