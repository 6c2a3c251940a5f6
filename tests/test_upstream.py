"""Towards upstreams, through a running gateway: connections that idle, die, or end early, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway import Gateway
from engadi_gateway.errors import Reason
from engadi_gateway.model import BreakerState
from engadi_gateway.net.dial import Dial
from engadi_gateway.net.forward import Forward
from engadi_gateway.net.origin import origin_of
from engadi_gateway.net.pool import Pool, PoolLimits
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.net.sockets import READ_BYTES
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.wire.response import ReplyHead, ReplyParser
from tests.certificates import server_tls_of
from tests.fakes import OK, Seen, Wire, answer_ok, raw_client, underneath, upstream
from tests.harness import ADMIN, ask, ask_on, json_of, running, settings_for, token
from tests.world import until

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"


def test_idle_connections_are_let_go(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, upstream_idle_timeout=0.2) as gateway:
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert auth.open_connections == 1
            for _ in range(100):
                if auth.open_connections == 0:
                    break
                await asyncio.sleep(0.02)
            assert auth.open_connections == 0

    asyncio.run(run())


def test_a_connection_closed_while_idle_costs_a_get_nothing(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(OK)
        wire.close()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, upstream_retry_count=0) as gateway:
            async with raw_client(gateway.port) as client:
                for _ in range(20):
                    assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
            assert len(auth.seen) == 20

    asyncio.run(run())


def test_no_reply_is_ever_mixed_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """Connections are cut at random; each reply that comes must bear its request's mark, and no POST is sent twice."""
    dice = random.Random(20)
    posts: dict[str, int] = {}

    async def script(seen: Seen, wire: Wire) -> None:
        mark = seen.target.rpartition("/")[2]
        if seen.method == "POST":
            posts[mark] = posts.get(mark, 0) + 1
        body = mark.encode() * 20
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        fate = dice.random()
        if fate < 0.1:
            wire.reset()
        elif fate < 0.2:
            await wire.send(reply[: dice.randrange(len(reply))])
            wire.close()
        else:
            await wire.send(reply)
            if fate < 0.3:
                wire.close()

    async def client(port: int, number: int) -> int:
        whole = 0
        for count in range(60):
            mark = f"{number}-{count}"
            method = "POST" if count % 3 == 0 else "GET"
            try:
                reply = await ask(port, method, f"/api/v1/auth/{mark}", body=b"x" if method == "POST" else None)
            except EOFError:
                continue
            if reply.status == 200 and reply.is_whole:
                assert reply.body == mark.encode() * 20
                whole += 1
            elif reply.status == 200:
                assert (mark.encode() * 20).startswith(reply.body)
        return whole

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, breaker_enabled=False) as gateway:
            counts = await asyncio.gather(*(client(gateway.port, number) for number in range(16)))
            assert sum(counts) > 400
            assert set(posts.values()) == {1}
            await asyncio.sleep(0.1)
            state = gateway.state()
            assert (state["in_flight"], gateway._context.budget.retrying) == (0, 0)
            (pool,) = state["pools"].values()
            assert (pool["active"], pool["waiting"], pool["dialling"]) == (0, 0, 0)
            assert auth.faults == [] or set(auth.faults) == {"request cut off"}

    asyncio.run(run())


