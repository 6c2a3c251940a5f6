"""`python -m tests.soak streams`: open WebSockets and event streams live through configuration writes and SIGHUPs.

Each WebSocket says numbers and hears them again, each event stream counts; none may end, and none may miss a number.
Half of them came in by a route that is deleted meanwhile. Beside them clients that retry nothing ask all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes import RawClient, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, ask_on, json_of
from tests.processes import Process, ini_of, started
from tests.soak.callers import Calls, callers, echo
from tests.soak.writes import remember, some_write

BASE = "/api/v1/gateway"
_INI = """[limits]
per_ip = {limit}
per_user = {limit}
[breaker]
timeout = {breaker}s
[upstream]
max_connections = 1000
timeout = {timeout}s
"""
_CALLERS = 8
_EVERY_S = 0.2
_SETTLED_S = 20.0


@dataclass
class Report:
    """What was done and seen; `wrong` must be empty."""

    streams: int = 0
    writes: int = 0
    reloads: int = 0
    reloads_refused: int = 0
    messages: int = 0
    fewest_of_one: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    left_over: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


async def _script(seen: Seen, wire: Wire) -> None:
    """Echo, count, or answer, by the path."""
    if "/ws/" in seen.target:
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while data := await wire.reader.read(65536):
            await wire.send(data)
        wire.close()
    elif "/sse/" in seen.target:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(1_000_000):
            event = b"data: %d\n\n" % number
            await wire.send(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(_EVERY_S)
    else:
        await echo(seen, wire)


class Stream:
    """One of them; `count` is how many numbers came."""

    def __init__(self, client: RawClient, path: str) -> None:
        self._client = client
        self._path = path
        self.count = 0

    async def run(self) -> None:
        """Until cancelled; raises what is wrong."""
        is_socket = "/ws/" in self._path
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n" if is_socket else ""
        await self._client.send(f"GET {self._path} HTTP/1.1\r\nHost: h\r\n{upgrade}\r\n".encode())
        head = await self._client.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 " if is_socket else b"HTTP/1.1 200 "):
            raise ValueError(f"{self._path}: {head!r}")
        while True:
            await (self._talk() if is_socket else self._listen())

    async def _talk(self) -> None:
        line = b"%d\n" % self.count
        await self._client.send(line)
        if await self._client.reader.readline() != line:
            raise ValueError(f"{self._path}: ended, or another's, after {self.count}")
        self.count += 1
        await asyncio.sleep(_EVERY_S)

    async def _listen(self) -> None:
        line = await self._client.reader.readline()
        if not line:
            raise ValueError(f"{self._path}: ended after {self.count}")
        if line.startswith(b"data: "):
            if int(line[6:]) != self.count:
                raise ValueError(f"{self._path}: {line!r} after {self.count}")
            self.count += 1


async def soak(folder: Path, *, streams: int, writes: int, reloads: int, seed: int) -> Report:
    """Run it; never raises for what it finds."""
    dice, report = random.Random(seed), Report(streams=streams)
    began = time.monotonic()
    async with upstream(_script) as auth:
        ini = ini_of(auth.url, _INI.format(limit=10_000_000, breaker=60, timeout=30))
        async with started(folder, ini) as gateway:
            calls, stop = Calls(), asyncio.Event()
            own = {"path_pattern": "/own/*", "target_service": "own", "target_url": auth.url, "is_public": True}
            made = await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=own)
            async with _open_streams(gateway.port, streams, report) as opened:
                asking = callers(gateway.port, _CALLERS, dice, calls, stop)
                await ask(gateway.port, "DELETE", made.one("location"), bearer=ADMIN)
                await _disturb(gateway, auth.url, writes, reloads, dice, report)
                await _all_advance(opened, report)
                report.messages = sum(stream.count for stream in opened)
                report.fewest_of_one = min(stream.count for stream in opened)
                stop.set()
                await asyncio.gather(*asking)
            report.ends = calls.ends
            report.wrong += calls.wrong + [text for _, text in calls.cut_short]
            await _left_over(gateway, report)
            gateway.signal(signal.SIGTERM)
            if await gateway.code() or any("Traceback" in line for line in gateway.lines):
                report.wrong += gateway.lines
        if not await _until(lambda: auth.open_connections == 0):
            report.wrong.append(f"the upstream still has {auth.open_connections} connections")
    report.took_s = time.monotonic() - began
    return report


@contextlib.asynccontextmanager
async def _open_streams(port: int, count: int, report: Report) -> AsyncIterator[list[Stream]]:
    """So many WebSockets and so many event streams, by two routes; what ended them is a fault."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for number in range(count):
            prefix = "/own" if number % 2 else "/api/v1/auth"
            kind = "ws" if number % 4 < 2 else "sse"
            client = await stack.enter_async_context(raw_client(port))
            opened.append(Stream(client, f"{prefix}/{kind}/{number}"))
        tasks = [asyncio.create_task(stream.run()) for stream in opened]
        await _all_advance(opened, report)
        yield opened
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(end, asyncio.CancelledError):
                report.wrong.append(f"a stream ended: {end!r}")


