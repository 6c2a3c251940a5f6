"""The pool of one target: who gets which connection, what is opened, what is closed, who waits and how long."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engadi_gateway.errors import Reason
from engadi_gateway.net import pool as pool_module
from engadi_gateway.net.pool import DialTimeoutError, Pool, PoolLimits, Pools, dial_failure, origin_of
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.net.upstream import UpstreamConnection
from tests.certificates import certify
from tests.fakes import Upstream, underneath, upstream
from tests.world import until

LIMITS = PoolLimits(max_connections=2, max_idle=2, queue_size=2)


class Waits:
    """Somebody who asked for a connection; `got` is what came of it."""

    def __init__(self) -> None:
        self.got: UpstreamConnection | Reason | None = None

    def connected(self, connection: UpstreamConnection) -> None:
        assert self.got is None
        self.got = connection

    def connect_failed(self, reason: Reason, detail: str) -> None:
        assert self.got is None
        assert detail
        self.got = reason

    def not_connected(self) -> None:
        assert self.got is None
        self.got = Reason.OVERLOADED

    @property
    def connection(self) -> UpstreamConnection:
        assert isinstance(self.got, UpstreamConnection)
        return self.got


class Names(Resolver):
    """A resolver that knows these addresses, once it is allowed to answer."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(30.0)
        self.addresses = list(addresses)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def resolve(self, host: str, port: int) -> list[str]:
        await self.may_answer.wait()
        return self.addresses


@asynccontextmanager
async def a_pool(
    limits: PoolLimits = LIMITS, names: Resolver | None = None, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Pool, Upstream]]:
    async with upstream() as server:
        origin = origin_of(f"{'https' if tls else 'http'}://named.test:{port or server.port}")
        pool = Pool(origin, limits, names or Names("127.0.0.1"), tls)
        yield pool, server
        await pool.close()
        await until(lambda: not any(pool.counts().values()))


async def asked(pool: Pool) -> Waits:
    """Ask, and wait until there is an answer."""
    waiter = ask(pool)
    await until(lambda: waiter.got is not None)
    return waiter


def ask(pool: Pool) -> Waits:
    waiter = Waits()
    waiter.got = pool.take(waiter)
    return waiter


def told_in_pool(check: Callable[[Pool, Upstream], Awaitable[None]], **how: Any) -> None:
    async def run() -> None:
        async with a_pool(**how) as (pool, server):
            await check(pool, server)

    asyncio.run(run())


# values


@pytest.mark.parametrize(
    ("url", "key", "authority", "base_path"),
    [
        ("http://h", ("http", "h", 80), b"h", b""),
        ("https://h", ("https", "h", 443), b"h", b""),
        ("http://h:80/", ("http", "h", 80), b"h", b""),
        ("http://h:443", ("http", "h", 443), b"h:443", b""),
        ("https://h:8443/base/", ("https", "h", 8443), b"h:8443", b"/base"),
        ("HTTP://Host:1/A/b", ("http", "host", 1), b"host:1", b"/A/b"),
        ("http://[::1]:8000", ("http", "::1", 8000), b"[::1]:8000", b""),
        ("http://[::1]", ("http", "::1", 80), b"[::1]", b""),
    ],
)
def test_what_makes_two_connections_the_same(
    url: str, key: tuple[str, str, int], authority: bytes, base_path: bytes
) -> None:
    origin = origin_of(url)
    assert (origin.key, origin.authority, origin.base_path) == (key, authority, base_path)
    assert (origin.scheme, origin.host, origin.port) == key


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (DialTimeoutError(Reason.DNS_TIMEOUT), Reason.DNS_TIMEOUT, Reason.DNS_TIMEOUT.title),
        (DialTimeoutError(Reason.CONNECT_TIMEOUT), Reason.CONNECT_TIMEOUT, Reason.CONNECT_TIMEOUT.title),
        (ssl.SSLCertVerificationError(1, "x"), Reason.TLS_CERTIFICATE, "TLS failed"),
        (ssl.SSLError(1, "x"), Reason.TLS_ERROR, "TLS failed"),
        (socket.gaierror(-2, "x"), Reason.DNS_ERROR, "name not found"),
        (UnicodeError("label empty or too long"), Reason.DNS_ERROR, "name not found"),
        (OSError(errno.EMFILE, "x"), Reason.OVERLOADED, "no file descriptor left"),
        (OSError(errno.ENFILE, "x"), Reason.OVERLOADED, "no file descriptor left"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), Reason.CONNECT_REFUSED, "Connection refused"),
        (OSError(errno.ENETUNREACH, "x"), Reason.CONNECT_REFUSED, "Network is unreachable"),
        (ConnectionResetError(), Reason.UPSTREAM_CLOSED, "closed while connecting (does it speak TLS?)"),
        (ConnectionAbortedError("x"), Reason.UPSTREAM_CLOSED, "closed while connecting (does it speak TLS?)"),
        (OSError(), Reason.CONNECT_REFUSED, "not reachable"),
        (ValueError("secret"), Reason.INTERNAL, "ValueError"),
    ],
)
def test_every_failure_of_a_dial_has_its_reason(error: Exception, reason: Reason, detail: str) -> None:
    assert dial_failure(error) == (reason, detail)


