"""Who uses the gateway while somebody else abuses it: `python -m tests.soak.healthy`, a process of its own.

It is the upstream too, so that nothing of the attack's runs between a request and its answer but the gateway. Says
the upstream's port, then for each line `PORT SECONDS` asks the gateway at PORT, and says a JSON object of what it saw.
Both that and the gateway are to be served first by the machine's processors: the attackers' work is done elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field

from tests.harness import token

HOST = "127.0.0.1"
CLIENTS = 16
_PAUSE_S = 0.02
_PATIENCE_S = 20
_ASKED = b"GET /api/v1/content/x?mark=%08d HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"
#: Above what is attacked and what attacks; where that is not allowed, the latencies are somewhat worse.
_NICE = -10


@dataclass
class Answers:
    """What the healthy clients saw in some seconds; latencies in milliseconds."""

    asked: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    failures: list[str] = field(default_factory=list)


class _Upstream(asyncio.Protocol):
    """Answers each request with its mark."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(_ANSWER + data.partition(b"mark=")[2][:8])


class _Clients:
    def __init__(self, port: int, until: float) -> None:
        self._port = port
        self._until = until
        self._latencies: list[float] = []
        self._failures: list[str] = []
        self._asked = 0
        self._token = token("healthy").encode()

    async def ask(self) -> Answers:
        await asyncio.gather(*(self._one() for _ in range(CLIENTS)))
        ordered = sorted(self._latencies)
        p50, p99 = (round(ordered[int(len(ordered) * share)] * 1000, 2) if ordered else 0.0 for share in (0.5, 0.99))
        return Answers(len(ordered), p50, p99, self._failures)

    async def _one(self) -> None:
        """One client, from one connection as long as it lasts."""
        while time.monotonic() < self._until:
            try:
                await self._connection()
            except (OSError, EOFError, TimeoutError) as error:
                self._failures.append(repr(error))
                await asyncio.sleep(_PAUSE_S)

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection(HOST, self._port)
        try:
            while time.monotonic() < self._until:
                await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.5))
                self._asked += 1
                mark = self._asked
                began = time.monotonic()
                async with asyncio.timeout(_PATIENCE_S):
                    writer.write(_ASKED % (mark, self._token))
                    head = await reader.readuntil(b"\r\n\r\n")
                    body = await reader.readexactly(8)
                self._latencies.append(time.monotonic() - began)
                if not head.startswith(b"HTTP/1.1 200 ") or body != b"%08d" % mark:
                    self._failures.append(f"{head[:60]!r} {body!r} for {mark}")
                    return
                if b"\r\nconnection: close\r\n" in head.lower():
                    return
        finally:
            writer.transport.abort()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Upstream, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while words := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        seen = await _Clients(int(words[0]), time.monotonic() + float(words[1])).ask()
        print(json.dumps(asdict(seen)), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.nice(_NICE)
    asyncio.run(_serve())
