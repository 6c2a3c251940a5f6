"""How connections end: last answers arrive, whoever has left is noticed, whoever lingers holds no seat for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.net.client import ClientConnection
from engadi_gateway.net.forward import Forward
from tests.certificates import certify
from tests.fakes import OK, RawClient, Seen, Wire, raw_client, underneath, upstream
from tests.harness import ADMIN, ask, json_of, newest_rows, running, settings_for, unix_socket
from tests.world import until

BASE = "/api/v1/gateway"
GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"
LARGE = 600_000


@contextlib.asynccontextmanager
async def slow_reader(port: int) -> AsyncIterator[RawClient]:
    """A client whose kernel takes little at a time."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    client = RawClient(reader, writer)
    try:
        yield client
    finally:
        await client.close()


def reset(client: RawClient) -> None:
    """Leave so that the other side is told at once: an orderly end stands behind what was sent and not yet read."""
    with underneath(client.writer.transport) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


async def large(seen: Seen, wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE + bytes(LARGE))


LAST = {
    "the client's last request": (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), {}, b"\r\n"),
    "HTTP/1.0": (GET.replace(b"HTTP/1.1", b"HTTP/1.0"), {}, b"\r\n"),
    "the last one that a connection has": (GET, {"server_keep_alive_requests": 1}, GET),
}


@pytest.mark.parametrize(("request_bytes", "values", "late"), LAST.values(), ids=LAST.keys())
def test_what_comes_late_does_not_take_the_last_answer_back(
    tmp_path: Path, request_bytes: bytes, values: dict[str, Any], late: bytes
) -> None:
    async def run() -> None:
        async with upstream(large) as auth, running(tmp_path, auth, **values) as gateway:
            async with slow_reader(gateway.port) as client:
                await client.send(request_bytes)
                await client.reader.readuntil(b"\r\n\r\n")
                await until(lambda: {one.state.name for one in gateway._front.connections} <= {"LINGER"})
                await client.send(late)
                body = await client.rest()
            assert len(body) == LARGE

    asyncio.run(run())