# dials


def test_addresses_share_what_is_left_of_the_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up was within it."""
    shares: list[float] = []
    timeout = asyncio.timeout

    async def try_one(pool: Pool, address: str) -> UpstreamConnection:
        raise OSError(errno.ECONNREFUSED, "no")

    def noted(delay: float) -> asyncio.Timeout:
        shares.append(delay)
        return timeout(delay)

    async def run() -> None:
        async with a_pool() as (pool, _):
            monkeypatch.setattr(Pool, "_try_one", try_one)
            monkeypatch.setattr(asyncio, "timeout", noted)
            with pytest.raises(OSError, match="no"):
                await pool._try_all(["192.0.2.1", "192.0.2.2", "192.0.2.3"], asyncio.get_running_loop().time() + 600)

    asyncio.run(run())
    assert shares[:3] == pytest.approx([200, 300, 600], rel=0.1)  # a later one is the pool's end


def test_a_silent_address_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    dial = Pool._try_one

    async def try_one(pool: Pool, address: str) -> UpstreamConnection:
        if address == "192.0.2.1":
            await asyncio.Event().wait()
        return await dial(pool, address)

    async def run() -> None:
        monkeypatch.setattr(Pool, "_try_one", try_one)
        limits = replace(LIMITS, connect_timeout_s=0.2)
        async with a_pool(limits, Names("192.0.2.1", "127.0.0.1")) as (pool, _):
            assert isinstance((await asked(pool)).got, UpstreamConnection)
        async with a_pool(limits, Names("192.0.2.1", "192.0.2.1")) as (pool, _):
            assert (await asked(pool)).got is Reason.CONNECT_TIMEOUT

    asyncio.run(run())


def test_addresses_are_tried_in_their_order() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        waiter = await asked(pool)
        assert waiter.connection.transport.get_extra_info("peername")[0] == "127.0.0.1"

    async def run() -> None:
        async with a_pool(names=Names("127.0.0.2", "127.0.0.1", "127.0.0.3")) as (pool, server):
            await check(pool, server)

    asyncio.run(run())


@pytest.mark.parametrize("addresses", [("127.0.0.2", "127.0.0.3"), ()], ids=["all refuse", "none"])
def test_where_no_address_answers_that_is_told(addresses: tuple[str, ...]) -> None:
    async def run() -> None:
        async with a_pool(names=Names(*addresses)) as (pool, _):
            assert (await asked(pool)).got is Reason.CONNECT_REFUSED

    asyncio.run(run())


def test_it_is_told_which_part_of_a_dial_took_too_long() -> None:
    async def run() -> None:
        limits = replace(LIMITS, connect_timeout_s=0.01)
        names = Names("127.0.0.1")
        names.may_answer.clear()
        async with a_pool(limits, names) as (pool, _):
            assert (await asked(pool)).got is Reason.DNS_TIMEOUT
        held: list[asyncio.StreamWriter] = []  # greeted by nobody: the handshake never ends
        silent = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        async with silent, a_pool(limits, port=port, tls=ssl.create_default_context()) as (pool, _):
            assert (await asked(pool)).got is Reason.CONNECT_TIMEOUT
            for writer in held:  # whom the server would wait for
                writer.close()

    asyncio.run(run())


class _Slow(UpstreamConnection):
    """Whoever awaits the dial goes on only when something is in the socket."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "tls":  # the dial's first step
            assert select.select([self.transport.get_extra_info("socket")], [], [], 10)[0], "something comes"


