"""The load: keep-alive connections, one request at a time each, every answer checked to be the request's own."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class Asking(asyncio.Protocol):
    """One connection; `results` is shared by all."""

    def __init__(self, number: int, token: str, results: Results) -> None:
        self.number = number
        self.results = results
        self.count = 0
        self.buffer = b""
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self.fixed = f"Host: bench.test\r\nAccept: */*\r\n{authorization}User-Agent: load/{number}\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        self.count += 1
        self.mark = f"{self.number}x{self.count}"
        path = f"/api/v1/content/{_ALPHABET[self.count % 36]}/{self.count % 1000}?id={self.mark}"
        self.began = time.perf_counter()
        self.transport.write(f"GET {path} HTTP/1.1\r\n{self.fixed}X-Trace: {self.mark}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < 1024:
            if separator and b"HTTP/1.1 200" not in head[:12]:
                self.results.wrong(head)
                self.transport.close()
            return
        self.results.latencies.append(time.perf_counter() - self.began)
        if not body.startswith(self.mark.encode() + b".") or len(body) != 1024:
            self.results.wrong(head + body[:80])
        self.buffer = b""
        if time.perf_counter() < self.results.until:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.results.open -= 1
        if self.results.open == 0:
            self.results.done.set_result(None)


class Results:
    def __init__(self, connections: int, seconds: float) -> None:
        self.latencies: list[float] = []
        self.bad = 0
        self.first_bad = ""
        self.open = connections
        self.until = time.perf_counter() + seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wrong(self, seen: bytes) -> None:
        self.bad += 1
        self.first_bad = self.first_bad or seen[:300].decode("latin-1")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--connections", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--token", default="")
    arguments = parser.parse_args()
    loop = asyncio.get_running_loop()
    results = Results(arguments.connections, arguments.seconds)
    began = time.perf_counter()
    for number in range(arguments.connections):
        await loop.create_connection(
            lambda number=number: Asking(number, arguments.token, results),  # type: ignore[misc]  # a default argument binds the loop's variable
            "127.0.0.1",
            arguments.port,
        )
    await results.done
    took = time.perf_counter() - began
    ordered = sorted(results.latencies) or [0.0]
    print(
        json.dumps(
            {
                "requests": len(results.latencies),
                "seconds": took,
                "p50_ms": ordered[len(ordered) // 2] * 1000,
                "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
                "bad": results.bad,
                "first_bad": results.first_bad,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
