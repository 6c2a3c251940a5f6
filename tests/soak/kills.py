"""`python -m tests.soak kills`: kill -9 at random moments, under load, with configuration writes going on.

With several processes over the same files (`shared`) each is killed a moment after the other.

After each: both files are whole; every acknowledged write is there; revisions are numbered without a gap, and what they
say one after the other is what the tables hold; of the log at most the rows of the last flush interval are missing, and
the statistics are those of the rows that are there: up to the id that they name, and of all of them once it is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engadi_gateway.model import CorsPolicy
from engadi_gateway.store.catalog_tables import load_snapshot
from engadi_gateway.store.codec import to_json
from engadi_gateway.store.journal import Journal
from tests.fakes import RawClient, upstream
from tests.harness import ADMIN, ask_on
from tests.processes import PYTHON, ROOT, environment_of, free_port, ini_of
from tests.soak.writes import remember, some_write

FLUSH_S = 0.25
#: A row is late by the interval, and by what a batch takes to be written.
SLACK_S = 2.0
CLIENTS = 12
WRITERS = 3
_STARTED_S = 30.0
_INI = "[limits]\nper_ip = 10000000\nper_user = 10000000\n[log]\nflush_interval = 250ms\n"


@dataclass
class Report:
    """What was done and seen; `wrong` must be empty."""

    kills: int = 0
    kills_while_starting: int = 0
    answered: int = 0
    rows: int = 0
    rows_lost: int = 0
    oldest_row_lost_s: float = 0.0
    writes_acknowledged: int = 0
    writes_found_unacknowledged: int = 0
    revisions: int = 0
    took_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Seen:
    """What the clients of one run were told, by request id: when an answer came, and which writes were confirmed."""

    answered: dict[str, float] = field(default_factory=dict)
    killed_at: float = 0.0
    written: list[str] = field(default_factory=list)


async def soak(folder: Path, *, rounds: int, seed: int, processes: int = 1) -> Report:
    """Run it; never raises for what it finds."""
    dice, report = random.Random(seed), Report()
    began = time.monotonic()
    seen_before: set[str] = set()
    async with upstream() as auth:
        for number in range(rounds):
            is_early = number % 5 == 4
            seen = Seen()
            await _one_life(folder, auth.url, dice, report, seen, processes=processes, is_early=is_early)
            report.kills += processes
            report.kills_while_starting += is_early
            _look(folder, seen, seen_before, report)
            auth.seen.clear()
            auth.raw.clear()
    report.took_s = time.monotonic() - began
    return report


# one life


@dataclass
class Life:
    """A process, and what it says."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)
    listening: asyncio.Event = field(default_factory=asyncio.Event)

    async def end(self) -> list[str]:
        """Wait for it, killed as it is; what is wrong."""
        assert self.process.stderr is not None
        code = await self.process.wait()
        self.process._transport.close()  # type: ignore[attr-defined]  # asyncio 3.11 leaves it to the collector
        wrong = [line for line in self.said if "corrupt" in line or "Traceback" in line or "ERROR" in line]
        return wrong if code == -signal.SIGKILL else [*wrong, f"ended by itself: {self.said}"]


async def _one_life(
    folder: Path, url: str, dice: random.Random, report: Report, seen: Seen, *, processes: int = 1, is_early: bool
) -> None:
    port = free_port()
    shared = "[server]\nreuse_port = yes\n" if processes > 1 else "[server]\n"
    (folder / "gateway.ini").write_text(ini_of(url, _INI).replace("[server]\n", shared))
    lives = [await _begin(folder, port) for _ in range(processes)]
    talking = [asyncio.create_task(_listen_to(life)) for life in lives]
    try:
        if is_early:
            await asyncio.sleep(dice.random() * 0.5)
        else:
            for life in lives:
                await asyncio.wait_for(life.listening.wait(), _STARTED_S)
            await _load_until([life.process for life in lives], port, seen, dice)
    except TimeoutError:
        report.wrong.append(f"did not start: {[life.said for life in lives]}")
    finally:
        for life in lives:
            _kill(life.process)
        await asyncio.gather(*talking)
        for life in lives:
            report.wrong += await life.end()


async def _begin(folder: Path, port: int) -> Life:
    return Life(
        await asyncio.create_subprocess_exec(
            PYTHON, str(ROOT / "run.py"), cwd=folder,
            env=environment_of(PORT=str(port)), stderr=asyncio.subprocess.PIPE,
        )
    )  # fmt: skip


