"""Many at once: seats, who goes when there is none left, handshakes that never come, no file left to open."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from engadi_gateway.gateway.assembly import files_wanted, seats
from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.gateway.listeners import allow_open_files
from engadi_gateway.net.accept import Acceptor, Handshake
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.client import ClientConnection
from engadi_gateway.net.local import LocalCall
from engadi_gateway.net.seats import Seats
from tests.certificates import certify
from tests.fakes import RawClient, Seen, Wire, answer_ok, raw_client, upstream
from tests.harness import ask, ask_on, json_of, running, settings_for
from tests.processes import Process, ini_of, started

HALF_A_HEAD = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: a\r\n"


async def until(condition: Callable[[], bool]) -> None:
    """Look until it is so; a test that waits in vain ends by this."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def until_heads(gateway: Gateway, count: int) -> None:
    await until(lambda: len(gateway._context.heads) == count)


async def until_served(connection: ClientConnection, count: int) -> None:
    await until(lambda: connection._requests == count and connection._exchange is None)


@contextlib.asynccontextmanager
async def clients(port: int, count: int) -> AsyncIterator[list[RawClient]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(raw_client(port)) for _ in range(count)]


# the door


class Arrivals(Acceptor):
    """Notes who arrives instead of serving; each takes an eighth of a millisecond of its own clock."""

    def __init__(self, door: socket.socket) -> None:
        self.now_s = 100.0
        self.count = 0
        super().__init__(cast(Any, None), door, None, cast(Any, None), lambda: self.now_s)

    def _arrive(self, sock: socket.socket, address: object) -> None:
        sock.close()
        self.now_s += 2**-13
        self.count += 1


@pytest.mark.parametrize(
    ("passed_s", "accepted"),
    [(0.0003, 1), (0.0085, 2), (0.031, 6), (0.09, 9), (60.0, 1)],
    ids=["short", "long", "longer", "longest", "idle"],
)
def test_accepting_takes_a_share_of_the_time(passed_s: float, accepted: int) -> None:
    with contextlib.ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        door.setblocking(False)
        arrivals = Arrivals(door)
        for _ in range(30):
            stack.enter_context(socket.create_connection(door.getsockname()))
        arrivals.now_s += passed_s
        assert arrivals._ready()
        assert arrivals.count == accepted
        while arrivals._ready():
            pass
        assert arrivals.count == 30


# seats


def test_seats_are_counted_in_all_and_by_network() -> None:
    counted = Seats(most=3, most_per_address=2)
    for address in ("192.0.2.1", "192.0.2.1", ""):
        counted.take(address)
    assert not counted.are_short
    assert not counted.are_spent_by("192.0.2.1")
    counted.take("192.0.2.1")
    assert counted.are_short
    assert counted.are_spent_by("192.0.2.1")
    assert not counted.are_spent_by("")
    for address in ("192.0.2.1", "192.0.2.1", "", "192.0.2.1"):
        counted.leave(address)
    assert (counted.taken, counted.by_address) == (0, {})


def test_at_the_cap_the_head_unfinished_longest_goes(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            running(tmp_path, auth, server_max_connections=3) as gateway,
            clients(gateway.port, 3) as slow,
        ):
            for number, client in enumerate(slow, 1):
                await client.send(HALF_A_HEAD)
                await until_heads(gateway, number)
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert await slow[0].rest() == b""
            for client in slow[1:]:
                await client.send(b"\r\n")
                assert (await client.reply()).status == 200

    asyncio.run(run())


