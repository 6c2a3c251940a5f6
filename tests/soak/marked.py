"""Clients whose every request bears a mark, and who look at every byte of what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.fakes import RawClient, Reply
from tests.soak.flapping import MARK, body_of

METHODS = ("GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE")
#: With a circuit breaker, and without one: else most requests would meet an open circuit and nothing else.
PREFIXES = ("/api/v1/auth", "/unbroken")
_PATIENCE_S = 20.0
_BREATH_S = 0.03


@dataclass
class Seen:
    """What the clients saw. `wrong` must stay empty."""

    sent: int = 0
    left: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    method: str
    mark: str
    prefix: str
    version: str = "1.1"


def head_of(asked: Asked, *more: str) -> bytes:
    lines = (
        f"{asked.method} {asked.prefix}/{asked.mark} HTTP/{asked.version}",
        "Host: gateway.test",
        f"X-Mark: {asked.mark}",
        f"X-Request-ID: {asked.mark}",
        *more,
    )
    return "\r\n".join([*lines, "", ""]).encode()


def request_of(asked: Asked) -> bytes:
    if asked.method not in {"POST", "PUT"}:
        return head_of(asked)
    body = body_of(asked.mark, "^")
    return head_of(asked, f"Content-Length: {len(body)}") + body


def fault_of(asked: Asked, reply: Reply) -> str:
    """What is wrong with a reply, "" when it is an answer to this request and is whole exactly when it looks so."""
    if reply.all("x-request-id") != [asked.mark]:
        return f"somebody else's: {reply.headers}"
    marks = reply.all(MARK.lower())
    if not marks:
        return "" if reply.is_whole and reply.status >= 500 else f"no mark: {reply.status} {reply.headers}"
    wanted = b"" if asked.method == "HEAD" or reply.status == 503 else body_of(asked.mark)
    if marks != [asked.mark]:
        return f"mark of another: {marks}"
    if reply.is_whole:
        return "" if reply.body == wanted else f"looks whole, is not: {len(reply.body)} of {len(wanted)} bytes"
    return "" if wanted.startswith(reply.body) else f"not a beginning: {reply.body[:80]!r}"


def end_of(reply: Reply) -> str:
    """How it ended, in a word."""
    if not reply.is_whole:
        return "cut"
    if not reply.body or "application/problem+json" not in reply.all("content-type"):
        return str(reply.status)
    return str(json.loads(reply.body)["code"])


class Client:
    """One client, one connection at a time."""

    def __init__(self, port: int, name: str, dice: random.Random, seen: Seen) -> None:
        self._port = port
        self._name = name
        self._dice = dice
        self._seen = seen
        self._count = 0
        self._raw: RawClient | None = None

    async def run(self, requests: int) -> None:
        habits = (self._one, self._one, self._one, self._pipelined, self._old, self._uploading, self._leaving)
        try:
            while self._count < requests:
                await self._dice.choice(habits)()
        finally:
            await self._hang_up()

    def _next(self, version: str = "1.1", methods: tuple[str, ...] = METHODS) -> Asked:
        self._count += 1
        self._seen.sent += 1
        return Asked(self._dice.choice(methods), f"{self._name}-{self._count}", self._dice.choice(PREFIXES), version)

    async def _connected(self) -> RawClient:
        if self._raw is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
            self._raw = RawClient(reader, writer)
        return self._raw

    async def _hang_up(self) -> None:
        if self._raw is not None:
            raw, self._raw = self._raw, None
            await raw.close()

    # habits

    async def _one(self) -> None:
        asked = self._next()
        raw = await self._connected()
        await raw.send(request_of(asked))
        await self._take(raw, asked)

    async def _pipelined(self) -> None:
        many = [self._next() for _ in range(3)]
        raw = await self._connected()
        await raw.send(b"".join(map(request_of, many)))
        for asked in many:
            if not await self._take(raw, asked):
                break  # it said so, or cut: those behind it are not answered

    async def _old(self) -> None:
        """HTTP/1.0: a body of unknown length ends with the connection."""
        await self._hang_up()
        asked = self._next("1.0")
        raw = await self._connected()
        await raw.send(request_of(asked))
        await self._take(raw, asked)
        await self._hang_up()

    async def _uploading(self) -> None:
        """A chunked body that comes bit by bit; the answer may come before its end."""
        asked = self._next(methods=("POST", "PUT"))
        raw = await self._connected()
        body = body_of(asked.mark, "^")
        with contextlib.suppress(ConnectionError):
            await raw.send(head_of(asked, "Transfer-Encoding: chunked"))
            size = max(1, len(body) // self._dice.randrange(1, 6))
            for at in range(0, len(body), size):
                piece = body[at : at + size]
                await raw.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asyncio.sleep(0)
            await raw.send(b"0\r\n\r\n")
        await self._take(raw, asked)

    async def _leaving(self) -> None:
        """Asks, and does not stay for the answer."""
        asked = self._next()
        raw = await self._connected()
        await raw.send(request_of(asked)[: self._dice.choice((10, 10_000_000))])
        await asyncio.sleep(self._dice.choice((0.0, 0.001, 0.01)))
        self._seen.left += 1
        raw.writer.transport.abort()
        await self._hang_up()

    # answers

    async def _take(self, raw: RawClient, asked: Asked) -> bool:
        """Read and judge one reply; whether the connection goes on."""
        seen = self._seen
        try:
            reply = await asyncio.wait_for(raw.reply(asked.method), _PATIENCE_S)
        except (EOFError, TimeoutError) as error:
            seen.wrong.append(f"{asked}: no answer ({type(error).__name__})")
            await self._hang_up()
            return False
        fault = fault_of(asked, reply)
        if fault:
            seen.wrong.append(f"{asked}: {fault}")
        end = end_of(reply)
        seen.ends[end] += 1
        if end == "breaker_open":
            await asyncio.sleep(_BREATH_S)
        is_open = reply.is_whole and "close" not in reply.all("connection")
        if not is_open:
            await self._hang_up()
        return is_open
