"""The end of a gateway: whoever was let in is answered, whoever asks nothing is let go, and it ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from tests.fakes import OK, RawClient, Seen, Wire, raw_client, upstream
from tests.harness import ask_on, json_of, running
from tests.processes import ini_of, started

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"


async def _read_all(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    data, loop = b"", asyncio.get_running_loop()
    while piece := await asyncio.wait_for(loop.sock_recv(sock, 65536), 10):
        data += piece
    return data


@pytest.mark.parametrize("turns", range(4))
def test_a_connection_that_nobody_has_taken_yet_is_served(tmp_path: Path, turns: int) -> None:
    """The kernel accepted it before the door closed, or asyncio did but a turn of the loop before."""

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            socks = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(5)]
            for sock in socks:
                sock.sendall(GET)
            for _ in range(turns):
                await asyncio.sleep(0)
            stopping = asyncio.create_task(gateway.stop(grace_s=5))
            for sock in socks:
                with sock:
                    reply = await _read_all(sock)
                    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
                    assert b"Connection: close\r\n" in reply
            await stopping
            assert len(auth.seen) == 5

    asyncio.run(run())


def test_a_connection_that_was_used_a_moment_ago_is_served_once_more(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            assert (await ask_on(client, "GET", "/api/v1/auth/1")).status == 200
            stopping = asyncio.create_task(gateway.stop(grace_s=5))
            while gateway.state()["lifecycle"] != "draining":
                await asyncio.sleep(0)
            await asyncio.sleep(0.1)
            reply = await ask_on(client, "GET", "/api/v1/auth/2")
            assert (reply.status, reply.one("connection")) == (200, "close")
            assert await client.rest() == b""
            await stopping

    asyncio.run(run())


def test_what_was_pipelined_is_answered_before_the_end(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await release.wait()
        await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(GET * 4)
            while not auth.seen:
                await asyncio.sleep(0.001)
            stopping = asyncio.create_task(gateway.stop(grace_s=5))
            while gateway.state()["lifecycle"] != "draining":
                await asyncio.sleep(0)
            release.set()
            replies = [await client.reply() for _ in range(4)]
            assert [(reply.status, reply.all("connection")) for reply in replies] == [(200, [])] * 3 + [
                (200, ["close"])
            ]
            await stopping

    asyncio.run(run())


def test_whoever_asks_nothing_is_let_go_and_the_end_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            assert (await ask_on(client, "GET", "/api/v1/auth/1")).status == 200
            began = time.monotonic()
            await gateway.stop(grace_s=60)
            assert time.monotonic() - began < 30
            assert await client.rest() == b""

    asyncio.run(run())


def test_a_request_in_the_socket_is_answered_though_its_connections_time_is_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
                while not gateway._front.connections:
                    await asyncio.sleep(0.001)
                (connection,) = gateway._front.connections
                sock.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                gateway._context.idle.discard(connection)
                connection.timed_out(time.monotonic())
                assert (await _read_all(sock)).startswith(b"HTTP/1.1 200 OK\r\n")

    asyncio.run(run())


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGHUP, signal.SIGTERM)], ids=["at once", "a reload"])
def test_a_second_sigterm_ends_the_delay_too(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """And what comes between them changes nothing."""

    async def run() -> None:
        more = "[gateway]\ndrain_delay = 60s\n"
        async with upstream() as auth, started(tmp_path, ini_of(auth.url, more)) as gateway:
            gateway.signal(signal.SIGTERM)
            await gateway.wait_for("draining")
            for number in numbers:
                gateway.signal(number)
            assert await gateway.code() == 0
            assert not [line for line in gateway.lines if "reloaded" in line]

    asyncio.run(run())


def test_a_reload_just_before_the_end_does_not_keep_idle_connections(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            assert (await ask_on(RawClient(reader, writer), "GET", "/api/v1/auth/1")).status == 200
            stopping = asyncio.create_task(gateway.stop(grace_s=60))
            while gateway.state()["lifecycle"] != "draining":
                await asyncio.sleep(0)
            await gateway.reload(gateway.settings)
            await asyncio.wait_for(stopping, 30)
            writer.close()

    asyncio.run(run())


def test_what_is_not_answered_when_patience_ends_is_told_so_and_logged_so(tmp_path: Path) -> None:
    """One whose reply has begun is cut, so that it does not look whole; all others get a 503."""

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("begun"):
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await asyncio.sleep(60)

    async def run() -> None:
        more = "[gateway]\ndrain_timeout = 300ms\n"
        async with upstream(script) as auth, started(tmp_path, ini_of(auth.url, more)) as gateway:
            async with (
                raw_client(gateway.port) as silent,
                raw_client(gateway.port) as begun,
                raw_client(gateway.port) as half,
            ):
                await silent.send(GET)
                await begun.send(GET.replace(b"/x", b"/begun"))
                await half.send(b"POST /api/v1/auth/half HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n123")
                assert (await begun.reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK")
                while len(auth.seen) < 2:
                    await asyncio.sleep(0.01)
                gateway.signal(signal.SIGTERM)
                for client in (silent, half):
                    reply = await client.reply()
                    assert (reply.status, reply.one("retry-after"), reply.one("connection")) == (503, "5", "close")
                    assert json_of(reply)["code"] == "draining"
                assert await begun.rest() == b""
            assert await gateway.code() == 0
            assert any("3 requests were cut off" in line for line in gateway.lines)
            assert "stopped" in gateway.lines[-1]
        with contextlib.closing(sqlite3.connect(tmp_path / "engadi_gateway-log.db")) as log:
            rows = log.execute(
                "SELECT path, status_code, reason, error_message FROM gateway_log ORDER BY path"
            ).fetchall()
        said = ("draining", "not answered before the gateway had to stop")
        assert rows == [
            ("/api/v1/auth/begun", 200, *said), ("/api/v1/auth/half", 503, *said), ("/api/v1/auth/x", 503, *said),
        ]  # fmt: skip

    asyncio.run(run())
