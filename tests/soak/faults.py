"""`python -m tests.soak faults`: a flapping upstream under load, and the count of what is left afterwards.

No POST is sent twice, no reply is another's, nothing cut looks whole, retries keep to their budget, the breaker goes
its three ways and no other, every exchange is settled once; at the end no permit, connection or task is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sqlite3
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.model import BreakerState
from engadi_gateway.pipeline.circuit import Breaker, Transition
from engadi_gateway.record.metrics import open_fds
from tests.harness import ADMIN, ask, settings_for
from tests.soak.flapping import FATES, GOOD, Flapping
from tests.soak.marked import Client, Seen

RETRIES = 2
BREAKER_S = 0.1
SETTINGS: dict[str, Any] = {
    "server_trusted_proxies": "127.0.0.1",  # so that the client's X-Request-ID is kept, and marks every answer
    "upstream_timeout": 1.0,
    "upstream_retry_count": RETRIES,
    "upstream_max_connections": 24,
    "upstream_max_idle": 16,
    "breaker_timeout": BREAKER_S,
    "log_queue_rows": 1_000_000,
}
UNBROKEN = {
    "path_pattern": "/unbroken/*",
    "target_service": "unbroken",
    "is_public": True,
    "circuit_breaker_enabled": False,
}
#: The breaker's ways, and no others: from, to, how the cause begins.
WAYS = {
    (BreakerState.CLOSED, BreakerState.OPEN): "failures in a row",
    (BreakerState.OPEN, BreakerState.HALF_OPEN): "time to probe",
    (BreakerState.HALF_OPEN, BreakerState.OPEN): "probe failed",
    (BreakerState.HALF_OPEN, BreakerState.CLOSED): "successful probes",
}


@dataclass
class Report:
    """What was done and seen; `wrong` must be empty."""

    sent: int = 0
    left: int = 0
    forwarded: int = 0
    posts: int = 0
    retries: int = 0
    most_costly_retries: int = 0
    most_attempts: int = 0
    flaps: int = 0
    took_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    breaker: Counter[str] = field(default_factory=Counter)
    left_over: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


async def soak(folder: Path, *, requests: int, seed: int, clients: int = 48) -> Report:
    """Run it; never raises for what it finds."""
    dice = random.Random(seed)
    report, seen = Report(), Seen()
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()  # uvloop opens a file with its first server
    before = open_fds()
    upstream = Flapping(random.Random(dice.random()), [name for name in FATES if name not in GOOD])
    await upstream.start()
    began = time.monotonic()
    try:
        async with Gateway(settings_for(folder, {"auth": upstream.url}, **SETTINGS)) as gateway:
            breaker = gateway.breakers.of("auth")
            moves: deque[Transition] = deque()
            breaker.history = moves  # all of them, not only the last
            await ask(
                gateway.port,
                "POST",
                "/api/v1/gateway/routes",
                bearer=ADMIN,
                body=UNBROKEN | {"target_url": upstream.url},
            )
            tasks = asyncio.all_tasks()
            async with _flapping(upstream, random.Random(dice.random()), report):
                await _load(gateway.port, requests, clients, dice, seen)
            await _settled(gateway, upstream)
            report.left_over = left_over(gateway, upstream, breaker, asyncio.all_tasks() - tasks)
            _check_breaker(moves, report)
        report.wrong += _log_faults(gateway.settings.log_path, seen)
    finally:
        upstream.stop()
    await asyncio.sleep(0.05)
    report.left_over["open files"] = max(0, open_fds() - before)
    report.took_s = time.monotonic() - began
    _conclude(report, upstream, seen, clients)
    return report


async def _load(port: int, requests: int, clients: int, dice: random.Random, seen: Seen) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            client = Client(port, f"c{number}", random.Random(dice.random()), seen)
            group.create_task(client.run(requests // clients))


@contextlib.asynccontextmanager
async def _flapping(upstream: Flapping, dice: random.Random, report: Report) -> AsyncIterator[None]:
    """Well, shaky, ill and down by turns, as long as the load lasts; well in the end."""

    async def flap() -> None:
        while True:
            upstream.fault_share = dice.choice((0.02, 0.1, 0.3, 0.9))
            await asyncio.sleep(dice.random() * 0.5)
            if dice.random() < 0.2:
                report.flaps += 1
                upstream.stop()
                await asyncio.sleep(dice.random() * 0.3)
                await upstream.start()

    task = asyncio.create_task(flap())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        upstream.stop()
        await upstream.start()


async def _settled(gateway: Gateway, upstream: Flapping) -> None:
    """Wait until nothing is under way, at most some seconds: what stays then is a leak."""
    for _ in range(500):
        state = gateway.state()
        if not state["connections"] and not state["in_flight"] and not _active(state) and not upstream.counts.costly:
            break
        await asyncio.sleep(0.01)
    await gateway._console.flushed()


def _active(state: dict[str, Any]) -> int:
    return sum(pool["active"] + pool["dialling"] + pool["waiting"] for pool in state["pools"].values())


def left_over(gateway: Gateway, upstream: Flapping, breaker: Breaker, tasks: set[asyncio.Task[Any]]) -> dict[str, int]:
    """What is still there though nobody asks for anything any more: each of these must be 0."""
    context, state = gateway._context, gateway.state()
    idle = sum(pool["idle"] for pool in state["pools"].values())
    return {
        "client connections": state["connections"],
        "addresses counted": len(context.seats.by_address),
        "idle waits": len(context.idle),
        "head waits": len(context.heads),
        "flights": len(context.flights),
        "gateway tasks": len(context.tasks),
        "other tasks": len(tasks),
        "pool: active, dialling, waiting": _active(state),
        "upstream connections beyond the idle": abs(len(upstream.connections) - idle),
        "retries counted": abs(context.budget.retrying),
        "probe's place": int(breaker.probe_since is not None),
        "rows in the queue": state["log"]["queue_depth"],
    }


def _check_breaker(moves: deque[Transition], report: Report) -> None:
    state, opened_at = BreakerState.CLOSED, -math.inf
    for move in moves:
        report.breaker[f"{move.before} -> {move.after}"] += 1
        if move.before is not state or WAYS.get((move.before, move.after), "\0") not in move.cause:
            report.wrong.append(f"breaker: {move} from {state}")
        if move.after is BreakerState.HALF_OPEN and move.at - opened_at < BREAKER_S - 1e-6:
            report.wrong.append(f"breaker: probed {move.at - opened_at:.3f} s after it opened")
        if move.after is BreakerState.OPEN:
            opened_at = move.at
        state = move.after


def _log_faults(path: str, seen: Seen) -> list[str]:
    """A row for each request, none twice. Of those whose client left there may be none: it may never have been read."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            if name.startswith("log_row")
        ]
        rows = Counter(
            request_id for table in tables for (request_id,) in connection.execute(f"SELECT request_id FROM {table}")
        )
    faults = [f"settled {count} times: {mark}" for mark, count in rows.items() if count > 1][:5]
    answered = sum(seen.ends.values()) + 1  # the admin's own
    if not answered <= len(rows) <= seen.sent + 1:
        faults.append(f"{len(rows)} rows for {answered} answers to {seen.sent} requests")
    return faults


def _conclude(report: Report, upstream: Flapping, seen: Seen, clients: int) -> None:
    counts = upstream.counts
    report.sent, report.left, report.ends = seen.sent, seen.left, seen.ends
    report.forwarded, report.retries, report.most_costly_retries = counts.requests, counts.retries, counts.most_costly
    report.faults = Counter({name: count for name, count in counts.fates.items() if name not in GOOD})
    report.posts = sum(count > 0 for count in counts.posts.values())
    report.most_attempts = max(counts.attempts.values(), default=0)
    twice = [mark for mark, count in counts.posts.items() if count > 1]
    report.wrong += seen.wrong + counts.wrong + [f"POST sent again: {mark}" for mark in twice]
    report.wrong += [f"left over: {count} {what}" for what, count in report.left_over.items() if count]
    if report.most_attempts > 1 + RETRIES + 1:  # and one that is free, where a reused connection had died
        report.wrong.append(f"{report.most_attempts} attempts for one request")
    budget = max(3, math.ceil(0.2 * 2 * clients))  # connections that linger count as in flight, too
    if report.most_costly_retries > budget:
        report.wrong.append(f"{report.most_costly_retries} retries at once, the budget is {budget}")
