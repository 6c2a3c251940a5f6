"""Whose doing it was: a circuit learns of what its own service did, and of nothing that others had it wait for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.errors import Reason
from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.net.blame import Failure, of_a_lost_connection, of_no_reply
from engadi_gateway.net.forward import Forward
from engadi_gateway.pipeline.identity import make_token
from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running
from tests.world import LONG_SECRET, until

LOGS = "/api/v1/gateway/logs?target_service="
LONG_AGO_S = 1000.0


async def the_row(gateway: Gateway, service: str) -> dict[str, Any]:
    (row,) = json_of(await ask(gateway.port, "GET", LOGS + service, bearer=ADMIN))["items"]
    return dict(row)


# the auth service


def _came_long_ago(gateway: Gateway) -> None:
    """As if everything that is under way had waited since then."""
    for connection in gateway._front.connections:
        if connection._exchange is not None:
            connection._exchange.now -= LONG_AGO_S
            connection._exchange.wall -= LONG_AGO_S


def test_what_the_auth_service_takes_is_no_other_services_time(tmp_path: Path) -> None:
    """Neither of the time to answer nor of a probe's; the row tells of all of it."""
    gateways: list[Gateway] = []
    waits: list[float] = []

    async def judge(seen: Seen, wire: Wire) -> None:
        _came_long_ago(gateways[0])
        await wire.send(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"sub": "u"}')

    async def serve(seen: Seen, wire: Wire) -> None:
        gateway, now = gateways[0], time.monotonic()
        waits.append(gateway.breakers.of("content").wait_s(now, gateway.breakers.limits))
        gateway._context.flights.sweep(now)
        await wire.send(OK)

    async def run() -> None:
        async with (
            upstream(judge) as auth,
            upstream(serve) as content,
            running(tmp_path, auth, content, jwt_mode="local-then-remote") as gateway,
        ):
            gateways.append(gateway)
            breaker, limits = gateway.breakers.of("content"), gateway.breakers.limits
            for _ in range(limits.failure_threshold):
                breaker.failed(breaker.take_permit(0.0), 0.0, limits, "test")
            breaker.healthy(0.0)
            began = time.time() - LONG_AGO_S / 2
            bearer = make_token(LONG_SECRET, "HS512", {"sub": "u", "exp": time.time() + 60})
            reply = await ask(gateway.port, "GET", "/api/v1/content/x", bearer=bearer)
            assert (reply.status, breaker.successes) == (200, 1)
            assert waits[0] > 0.0, "one probe at a time"
            row = await the_row(gateway, "content")
            assert row["response_time"] > LONG_AGO_S * 1000
            assert datetime.fromisoformat(row["created_at"]).timestamp() < began

    asyncio.run(run())


# values

CLOSED = (Reason.UPSTREAM_CLOSED, "closed before the reply's head")


@pytest.mark.parametrize(
    ("not_sent_s", "not_read_s", "reason", "detail"),
    [
        (0.0, 0.0, *CLOSED),
        (1.0, 1.0, *CLOSED),
        (1.5, 0.0, Reason.CLIENT_TIMEOUT, CLOSED[1] + ", after 1.5 s of silence within the request's body"),
        (1.5, 2.0, Reason.CLIENT_TIMEOUT, CLOSED[1] + ", after 1.5 s of silence within the request's body"),
        (0.0, 2.0, Reason.CLIENT_STALLED, CLOSED[1] + ", after the client had not read for 2.0 s"),
    ],
)
def test_who_was_kept_waiting_may_close(not_sent_s: float, not_read_s: float, reason: Reason, detail: str) -> None:
    assert of_a_lost_connection(CLOSED, not_sent_s, not_read_s) == (reason, detail)


@pytest.mark.parametrize(
    ("is_asked", "is_sent", "before", "is_queued", "reason", "detail"),
    [
        (True, True, CLOSED, False, Reason.UPSTREAM_TIMEOUT, "no reply within 30 s"),
        (True, False, None, False, Reason.UPSTREAM_TIMEOUT, "it does not read"),
        (False, True, CLOSED, True, Reason.UPSTREAM_TIMEOUT, f"{CLOSED[1]}; no other attempt within 30 s"),
        (False, True, None, True, Reason.OVERLOADED, "no free connection within 30 s"),
        (False, False, None, True, Reason.OVERLOADED, "no free connection in time"),
        (False, True, None, False, Reason.CONNECT_TIMEOUT, "no connection within 30 s"),
        (False, True, CLOSED, False, Reason.CONNECT_TIMEOUT, "no connection within 30 s"),
    ],
)
def test_what_took_long(
    is_asked: bool, is_sent: bool, before: Failure | None, is_queued: bool, reason: Reason, detail: str
) -> None:
    told = of_no_reply(30.0, before, is_asked=is_asked, is_sent=is_sent, is_queued=is_queued)
    assert told == (reason, detail)


# uploads

UPLOAD = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n"
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe"


async def _answer_early(seen: Seen, wire: Wire) -> None:
    await wire.send(BEGUN)


async def _answer_early_and_read_nothing(seen: Seen, wire: Wire) -> None:
    await wire.send(BEGUN)
    await asyncio.Event().wait()


def _sweep(gateway: Gateway, ahead_s: float) -> None:
    gateway._context.flights.sweep(time.monotonic() + ahead_s)