def test_who_keeps_a_socket_after_the_last_answer_keeps_it_for_two_seconds(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert (await client.reply()).status == 400
            context = gateway._context
            await until(lambda: len(context.lingers) == 1)
            context.lingers.sweep(time.monotonic() + 2.0)
            await until(lambda: not gateway._front.connections)
            assert len(context.closing) == 0

    asyncio.run(run())


def test_who_has_the_last_answer_gives_up_the_seat(tmp_path: Path) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            auth = await stack.enter_async_context(upstream())
            gateway = await stack.enter_async_context(running(tmp_path, auth, server_max_connections=3))
            for _ in range(3):
                client = await stack.enter_async_context(raw_client(gateway.port))
                await client.send(b"GET / HTTP/1.1\r\n\r\n")
                assert (await client.reply()).status == 400
            await until(lambda: len(gateway._context.lingers) == 3)
            for _ in range(3):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


def test_those_who_do_not_read_do_not_stand_before_those_who_would_go(tmp_path: Path) -> None:
    """Whatever is written to them is held by the gateway, for their sockets take nothing."""
    count = 10

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            auth = await stack.enter_async_context(upstream())
            gateway = await stack.enter_async_context(running(tmp_path, auth, server_max_connections=2 * count))
            for _ in range(2 * count):
                await stack.enter_async_context(raw_client(gateway.port))
            await until(lambda: len(gateway._front.connections) == 2 * count)
            hostile = [one for one in gateway._context.idle.oldest(count) if isinstance(one, ClientConnection)]
            assert len(hostile) == count
            for connection in hostile:
                with underneath(connection._transport) as sock, contextlib.suppress(BlockingIOError):
                    sock.setblocking(False)  # PyPy would wait
                    while True:
                        sock.send(bytes(65536))
                connection.write(b"x" * 1000)
            statuses = [(await ask(gateway.port, "GET", "/api/v1/auth/x")).status for _ in range(4)]
            assert statuses == [200] * 4
            assert not any(connection in gateway._context.idle for connection in hostile)

    asyncio.run(run())


def test_empty_lines_begin_no_time_anew(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            context = gateway._context
            await until(lambda: len(context.idle) == 1)
            began = time.monotonic()
            await client.send(b"\r")
            await until(lambda: len(context.heads) == 1)
            (connection,) = gateway._front.connections
            await client.send(b"\n\r\n\r\n")
            await until(lambda: not connection._buffer and not connection._is_queued)
            context.heads.sweep(began + 10.1)
            await until(lambda: not gateway._front.connections)

    asyncio.run(run())


@pytest.mark.parametrize("tail", [b"", b"\r\n", b"\r"])
def test_who_asks_nothing_more_is_idle_whatever_stands_behind_the_request(tmp_path: Path, tail: bytes) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            context = gateway._context
            await client.send(GET + tail)
            assert (await client.reply()).status == 200
            await until(lambda: len(context.idle) + len(context.heads) == 1)
            for queue in (context.idle, context.heads):
                queue.sweep(time.monotonic() + 80)
            await until(lambda: not gateway._front.connections)

    asyncio.run(run())


def test_each_that_has_its_last_answer_makes_room_for_one(tmp_path: Path) -> None:
    """All of these come within one turn of the loop, before anybody is gone."""

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            auth = await stack.enter_async_context(upstream())
            gateway = await stack.enter_async_context(running(tmp_path, auth, server_max_connections=4))
            lingering = await stack.enter_async_context(raw_client(gateway.port))
            await lingering.send(b"GET / HTTP/1.1\r\n\r\n")
            assert (await lingering.reply()).status == 400
            half = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
            for _ in range(3):
                await (await stack.enter_async_context(raw_client(gateway.port))).send(half)
            await until(lambda: len(gateway._context.lingers) == 1 and len(gateway._context.flights) == 3)
            for _ in range(12):
                newcomer = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
                newcomer.send(half)
            await until(lambda: len(gateway._context.flights) == 4)
            await asyncio.sleep(0.05)
            assert len(gateway._context.flights) == 4

    asyncio.run(run())


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_an_addresss_next_connection_takes_the_place_of_one_that_has_its_answer(tmp_path: Path, version: bytes) -> None:
    request = b"GET /api/v1/auth/x HTTP/%b\r\nHost: h\r\nConnection: close\r\n\r\n" % version

    async def run() -> None:
        values = {"server_max_connections_per_ip": 1}
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            for _ in range(60):
                async with raw_client(gateway.port) as client:
                    await client.send(request)
                    assert (await client.reply()).status == 200
            async with raw_client(gateway.port) as one, raw_client(gateway.port) as other:
                await until(lambda: len(gateway._front.connections) == 2)
                assert (await other.reply()).status == 503
                await one.send(request)
                assert (await one.reply()).status == 200
            await until(lambda: not gateway._front.connections)
            assert gateway._context.seats.by_address == {} and gateway._context.seats.taken == 0

    asyncio.run(run())


def test_who_reads_on_after_he_was_asked_to_go_is_not_cut_later(tmp_path: Path) -> None:
    """What he had not read then is not held against what he asked for since."""
    size = 30_000_000

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            auth = await stack.enter_async_context(upstream(script))
            gateway = await stack.enter_async_context(running(tmp_path, auth, server_max_connections=1))
            client = await stack.enter_async_context(slow_reader(gateway.port))
            await until(lambda: len(gateway._front.connections) == 1)
            (one,) = gateway._front.connections
            one.write(bytes(10_000_000))
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 503
            assert one not in gateway._context.idle
            await client.reader.readexactly(10_000_000)
            await client.send(GET)
            await client.reader.readuntil(b"\r\n\r\n")
            await until(lambda: one._transport.get_write_buffer_size() > 0)
            gateway._context.closing.sweep(time.monotonic() + 31)
            assert len(await client.reader.readexactly(size)) == size
            await until(lambda: one in gateway._context.idle)
            assert len(gateway._context.closing) == 0

    asyncio.run(run())


def small_socket(gateway: Gateway) -> socket.socket:
    """To its TCP door, with as little as can be in either kernel."""
    for door in gateway._front.doors:
        door.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 23040)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", gateway.port))
    return sock


def asked(sock: socket.socket, folder: Path, requests: bytes, *, is_tls: bool) -> socket.socket:
    """The same once these were sent; what comes back over TLS is not deciphered."""
    if is_tls:
        context = ssl.create_default_context(cafile=folder / "cert.pem")
        sock = context.wrap_socket(sock, server_hostname="localhost")
    sock.sendall(requests)
    sock = socket.socket(fileno=sock.detach())
    sock.setblocking(False)
    return sock


def swept_away(gateway: Gateway) -> bool:
    """Whether nobody is left of those who should have read by now."""
    for sweep in (gateway._context.closing, gateway._context.flights):
        sweep.sweep(time.monotonic() + 30.0)
    return not gateway._front.connections


@pytest.mark.parametrize("is_own", [True, False], ids=["our own replies", "a relayed one"])
@pytest.mark.parametrize("is_tls", [True, False], ids=["TLS", "plain"])
@pytest.mark.parametrize("connect", [small_socket, unix_socket])
def test_who_reads_a_little_at_a_time_is_not_cut_and_who_stops_is(
    tmp_path: Path, connect: Callable[[Gateway], socket.socket], is_tls: bool, is_own: bool
) -> None:
    """Over TLS what the transport underneath holds goes into the kernel meanwhile, and no level that is seen falls."""
    requests = GET.replace(b"/api/v1/auth/x", b"/nowhere") * 2000 if is_own else GET
    step_bytes = (
        8192 if is_own or connect is small_socket else 80_000
    )  # all of a unix socket's segment, and they are long
    values: dict[str, Any] = {"server_unix_socket": str(tmp_path / "socket"), "server_keep_alive_requests": 0}
    certify(tmp_path, "localhost")
    if is_tls:
        values |= {"server_tls_certificate": str(tmp_path / "cert.pem"), "server_tls_key": str(tmp_path / "key.pem")}

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20) + bytes(64 << 20))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            with await asyncio.to_thread(lambda: asked(connect(gateway), tmp_path, requests, is_tls=is_tls)) as client:
                await until(lambda: gateway._front.connections)
                (connection,) = gateway._front.connections
                await until(lambda: connection._is_write_paused)
                waiting = connection if is_own else connection._handler
                assert isinstance(waiting, ClientConnection | Forward)
                found: list[bool] = []
                while len(found) < 4:
                    await until(lambda: connection._is_write_paused)
                    deadline, left = waiting.deadline, step_bytes
                    while left:
                        left -= len(await loop.sock_recv(client, left))
                    await asyncio.sleep(0.02)  # the kernel has room then, which is filled
                    if connection._is_write_paused and waiting.deadline == deadline:  # it has not caught up
                        assert not swept_away(gateway)
                        found.append(waiting.deadline > deadline)
                assert all(found)
                await until(lambda: swept_away(gateway))

    asyncio.run(run())