def test_half_open_permits_come_back_when_the_client_leaves(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("fail"):
            await wire.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
        elif seen.target.endswith("hang"):
            await wire.reader.read(1)
        else:
            await wire.send(OK)

    async def run() -> None:
        values = {"breaker_failure_threshold": 1, "breaker_success_threshold": 1, "breaker_timeout": 0.1}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            await ask(gateway.port, "GET", "/api/v1/auth/fail")
            await asyncio.sleep(0.15)
            async with raw_client(gateway.port) as client:
                await client.send(GET.replace(b"/x", b"/hang"))
                while len(auth.seen) < 2:
                    await asyncio.sleep(0.005)
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 503, "one probe at a time"
            await asyncio.sleep(0.05)
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


async def _say_nothing(seen: Seen, wire: Wire) -> None:
    await wire.reader.read(1)


def test_a_slow_upload_as_half_open_probe_holds_nobody_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, breaker_failure_threshold=1) as gateway:
            breaker, now = gateway.breakers.of("auth"), time.monotonic()
            breaker.failed(breaker.take_permit(now), now, gateway.breakers.limits, "the test's")
            breaker.healthy(now)
            async with raw_client(gateway.port) as client:
                await client.send(b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na")
                await until(lambda: auth.raw and b"\r\n\r\na" in auth.raw[0])
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                assert breaker.successes == 1
                auth.script = _say_nothing
                await client.send(b"b")
                await until(lambda: len(auth.seen) == 2)
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 503, "it is the probe now"
            await until(lambda: breaker.probe_since is None)
            auth.script = answer_ok
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert breaker.state is BreakerState.CLOSED

    asyncio.run(run())


def test_of_several_uploads_one_at_a_time_is_a_half_open_probe(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            running(tmp_path, auth, breaker_failure_threshold=1, breaker_success_threshold=1) as gateway,
            raw_client(gateway.port) as one,
            raw_client(gateway.port) as other,
        ):
            breaker, now = gateway.breakers.of("auth"), time.monotonic()
            breaker.failed(breaker.take_permit(now), now, gateway.breakers.limits, "the test's")
            breaker.healthy(now)
            begun = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na"
            await one.send(begun)
            await until(lambda: auth.raw and b"\r\n\r\na" in auth.raw[0])
            await other.send(begun)
            refused = await other.reply()
            assert (refused.status, json_of(refused)["code"]) == (503, "breaker_open")
            await one.send(b"b")
            assert (await one.reply()).status == 200
            assert breaker.state is BreakerState.CLOSED
            assert [seen.body for seen in auth.seen] == [b"ab"]

    asyncio.run(run())


def test_failures_among_event_streams_are_not_in_a_row(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("fail"):
            await wire.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
        else:
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata:\n\r\n")
            await wire.reader.read(1)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, breaker_failure_threshold=2) as gateway:
            breaker = gateway.breakers.of("auth")
            for _ in range(3):
                async with raw_client(gateway.port) as client:
                    assert (await ask(gateway.port, "GET", "/api/v1/auth/fail")).status == 503
                    assert breaker.failures == 1
                    await client.send(GET)
                    await client.reader.readuntil(b"data:")
                    assert breaker.failures == 0, "while it goes on"
            assert breaker.trips == 0

    asyncio.run(run())


def test_the_database_log_keeps_no_query_and_no_token(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            secret = token("alice")
            head, payload, signature = secret.split(".")
            await ask(gateway.port, "GET", "/api/v1/content/x?password=hidden", bearer=secret)
            await ask(gateway.port, "GET", "/api/v1/content/x", bearer=f"{head}.{payload}.{'A' * len(signature)}")
            await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN)
            path = gateway.settings.log_path
        data = b"".join(Path(f"{path}{suffix}").read_bytes() for suffix in ("",))
        assert b"hidden" not in data
        assert secret.encode()[:60] not in data
        assert b"auth_invalid.bad_signature" in data

    asyncio.run(run())


def test_two_processes_can_share_a_port_when_asked_to(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            for name in ("a", "b"):
                (tmp_path / name).mkdir()
            first = Gateway(settings_for(tmp_path / "a", {"auth": auth.url}, server_reuse_port=True))
            async with first:
                values = {"server_reuse_port": True, "server_port": first.port}
                second = Gateway(settings_for(tmp_path / "b", {"auth": auth.url}, **values))
                async with second:
                    assert first.port == second.port
                    for _ in range(8):
                        assert (await ask(first.port, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


def test_what_was_sent_beyond_a_reply_never_answers_who_waits_for_the_connection(tmp_path: Path) -> None:
    """The reply ends where a read of the gateway ends, so that the bytes behind it are still in the socket."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Filler: "
    first = head + b"x" * (65536 - len(head) - 6) + b"\r\n\r\nok"

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(first + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil" if seen.connection == 0 else OK)

    async def run() -> None:
        values = {"upstream_max_connections": 1, "upstream_max_head_bytes": 1 << 20}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            replies = await asyncio.gather(*(ask(gateway.port, "GET", "/api/v1/auth/x") for _ in range(4)))
            assert [reply.body for reply in replies] == [b"ok"] * 4
            assert [seen.connection for seen in auth.seen] == [0, 1, 1, 1]

    asyncio.run(run())


@pytest.mark.parametrize(("answer", "times"), [(b"", 2), (b"HTTP/1.1 200 OK\r\nContent-Le", 1)])
def test_a_request_that_kills_its_upstream_does_not_kill_all_that_is_pooled(
    tmp_path: Path, answer: bytes, times: int
) -> None:
    """Where a pooled connection ends without a word the request may never have been seen: once more is free, once."""

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("poison"):
            await wire.send(answer)
            wire.close()
        else:
            await asyncio.sleep(0.02)  # so that each has a connection of its own
            await wire.send(OK)

    async def run() -> None:
        values = {"upstream_retry_count": 0, "breaker_enabled": False}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            await asyncio.gather(*(ask(gateway.port, "GET", "/api/v1/auth/x") for _ in range(6)))
            assert auth.open_connections == 6
            reply = await ask(gateway.port, "GET", "/api/v1/auth/poison")
            assert (reply.status, json_of(reply)["code"]) == (502, "upstream_closed")
            assert [seen.target[-6:] for seen in auth.seen].count("poison") == times

    asyncio.run(run())


class _Waits:
    def __init__(self) -> None:
        self.told: asyncio.Future[Reason] = asyncio.get_running_loop().create_future()

    def connected(self, connection: UpstreamConnection) -> None:
        raise AssertionError("this connection can answer nobody")

    def connect_failed(self, reason: Reason, detail: str) -> None:
        self.told.set_result(reason)

    def not_connected(self) -> None:
        raise AssertionError("nobody else uses this pool")


@pytest.mark.parametrize("banner", [OK, b""], ids=["speaks unasked", "closes unasked"])
def test_a_new_connection_that_has_spoken_or_ended_is_none(banner: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Dial.connect

    async def late(dial: Dial, resolver: Resolver, timeout_s: float) -> UpstreamConnection:
        """The other side has had its say before the pool sees the connection."""
        connection = await connect(dial, resolver, timeout_s)
        await asyncio.sleep(0.05)
        return connection

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            origin = origin_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            monkeypatch.setattr(Dial, "connect", late)
            pool, waiter = Pool(origin, PoolLimits(), Resolver(30), None), _Waits()
            assert pool.take(waiter) is None
            assert await asyncio.wait_for(waiter.told, 5) is Reason.UPSTREAM_CLOSED
            assert set(pool.counts().values()) == {0}
            await pool.close()

    asyncio.run(run())


class _Taker:
    """Owner and user in one, who notes what it is told; it reads slowly from the first interim reply on."""

    def __init__(self) -> None:
        self.given_back: list[UpstreamConnection] = []
        self.ended = asyncio.Event()
        self.forgotten = asyncio.Event()
        self.connection: UpstreamConnection | None = None

    def give_back(self, connection: UpstreamConnection) -> None:
        self.given_back.append(connection)

    def let_go(self, connection: UpstreamConnection) -> None:
        """It is a splice from then on."""

    def forget(self, connection: UpstreamConnection) -> None:
        self.forgotten.set()

    def reply_interim(self, head: ReplyHead) -> None:
        assert self.connection is not None
        self.connection.pause_reading()

    def reply_head(self, head: ReplyHead, body: bytes, is_end: bool) -> None:
        assert is_end
        self.ended.set()

    def reply_body(self, body: bytes, is_end: bool) -> None: ...
    def reply_failed(self, reason: Reason, detail: str) -> None: ...
    def upstream_paused(self) -> None: ...
    def upstream_resumed(self) -> None: ...
    def later(self, work: Callable[[], None]) -> None: ...


@pytest.mark.parametrize(("request_bytes", "is_reused"), [(100, True), (1 << 20, False)])
def test_a_connection_goes_back_reading_and_with_nothing_unsent(request_bytes: int, is_reused: bool) -> None:
    """An early answer to what is not all sent: what waits would stand before the next request."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            taker = _Taker()
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: UpstreamConnection(taker, 1 << 16), sock=ours)
            taker.connection = connection
            connection.begin(taker, ReplyParser(), "PUT", b"x" * request_bytes, is_complete=True)
            theirs.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
            await asyncio.wait_for(taker.ended.wait(), 5)
            assert taker.given_back == ([connection] if is_reused else [])
            assert connection.transport.is_reading() is is_reused
            connection.drop()
            await asyncio.sleep(0)

    asyncio.run(run())


class _Hearer(_Taker):
    """Notes how much it heard, and how that ended; it reads no more from so many bytes on."""

    def __init__(self, enough: float = math.inf) -> None:
        super().__init__()
        self.heard = 0
        self.failed: list[Reason] = []
        self._enough = enough

    def reply_head(self, head: ReplyHead, body: bytes, is_end: bool) -> None:
        self.reply_body(body, is_end)

    def reply_body(self, body: bytes, is_end: bool) -> None:
        assert not is_end
        assert self.connection is not None
        self.heard += len(body)
        if self.heard >= self._enough:
            self.connection.pause_reading()

    def reply_failed(self, reason: Reason, detail: str) -> None:
        self.failed.append(reason)


@pytest.mark.parametrize(("enough", "heard"), [(math.inf, 128 << 10), (1, READ_BYTES)], ids=["all", "one piece"])
def test_of_what_had_come_when_a_connection_broke_a_part_is_heard(
    enough: float, heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many MiB can have come by then, and whoever does not read would have all of them kept for it."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            hearer = _Hearer(enough)
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: UpstreamConnection(hearer, 1 << 16), sock=ours)
            hearer.connection = connection
            connection.begin(hearer, ReplyParser(), "POST", b"x", is_complete=False)
            monkeypatch.setattr("engadi_gateway.net.last_words.os.read", lambda _, size: bytes(size))
            connection.data_received(b"HTTP/1.1 413 x\r\nContent-Length: 9000000\r\n\r\n")
            connection.connection_lost(ConnectionResetError())
            assert (hearer.heard, hearer.failed) == (heard, [Reason.UPSTREAM_TRUNCATED])
            connection.transport.abort()
            await asyncio.sleep(0)

    asyncio.run(run())


@pytest.mark.parametrize("is_said", [True, False], ids=["said", "cut"])
def test_over_tls_a_body_ends_with_the_connection_only_where_that_was_said(tmp_path: Path, is_said: bool) -> None:
    context = server_tls_of(tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of it?")
        await writer.drain()
        if not is_said:  # past TLS, as who stands in between would
            with underneath(writer.transport) as below:
                below.shutdown(socket.SHUT_RDWR)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        ca_file = str(tmp_path / "cert.pem")
        settings = settings_for(tmp_path, {"auth": f"https://localhost:{port}"}, upstream_tls_ca_file=ca_file)
        async with server, Gateway(settings) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, reply.body, reply.is_whole) == (200, b"half of it?", is_said)

    asyncio.run(run())


async def _stands_still(gateway: Gateway) -> None:
    """Until the upload under way waits for its upstream, as far as it was read."""
    (flight,) = gateway._context.flights._items
    assert isinstance(flight, Forward)
    before = -1
    while before != flight.exchange.bytes_in or not len(gateway._context.unread):
        before = flight.exchange.bytes_in
        await asyncio.sleep(0.05)


REFUSES = b"HTTP/1.1 413 x\r\nConnection: close\r\n\r\ntoo large"
CUT = REFUSES.replace(b"Connection: close", b"Content-Length: 10")


class _Deaf:
    """An upstream that reads a request's head and no more; says something, and ends its side. In a thread of its own."""

    def __init__(self, said: bytes, tls: ssl.SSLContext | None) -> None:
        self._said = said
        self._tls = tls
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' * (tls is not None)}://localhost:{self._socket.getsockname()[1]}"
        self.is_asked, self.may_end, self.may_close = (threading.Event() for _ in range(3))

    def serve(self) -> None:
        with self._socket, self._socket.accept()[0] as plain:
            wire = plain if self._tls is None else self._tls.wrap_socket(plain, server_side=True)
            while b"\r\n\r\n" not in wire.recv(1 << 16):
                pass
            self.is_asked.set()
            self.may_end.wait()
            wire.sendall(self._said)
            if isinstance(wire, ssl.SSLSocket):
                with contextlib.suppress(ssl.SSLError):  # it says that it is the end, and finds what it did not read
                    wire.unwrap()
            else:
                wire.shutdown(socket.SHUT_WR)
            self.may_close.wait()
            wire.close()


#: What it says -> status, whether the answer is whole, the row's reason, failures of its circuit.
ENDS: dict[str, tuple[bytes, int, bool, str, int]] = {
    "all of a reply": (REFUSES, 413, True, "ok", 0),
    "a part of one": (CUT, 413, False, "upstream_truncated", 1),
    "nothing": (b"", 502, True, "upstream_closed", 1),
}


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("name", ENDS)
def test_an_upstream_that_ends_while_an_upload_waits_is_heard(tmp_path: Path, name: str, is_tls: bool) -> None:
    """It reads no more, so that what waits for it would never be flushed."""
    said, status, is_whole, reason, failures = ENDS[name]

    async def run() -> None:
        server = _Deaf(said, server_tls_of(tmp_path) if is_tls else None)
        serving = asyncio.create_task(asyncio.to_thread(server.serve))
        values: dict[str, Any] = {"server_max_body_bytes": 0, "upstream_timeout": 5.0, "server_body_timeout": 5.0}
        values["upstream_tls_ca_file"] = str(tmp_path / "cert.pem") if is_tls else ""
        async with Gateway(settings_for(tmp_path, {"auth": server.url}, **values)) as gateway:
            try:
                async with raw_client(gateway.port) as client:
                    length = 30_000_000
                    head = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length
                    client.writer.write(head + bytes(length))
                    await until(server.is_asked.is_set)
                    await _stands_still(gateway)
                    server.may_end.set()
                    reply = await client.reply("POST")
                    client.writer.transport.abort()
            finally:
                server.may_end.set()
                server.may_close.set()
            await serving
            (row,) = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN))["items"]
            assert (reply.status, reply.is_whole, row["reason"]) == (status, is_whole, reason)
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == failures

    asyncio.run(run())


def test_a_head_may_be_longer_than_what_pipelined_requests_may_fill(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, server_max_head_bytes=1 << 20) as gateway:
            for size in (450_000, 1_100_000):
                async with raw_client(gateway.port) as client:
                    client.writer.write(b"GET /api/v1/auth/x HTTP/1.1\r\nHost: a\r\nX: " + b"x" * size + b"\r\n\r\n")
                    assert (await client.reply("GET")).status == (200 if size < 1 << 20 else 431)

    asyncio.run(run())
