"""Nine small upstreams for `--demo`: each answers with what it was asked, so that one sees what a service gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

from engadi_gateway.model import Service

_MAX_HEAD_BYTES = 64 << 10


async def _serve(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: heads with Content-Length bodies or none, which is all that the gateway sends here."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request_line, *lines = head.split("\r\n")[:-2]
            headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
            body = await _body(reader, headers)
            method, target, _ = request_line.split(" ")
            writer.write(_reply(name, method, target, headers, body))
            await writer.drain()
    writer.close()


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


def _reply(name: str, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    shown = {key: value for key, value in headers.items() if key != "authorization"}
    document = {"service": name, "method": method, "path": target, "received": shown, "body_bytes": len(body)}
    answer = {"status": "ok"} if target == "/health" else document
    content = json.dumps(answer, indent=2).encode() + b"\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else content)


@contextlib.asynccontextmanager
async def demo_upstreams(services: Mapping[str, Service]) -> AsyncIterator[list[str]]:
    """Listen on each service's own address; yields what is served and what could not be, as sentences."""
    servers: list[asyncio.Server] = []
    said: list[str] = []
    for service in services.values():
        parts = urlsplit(service.url)
        try:
            servers.append(await _listen(service.name, parts.hostname or "", parts.port or 80))
            said.append(f"{service.name} on {service.url}")
        except OSError as error:
            said.append(f"{service.name} NOT on {service.url}: {error.strerror}")
    try:
        yield said
    finally:
        for server in servers:
            server.close()


async def _listen(name: str, host: str, port: int) -> asyncio.Server:
    return await asyncio.start_server(
        lambda reader, writer: _serve(name, reader, writer), host, port, limit=_MAX_HEAD_BYTES
    )