async def _all_advance(opened: list[Stream], report: Report) -> None:
    """Wait until each has got a number since now."""
    before = [stream.count for stream in opened]
    if not await _until(lambda: all(stream.count > count for stream, count in zip(opened, before, strict=True))):
        report.wrong.append("not all streams go on")


async def _until(is_so: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> bool:
    limit = time.monotonic() + _SETTLED_S
    while time.monotonic() < limit:
        verdict = is_so()
        if verdict is True or (isinstance(verdict, Awaitable) and await verdict):
            return True
        await asyncio.sleep(0.02)
    return False


async def _disturb(gateway: Process, url: str, writes: int, reloads: int, dice: random.Random, report: Report) -> None:
    """Random writes, one after the other, and reloads between them; now and then of a file that is refused."""
    mine: list[str] = []
    when = Counter(dice.randrange(writes) for _ in range(reloads))
    async with raw_client(gateway.port) as client:
        for number in range(writes):
            method, target, body = some_write(dice, mine)
            reply = await ask_on(client, method, target, bearer=ADMIN, body=body)
            if reply.status < 300:
                remember(method, target, reply, mine)
                report.writes += 1
            else:
                report.wrong.append(f"{method} {target}: {reply.status} {reply.body!r}")
            for _ in range(when[number]):
                await _reload(gateway, url, dice, report)
            await asyncio.sleep(0)


async def _reload(gateway: Process, url: str, dice: random.Random, report: Report) -> None:
    is_bad = dice.random() < 0.2
    values = {"limit": dice.randrange(1_000_000, 10_000_000), "breaker": dice.randrange(5, 99)}
    ini = ini_of(url, _INI.format(timeout="x" if is_bad else dice.randrange(5, 60), **values))
    (gateway.folder / "gateway.ini").write_text(ini)
    gateway.signal(signal.SIGHUP)
    await gateway.wait_for("NOT reloaded" if is_bad else "configuration reloaded")
    report.reloads += 1
    report.reloads_refused += is_bad


async def _left_over(gateway: Process, report: Report) -> None:
    """Besides the one that asks."""

    async def look() -> bool:
        reply = await ask(gateway.port, "GET", f"{BASE}/metrics", bearer=ADMIN)
        state: dict[str, Any] = json_of(reply)["process"]
        active = sum(pool["active"] + pool["waiting"] + pool["dialling"] for pool in state["pools"].values())
        report.left_over = {
            "connections": state["connections"] - 1,
            "requests": state["in_flight"] - 1,
            "upstream connections": active,
        }
        return not any(report.left_over.values())

    if not await _until(look):
        report.wrong.append(f"left over: {report.left_over}")