def test_an_upload_that_stalls_within_the_reply_is_the_clients_doing(tmp_path: Path) -> None:
    """It has its own time for that, however short the upstream's is."""

    async def run() -> None:
        values = {"server_max_body_bytes": 0, "upstream_timeout": 10.0, "server_body_timeout": 100.0}
        async with upstream(on_head=_answer_early) as auth, running(tmp_path, auth, **values) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(UPLOAD + b"x")
                await client.reader.readuntil(b"\r\n\r\nhe")
                _sweep(gateway, 50.0)
                assert len(gateway._context.flights) == 1
                _sweep(gateway, 101.0)
                assert await client.rest() == b""
            row = await the_row(gateway, "auth")
            assert (row["status_code"], row["reason"]) == (200, "client_timeout")
            assert row["error_message"] == "silence within the request's body"
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0

    asyncio.run(run())


async def _never_answer(seen: Seen, wire: Wire) -> None:
    await asyncio.Event().wait()


def test_from_the_end_of_an_upload_on_it_is_the_upstreams_time(tmp_path: Path) -> None:
    async def run() -> None:
        values = {"upstream_timeout": 10.0, "server_body_timeout": 100.0}
        async with (
            upstream(_never_answer) as auth,
            running(tmp_path, auth, **values) as gateway,
            raw_client(gateway.port) as client,
        ):
            await client.send(b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nh")
            await until(lambda: len(gateway._context.flights))
            await client.send(b"i")
            await until(lambda: auth.seen)
            _sweep(gateway, 9.0)
            assert len(gateway._context.flights) == 1
            _sweep(gateway, 11.0)
            assert not len(gateway._context.flights)
            reply = await client.reply("POST")
            assert (reply.status, json_of(reply)["code"]) == (504, "upstream_timeout")
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 1

    asyncio.run(run())


def test_an_upload_that_the_upstream_holds_up_within_its_reply_is_the_upstreams_doing(tmp_path: Path) -> None:
    async def run() -> None:
        values = {"server_max_body_bytes": 0}
        async with (
            upstream(on_head=_answer_early_and_read_nothing) as auth,
            running(tmp_path, auth, **values) as gateway,
            raw_client(gateway.port) as client,
        ):
            sending = asyncio.create_task(client.send(UPLOAD + bytes(49_000_000)))
            await client.reader.readuntil(b"\r\n\r\nhe")
            await until(lambda: len(gateway._context.unread) == 1)
            _sweep(gateway, 101.0)
            row = await the_row(gateway, "auth")
            assert (row["reason"], row["error_message"]) == ("upstream_stalled", "silence within the reply's body")
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 1
            with contextlib.suppress(ConnectionError):
                await sending

    asyncio.run(run())


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest.mark.parametrize(
    ("has_answered", "silent_s", "status", "reason", "failures"),
    [
        (False, 2.0, b"408", "client_timeout", 0),
        (True, 2.0, b"200", "client_timeout", 0),
        (False, 0.0, b"502", "upstream_closed", 1),
        (True, 0.0, b"200", "upstream_truncated", 1),
    ],
)
def test_an_upstream_that_gives_up_on_a_client_that_does_not_send_has_not_failed(
    tmp_path: Path, method: bytes, has_answered: bool, silent_s: float, status: bytes, reason: str, failures: int
) -> None:
    gives_up = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        if has_answered:
            await wire.send(BEGUN)
        await gives_up.wait()
        wire.close()

    async def run() -> None:
        values = {"server_max_body_bytes": 0, "upstream_retry_count": 1}
        async with upstream(on_head=script) as auth, running(tmp_path, auth, **values) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(UPLOAD.replace(b"POST", method) + b"x")
                await until(lambda: auth.raw and auth.raw[0].endswith(b"x"))
                reply = await client.reader.readuntil(b"he") if has_answered else b""
                (connection,) = gateway._front.connections
                assert isinstance(connection._handler, Forward)
                connection._handler._heard_at = connection._handler._started = time.monotonic() - silent_s
                gives_up.set()
                reply += await client.rest()
            assert reply[9:12] == status
            row = await the_row(gateway, "auth")
            attempts = 1 if silent_s or has_answered or method == b"POST" else 2
            assert (row["reason"], row["attempts"]) == (reason, attempts)
            assert ("silence within the request's body" in row["error_message"]) is (silent_s > 0.0)
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == failures

    asyncio.run(run())


# downloads


@pytest.mark.parametrize(
    ("not_read_s", "is_reset", "reason", "said", "failures"),
    [
        (2.0, True, "client_stalled", "reset within the reply's body, after the client had not read for 2.", 0),
        (0.0, True, "upstream_truncated", "reset within the reply's body", 1),
        (2.0, False, "upstream_truncated", "malformed chunked body", 1),
    ],
)
def test_an_upstream_that_gives_up_on_a_client_that_does_not_read_has_not_failed(
    tmp_path: Path, not_read_s: float, is_reset: bool, reason: str, said: str, failures: int
) -> None:
    """A short pause is no reason for it, and nonsense has none."""
    is_paused = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        size = 16 << 20
        wire.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size))
        await is_paused.wait()
        if is_reset:
            wire.reset()
        else:
            await wire.send(b"\r\nnonsense\r\n")

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a mere WriteTransport
            await client.send(b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: any(connection._is_write_paused for connection in gateway._front.connections))
            (connection,) = gateway._front.connections
            assert isinstance(connection._handler, Forward)
            connection._handler._paused_at = time.monotonic() - not_read_s
            is_paused.set()
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            await client.rest()
            row = await the_row(gateway, "auth")
            assert (row["status_code"], row["reason"]) == (200, reason)
            assert row["error_message"].startswith(said)
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == failures

    asyncio.run(run())