def _kill(process: asyncio.subprocess.Process) -> None:
    """Not by `send_signal`, which looks first whether it has ended, and so takes the exit code away from asyncio."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


async def _listen_to(life: Life) -> None:
    assert life.process.stderr is not None
    while line := await life.process.stderr.readline():
        life.said.append(line.decode())
        if "listening on" in life.said[-1]:
            life.listening.set()


async def _load_until(processes: list[asyncio.subprocess.Process], port: int, seen: Seen, dice: random.Random) -> None:
    """Traffic and writes until random moments, at which one after the other is killed."""
    tasks = [asyncio.create_task(_ask_for_ever(port, seen)) for _ in range(CLIENTS)]
    tasks += [asyncio.create_task(_write_for_ever(port, seen, random.Random(dice.random()))) for _ in range(WRITERS)]
    await asyncio.sleep(0.1 + dice.random() * 1.5)
    for process in processes:
        _kill(process)
        seen.killed_at = time.monotonic()
        await asyncio.sleep(dice.random() * 0.2)
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, BaseException) and not isinstance(end, OSError | EOFError):
            raise end


async def _ask_for_ever(port: int, seen: Seen) -> None:
    async with _client(port) as client:
        while True:
            reply = await ask_on(client, "GET", "/api/v1/auth/x")
            if reply.is_whole:
                seen.answered[reply.one("x-request-id")] = time.monotonic()
            if "close" in reply.all("connection"):
                await client.close()
                await _ask_for_ever(port, seen)


@contextlib.asynccontextmanager
async def _client(port: int) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


async def _write_for_ever(port: int, seen: Seen, dice: random.Random) -> None:
    """Routes and rules made, changed and deleted, the CORS policy changed; one after the other."""
    mine: list[str] = []
    while True:
        async with _client(port) as client:
            for _ in range(500):
                method, target, body = some_write(dice, mine)
                reply = await ask_on(client, method, target, bearer=ADMIN, body=body)
                if reply.is_whole and reply.status < 300:
                    seen.written.append(reply.one("x-request-id"))
                    remember(method, target, reply, mine)


# afterwards


def _look(folder: Path, seen: Seen, seen_before: set[str], report: Report) -> None:
    """On copies: that a process like ours can go on with the originals is what the next life shows."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for path in folder.iterdir():
        is_index = path.name.endswith("-shm")  # of the -wal, rebuilt from it
        if path.name.startswith("engadi_gateway") and not is_index:
            shutil.copy(path, copy / path.name)
    config, log = copy / "engadi_gateway.db", copy / "engadi_gateway-log.db"
    for path, look in ((config, _look_at_config), (log, _look_at_log)):
        if not path.exists():
            continue  # killed before there was one
        with contextlib.closing(sqlite3.connect(path)) as connection:
            verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if verdict != "ok":
                report.wrong.append(f"{path.name}: {verdict}")
            elif connection.execute("PRAGMA user_version").fetchone()[0]:
                look(connection, seen, seen_before, report)
    seen_before.update(seen.written)


def _look_at_config(connection: sqlite3.Connection, seen: Seen, seen_before: set[str], report: Report) -> None:
    rows = connection.execute("SELECT number, request_id, kind, subject, before, after FROM revision ORDER BY number")
    revisions = rows.fetchall()
    if [row[0] for row in revisions] != list(range(1, len(revisions) + 1)):
        report.wrong.append("revisions have gaps")
    ids = [row[1] for row in revisions]
    missing = [request_id for request_id in seen.written if request_id not in set(ids)]
    missing += [request_id for request_id in seen_before if request_id not in set(ids)]
    report.wrong += [f"acknowledged and not there: {request_id}" for request_id in missing]
    report.writes_acknowledged += len(seen.written)
    report.writes_found_unacknowledged += len(revisions) - report.revisions - len(seen.written) - (not report.revisions)
    report.revisions = len(revisions)
    report.wrong += _history_faults(connection, revisions)


def _history_faults(connection: sqlite3.Connection, revisions: list[tuple[Any, ...]]) -> list[str]:
    """What the revisions say, in their order, is what there is."""
    known: dict[tuple[str, str], Any] = {}
    faults = []
    for number, _, kind, subject, before, after in revisions:
        if kind == "seed":
            document = json.loads(after)
            known |= {("route", route["id"]): route for route in document["routes"]}
            known |= {("rule", rule["id"]): rule for rule in document["rules"]}
            continue
        if kind != "cors" and known.get((kind, subject)) != (None if before is None else json.loads(before)):
            faults.append(f"revision {number} does not follow from those before it")
        if after is None:
            known.pop((kind, subject), None)
        else:
            known[kind, subject] = json.loads(after)
    snapshot = load_snapshot(connection, {}, CorsPolicy())
    held: dict[tuple[str, str], Any] = {("route", route.id): to_json(route) for route in snapshot.routes}
    held |= {("rule", rule.id): to_json(rule) for rule in snapshot.rules}
    if ("cors", "cors") in known:
        held["cors", "cors"] = to_json(snapshot.cors)
    differing = [key for key in held | known if held.get(key) != known.get(key)]
    return faults + [f"tables and revisions differ: {key}" for key in differing[:3]]


def _open_and_close(path: str) -> None:
    journal = Journal(path, retention_days=30, max_bytes=0, queue_rows=1)
    journal.open()
    journal.close()


def _look_at_log(connection: sqlite3.Connection, seen: Seen, seen_before: set[str], report: Report) -> None:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'log_row%'")
    ids: list[str] = []
    for (name,) in names.fetchall():
        ids += [row[0] for row in connection.execute(f"SELECT request_id FROM {name}")]
    there = set(ids)
    if len(there) != len(ids):
        report.wrong.append(f"{len(ids) - len(there)} rows twice")
    for when in ("when killed", "once opened"):
        summed_id = connection.execute("SELECT last_id FROM log_summed").fetchone()[0]
        if summed_id > len(ids) or (when == "once opened" and summed_id < len(ids)):
            report.wrong.append(f"{when}: {summed_id} rows in the statistics of {len(ids)}")
        for (total,) in connection.execute("SELECT sum(requests) FROM rollup GROUP BY span"):
            if total != summed_id:
                report.wrong.append(f"{when}: {total} requests in the statistics of {summed_id} rows")
        _open_and_close(connection.execute("PRAGMA database_list").fetchone()[2])
    killed = seen.killed_at
    lost = [killed - at for request_id, at in seen.answered.items() if request_id not in there]
    report.answered += len(seen.answered)
    report.rows = len(ids)
    report.rows_lost += len(lost)
    report.oldest_row_lost_s = round(max([report.oldest_row_lost_s, *lost]), 3)
    if report.oldest_row_lost_s > FLUSH_S + SLACK_S:
        report.wrong.append(f"a row of {report.oldest_row_lost_s} s before the kill is lost")
