"""Upgraded connections: bytes pass both ways, and how that ends stands in the row."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.wire.response import ReplyParser
from tests.fakes import RawClient, Seen, Wire, raw_client, reset_by, upstream
from tests.harness import ADMIN, ask, json_of, newest_rows, running, unix_socket
from tests.world import until

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"

WEBSOCKET = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
SWITCHED = b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


HANDSHAKE = (
    b"GET /api/v1/auth/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_an_upgrade_is_spliced_both_ways(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        assert seen.one("upgrade") == "websocket"
        assert seen.one("sec-websocket-key") == "dGhlIHNhbXBsZSBub25jZQ=="
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x02hi"
        )
        while data := await wire.reader.read(1024):
            await wire.send(data.upper())
        wire.close()

    async def run() -> None:
        async with upstream(on_head=script) as auth, running(tmp_path, auth) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(HANDSHAKE)
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 ")
                assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
                assert await client.reader.readexactly(4) == b"\x81\x02hi"
                await client.send(b"frame")
                assert await client.reader.readexactly(5) == b"FRAME"
            await asyncio.sleep(0.05)
            (row,) = await newest_rows(gateway, 1)
            assert (row["status_code"], row["reason"], row["bytes_in"], row["bytes_out"]) == (101, "ok", 5, 9)

    asyncio.run(run())


def test_a_refused_upgrade_is_an_ordinary_reply(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(HANDSHAKE)
            assert (await client.reply()).body == b"ok"

    asyncio.run(run())


def test_no_more_are_upgraded_than_may_be_however_many_ask_at_once(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(SWITCHED)
        await wire.reader.read()

    async def run() -> None:
        values = {"upstream_max_upgraded": 2, "upstream_max_connections": 3}
        async with contextlib.AsyncExitStack() as stack:
            auth = await stack.enter_async_context(upstream(on_head=script))
            gateway = await stack.enter_async_context(running(tmp_path, auth, **values))
            clients = [await stack.enter_async_context(raw_client(gateway.port)) for _ in range(9)]
            for client in clients:
                await client.send(WEBSOCKET)
            heads = [await client.reader.readuntil(b"\r\n\r\n") for client in clients]
            assert sorted(head[9:12] for head in heads) == [b"101"] * 2 + [b"503"] * 7

    asyncio.run(run())


@pytest.mark.parametrize(
    "end", ["closed by the upstream", "reset by the upstream", "closed by the client", "nothing for 0.2 s"]
)
def test_how_a_splice_ended_is_in_its_row(tmp_path: Path, end: str) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(SWITCHED)
        await wire.reader.read(1)
        if end == "closed by the upstream":
            wire.close()
        elif end == "reset by the upstream":
            wire.writer.transport.abort()
        await wire.reader.read()

    async def run() -> None:
        values = {"upstream_upgrade_idle_timeout": 0.2 if end.startswith("nothing") else 3600.0}
        async with upstream(on_head=script) as auth, running(tmp_path, auth, **values) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(WEBSOCKET)
                await client.reader.readuntil(b"\r\n\r\n")
                if end.endswith("upstream"):
                    if end.startswith("reset"):  # what is not read makes it one
                        await client.send(b"x" * 100_000)
                    else:
                        await client.send(b"x")
                if end != "closed by the client":
                    await client.rest()
            (row,) = await newest_rows(gateway, 1)
            assert (row["status_code"], row["reason"], row["error_message"]) == (101, "ok", end)

    asyncio.run(run())


def tcp_socket(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port))


def say_the_last_word(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="nothing tells that somebody left who is not read")
@pytest.mark.parametrize(
    ("connect", "leave"),
    [
        (tcp_socket, say_the_last_word),
        (tcp_socket, socket.socket.close),
        (tcp_socket, reset_by),
        (unix_socket, say_the_last_word),
        (unix_socket, socket.socket.close),
    ],
)
def test_a_splice_ends_with_all_that_the_client_sent_unless_it_was_reset(
    tmp_path: Path, connect: Callable[[Gateway], socket.socket], leave: Callable[[socket.socket], None]
) -> None:
    """The upstream reads late, so that much of it, and the end, is not read when they come."""
    is_read, received = asyncio.Event(), bytearray()
    block = bytes(65536)

    async def script(seen: Seen, wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a mere WriteTransport
        await wire.send(SWITCHED)
        await is_read.wait()
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        while data := await wire.reader.read(65536):
            received.extend(data)

    async def run() -> None:
        values = {"server_unix_socket": str(tmp_path / "socket")}
        async with upstream(on_head=script) as auth, running(tmp_path, auth, **values) as gateway:
            loop, unread = asyncio.get_running_loop(), gateway._context.unread
            with connect(gateway) as client:
                client.setblocking(False)
                await loop.sock_sendall(client, WEBSOCKET)
                assert (await loop.sock_recv(client, 65536)).endswith(b"\r\n\r\n")
                sent = 0
                while not unread:
                    await loop.sock_sendall(client, block)
                    sent += len(block)
                    await asyncio.sleep(0.002)
                await loop.sock_sendall(client, b"the end")
                leave(client)
                await until(lambda: not unread)
                if leave is reset_by:
                    await until(lambda: not gateway._front.connections)
                is_read.set()
                (row,) = await newest_rows(gateway, 1)
            assert (row["status_code"], row["reason"], row["error_message"]) == (101, "ok", "closed by the client")
            if leave is not reset_by:
                await until(lambda: not auth.open_connections)
                assert (len(received), bytes(received[-7:])) == (sent + 7, b"the end")

    asyncio.run(run())


def test_an_upgraded_connection_that_the_drain_cuts_is_said_to_be(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(SWITCHED)
        await wire.reader.read()

    async def run() -> None:
        async with upstream(on_head=script) as auth:
            async with running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
                await client.send(WEBSOCKET)
                await client.reader.readuntil(b"\r\n\r\n")
                await gateway.stop(grace_s=0.1)
                assert await client.rest() == b""
            async with running(tmp_path, auth) as gateway:
                (row,) = await newest_rows(gateway, 1)
                said = (row["status_code"], row["reason"], row["error_message"])
                assert said == (101, "draining", "the gateway had to stop")
                assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0

    asyncio.run(run())


async def _fill(client: RawClient, *, is_reading: bool) -> None:
    """Send until it is cut off, or else read nothing."""
    if not is_reading:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a mere WriteTransport
    with contextlib.suppress(ConnectionError):
        while is_reading:
            await asyncio.wait_for(client.send(bytes(1 << 20)), 10)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_side_of_a_splice_that_never_reads_does_not_keep_it(tmp_path: Path, side: str) -> None:
    """What is on its way stays where it is, and whoever has left is not heard of while his side is paused."""
    block = bytes(1 << 20)

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        if side == "upstream":
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a mere WriteTransport
            await asyncio.Event().wait()
        while side == "client":
            await wire.send(block)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, server_write_timeout=0.3) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
                await client.reader.readuntil(b"\r\n\r\n")
                try:
                    await _fill(client, is_reading=side == "upstream")
                    for _ in range(500):
                        if gateway.state()["connections"] == 0:
                            break
                        await asyncio.sleep(0.01)
                    (pool,) = gateway.state()["pools"].values()
                    assert (gateway.state()["connections"], pool["active"]) == (0, 0)
                finally:
                    client.writer.transport.abort()
            (row,) = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN))["items"]
            told = {
                "client": ("client_stalled", "the client does not read"),
                "upstream": ("ok", "the upstream does not read"),
            }
            assert (row["reason"], row["error_message"]) == told[side]

    asyncio.run(run())


def test_the_end_of_a_splice_is_not_waited_for_without_end() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            owner, is_forgotten = mock.Mock(), asyncio.Event()
            owner.forget.side_effect = lambda connection: is_forgotten.set()
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: UpstreamConnection(owner, 1 << 16), sock=ours)
            connection.begin(mock.Mock(), ReplyParser(), "GET", b"x" * (1 << 20), is_complete=True)
            connection.splice(mock.Mock())
            connection.close_gracefully(0.05)
            await asyncio.wait_for(is_forgotten.wait(), 5)

    asyncio.run(run())
