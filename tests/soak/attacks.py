"""What strangers do to a server, each for some seconds: `python -m tests.soak.attacks NAME PORT SECONDS SIZE`.

A process of its own, so that what it costs is not counted as somebody's latency. `SIZE` connections or tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from engadi_gateway.gateway.listeners import allow_open_files

Attack = Callable[[int, int], Awaitable[Any]]
HOST = "127.0.0.1"
#: Public, and answered by an upstream.
PATH = "/api/v1/auth/x"
_START = f"POST {PATH} HTTP/1.1\r\nHost: a\r\n".encode()


async def _connect(port: int, *, receive_bytes: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
    return await asyncio.open_connection(sock=sock, limit=4096)


async def _for_ever(once: Callable[[int], Awaitable[None]], port: int) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError):
            await once(port)
        await asyncio.sleep(0.001)


def _many(once: Callable[[int], Awaitable[None]]) -> Attack:
    async def attack(port: int, size: int) -> None:
        await asyncio.gather(*(_for_ever(once, port) for _ in range(size)))

    return attack


async def _drip(port: int, start: bytes, drop: bytes, every_s: float) -> None:
    _, writer = await _connect(port)
    try:
        writer.write(start)
        while True:
            await asyncio.sleep(every_s)
            writer.write(drop)
            await writer.drain()
    finally:
        writer.transport.abort()


async def slow_head(port: int) -> None:
    await _drip(port, _START, b"x-slow: 1\r\n", 0.5)


async def slow_body(port: int) -> None:
    await _drip(port, _START + b"Content-Length: 1000000\r\n\r\n", b"x", 0.5)


async def slow_reader(port: int) -> None:
    """Asks for a large reply, and reads two KiB a second of it."""
    reader, writer = await _connect(port, receive_bytes=4096)
    try:
        writer.write(b"GET /api/v1/auth/large HTTP/1.1\r\nHost: a\r\n\r\n")
        while await reader.read(1024):
            await asyncio.sleep(0.5)
    finally:
        writer.transport.abort()


async def idle(port: int) -> None:
    reader, writer = await _connect(port)
    try:
        await reader.read()
    finally:
        writer.transport.abort()


async def connect_flood(port: int) -> None:
    _, writer = await _connect(port)
    writer.transport.abort()


async def _read_all(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(65536):
            pass


async def pipelined(port: int) -> None:
    """Ten thousand requests, sent without waiting for an answer, and then their answers."""
    reader, writer = await _connect(port)
    try:
        reading = asyncio.create_task(_read_all(reader))
        for _ in range(100):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
            await writer.drain()
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await reading
    finally:
        writer.transport.abort()


async def tiny_chunks(port: int) -> None:
    """A million of one byte each."""
    reader, writer = await _connect(port)
    try:
        writer.write(_START + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            writer.write(b"1\r\nx\r\n" * 1000)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read(4096)
    finally:
        writer.transport.abort()


async def header_bomb(port: int) -> None:
    """Heads as large as allowed, with as many lines as allowed; then one that never ends."""
    reader, writer = await _connect(port)
    try:
        lines = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 150) for number in range(95))
        for _ in range(20):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")
            await reader.readuntil(b"ok")
        while True:
            writer.write(b"GET / HTTP/1.1\r\n" + lines * 10)
            await writer.drain()
    finally:
        writer.transport.abort()


def slowhttptest(*arguments: str) -> Attack:
    async def attack(port: int, size: int) -> None:
        program = shutil.which("slowhttptest")
        assert program is not None, "slowhttptest is not installed"
        process = await asyncio.create_subprocess_exec(
            program, *arguments, "-c", str(size), "-r", "200", "-l", "600", "-p", "3", "-u", f"http://{HOST}:{port}{PATH}",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    return attack


#: Name: what is done, and how many at once in a long run.
ATTACKS: dict[str, tuple[Attack, int]] = {
    "slow heads": (_many(slow_head), 1000),
    "slow bodies": (_many(slow_body), 300),
    "slow readers": (_many(slow_reader), 60),
    "idle connections": (_many(idle), 5000),
    "connect flood": (_many(connect_flood), 8),
    "pipelined requests": (_many(pipelined), 2),
    "tiny chunks": (_many(tiny_chunks), 2),
    "header bombs": (_many(header_bomb), 4),
    "slowhttptest -H": (slowhttptest("-H", "-i", "1"), 500),
    "slowhttptest -B": (slowhttptest("-B", "-i", "1", "-s", "65536"), 300),
    "slowhttptest -R": (slowhttptest("-R", "-a", "1", "-b", "3000"), 200),
    "slowhttptest -X": (slowhttptest("-X", "-w", "10", "-y", "20", "-n", "1", "-z", "16"), 60),
}


async def _run(name: str, port: int, seconds: float, size: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ATTACKS[name][0](port, size)


if __name__ == "__main__":
    allow_open_files(15_000)
    asyncio.run(_run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
