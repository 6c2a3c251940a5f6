"""Opening connections: in which order, in which time, and the reason of every failure."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engadi_gateway import Gateway
from engadi_gateway.errors import Reason
from engadi_gateway.net import pool as pool_module
from engadi_gateway.net.dial import Dial, DialTimeoutError, dial_failure
from engadi_gateway.net.origin import origin_of
from engadi_gateway.net.pool import Pool
from engadi_gateway.net.upstream import UpstreamConnection
from tests.certificates import server_tls_of
from tests.fakes import OK, Upstream
from tests.harness import ADMIN, ask, json_of, settings_for
from tests.pooled import LIMITS, Names, a_pool, asked


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


def test_addresses_share_what_is_left_of_the_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up was within it."""
    dial = Dial(origin_of("http://named.test"), None, mock.Mock())
    shares: list[float] = []
    timeout = asyncio.timeout

    async def try_one(dial: Dial, address: str) -> UpstreamConnection:
        raise OSError(errno.ECONNREFUSED, "no")

    def noted(delay: float) -> asyncio.Timeout:
        shares.append(delay)
        return timeout(delay)

    async def run() -> None:
        monkeypatch.setattr(Dial, "_try_one", try_one)
        monkeypatch.setattr(asyncio, "timeout", noted)
        with pytest.raises(OSError, match="no"):
            await dial.connect(Names("192.0.2.1", "192.0.2.2", "192.0.2.3"), 600)

    asyncio.run(run())
    assert shares == pytest.approx([200, 300, 600], rel=0.1)


def test_a_silent_address_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    really = Dial._try_one

    async def try_one(dial: Dial, address: str) -> UpstreamConnection:
        if address == "192.0.2.1":
            await asyncio.Event().wait()
        return await really(dial, address)

    async def run() -> None:
        monkeypatch.setattr(Dial, "_try_one", try_one)
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
    context = server_tls_of(tmp_path, "named.test")
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


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK)
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("host", "is_known", "status"),
    [("localhost", True, 200), ("localhost", False, 502), ("127.0.0.1", True, 502)],
    ids=["verified", "unknown authority", "wrong name"],
)
def test_https_upstreams_are_verified(tmp_path: Path, host: str, is_known: bool, status: int) -> None:
    context = server_tls_of(tmp_path)

    async def run() -> None:
        server = await asyncio.start_server(_answer, "localhost", 0, ssl=context, family=2)
        port = server.sockets[0].getsockname()[1]
        ca_file = str(tmp_path / "cert.pem") if is_known else ""
        settings = settings_for(tmp_path, {"auth": f"https://{host}:{port}"}, upstream_tls_ca_file=ca_file)
        async with server, Gateway(settings) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert reply.status == status
            if status != 200:
                assert json_of(reply)["code"] == "tls_certificate"
                assert reply.one("proxy-status") == "engadi; error=tls_certificate_error"

    asyncio.run(run())


def test_authorities_that_a_reload_names_hold_for_requests_and_health_checks(tmp_path: Path) -> None:
    context = server_tls_of(tmp_path)

    async def run() -> None:
        server = await asyncio.start_server(_answer, "localhost", 0, ssl=context, family=2)
        services = {"auth": f"https://localhost:{server.sockets[0].getsockname()[1]}"}
        values: dict[str, Any] = {"health_rise": 1, "breaker_enabled": False}
        async with server, Gateway(settings_for(tmp_path, services, **values)) as gateway:

            async def seen() -> tuple[int, str]:
                health = await gateway.checker.check_now("auth")
                assert health is not None
                return (await ask(gateway.port, "GET", "/api/v1/auth/x")).status, str(health.status)

            assert await seen() == (502, "unhealthy")
            known = {**values, "upstream_tls_ca_file": str(tmp_path / "cert.pem")}
            await gateway.reload(settings_for(tmp_path, services, **known))
            assert await seen() == (200, "healthy")
            await gateway.reload(settings_for(tmp_path, services, **values))
            assert await seen() == (502, "degraded"), "one bad check is not the end"

    asyncio.run(run())


def test_a_name_that_is_not_found_is_a_502_of_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        settings = settings_for(tmp_path, {"auth": "http://no-such-name.invalid:80"}, upstream_retry_count=0)
        async with Gateway(settings) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, json_of(reply)["code"]) in {(502, "dns_error"), (504, "dns_timeout")}
            assert reply.one("proxy-status") in {"engadi; error=dns_error", "engadi; error=dns_timeout"}

    asyncio.run(run())


def test_who_hangs_up_on_tls_was_reached(tmp_path: Path) -> None:
    """A plain server behind an https URL: it takes the connection, so that "not reachable" would send people astray."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Gateway(settings_for(tmp_path, {"auth": f"https://127.0.0.1:{port}"})) as gateway:
            reply = await ask(gateway.port, "POST", "/api/v1/auth/x", body=b"abc")
            assert (reply.status, json_of(reply)["code"]) == (502, "upstream_closed")
            page = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs?path=/api/v1/auth/x", bearer=ADMIN))
            said = f"127.0.0.1:{port}: closed while connecting (does it speak TLS?)"
            assert [(row["error_message"], row["attempts"]) for row in page["items"]] == [(said, 3)]

    asyncio.run(run())
