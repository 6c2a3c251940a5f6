"""A request log for tests: opened, filled, waited for, looked into, and the disk under it full."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engadi_gateway.model import LogRow
from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.journal import Journal, JournalStats
from engadi_gateway.store.questions import LogFilter

NOW = 1_790_000_000_000
DAY_MS = 86_400_000


def journal_in(folder: Path, **options: Any) -> Journal:
    defaults: dict[str, Any] = {"retention_days": 30, "max_bytes": 0, "queue_rows": 10_000}
    return Journal(str(folder / "log.db"), **{**defaults, **options})


@contextlib.contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Journal]:
    journal = journal_in(folder, **options)
    journal.open()
    try:
        yield journal
    finally:
        journal.close()


def settled(journal: Journal) -> JournalStats:
    """Once all that was put is written, tried again or given up, and closed tables are indexed."""
    while journal.stats().queue_depth or run(journal, segments.index_next):
        run(journal, lambda connection: None)
    return journal.stats()


def run(journal: Journal, work: Callable[[Connection], Any]) -> Any:
    """On the writer's thread."""
    return journal._database.submit(work).result()


def everything(journal: Journal) -> list[dict[str, Any]]:
    return asyncio.run(journal.logs(LogFilter(limit=100_000))).items


def put_in_batches(journal: Journal, rows: list[LogRow], size: int = 100) -> None:
    for start in range(0, len(rows), size):
        journal.put(rows[start : start + size])


def asked(journal: Journal, now_ms: int = NOW) -> int:
    """How many requests the statistics tell of."""
    return int(asyncio.run(journal.stats_of(168, now_ms))["total_requests"])


def fill_disk(connection: Connection) -> None:
    """There is room for some pages more."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages + 5}").fetchall()


def free_disk(connection: Connection) -> None:
    connection.execute("PRAGMA max_page_count=1000000").fetchall()