def test_where_nobody_can_go_new_ones_are_refused_and_even_those_are_bounded(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def wait(seen: Seen, wire: Wire) -> None:
        await release.wait()
        await answer_ok(seen, wire)

    async def run() -> None:
        async with upstream(wait) as auth, running(tmp_path, auth, server_max_connections=3) as gateway:
            seats = gateway._context.seats
            async with clients(gateway.port, 3) as busy:
                for client in busy:
                    await client.send(HALF_A_HEAD + b"\r\n")
                await until(lambda: len(auth.seen) == 3)
                async with clients(gateway.port, 40) as more:
                    reply = await more[0].reply()
                    assert (reply.status, reply.one("retry-after"), json_of(reply)["code"]) == (503, "1", "overloaded")
                    assert seats.taken <= 3 + 16
                    assert await more[-1].rest() == b"", "no word for those beyond the ones that are being told"
                release.set()
                for client in busy:
                    assert (await client.reply()).status == 200
            await until(lambda: seats.taken == 0)
            assert seats.by_address == {}
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


def test_trusted_proxies_are_not_counted_by_address(tmp_path: Path) -> None:
    async def run() -> None:
        trusted = (ipaddress.ip_network("127.0.0.0/8"),)
        values = {"server_max_connections_per_ip": 1, "server_trusted_proxies": trusted}
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway, clients(gateway.port, 3) as all_:
            for client in all_:
                assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


def test_an_idle_client_that_did_not_read_its_reply_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    async def large(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40000)

    async def run() -> None:
        values = {"server_keep_alive_timeout": 0.2, "server_write_timeout": 0.2, "limits_enabled": False}
        async with upstream(large) as auth, running(tmp_path, auth, **values) as gateway:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
                await until(lambda: len(gateway._front.connections) == 1)
                (connection,) = gateway._front.connections
                while not connection._transport.get_write_buffer_size():
                    client.send(HALF_A_HEAD + b"\r\n")
                    await until_served(connection, connection._requests + 1)
                assert 0 < connection._transport.get_write_buffer_size() < 65536, "less than what stops it"
                await until(lambda: gateway._context.seats.taken == 0)

    asyncio.run(run())


# TLS


@contextlib.asynccontextmanager
async def over_tls(tmp_path: Path, **values: object) -> AsyncIterator[Gateway]:
    certify(tmp_path, "localhost")
    values |= {"server_tls_certificate": str(tmp_path / "cert.pem"), "server_tls_key": str(tmp_path / "key.pem")}
    async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
        yield gateway


async def tls_client(tmp_path: Path, port: int) -> RawClient:
    context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    return RawClient(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))


def test_handshakes_that_never_come_take_seats_make_room_and_end(tmp_path: Path) -> None:
    async def run() -> None:
        async with over_tls(tmp_path, server_max_connections=3) as gateway:
            context = gateway._context
            async with clients(gateway.port, 30) as silent:
                for client in silent[:27]:
                    assert await client.rest() == b"", "the oldest goes"
                assert (context.seats.taken, len(context.heads)) == (3, 3)
                client = await tls_client(tmp_path, gateway.port)
                assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
                assert await silent[27].rest() == b""
                assert (context.seats.taken, len(context.heads), len(context.idle)) == (3, 2, 1)
                context.heads.sweep(time.monotonic() + 10.1)
                for late in silent[28:]:
                    assert await late.rest() == b""
                await until(lambda: context.seats.taken == 1)
            await client.close()
            await until(lambda: context.seats.taken == 0)
            assert context.seats.by_address == {}

    asyncio.run(run())


def test_handshakes_and_heads_are_one_row(tmp_path: Path) -> None:
    async def run() -> None:
        async with over_tls(tmp_path, server_max_connections=3) as gateway:
            row = gateway._context.heads

            async def until_row(kinds: list[type]) -> None:
                await until(lambda: [type(one) for one in row.oldest(4)] == kinds)

            async with clients(gateway.port, 1) as first:
                await until_row([Handshake])
                slow = await tls_client(tmp_path, gateway.port)
                await slow.send(HALF_A_HEAD)
                await until_row([Handshake, ClientConnection])
                async with clients(gateway.port, 1) as last:
                    await until_row([Handshake, ClientConnection, Handshake])
                    others = [await tls_client(tmp_path, gateway.port)]
                    assert await first[0].rest() == b""
                    await others[0].send(HALF_A_HEAD)
                    await until_row([ClientConnection, Handshake, ClientConnection])
                    others.append(await tls_client(tmp_path, gateway.port))
                    assert await slow.rest() == b""
                    assert not last[0].reader.at_eof()
                    await others[0].send(b"\r\n")
                    assert (await others[0].reply()).status == 200
            for client in (slow, *others):
                client.writer.transport.abort()

    asyncio.run(run())