@pytest.mark.skipif("ENGADI_SERVER_LOOP" in os.environ, reason="uvloop ends the handshake when the turn is over")
@pytest.mark.parametrize(("behind", "is_usable"), [(b"", True), (b"HTTP/1.1 408 Request Timeout\r\n\r\n", False)])
def test_tickets_behind_a_handshake_are_not_words_that_nobody_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bytes, is_usable: bool
) -> None:
    """TLS 1.3 sends them when it pleases; whether they are in the socket already is a matter of luck."""
    certify(tmp_path, "named.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0 if behind else 2
    monkeypatch.setattr(pool_module, "UpstreamConnection", _Slow)
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.sendall(behind)
            done.wait(10)

    async def run() -> None:
        tls = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        async with a_pool(port=listener.getsockname()[1], tls=tls) as (pool, _):
            got = (await asked(pool)).got
            assert isinstance(got, UpstreamConnection) if is_usable else got is Reason.UPSTREAM_CLOSED
            done.set()

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as executor:
        served = executor.submit(serve, listener)
        try:
            asyncio.run(run())
        finally:
            done.set()
        served.result(10)


def test_all_that_wait_for_a_target_that_is_gone_are_told_in_their_order() -> None:
    async def run() -> None:
        async with a_pool(replace(LIMITS, max_connections=1)) as (pool, server):
            await server.stop()
            waiters = [ask(pool) for _ in range(3)]
            assert pool.counts() == {"active": 0, "idle": 0, "dialling": 1, "waiting": 3, "upgraded": 0}
            await until(lambda: waiters[0].got is not None)
            await until(lambda: waiters[2].got is not None)
            assert [waiter.got for waiter in waiters] == [Reason.CONNECT_REFUSED] * 3
            await server.start()

    asyncio.run(run())


# who gets which


def test_the_connection_used_last_goes_first() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = await asked(pool), await asked(pool)
        assert pool.counts() == {"active": 2, "idle": 0, "dialling": 0, "waiting": 0, "upgraded": 0}
        pool.give_back(first.connection)
        pool.give_back(second.connection)
        assert pool.counts() == {"active": 0, "idle": 2, "dialling": 0, "waiting": 0, "upgraded": 0}
        assert [ask(pool).got, ask(pool).got] == [second.got, first.got]

    told_in_pool(check)


def test_beyond_the_bound_they_wait_in_order_and_beyond_the_queue_they_are_refused() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = await asked(pool), await asked(pool)
        third, fourth = ask(pool), ask(pool)
        assert ask(pool).got is Reason.OVERLOADED
        assert pool.counts() == {"active": 2, "idle": 0, "dialling": 0, "waiting": 2, "upgraded": 0}
        pool.give_back(second.connection)
        assert (third.got, fourth.got) == (second.got, None)
        pool.give_back(first.connection)
        assert fourth.got is first.got
        assert len(server.raw) == 2

    told_in_pool(check)


def test_those_whose_connection_is_being_made_take_no_place_in_the_queue() -> None:
    async def run() -> None:
        names = Names("127.0.0.1")
        names.may_answer.clear()
        async with a_pool(names=names) as (pool, _):
            waiters = [ask(pool) for _ in range(5)]
            assert [waiter.got for waiter in waiters] == [None, None, None, None, Reason.OVERLOADED]
            assert pool.counts()["dialling"] == 2
            pool.sweep(time.monotonic() + 3600)  # nor are they turned away: the dial has a time of its own
            assert [waiter.got for waiter in waiters[:4]].count(Reason.OVERLOADED) == 2
            names.may_answer.set()
            await until(lambda: pool.counts()["dialling"] == 0)
            assert sum(isinstance(waiter.got, UpstreamConnection) for waiter in waiters) == 2

    asyncio.run(run())


def test_who_only_waits_is_whoever_has_no_dial_of_his_own() -> None:
    async def run() -> None:
        names = Names("127.0.0.1")
        async with a_pool(names=names) as (pool, _):
            await asked(pool)
            names.may_answer.clear()
            dialled_for, behind = ask(pool), ask(pool)
            assert [pool.only_waits(waiter) for waiter in (dialled_for, behind)] == [False, True]
            pool.leave(dialled_for)
            assert not pool.only_waits(behind), "now it is dialled for this one"
            names.may_answer.set()
            await until(lambda: behind.got is not None)

    asyncio.run(run())


def test_who_left_gets_nothing_and_the_connection_made_for_it_is_kept() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        gone = ask(pool)
        pool.leave(gone)
        await until(lambda: pool.counts()["idle"])
        assert gone.got is None
        assert pool.counts() == {"active": 0, "idle": 1, "dialling": 0, "waiting": 0, "upgraded": 0}

    told_in_pool(check)


def test_what_died_idle_is_not_given_out() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first = (await asked(pool)).connection
        pool.give_back(first)
        with underneath(first.transport) as sock:
            sock.shutdown(socket.SHUT_RD)  # as if the upstream had closed just now
        second = await asked(pool)
        assert second.got is not first
        assert len(server.raw) == 2

    told_in_pool(check)


def test_what_its_upstream_closed_is_forgotten() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        pool.give_back((await asked(pool)).connection)
        await server.stop()
        await until(lambda: not pool.counts()["idle"])
        assert not any(pool.counts().values())
        await server.start()

    told_in_pool(check)


def test_what_has_served_and_died_is_not_given_to_who_waits_but_another_is_made() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first = (await asked(pool)).connection
        waiter = ask(pool)
        first.served = 1
        with underneath(first.transport) as sock:
            sock.shutdown(socket.SHUT_RD)
        pool.give_back(first)
        await until(lambda: waiter.got is not None)
        assert waiter.connection is not first
        assert pool.counts() == {"active": 1, "idle": 0, "dialling": 0, "waiting": 0, "upgraded": 0}

    told_in_pool(check, limits=replace(LIMITS, max_connections=1))


# what is closed


def test_what_was_idle_too_long_goes_the_oldest_first() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = (await asked(pool)).connection, (await asked(pool)).connection
        pool.give_back(first)
        pool.give_back(second)
        first.idle_since, second.idle_since = 100.0, 200.0
        pool.sweep(155.0)
        assert pool.counts()["idle"] == 2
        pool.sweep(155.1)
        assert pool.counts()["idle"] == 1
        assert ask(pool).got is second

    told_in_pool(check, limits=replace(LIMITS, idle_timeout_s=55.0))


def test_who_waited_too_long_is_turned_away_the_others_wait_on() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        with mock.patch.object(time, "monotonic", return_value=100.0):
            early = ask(pool)
        with mock.patch.object(time, "monotonic", return_value=200.0):
            late = ask(pool)
        pool.sweep(105.0)
        assert early.got is None
        pool.sweep(105.1)
        assert [early.got, late.got] == [Reason.OVERLOADED, None]
        pool.leave(late)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_timeout_s=5.0))


