"""The least that a proxy of this gateway's shape can do: h11 reads each head, the connections are asyncio's, and that
is all. No limit, no refusal, no time-out, no log: whoever parses with h11 pays this before the first line of their own.

`python -m tests.bench.peers.least PORT UPSTREAM`
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import cast

import h11

_NOT_FORWARDED = frozenset((b"host", b"connection", b"keep-alive", b"te", b"transfer-encoding"))
_READ_BYTES = 65_536


class Upstream(asyncio.Protocol):
    """A connection to the upstream; takes replies of a stated length that come in one read."""

    def __init__(self, idle: list[Upstream]) -> None:
        self._idle = idle
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.client: asyncio.Transport = cast(asyncio.Transport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of the selector's transports

    def data_received(self, data: bytes) -> None:
        head, end, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(body) != length:
            raise NotImplementedError("a reply in pieces")
        self._idle.append(self)
        self.client.write(head + end + body)


class Client(asyncio.Protocol):
    """A client's connection; takes requests without a body that come in one read."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of the selector's transports

    def data_received(self, data: bytes) -> None:
        self.received = data
        self._proxy.add(self)


class Proxy:
    """Heads that come in one turn of the loop are read, then sent on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, upstream: int) -> None:
        self._loop = loop
        self._upstream = upstream
        self._ready: list[Client] = []
        self._idle: list[Upstream] = []
        self._dials: set[asyncio.Task[None]] = set()

    def add(self, client: Client) -> None:
        if not self._ready:
            self._loop.call_soon(self._run)
        self._ready.append(client)

    def _run(self) -> None:
        ready, self._ready = self._ready, []
        for client, data in [(client, read(client.received)) for client in ready]:
            if self._idle:
                self._send(self._idle.pop(), client, data)
            else:
                dial = self._loop.create_task(self._dial(client, data))
                self._dials.add(dial)
                dial.add_done_callback(self._dials.discard)

    async def _dial(self, client: Client, data: bytes) -> None:
        _, upstream = await self._loop.create_connection(lambda: Upstream(self._idle), "127.0.0.1", self._upstream)
        self._send(upstream, client, data)

    @staticmethod
    def _send(upstream: Upstream, client: Client, data: bytes) -> None:
        upstream.client = client.transport
        upstream.transport.write(data)


def read(raw: bytes) -> bytes:
    """A request as it is sent on."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    request = connection.next_event()
    if not isinstance(request, h11.Request):
        raise NotImplementedError("a head in pieces")
    lines = [b"%b: %b" % line for line in request.headers.raw_items() if line[0].lower() not in _NOT_FORWARDED]
    return b"%b %b HTTP/1.1\r\nHost: upstream\r\n%b\r\n\r\n" % (request.method, request.target, b"\r\n".join(lines))


async def serve(port: int, upstream: int) -> None:
    loop = asyncio.get_running_loop()
    proxy = Proxy(loop, upstream)
    server = await loop.create_server(lambda: Client(proxy), "127.0.0.1", port, backlog=4096)
    gc.collect()
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
