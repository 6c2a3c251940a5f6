"""The request log, small and large: `python -m tests.bench.log [--rows 10000 10000000]`.

For each size a log is filled through the journal itself, batch by batch, with rows of the last seven days. Then:
what a row more costs the writer (CPU of its thread, indexing included), what each question costs, and whether retention
holds anything up: half of the log goes while rows keep coming. Ten million rows take 2.4 GB and some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from engadi_gateway.model import LogRow
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.journal import Journal
from engadi_gateway.store.questions import LogFilter
from engadi_gateway.store.segments import INDEXES
from tests.bench.report import table

BATCH = 500
DAYS = 7
DAY_MS = 86_400_000
_TRIES = 5
_SERVICES = ("auth", "content", "partners-crm", "projects", "social-media", "notification", "analytics", "ai", "search")
#: Multiplied by it, one number after the other lies anywhere among 128 bits, as a request's id does.
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835
#: One row in so many has the rare value of every column.
RARE_EVERY = 50_000
_RARE_AT = 17
#: Two rows in so many took as long as nothing else did.
SLOW_EVERY = 20_000
SLOW_MS = 5_000
#: While retention runs: rows put at once, and how often.
_STEP_ROWS = 200
_STEP_S = 0.02
_QUIET_S = 3.0
_LOOK_S = 0.002

#: Values of which there are many, few, and none, by filter.
VALUES: dict[str, tuple[Any, Any, Any]] = {
    "method": ("GET", "PURGE", "TRACE"),
    "path": ("/api/v1/content/7", "/api/v1/rare", "/api/v1/none"),
    "target_service": ("content", "rare", "none"),
    "user_id": ("user-7", "rare", "none"),
    "client_ip": ("10.0.0.7", "192.0.2.1", "192.0.2.2"),
    "status_code": (200, 206, 299),
    "reason": ("ok", "loop", "internal"),
}


def id_of(number: int) -> str:
    """As long as a UUID, and in no order."""
    return str(uuid.UUID(int=number * _SPREAD % (1 << 128)))


def row_of(number: int, created_ms: int) -> LogRow:
    """Row number so: the same for the same number."""
    if number % RARE_EVERY == _RARE_AT:
        method, path, service, user, address, status, reason = (VALUES[name][1] for name in VALUES)
    else:
        method, service = "POST" if number % 5 == 0 else "GET", _SERVICES[number % 9]
        path, user = f"/api/v1/{service}/{number % 1009}", f"user-{number % 1013}"
        address, (status, reason) = f"10.0.{number % 16}.{number % 251}", _end_of(number)
    slow_ms = SLOW_MS if number % SLOW_EVERY < 2 else 0
    return LogRow(
        id_of(number), method, path, service, user, address, status, slow_ms + 1.0 + number % 997 / 10, "", created_ms,
        reason, "00000000-0000-4000-8000-000000000000", 1, 0, 1024, 0.9 + number % 997 / 10, 3,
    )  # fmt: skip


def _end_of(number: int) -> tuple[int, str]:
    if number % 50 == 3:
        return 404, "ok"
    return (429, "rate_limited") if number % 200 == 9 else (200, "ok")


class Log:
    """A log of so many rows that end now; more can be added. `writer` is the thread whose CPU counts."""

    def __init__(self, path: Path, rows: int) -> None:
        others = set(threading.enumerate())
        self.journal = Journal(str(path), retention_days=30, max_bytes=0, queue_rows=10_000)
        self.journal.open()
        self._clock = _clock_of(next(iter(set(threading.enumerate()) - others)))
        self.rows = rows
        self.now_ms = time.time_ns() // 1_000_000
        self._next = 0
        self.path = path

    def writer_s(self) -> float:
        """CPU seconds of the writer thread so far."""
        return time.clock_gettime(self._clock)

    async def fill(self) -> float:
        """Write the rows; CPU us of the writer a row."""
        step_ms = DAYS * DAY_MS / self.rows
        first_ms = self.now_ms - DAYS * DAY_MS
        return await self.add(self.rows, lambda number: first_ms + int(number * step_ms))

    async def add(self, count: int, moment_ms: Callable[[int], int]) -> float:
        """Write so many more and wait until their tables are indexed; CPU us of the writer a row."""
        before = self.writer_s()
        for rows in self._batches(count, moment_ms):
            while self.journal.is_full(0):
                await self.journal.written(60.0)
            self.journal.put(rows)
        await self.indexed()
        failed = self.journal.stats()
        if failed.rows_shed or failed.rows_failed:
            raise SystemExit(f"rows were lost: {failed}")
        return (self.writer_s() - before) / count * 1e6

    def _batches(self, count: int, moment_ms: Callable[[int], int]) -> Iterator[list[LogRow]]:
        last = self._next + count
        while self._next < last:
            numbers = range(self._next, min(self._next + BATCH, last))
            self._next = numbers.stop
            yield [row_of(number, moment_ms(number)) for number in numbers]

    async def more(self, count: int) -> float:
        """As from a busy gateway: eight rows a millisecond, from now on."""
        first, now_ms = self._next, self.now_ms
        self.now_ms += count // 8
        return await self.add(count, lambda number: now_ms + (number - first) // 8)

    async def indexed(self) -> None:
        query = f"SELECT count(*) FROM log_segment WHERE indexes < {len(INDEXES)} AND NOT is_dropped"
        while True:
            await self.journal.written(60.0)
            if await self.journal._database.read(lambda connection: connection.execute(query).fetchone()[0]) == 1:
                return  # the open one has none

    def size_mib(self) -> float:
        return self.journal.stats().size_bytes / 1048576


def _clock_of(thread: threading.Thread) -> int:
    assert thread.ident is not None
    return time.pthread_getcpuclockid(thread.ident)


# questions


def questions(log: Log) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
    """Name and call of every question."""
    journal, now_ms = log.journal, log.now_ms
    for hours in (1, 24, DAYS * 24):
        yield f"/stats, {hours} h", lambda h=hours: journal.stats_of(h, now_ms)  # type: ignore[misc]  # a default binds the loop's variable
        yield f"/performance, {hours} h", lambda h=hours: journal.performance(h, now_ms)  # type: ignore[misc]
    yield "/errors", lambda: journal.errors(100)
    for name, wanted in filters(log):
        yield f"/logs {name}", lambda w=wanted: journal.logs(w)  # type: ignore[misc]


def filters(log: Log) -> Iterator[tuple[str, LogFilter]]:
    """The newest hundred by each filter."""
    yield "all", LogFilter()
    for name, (many, few, none) in VALUES.items():
        for how, value in (("many", many), ("few", few), ("none", none)):
            yield f"{name}, {how}", LogFilter(**{name: value})
    for how, number in (("newest", log._next - 1), ("oldest", 0)):
        yield f"request_id, {how}", LogFilter(request_id=id_of(number))
    yield "request_id, none", LogFilter(request_id="none")
    middle_ms = log.now_ms - DAYS * DAY_MS // 2
    yield "a minute in the middle", LogFilter(start_ms=middle_ms, end_ms=middle_ms + 60_000)
    for how, path in (("many", "/api/v1/content"), ("few", "/api/v1/rare"), ("none", "/api/v1/none")):
        yield f"below a path, {how}", LogFilter(path=f"{path}/*")
    yield "below a path, of a rare status", LogFilter(path="/api/v1/*", status_code=206)
    yield "below a path, of a status", LogFilter(path="/api/v1/content/*", status_code=429)
    yield "status 4xx", LogFilter(status_class=4)
    yield "status 5xx", LogFilter(status_class=5)
    for how, took_ms in (("many", 50), ("few", SLOW_MS), ("none", 1_000_000)):
        yield f"slow, {how}", LogFilter(min_response_time_ms=took_ms)
    yield "slow, few, of a service", LogFilter(min_response_time_ms=SLOW_MS, target_service="content")
    yield "slow, few, of a user", LogFilter(min_response_time_ms=SLOW_MS, user_id="user-7")
    yield "many by user and 404", LogFilter(user_id="user-7", status_code=404)


async def ask_all(log: Log) -> dict[str, float]:
    """The median of some tries of every question, in ms; -1 for one that the time limit ended."""
    found = {}
    for name, call in questions(log):
        times = []
        for _ in range(_TRIES):
            began = time.perf_counter()
            try:
                await call()
            except StoreError:
                times = [-0.001]
                break
            times.append(time.perf_counter() - began)
        found[name] = statistics.median(times) * 1000
    return found


# retention


async def _longest(stop: asyncio.Event, step: Callable[[], Awaitable[float]]) -> float:
    longest = 0.0
    while not stop.is_set():
        longest = max(longest, await step())
    return longest * 1000


async def _while_rows_come(log: Log, work: Awaitable[None]) -> dict[str, float]:
    """The longest time that the loop did not run, and that a batch took to be written, meanwhile (ms)."""
    stop = asyncio.Event()

    async def lag() -> float:
        began = time.perf_counter()
        await asyncio.sleep(_LOOK_S)
        return time.perf_counter() - began - _LOOK_S

    async def write() -> float:
        first = log._next
        log._next += _STEP_ROWS
        log.journal.put([row_of(number, log.now_ms) for number in range(first, log._next)])
        began = time.perf_counter()
        await log.journal.written(60.0)
        took = time.perf_counter() - began
        await asyncio.sleep(_STEP_S)
        return took

    watchers = [asyncio.create_task(_longest(stop, lag)), asyncio.create_task(_longest(stop, write))]
    began = time.perf_counter()
    await work
    took = time.perf_counter() - began
    stop.set()
    lag_ms, write_ms = await asyncio.gather(*watchers)
    return {"seconds": took, "longest_loop_lag_ms": lag_ms, "longest_write_ms": write_ms}


async def retention(log: Log, quiet_s: float) -> dict[str, dict[str, float]]:
    """Without it, and while the older half goes."""
    quiet = await _while_rows_come(log, asyncio.sleep(quiet_s))
    log.journal.retention_days = DAYS // 2
    pruned = await _while_rows_come(log, log.journal.prune(log.now_ms))
    return {"quiet": quiet, "pruning": {**pruned, "size_mib": log.size_mib()}}


# the whole


async def measure(path: Path, rows: int, more: int, quiet_s: float = _QUIET_S) -> dict[str, Any]:
    """Everything about a log of so many rows."""
    _say(f"filling a log of {rows:,} rows")
    log = Log(path, rows)
    try:
        fill_us = await log.fill()
        found: dict[str, Any] = {"rows": rows, "fill_us": fill_us, "size_mib": log.size_mib()}
        _say(f"{more:,} more")
        found["more_us"] = await log.more(more)
        _say("questions")
        found["questions_ms"] = await ask_all(log)
        _say("retention")
        return {**found, "retention": await retention(log, quiet_s)}
    finally:
        log.journal.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ms(value: float) -> str:
    return "time limit" if value < 0 else f"{value:.1f}"


def report(logs: list[dict[str, Any]]) -> str:
    """A column for each size."""
    rows = [
        ["size, MiB", *(f"{log['size_mib']:,.0f}" for log in logs)],
        ["filling, CPU us a row", *(f"{log['fill_us']:.2f}" for log in logs)],
        ["one row more, CPU us", *(f"{log['more_us']:.2f}" for log in logs)],
    ]
    rows += [[f"{name}, ms", *(_ms(log["questions_ms"][name]) for log in logs)] for name in logs[0]["questions_ms"]]
    for when, about in (("quiet", "without retention"), ("pruning", "while half of it goes")):
        for key, name in (("longest_loop_lag_ms", "longest loop lag"), ("longest_write_ms", "longest write")):
            rows.append([f"{about}: {name}, ms", *(f"{log['retention'][when][key]:.1f}" for log in logs)])
    rows.append(["the half was gone after, s", *(f"{log['retention']['pruning']['seconds']:.2f}" for log in logs)])
    return "\n".join(table(["rows", *(f"{log['rows']:,}" for log in logs)], rows)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.log", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="default: 10000 1000000")
    parser.add_argument("--more", type=int, default=500_000, help="rows by which a row's cost is told")
    parser.add_argument("--folder", type=Path, help="where the logs are made (default: the system's for such things)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="log-", dir=arguments.folder) as folder:
        logs = [asyncio.run(measure(Path(folder) / f"{rows}.db", rows, arguments.more)) for rows in arguments.rows]
    print(report(logs), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(logs, indent=1))


if __name__ == "__main__":
    main()