def test_whoever_leaves_a_long_queue_is_found_at_once() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        waiters, uploads = [ask(pool) for _ in range(3)], [Waits() for _ in range(4)]
        for upload in uploads:
            assert pool.take(upload, is_upload=True) is None
        queues = pool._waiters, pool._late
        pool.leave(waiters[1])
        assert pool.upload_ends(uploads[2])
        assert not pool.upload_ends(uploads[2])
        assert (pool._waiters is queues[0], pool._late is queues[1]) == (True, True), "nobody else is looked at"
        assert (list(pool._waiters), list(pool._late)) == (
            [waiters[0], waiters[2], uploads[0]],
            [uploads[1], uploads[3]],
        )
        for waiter in (waiters[0], waiters[2], *uploads):
            pool.leave(waiter)
            pool.upload_ends(waiter)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_size=20))


def test_of_thousands_who_waited_too_long_some_are_turned_away_at_each_tick_the_first_first() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        waiters = [ask(pool) for _ in range(1000)]
        for turn in range(1, 6):
            pools = Pools(LIMITS, ssl.create_default_context)
            pools._pools = {("http", "a", 1): pool, ("http", "b", 1): pool}
            pools.sweep(time.monotonic() + 60.0)
            told = [waiter.got is Reason.OVERLOADED for waiter in waiters]
            assert told == [True] * 200 * turn + [False] * (1000 - 200 * turn)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_size=1000))


