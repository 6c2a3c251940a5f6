"""How forwarding ends without a whole reply: refused, cut, timed out, or left by its client."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from engadi_gateway import Gateway
from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, rows_of, running, settings_for, token
from tests.world import until

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n"
CUT = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
def test_a_cut_off_body_never_looks_whole(tmp_path: Path, name: str, is_reset: bool) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(CUT[name])
        await asyncio.sleep(0.05)
        if name == "bad chunk":
            await wire.send(b"ZZ\r\n")
        (wire.reset if is_reset else wire.close)()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, reply.is_whole) == (200, False)
            (row,) = await rows_of(gateway.port)
            assert row["reason"] == "upstream_truncated"
            found = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/errors", bearer=ADMIN))["items"]
            assert [one["request_id"] for one in found] == [row["request_id"]]
            stats = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/stats", bearer=ADMIN))
            assert (stats["error_count"], stats["requests_by_reason"]["upstream_truncated"]) == (1, 1)
            assert max(endpoint["errors"] for endpoint in stats["top_endpoints"]) == 1

    asyncio.run(run())


@pytest.mark.parametrize("name", ["chunked", "until close"])
def test_a_cut_off_body_does_not_look_whole_to_http10_either(tmp_path: Path, name: str) -> None:
    """There the end of the connection is the end of the body: only a reset says that it is not."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(head if name == "chunked" else b"HTTP/1.1 200 OK\r\n\r\nhello")
        await asyncio.sleep(0.05)
        wire.reset()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET /api/v1/auth/x HTTP/1.0\r\nHost: h\r\n\r\n")
            assert (await client.reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK")
            with pytest.raises(ConnectionResetError):
                await client.reader.read()

    asyncio.run(run())


@pytest.mark.parametrize("is_read", [True, False], ids=["all was read", "it is not read just now"])
def test_a_http10_client_that_closed_its_side_does_not_see_a_whole_body_either(tmp_path: Path, is_read: bool) -> None:
    size = 100 if is_read else 32 << 20

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size))
        await asyncio.Event().wait()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET /api/v1/auth/x HTTP/1.0\r\nHost: h\r\n\r\n")
            await client.reader.readuntil(b"\r\n\r\n")
            if not is_read:
                (connection,) = gateway._front.connections
                await until(lambda: connection._is_write_paused)
                connection._set_reading(False)
            client.writer.write_eof()
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
            await until(lambda: not gateway._front.connections)

    asyncio.run(run())


def test_refused_and_silent_upstreams_are_told_apart(tmp_path: Path) -> None:
    async def silent(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(30)

    async def run() -> None:
        async with upstream(silent) as auth, upstream() as gone:
            await gone.stop()
            async with running(tmp_path, auth, gone, upstream_timeout=0.2, upstream_retry_count=0) as gateway:
                late = await ask(gateway.port, "GET", "/api/v1/auth/x")
                assert (late.status, json_of(late)["code"]) == (504, "upstream_timeout")
                refused = await ask(gateway.port, "GET", "/api/v1/content/x", bearer=token())
                assert (refused.status, json_of(refused)["code"]) == (502, "connect_refused")
                said = [row["error_message"] for row in await rows_of(gateway.port)]
                refusal = f"127.0.0.1:{gone.port}: Connection refused"
                assert said == [refusal, "no reply within 0.2 s"]
            never = {"upstream_retry_backoff": 1e6, "upstream_retry_backoff_max": 1e6}
            async with running(tmp_path, auth, gone, upstream_timeout=0.2, **never) as gateway:
                late = await ask(gateway.port, "GET", "/api/v1/content/x", bearer=token())
                assert (late.status, json_of(late)["code"]) == (504, "upstream_timeout")
                row = (await rows_of(gateway.port))[0]
                assert (row["attempts"], row["error_message"]) == (1, f"{refusal}; no other attempt within 0.2 s")
            await gone.start()

    asyncio.run(run())


def test_an_upstream_that_does_not_take_the_body_is_said(tmp_path: Path) -> None:
    async def on_head(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(30)

    async def run() -> None:
        async with (
            upstream(on_head=on_head) as auth,
            running(tmp_path, auth, server_body_timeout=0.3, server_max_body_bytes=0) as gateway,
            raw_client(gateway.port) as client,
        ):
            await client.send(b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 99000000\r\n\r\n")
            sending = asyncio.create_task(client.send(bytes(50_000_000)))
            reply = await client.reply()
            assert (reply.status, json_of(reply)["code"]) == (504, "upstream_timeout")
            sending.cancel()
            (row,) = await rows_of(gateway.port)
            assert row["error_message"] == "it does not read"

    asyncio.run(run())


def test_a_stalled_body_is_cut(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await asyncio.sleep(30)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, upstream_timeout=0.2) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.body, reply.is_whole) == (b"hello", False)
            (row,) = await rows_of(gateway.port)
            assert row["reason"] == "upstream_stalled"

    asyncio.run(run())


def test_a_client_that_leaves_cancels_the_upstream_and_is_nobodys_failure(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("slow"):
            await wire.reader.read(1)
            cancelled.set()
        else:
            await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(GET.replace(b"/x", b"/slow"))
                while not auth.seen:
                    await asyncio.sleep(0.005)
            await asyncio.wait_for(cancelled.wait(), 5)
            await asyncio.sleep(0.05)
            (row,) = await rows_of(gateway.port)
            assert (row["status_code"], row["reason"]) == (499, "client_closed")
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0

    asyncio.run(run())


def test_dialling_that_took_all_the_time_is_an_attempt_that_failed(tmp_path: Path) -> None:
    """TLS with somebody who says nothing: no connection came of it, and the metrics must not pass it over."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            secure = f"https://127.0.0.1:{silent.getsockname()[1]}"
            async with Gateway(settings_for(tmp_path, {"auth": secure}, upstream_timeout=0.1)) as gateway:
                reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
                assert (reply.status, json_of(reply)["code"]) == (504, "connect_timeout")
                row = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs?path=/api/v1/auth/x", bearer=ADMIN))
                assert [(one["attempts"], one["error_message"]) for one in row["items"]] == [
                    (1, "no connection within 0.1 s")
                ]
                assert dict(gateway.metrics.failures) == {("auth", "connect_timeout"): 1}

    asyncio.run(run())


def test_dialling_again_that_took_the_rest_of_the_time_is_an_attempt_too(tmp_path: Path) -> None:
    """It is what the row tells of; there was another attempt, after the one that failed."""
    met: list[asyncio.StreamWriter] = []

    async def hang_up_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        if len(met) > 1:
            await reader.read()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(hang_up_once, "127.0.0.1", 0)
        secure = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, Gateway(settings_for(tmp_path, {"auth": secure}, upstream_timeout=0.3)) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, json_of(reply)["code"], len(met)) == (504, "connect_timeout", 2)
            page = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs?path=/api/v1/auth/x", bearer=ADMIN))
            said = [(row["error_message"], row["attempts"]) for row in page["items"]]
            assert said == [("no connection within 0.3 s", 2)]

    asyncio.run(run())