# whoever has left


def test_who_leaves_while_an_upload_is_paused_is_noticed(tmp_path: Path) -> None:
    async def on_head(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(60)  # reads nothing

    async def run() -> None:
        values = {"server_max_body_bytes": 0, "server_body_timeout": 3600.0}
        async with upstream(on_head=on_head) as auth, running(tmp_path, auth, **values) as gateway:
            async with raw_client(gateway.port) as client:
                client.writer.write(b"PUT /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 99000000\r\n\r\n")
                client.writer.write(bytes(50_000_000))
                await until(lambda: len(gateway._context.unread) == 1)
                reset(client)
            (row,) = await newest_rows(gateway, 1)
            assert (row["status_code"], row["reason"]) == (499, "client_closed")
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0
            assert len(gateway._context.unread) == 0

    asyncio.run(run())


def test_who_leaves_with_much_pipelined_is_noticed(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(GET * 2000)
                await until(lambda: len(gateway._context.unread) == 1 and auth.seen)
            (row,) = await newest_rows(gateway, 1)
            assert (row["status_code"], row["reason"]) == (499, "client_closed")
            assert len(auth.seen) == 1, "what was behind it is not begun"

    asyncio.run(run())


def test_an_answer_of_ours_that_nobody_waits_for_is_not_said_to_be_ok(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
            client.writer.write_eof()
            assert await client.rest() == b""
            path = f"{BASE}/logs?path=/health"
            (row,) = json_of(await ask(gateway.port, "GET", path, bearer=ADMIN))["items"]
            assert (row["status_code"], row["reason"]) == (499, "client_closed")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: 2000000\r\nContent-Type: application/json\r\n", 413),
        (b"Content-Length: 2\r\nContent-Type: text/plain\r\n", 415),
    ],
)
def test_nobody_is_asked_for_a_body_that_the_admin_api_would_not_take(
    tmp_path: Path, fields: bytes, status: int
) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            head = f"POST {BASE}/routes HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN}\r\n".encode()
            await client.send(head + fields + b"Expect: 100-continue\r\n\r\n")
            reply = await client.reply("POST")
            assert (reply.status, reply.interim) == (status, [])

    asyncio.run(run())


# upgrades


@pytest.mark.parametrize("size_bytes", [2, 100_000])
def test_an_upload_that_is_refused_early_is_nobodys_failure(tmp_path: Path, size_bytes: int) -> None:
    """Who refuses an upload closes with it unread, which is a reset; all of the answer is in the kernel by then.

    A small one is there with its head, a large one takes several reads while writes fail.
    """

    async def script(seen: Seen, wire: Wire) -> None:
        head = b"HTTP/1.1 413 x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size_bytes
        if size_bytes == 2:
            await wire.send(head + bytes(size_bytes))
        else:
            await wire.send(head)
            await asyncio.sleep(0.003)
            await wire.send(bytes(size_bytes))
        wire.close()

    async def run() -> None:
        head = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n"
        async with upstream(on_head=script) as auth, running(tmp_path, auth) as gateway:

            async def upload() -> None:
                async with raw_client(gateway.port) as client:
                    client.writer.write(head + bytes(9_000_000))
                    reply = await client.reply("POST")
                    assert (reply.status, len(reply.body), reply.is_whole) == (413, size_bytes, True)

            await asyncio.gather(*(upload() for _ in range(10)))
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0

    asyncio.run(run())


# connections that died while idle


@pytest.mark.parametrize(("idle_s", "statuses"), [(60.0, [502, 200, 200]), (1.0, [502, 502, 502])])
def test_what_was_idle_longer_than_one_that_died_is_not_used(
    tmp_path: Path, idle_s: float, statuses: list[int]
) -> None:
    """A POST is not sent again, so each dead connection would cost one; a short while ago it was in use, and well."""

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.method == "GET" or seen.connection >= 4:
            await asyncio.sleep(0.02)  # so that each has a connection of its own
            await wire.send(OK)
        else:
            wire.writer.transport.abort()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, breaker_enabled=False) as gateway:
            await asyncio.gather(*(ask(gateway.port, "GET", "/api/v1/auth/x") for _ in range(4)))
            (pool,) = gateway._pools._pools.values()
            assert len(pool._idle) == 4
            for connection in pool._idle:
                connection.idle_since -= idle_s
            found = [(await ask(gateway.port, "POST", "/api/v1/auth/x", body=b"x")).status for _ in range(3)]
            assert found == statuses

    asyncio.run(run())


def test_an_upload_that_a_dead_upstream_held_up_goes_on_to_the_next(tmp_path: Path) -> None:
    """The first one takes little and dies; the second one takes all at once, so that no pause of its own ends."""
    size = 4_000_000

    async def serve(listening: socket.socket, is_paused: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        first, _ = await loop.sock_accept(listening)
        await until(is_paused)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        second, _ = await loop.sock_accept(listening)
        with second:
            left = size
            while left > 0:
                left -= len((await loop.sock_recv(second, 1 << 20)).rpartition(b"\r\n\r\n")[2])
            await loop.sock_sendall(second, OK)

    async def run() -> None:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            listening.setblocking(False)
            services = {"auth": f"http://127.0.0.1:{listening.getsockname()[1]}"}
            values = {"upstream_retry_buffer_bytes": 8 << 20, "server_body_timeout": 10.0}
            async with (
                Gateway(settings_for(tmp_path, services, **values)) as gateway,
                raw_client(gateway.port) as client,
            ):
                serving = asyncio.create_task(serve(listening, lambda: len(gateway._context.unread) == 1))
                client.writer.write(b"PUT /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
                client.writer.write(bytes(size))
                assert (await client.reply("PUT")).status == 200
                await serving

    asyncio.run(run())
