"""What passes through a running gateway both ways, and what of a reply is taken for bad."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, ask_on, json_of, rows_of, running, token

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n"


def test_a_request_gets_the_gateways_headers_and_its_row(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/content/a?b=%20c", bearer=token("alice", email="a@b.c"))
            assert (reply.status, reply.body) == (200, b"ok")
            seen = auth.seen[0]
            assert (seen.method, seen.target, seen.one("host")) == ("GET", "/api/v1/content/a?b=%20c", auth.url[7:])
            assert seen.one("x-user-id") == "alice"
            assert seen.one("x-user-role") == "user"
            assert seen.one("x-user-email") == "a@b.c"
            assert seen.one("x-forwarded-for") == seen.one("x-real-ip") == "127.0.0.1"
            assert seen.one("x-forwarded-proto") == "http"
            assert seen.one("x-forwarded-host") == "gateway.test"
            assert seen.one("x-request-id") == reply.one("x-request-id")
            assert seen.one("via").startswith("1.1 engadi-")
            (row,) = await rows_of(gateway.port)
            assert row["request_id"] == reply.one("x-request-id")
            assert (row["path"], row["status_code"], row["reason"]) == ("/api/v1/content/a", 200, "ok")
            assert (row["user_id"], row["target_service"], row["attempts"]) == ("alice", "content", 1)

    asyncio.run(run())


def test_connections_are_kept_and_reused_on_both_sides(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            for _ in range(5):
                assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
            assert {seen.connection for seen in auth.seen} == {0}

    asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: x\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("step", [1, 7, 10_000], ids=["byte by byte", "by sevens", "whole"])
def test_request_bodies_arrive_whole(tmp_path: Path, body: bytes, step: int) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            request = b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n" + body
            for at in range(0, len(request), step):
                await client.send(request[at : at + step])
            await client.send(GET)
            assert (await client.reply("POST")).status == 200
            assert (await client.reply()).status == 200
            assert [seen.body for seen in auth.seen] == [b"hello", b""]
            assert auth.faults == []

    asyncio.run(run())


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["unasked", "asked for"])
def test_a_chunked_body_may_come_long_after_its_head(tmp_path: Path, expect: str) -> None:
    async def run() -> None:
        arrived = asyncio.Event()

        async def on_head(seen: Seen, wire: Wire) -> None:
            arrived.set()

        async with (
            upstream(on_head=on_head) as auth,
            running(tmp_path, auth) as gateway,
            raw_client(gateway.port) as client,
        ):
            head = f"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n{expect}Transfer-Encoding: chunked\r\n\r\n"
            await client.send(head.encode())
            await asyncio.wait_for(arrived.wait(), 5)
            if expect:
                assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"5\r\nhello\r\n0\r\n\r\n")
            assert (await client.reply("POST")).status == 200
            assert [seen.body for seen in auth.seen] == [b"hello"]

    asyncio.run(run())


REPLIES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, b"hello"),
    "close-delimited": (b"HTTP/1.0 200 OK\r\n\r\nhello", 200, b"hello"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "not modified": (b'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: "x"\r\n\r\n', 304, b""),
    "early hints": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        200,
        b"",
    ),
    "continue unasked": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
}


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("step", [1, 10_000], ids=["byte by byte", "whole"])
def test_replies_arrive_whole(tmp_path: Path, name: str, step: int) -> None:
    raw, status, body = REPLIES[name]

    async def script(seen: Seen, wire: Wire) -> None:
        for at in range(0, len(raw), step):
            await wire.send(raw[at : at + step])
            if step == 1:
                await asyncio.sleep(0)
        if name == "close-delimited":
            wire.close()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            for _ in range(2):
                reply = await ask_on(client, "GET", "/api/v1/auth/x")
                assert (reply.status, reply.body, reply.is_whole) == (status, body, True)
                assert reply.interim == ([103] if name == "early hints" else [])
                assert reply.all("date") != []

    asyncio.run(run())


def test_set_cookie_lines_are_never_joined(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n")

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).all("set-cookie") == ["a=1", "b=2"]

    asyncio.run(run())


def test_head_gets_the_length_and_no_body(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            for _ in range(2):
                reply = await ask_on(client, "HEAD", "/api/v1/auth/x")
                assert (reply.status, reply.one("content-length"), reply.body) == (200, "2", b"")

    asyncio.run(run())


BAD_REPLIES = {
    "no head": (b"", "upstream_closed", 502),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", "upstream_closed", 502),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "upstream_invalid", 502),
    "length no number": (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok", "upstream_invalid", 502),
    "space before colon": (b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", "upstream_invalid", 502),
    "folded": (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", "upstream_invalid", 502),
    "bare LF": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "upstream_invalid", 502),
    "NUL": (b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok", "upstream_invalid", 502),
    "unknown coding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", "upstream_invalid", 502),
    "status 999": (b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n", "upstream_invalid", 502),
    "101 unasked": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "upstream_invalid", 502),
    "1xx flood": (b"HTTP/1.1 102 Processing\r\n\r\n" * 2000, "upstream_invalid", 502),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "upstream_invalid", 502),
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_a_bad_reply_is_a_502_and_its_connection_is_gone(tmp_path: Path, name: str) -> None:
    raw, reason, status = BAD_REPLIES[name]

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("bad"):
            await wire.send(raw)
            wire.close()
        else:
            await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            reply = await ask_on(client, "POST", "/api/v1/auth/bad")
            assert reply.status == status
            assert json_of(reply)["code"] == reason
            assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
            assert auth.seen[-1].connection != auth.seen[0].connection

    asyncio.run(run())


def test_a_client_that_hung_up_before_its_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    """Our answer meets a closed socket and is answered by a reset, which our half-close then runs into."""

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
                    sock.sendall(b"POST /api/v1/content/x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert gateway.state()["connections"] <= 1
            rows = await rows_of(gateway.port)
            assert [row["reason"] for row in rows] == ["ok"] + ["auth_missing"] * 5

    asyncio.run(run())


STRAYS = {
    "bytes after the length": OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "a body on 204": b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "bytes after the last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    ),
    "length and coding": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    ),
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("name", STRAYS)
def test_a_connection_with_anything_left_over_is_never_used_again(tmp_path: Path, name: str) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(STRAYS[name] if seen.target.endswith("1") else OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await ask_on(client, "GET", "/api/v1/auth/1")
            reply = await ask_on(client, "GET", "/api/v1/auth/2")
            assert reply.body == b"ok"
            assert [seen.connection for seen in auth.seen] == [0, 1]

    asyncio.run(run())


def test_bytes_on_an_idle_connection_reach_nobody(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(OK)
        if seen.target.endswith("1"):
            await asyncio.sleep(0.02)
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await ask_on(client, "GET", "/api/v1/auth/1")
            await asyncio.sleep(0.05)
            assert (await ask_on(client, "GET", "/api/v1/auth/2")).body == b"ok"
            assert auth.seen[-1].connection == 1

    asyncio.run(run())


def test_expect_100_continue_is_answered_after_the_decisions(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            for target, interim, status in (("/api/v1/auth/x", [100], 200), ("/api/v1/content/x", [], 401)):
                async with raw_client(gateway.port) as client:
                    head = f"POST {target} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
                    await client.send(head.encode())
                    if interim:
                        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                        await client.send(b"hi")
                    reply = await client.reply("POST")
                    assert reply.status == status
                    assert reply.all("connection") == ([] if interim else ["close"])
            assert [seen.all("expect") for seen in auth.seen] == [[]]

    asyncio.run(run())


def test_sse_flows_event_by_event(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await wire.send(b"9\r\ndata: 1\n\n\r\n")
        await go_on.wait()
        await wire.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(GET)
            await client.reader.readuntil(b"data: 1\n\n")
            go_on.set()
            await client.reader.readuntil(b"data: 2\n\n")

    asyncio.run(run())


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        number = seen.target.rpartition("/")[2].encode()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number))

    async def run() -> None:
        async with (
            upstream(script) as auth,
            running(tmp_path, auth, server_keep_alive_requests=0) as gateway,
            raw_client(gateway.port) as client,
        ):
            count = 2000
            sending = asyncio.create_task(client.send(b"".join(GET.replace(b"/x", b"/%d" % n) for n in range(count))))
            for n in range(count):
                assert (await client.reply()).body == b"%d" % n
            await sending

    asyncio.run(run())


def test_waiting_for_a_connection_is_bounded(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await release.wait()
        await wire.send(OK)

    async def run() -> None:
        values = {"upstream_max_connections": 1, "upstream_queue_size": 1}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            asking = [asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/x")) for _ in range(4)]
            refused = 0
            while refused < 2:
                await asyncio.sleep(0.01)
                refused = sum(task.done() for task in asking)
            release.set()
            statuses = sorted([(await task).status for task in asking])
            assert statuses == [200, 200, 503, 503]
            assert len(auth.raw) == 1

    asyncio.run(run())


def test_a_loop_is_seen(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            routes = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/routes", bearer=ADMIN))["items"]
            url = f"http://127.0.0.1:{gateway.port}"
            target = f"/api/v1/gateway/routes/{routes[0]['id']}"
            await ask(gateway.port, "PUT", target, bearer=ADMIN, body={"target_url": url})
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, json_of(reply)["code"]) == (502, "loop")

    asyncio.run(run())
