"""Peers that record and misbehave: an upstream that does what a script says, a raw client, a clock.

Real sockets on port 0. Everything is kept: a test asserts on all the bytes, never on a summary.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import cast

import h11

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Seen:
    """One request as the upstream read it. `raw_head` is what was on the wire, `lines` the fields as they were spelt."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    raw_head: bytes
    connection: int
    lines: list[str] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def one(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values}"
        return values[0]


class Wire:
    """What a script of the upstream may do with its connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """A RST instead of a FIN, as a crashing process gives."""
        self.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()

    async def is_asked_again_after(self, answer: bytes) -> bool:
        """Send it, and see whether its connection was taken again when the loop has gone round once."""
        transport = cast(asyncio.Transport, self.writer.transport)
        transport.pause_reading()  # so that what came is still in the socket
        await self.send(answer)
        await asyncio.sleep(0)
        poll = select.poll()
        poll.register(self.writer.get_extra_info("socket").fileno(), select.POLLIN)
        is_asked = bool(poll.poll(0))
        transport.resume_reading()
        return is_asked


@contextlib.contextmanager
def underneath(transport: asyncio.BaseTransport) -> Iterator[socket.socket]:
    """The socket of a transport, for what transports do not offer on every loop."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        yield sock


Script = Callable[["Seen", Wire], Awaitable[None]]


async def answer_ok(seen: Seen, wire: Wire) -> None:
    await wire.send(OK if seen.method != "HEAD" else OK[:-2])


@dataclass
class Upstream:
    """A recording upstream. Requests are read by h11 as a strict server: `seen` is what it understood.

    `raw` holds the bytes of each connection, `faults` what h11 refused.
    """

    script: Script = answer_ok
    on_head: Script | None = None
    seen: list[Seen] = field(default_factory=list)
    raw: list[bytearray] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    open_connections: int = 0
    port: int = 0  # kept over stop and start
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port or self.port, limit=1 << 20)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.open_connections += 1
        number = len(self.raw)
        self.raw.append(bytearray())
        try:
            with contextlib.suppress(ConnectionError):
                await self._serve(reader, writer, number)
        finally:
            self.open_connections -= 1
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        wire = Wire(reader, writer)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        while True:
            request = await self._next(connection, reader, number)
            if not isinstance(request, h11.Request):
                return
            seen = Seen(
                request.method.decode(),
                request.target.decode("latin-1"),
                [(name.decode(), value.decode("latin-1")) for name, value in request.headers],
                b"",
                bytes(self.raw[number]),
                number,
                [f"{name.decode()}: {value.decode('latin-1')}" for name, value in request.headers.raw_items()],
            )
            if self.on_head is not None:
                await self.on_head(seen, wire)
                if writer.transport.is_closing():
                    self.seen.append(seen)
                    return
            body = []
            while isinstance(event := await self._next(connection, reader, number), h11.Data):
                body.append(bytes(event.data))
            seen.body = b"".join(body)
            if event is None:
                self.faults.append("request cut off")
                return
            self.seen.append(seen)
            await self.script(seen, wire)
            if writer.transport.is_closing():
                return
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()

    async def _next(self, connection: h11.Connection, reader: asyncio.StreamReader, number: int) -> h11.Event | None:
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                self.faults.append(str(error))
                return None
            if event is not h11.NEED_DATA:
                return event if not isinstance(event, type) else None
            data = await reader.read(65536)
            if not data:
                return None
            self.raw[number] += data
            connection.receive_data(data)


@contextlib.asynccontextmanager
async def upstream(script: Script = answer_ok, on_head: Script | None = None) -> AsyncIterator[Upstream]:
    server = Upstream(script, on_head)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@dataclass
class Reply:
    """A reply as h11, the strict client, read it; `is_whole` is false where it was cut off."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_whole: bool
    interim: list[int]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def one(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values}"
        return values[0]


class RawClient:
    """Bytes out as given; replies in through h11. `method` of what was asked frames the reply.

    `arrived` is set once anything has come.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.arrived = asyncio.Event()
        self._left = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, method: str = "GET") -> Reply:
        """The next reply. Raises EOFError where the connection ended before its head."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._left:
            parser.receive_data(self._left)
            self._left = b""
        head: h11.Response | None = None
        interim: list[int] = []
        body: list[bytes] = []
        is_whole = False
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                if head is None:
                    raise EOFError("no reply") from None
                break
            if event is h11.NEED_DATA:
                try:
                    parser.receive_data(await self.reader.read(65536))
                except ConnectionError:
                    break
                self.arrived.set()
            elif isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                is_whole = True
                break
            else:
                break
        if head is None:
            raise EOFError("no reply")
        self._left = parser.trailing_data[0]
        headers = [(name.decode(), value.decode("latin-1")) for name, value in head.headers]
        return Reply(head.status_code, headers, b"".join(body), is_whole, interim)

    async def rest(self) -> bytes:
        """Everything until the connection ends."""
        left, self._left = self._left, b""
        with contextlib.suppress(ConnectionError):
            left += await self.reader.read()
        return left

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_client(port: int, host: str = "127.0.0.1") -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    client = RawClient(reader, writer)
    try:
        yield client
    finally:
        await client.close()


def reset_by(sock: socket.socket) -> None:
    """Close, so that the other side is told at once."""
    sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
