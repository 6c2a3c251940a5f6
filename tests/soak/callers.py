"""Clients that retry nothing, and what each of their requests came to."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fakes import RawClient, Seen, Wire

_PATIENCE_S = 30.0


@dataclass
class Calls:
    """How many requests ended how, and the ids of those that were answered. `wrong` must stay empty."""

    ends: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    refused_at: float = math.inf  # when the first was
    cut_short: list[tuple[float, str]] = field(default_factory=list)  # connections cut before they bore an answer
    wrong: list[str] = field(default_factory=list)


async def echo(seen: Seen, wire: Wire) -> None:
    """An upstream's script: the last segment of the path comes back, after as many milliseconds as the one before."""
    *_, delay, mark = seen.target.split("/")
    await asyncio.sleep(int(delay) / 1000)
    body = mark.encode() * 50
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


class Caller:
    """One client: `keeps` its connection or makes one for each request, pauses up to `pause_s` between two."""

    def __init__(self, port: int, name: str, dice: random.Random, calls: Calls) -> None:
        self._port = port
        self._name = name
        self._dice = dice
        self._calls = calls
        self._count = 0
        self._raw: RawClient | None = None
        self._is_used = False
        self._since = 0.0

    async def run(self, stop: asyncio.Event, *, keeps: bool, pause_s: float) -> None:
        """Until told to stop, or until the door is closed."""
        try:
            while not stop.is_set():
                if not await self._call():
                    return
                if not keeps:
                    self._hang_up()
                if pause_s:
                    await asyncio.sleep(self._dice.random() * pause_s)
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._raw is not None:
            self._raw.writer.transport.abort()
            self._raw = None

    async def _call(self) -> bool:
        """One request; whether to go on."""
        calls, self._count = self._calls, self._count + 1
        mark = f"{self._name}-{self._count}"
        try:
            if self._raw is None:
                self._raw = RawClient(*await asyncio.open_connection("127.0.0.1", self._port))
                self._is_used = False
                self._since = time.monotonic()
        except (ConnectionRefusedError, ConnectionResetError):
            calls.ends["refused"] += 1
            calls.refused_at = min(calls.refused_at, time.monotonic())
            return False
        except OSError as error:
            calls.ends["lost"] += 1
            calls.wrong.append(f"{mark}: no connection: {error!r}")
            return True
        end = await self._ask(self._raw, mark)
        calls.ends[end] += 1
        return True

    async def _ask(self, raw: RawClient, mark: str) -> str:
        is_used, self._is_used = self._is_used, True
        try:
            await self._send(raw, mark)
            reply = await asyncio.wait_for(raw.reply(), _PATIENCE_S)
        except (OSError, EOFError, TimeoutError) as error:
            self._hang_up()
            if not is_used and not isinstance(error, TimeoutError):
                self._calls.cut_short.append((self._since, f"{mark}: cut short: {error!r}"))
                return "cut short"
            self._calls.wrong.append(f"{mark}: lost: {error!r}")
            return "lost"
        if "close" in reply.all("connection") or not reply.is_whole:
            self._hang_up()
        if not reply.is_whole or (reply.status, reply.body) != (200, mark.encode() * 50):
            self._calls.wrong.append(f"{mark}: {reply}")
            return "wrong"
        self._calls.answered.add(reply.one("x-request-id"))
        return "answered"

    async def _send(self, raw: RawClient, mark: str) -> None:
        """At once, or in pieces with time between them: what has begun was accepted, too."""
        delay_ms = self._dice.choice((0, 0, 0, 0, 5, 50, 300))
        is_slow = self._dice.random() < 0.1
        head = f"POST /api/v1/auth/{delay_ms}/{mark} HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n".encode()
        for piece in (head[:30], head[30:], b"ab", b"c") if is_slow else (head + b"abc",):
            await raw.send(piece)
            if is_slow:
                await asyncio.sleep(self._dice.random() * 0.1)


#: Whether it keeps its connection, and how long it pauses at most.
HABITS = ((True, 0.0), (True, 0.3), (False, 0.0), (False, 0.05))


def callers(port: int, count: int, dice: random.Random, calls: Calls, stop: asyncio.Event) -> list[asyncio.Task[None]]:
    """Start so many."""
    tasks = []
    for number in range(count):
        keeps, pause_s = HABITS[number % len(HABITS)]
        caller = Caller(port, f"c{number}-{dice.getrandbits(32):x}", random.Random(dice.random()), calls)
        tasks.append(asyncio.create_task(caller.run(stop, keeps=keeps, pause_s=pause_s)))
    return tasks