def test_a_handshake_that_fails_gives_its_seat_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with over_tls(tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET / HTTP/1.1\r\n\r\n")
            await client.rest()
            await until(lambda: gateway._context.seats.taken == 0)
            assert gateway._context.seats.by_address == {}

    asyncio.run(run())


def answered_over_tls(tmp_path: Path, port: int) -> ssl.SSLSocket:
    """A connection that has had one answer."""
    context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    client = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
    client.sendall(HALF_A_HEAD + b"\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    return client


def test_a_tls_client_that_does_not_read_holds_up_no_drain(tmp_path: Path) -> None:
    async def run() -> None:
        async with over_tls(tmp_path, server_write_timeout=0.2) as gateway:
            client = await asyncio.to_thread(answered_over_tls, tmp_path, gateway.port)
            with client:  # a blocking one: it leaves the farewell unread
                await asyncio.wait_for(gateway.stop(grace_s=120), 20)

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of another process is read as Linux shows it")
@pytest.mark.skipif("ENGADI_SERVER_LOOP" in os.environ, reason="uvloop's own buffers are larger, which the README says")
def test_over_tls_who_does_nothing_takes_little_and_who_sends_in_vain_no_more_than_is_said(tmp_path: Path) -> None:
    """The bounds that the README states: 512 KiB, and 200 KiB for TLS."""
    count = 40

    async def run() -> None:
        certify(tmp_path, "localhost")
        async with contextlib.AsyncExitStack() as stack:
            deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * count))
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            ini = ini_of(url).replace("[server]", "[server]\ntls_certificate = cert.pem\ntls_key = key.pem")
            gateway = await stack.enter_async_context(started(tmp_path, ini))

            async def grown(before: int, action: Callable[[], Awaitable[object]]) -> int:
                await asyncio.gather(*(action() for _ in range(count)))
                return (resident_of(gateway) - before) // count

            await (await tls_client(tmp_path, gateway.port)).close()
            rest = resident_of(gateway)
            connected: list[RawClient] = []

            async def connect() -> None:
                connected.append(await tls_client(tmp_path, gateway.port))

            assert await grown(rest, connect) < 80 << 10
            waiting = iter(connected)

            async def send_in_vain() -> None:
                client = next(waiting)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await client.send(b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n")
                        while True:
                            await client.send(bytes(65536))

            assert await grown(rest, send_in_vain) < 712 << 10
            for client in connected:
                client.writer.transport.abort()

    asyncio.run(run())


def resident_of(process: Process) -> int:
    return int(Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# files


@pytest.fixture
def few_files() -> Iterator[int]:
    """The soft limit of this process, lowered to 110."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (110, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_there_are_no_more_seats_than_files_and_the_limit_of_files_is_raised(tmp_path: Path, few_files: int) -> None:
    settings = settings_for(tmp_path, {}, server_max_connections=200)
    assert seats(settings).most == (110 - 32) * 2 // 3
    allow_open_files(files_wanted(settings))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == few_files
    assert seats(settings).most == 200
    allow_open_files(50)
    assert seats(settings).most == 200, "never lowered"


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process's table of files is Linux's to say")
def test_the_table_of_files_is_large_enough_before_anybody_comes(tmp_path: Path) -> None:
    async def run() -> None:
        ini = ini_of("http://127.0.0.1:9").replace("[server]", "[server]\nmax_connections = 2000")
        async with started(tmp_path, ini) as gateway:
            status = Path(f"/proc/{gateway.process.pid}/status").read_text()
            assert int(status.partition("FDSize:")[2].split()[0]) >= 3000

    asyncio.run(run())


def test_a_reload_that_lets_fewer_in_lets_the_idle_go(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, clients(gateway.port, 20) as many:
            for client in many:
                assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
            await gateway.reload(settings_for(tmp_path, {"auth": auth.url}, server_max_connections=5))
            while gateway.state()["connections"] > 5:
                await asyncio.sleep(0.001)
            for client in many[-5:]:
                assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200, "who was idle longest went"

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process can be read on Linux only")
def test_a_reload_that_lets_more_in_raises_the_limit_of_files(tmp_path: Path, few_files: int) -> None:
    async def run() -> None:
        ini = ini_of("http://127.0.0.1:9").replace("[server]", "[server]\nmax_connections = 20")
        async with started(tmp_path, ini) as gateway:
            pid = gateway.process.pid
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 110
            (tmp_path / "gateway.ini").write_text(ini.replace("= 20\n", "= 200\n"))
            gateway.signal(signal.SIGHUP)
            await gateway.wait_for("configuration reloaded")
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 200 * 3 // 2 + 33
            (tmp_path / "gateway.ini").write_text(ini.replace("= 20\n", "= 100000000\n"))
            gateway.signal(signal.SIGHUP)
            await gateway.wait_for("client connections at most, not 100000000")

    asyncio.run(run())


def cpu_s(process: Process) -> float:
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process can be set on Linux only")
def test_without_a_file_left_who_is_there_is_served_and_who_comes_is_served_later(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, started(tmp_path, ini_of(auth.url)) as gateway:
            pid = gateway.process.pid
            async with raw_client(gateway.port) as old:
                assert (await ask_on(old, "GET", "/api/v1/auth/x")).status == 200
                open_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files + 10, hard))
                async with clients(gateway.port, 60) as many:
                    for client in many:
                        await client.send(HALF_A_HEAD)
                    await gateway.wait_for("accepting pauses")
                    began = cpu_s(gateway)
                    for _ in range(20):
                        assert (await ask_on(old, "GET", "/api/v1/auth/x")).status == 200
                        await asyncio.sleep(0.05)
                    assert cpu_s(gateway) - began < 0.5, "it spins"
                async with raw_client(gateway.port) as new:
                    async with asyncio.timeout(20):
                        assert (await ask_on(new, "GET", "/api/v1/auth/x")).status == 200
                assert (await ask_on(old, "GET", "/api/v1/auth/x")).status == 200
            gateway.signal(15)
            assert await gateway.code() == 0
            assert [line for line in gateway.lines if "Traceback" in line] == []
            assert sum("accepting pauses" in line for line in gateway.lines) == 1

    asyncio.run(run())


# uploads


def test_slow_uploads_take_half_of_the_connections_upstream_at_most(tmp_path: Path) -> None:
    """The others are kept until they are whole, so that who has something to ask finds a connection."""

    async def run() -> None:
        values = {"upstream_max_connections": 4, "upstream_queue_timeout": 0.5}
        start = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nab"
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway, clients(gateway.port, 10) as slow:
            for client in slow:
                await client.send(start)
            await until(lambda: len(gateway._context.flights) == 10)
            for _ in range(5):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/y")).status == 200
            assert len([raw for raw in auth.raw if raw.startswith(b"POST")]) == 2
            for client in slow:
                await client.send(b"cd")
            for client in slow:
                await client.send(b"ef")
                assert (await client.reply()).status == 200
            assert [seen.body for seen in auth.seen if seen.method == "POST"] == [b"abcdef"] * 10

    asyncio.run(run())


def test_an_upload_too_long_to_be_kept_goes_on_its_way(tmp_path: Path) -> None:
    async def run() -> None:
        values = {"upstream_max_connections": 4, "upstream_retry_buffer_bytes": 1000}
        body = bytes(range(256)) * 20
        head = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway, clients(gateway.port, 3) as slow:
            for count in (1, 2):
                await slow[count].send(head + b"1\r\nx\r\n")
                await until_flights(gateway, count)
            await until(lambda: len(auth.raw) == 2)
            await slow[0].send(head)
            for start in range(0, len(body), 100):
                await slow[0].send(b"64\r\n%b\r\n" % body[start : start + 100] if start + 100 <= len(body) else b"")
            await until(lambda: len(auth.raw) == 3)
            await slow[0].send(b"14\r\n%b\r\n0\r\n\r\n" % body[-20:])
            assert (await slow[0].reply()).status == 200
            assert auth.seen[-1].body == body

    asyncio.run(run())


async def until_flights(gateway: Gateway, count: int) -> None:
    await until(lambda: len(gateway._context.flights) == count)


def long_upload(size: int) -> bytes:
    """A request whose body of 100,000 bytes has come that far."""
    return b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(size)


def test_long_uploads_leave_some_connections_to_others_and_wait_for_one_another(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            running(tmp_path, auth, upstream_max_connections=5, upstream_queue_size=3) as gateway,
            clients(gateway.port, 8) as slow,
        ):
            for number, client in enumerate(slow[:7], 1):
                await client.send(long_upload(66_000))
                await until_flights(gateway, number)
            reply = await ask(gateway.port, "GET", "/api/v1/auth/y")
            assert reply.status == 200
            (pool,) = gateway.state()["pools"].values()
            assert (pool["active"], pool["waiting"]) == (4, 3)
            await slow[7].send(long_upload(66_000))
            refused = await slow[7].reply()
            assert (refused.status, json_of(refused)["code"]) == (503, "overloaded")
            await slow[6].close()
            for number in (0, 4, 1, 5, 2, 3):
                await slow[number].send(bytes(34_000))
                assert (await slow[number].reply("POST")).status == 200
            assert [len(seen.body) for seen in auth.seen if seen.method == "POST"] == [100_000] * 6
            (pool,) = gateway._context.pools._pools.values()
            assert (pool._uploads, len(pool._late)) == (set(), 0)

    asyncio.run(run())


def test_an_upload_that_waits_for_others_asks_when_it_is_complete_and_is_turned_away_in_the_end(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            running(tmp_path, auth, upstream_max_connections=2) as gateway,
            clients(gateway.port, 3) as slow,
        ):
            await slow[0].send(long_upload(66_000))
            await until_flights(gateway, 1)
            await slow[1].send(long_upload(50_000))
            await until_flights(gateway, 2)
            await slow[1].send(bytes(50_000))
            assert (await slow[1].reply("POST")).status == 200
            await slow[2].send(long_upload(66_000))
            (pool,) = gateway._context.pools._pools.values()
            await until(lambda: pool.counts()["waiting"] == 1)
            pool.sweep(time.monotonic() + 5.1)
            refused = await slow[2].reply("POST")
            assert (refused.status, json_of(refused)["code"]) == (503, "overloaded")
            await slow[0].send(bytes(34_000))
            assert (await slow[0].reply("POST")).status == 200

    asyncio.run(run())


LONG_HEAD = (
    b"GET /api/v1/auth/x HTTP/1.1\r\nHost: a\r\n" + b"".join(b"x-%d: %040d\r\n" % (n, n) for n in range(60)) + b"\r\n"
)
LARGE_HEAD = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nCookie: a=%b\r\n\r\n" % (b"x" * 8000)
SHORT_HEAD = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: a\r\n\r\n"
TINY = b"".join(b"1\r\nx\r\n" for _ in range(1000))
CHUNKED = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + TINY + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "answers", "least", "most"),
    [
        (SHORT_HEAD, 1, 0, 0),
        (LARGE_HEAD, 1, 0, 0),
        (LONG_HEAD, 1, 1, 3),  # one for each read that it takes
        (SHORT_HEAD * 5, 5, 4, 4),
        (CHUNKED, 1, 20, 1000),
    ],
    ids=["a short head", "one with a large field", "a long head", "four behind the first", "tiny chunks"],
)
def test_what_takes_long_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes, answers: int, least: int, most: int
) -> None:
    async def run() -> None:
        waited: list[object] = []
        later = Batch.later

        def noted(batch: Batch, work: Callable[[], None]) -> None:
            waited.append(work)
            later(batch, work)

        monkeypatch.setattr(Batch, "later", noted)
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(sent)
            for _ in range(answers):
                assert (await client.reply()).status == 200
        assert least <= len(waited) <= most

    asyncio.run(run())


@pytest.mark.parametrize("size", [100_000, 6_000], ids=["many reads", "one read"])
def test_a_body_of_tiny_chunks_is_decoded_in_shares(tmp_path: Path, size: int) -> None:
    """Others are served in between: asked when the body is there, they are answered before it is read to its end."""

    async def run() -> None:
        data = bytes(65 + number % 26 for number in range(size))
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in data)
        head = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with upstream() as auth, running(tmp_path, auth) as gateway, clients(gateway.port, 2) as (one, other):
            await one.send(head + chunks + b"0\r\n\r\nGET /api/v1/auth/next HTTP/1.1\r\nHost: a\r\n\r\n")
            await ask_on(other, "GET", "/api/v1/auth/y")
            assert [seen.target[-1] for seen in auth.seen] == ["y"]
            assert (await one.reply()).status == 200
            assert (await one.reply()).status == 200
            assert [(seen.target[-1], seen.body) for seen in auth.seen[1:]] == [("x", data), ("t", b"")]

    asyncio.run(run())


def test_tiny_chunks_for_an_upstream_that_does_not_read_wait_as_others_do(tmp_path: Path) -> None:
    reading = asyncio.Event()

    async def late(seen: Seen, wire: Wire) -> None:
        await reading.wait()

    async def run() -> None:
        data = bytes(50_000)
        chunks = b"1000\r\n%b\r\n" % bytes(4096) * 3000 + b"".join(b"1\r\n\0\r\n" for _ in data) + b"0\r\n\r\n"
        head = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        values = {"server_max_body_bytes": 0}
        async with (
            upstream(answer_ok, late) as auth,
            running(tmp_path, auth, **values) as gateway,
            raw_client(gateway.port) as one,
        ):
            sending = asyncio.create_task(one.send(head + chunks))
            await until(lambda: any(connection.is_upload_paused for connection in gateway._front.connections))
            reading.set()
            assert (await asyncio.wait_for(one.reply(), 60)).status == 200
            await sending
            assert len(auth.seen[0].body) == 4096 * 3000 + len(data)

    asyncio.run(run())


def test_a_body_for_a_public_page_of_ours_is_not_kept(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
            await until(lambda: len(gateway._context.flights) == 1)
            (call,) = gateway._context.flights._items
            assert isinstance(call, LocalCall)
            await until(lambda: call.exchange.bytes_in == 50_000)
            assert call._body == []
            await client.send(bytes(50_000))
            assert (await client.reply()).status == 200

    asyncio.run(run())


def test_work_that_is_cancelled_before_its_first_step_is_closed(tmp_path: Path) -> None:
    """Else it complains on stderr, and strangers could fill that: 5,625 lines in 4 s, by pipelining and leaving."""

    async def run() -> None:
        async def work() -> None:
            pytest.fail("it was cancelled")

        async with upstream() as auth, running(tmp_path, auth) as gateway:
            coroutine = work()
            task = gateway._context.spawn(coroutine, "work")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0)
            assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED

    asyncio.run(run())