class Uploads(Waits):
    """One that tells the pool when it was turned away, as all do who ask."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def not_connected(self) -> None:
        super().not_connected()
        self.pool.upload_ends(self)


def test_uploads_that_wait_for_others_are_not_turned_away_all_at_once() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        first, late = Uploads(pool), [Uploads(pool) for _ in range(1000)]
        assert pool.take(first, is_upload=True) is None
        assert [pool.take(upload, is_upload=True) for upload in late] == [None] * 1000
        waiters = [ask(pool) for _ in range(999)]
        assert ask(pool).got is Reason.OVERLOADED
        pool.upload_ends(first)
        assert [upload.got for upload in late] == [None] * 1000
        pool.leave(waiters[0])
        pool.sweep(time.monotonic())
        assert (list(pool._waiters)[-1], len(pool._late)) == (late[0], 999)
        for waiter in list(pool._waiters):
            pool.leave(waiter)
        for upload in late:
            pool.leave(upload)
            pool.upload_ends(upload)
            pool.leave(upload)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_size=1000))


def test_no_more_are_kept_idle_than_were_asked_for() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = await asked(pool), await asked(pool)
        pool.give_back(first.connection)
        pool.give_back(second.connection)
        await until(lambda: pool.counts() == {"active": 0, "idle": 1, "dialling": 0, "waiting": 0, "upgraded": 0})
        assert ask(pool).got is first.got

    told_in_pool(check, limits=replace(LIMITS, max_idle=1))


def test_the_end_takes_dials_and_connections_along() -> None:
    async def run() -> None:
        names = Names("127.0.0.1")
        limits = replace(LIMITS, max_connections=3, connect_timeout_s=60.0)
        async with a_pool(limits, names) as (pool, server), asyncio.timeout(10):
            idle = (await asked(pool)).connection
            await asked(pool)
            pool.give_back(idle)
            names.may_answer.clear()
            assert ask(pool).got is idle
            pool.give_back(idle)
            waiter = ask(pool)
            assert waiter.got is idle
            under_way = ask(pool)
            assert pool.counts()["dialling"] == 1
            await asyncio.sleep(0)  # it is waiting for the name
            pool.leave(under_way)
            await pool.close()
            await until(lambda: not any(pool.counts().values()))
            assert under_way.got is None
            await until(lambda: not server.open_connections)

    asyncio.run(run())


# other limits


def test_other_limits_hold_at_once() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first = await asked(pool)
        second = ask(pool)
        assert pool.counts()["waiting"] == 1
        pool.take_limits(LIMITS, None)
        await until(lambda: second.got is not None)
        pool.give_back(first.connection)
        pool.give_back(second.connection)
        pool.take_limits(replace(LIMITS, max_idle=1), None)
        assert pool.counts()["idle"] == 1
        assert ask(pool).got is second.got

    told_in_pool(check, limits=replace(LIMITS, max_connections=1))


def test_under_other_authorities_nothing_that_was_opened_before_is_used_again() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        idle, busy = (await asked(pool)).connection, (await asked(pool)).connection
        pool.give_back(idle)
        pool.take_limits(LIMITS, ssl.create_default_context())
        pool.give_back(busy)
        assert pool.counts()["idle"] == 0
        await until(lambda: not server.open_connections)
        pool.take_limits(LIMITS, None)
        assert (await asked(pool)).connection not in {idle, busy}

    told_in_pool(check)


def test_there_is_a_pool_a_target_and_tls_only_for_those_that_ask_for_it() -> None:
    made: list[ssl.SSLContext] = []

    def make() -> ssl.SSLContext:
        made.append(ssl.create_default_context())
        return made[-1]

    async def run() -> None:
        pools = Pools(LIMITS, make)
        plain = pools.of(origin_of("http://127.0.0.1:1/a"))
        assert pools.of(origin_of("http://127.0.0.1:1/b")) is plain
        assert pools.of(origin_of("http://127.0.0.1:2")) is not plain
        assert not made
        pools.of(origin_of("https://127.0.0.1:1"))
        pools.of(origin_of("https://127.0.0.1:2"))
        assert len(made) == 1
        assert sorted(pools.counts()) == [
            "http://127.0.0.1:1", "http://127.0.0.1:2", "https://127.0.0.1:1", "https://127.0.0.1:2",
        ]  # fmt: skip
        await pools.close()

    asyncio.run(run())


def test_pools_that_lead_nowhere_go_with_their_last_use_and_come_back_with_their_target() -> None:
    async def run() -> None:
        async with upstream() as server:
            pools = Pools(LIMITS, ssl.create_default_context)
            idle, name = f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{server.port}"
            for number in range(1, 100):
                pools.at(f"http://127.0.0.1:{number}/base")
            _, pool = pools.at(idle)
            pool.give_back((await asked(pool)).connection)
            pools.keep([idle, "http://127.0.0.1:1/base", "http://never.asked"])
            assert sorted(pools.counts()) == sorted([name, "http://127.0.0.1:1"])
            assert sorted(pools.urls()) == sorted([idle, "http://127.0.0.1:1/base"])
            pools.keep([])
            assert (list(pools.counts()), pools.urls()) == ([name], {}), "its connection is still there"
            assert pools.at(idle)[1] is pool
            pools.keep([])
            del pool
            assert pools.counts()[name]["idle"] == 1
            pools.sweep(time.monotonic() + LIMITS.idle_timeout_s + 1)
            await until(lambda: not pools.counts())
            await pools.close()

    asyncio.run(run())


def test_a_request_whose_pool_leads_nowhere_any_more_is_still_served_and_cleaned_up_after() -> None:
    """It waited to try again, say, and nothing else was there."""

    async def run() -> None:
        async with upstream() as server:
            pools = Pools(LIMITS, ssl.create_default_context)
            _, pool = pools.at(f"http://127.0.0.1:{server.port}")
            pools.keep([])
            connection = (await asked(pool)).connection
            pool.give_back(connection)
            await pools.close()
            await until(lambda: not any(pool.counts().values()))
            assert not connection.is_open

    asyncio.run(run())


def test_the_resolver_forgets_what_is_too_old_to_be_told() -> None:
    async def run() -> None:
        resolver = Resolver(30.0)
        await resolver.resolve("localhost", 80)
        now = time.monotonic()
        for later, count in ((0.0, 1), (31.0, 0)):
            resolver.forget(now + later)
            assert len(resolver._known) == count

    asyncio.run(run())
