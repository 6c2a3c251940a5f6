"""Where one message's bytes could become another's, or nobody's: reuse, pauses, upgrades, early answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engadi_gateway.errors import Reason
from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.wire.response import ReplyHead, ReplyParser
from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ask, json_of, running

EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
UPGRADE = b"GET /api/v1/auth/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


def _pool(gateway: Gateway) -> dict[str, int]:
    (counts,) = gateway.state()["pools"].values()
    found: dict[str, int] = counts
    return found


def test_what_comes_behind_a_reply_is_not_the_answer_to_who_waits(tmp_path: Path) -> None:
    """The reply fills one read to its last byte, so that what follows is still in the socket when it has ended."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 65494\r\n\r\n"
    filling = head + b"x" * 65494
    go_on = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("first"):
            await go_on.wait()
            wire.writer.write(filling + EVIL)
        else:
            await wire.send(OK)

    async def run() -> None:
        assert len(filling) == 65536, "one read of the gateway's"
        async with upstream(script) as auth, running(tmp_path, auth, upstream_max_connections=1) as gateway:
            first = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/first"))
            await _until(lambda: len(auth.raw) == 1)
            second = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/second"))
            await _until(lambda: _pool(gateway)["waiting"] == 1)
            go_on.set()
            assert len((await first).body) == 65494
            assert (await second).body == b"ok"
            assert [seen.connection for seen in auth.seen] == [0, 1]

    asyncio.run(run())


def test_a_body_that_filled_the_buffer_before_the_decision_is_read_on(tmp_path: Path) -> None:
    """One-byte chunks: too many bytes to be kept while the token is judged, too few decoded ones to be noticed."""
    asked, let_go = asyncio.Event(), asyncio.Event()

    async def judge(seen: Seen, wire: Wire) -> None:
        asked.set()
        await let_go.wait()
        body = json.dumps({"valid": True, "user": {"id": "u9"}}).encode()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def run() -> None:
        async with (
            upstream(judge) as auth,
            upstream() as content,
            running(tmp_path, auth, content, jwt_mode="remote") as gateway,
            raw_client(gateway.port) as client,
        ):
            head = b"POST /api/v1/content/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n"
            await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            await asked.wait()
            sending = asyncio.create_task(client.send(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"))
            (connection,) = gateway._front.connections
            await _until(lambda: not connection._is_reading)
            let_go.set()
            assert (await asyncio.wait_for(client.reply("POST"), 10)).status == 200
            await sending
            assert content.seen[0].body == b"x" * 100_000

    asyncio.run(run())


def test_what_filled_the_buffer_before_the_switch_is_spliced_and_so_is_the_rest(tmp_path: Path) -> None:
    switch = asyncio.Event()
    received = bytearray()

    async def script(seen: Seen, wire: Wire) -> None:
        await switch.wait()
        await wire.send(SWITCH)
        while data := await wire.reader.read(65536):
            received.extend(data)
        wire.close()

    async def run() -> None:
        async with (
            upstream(on_head=script) as auth,
            running(tmp_path, auth) as gateway,
            raw_client(gateway.port) as client,
        ):
            sending = asyncio.create_task(client.send(UPGRADE + b"x" * 200_000))
            await _until(lambda: len(auth.raw) == 1)
            (connection,) = gateway._front.connections
            await _until(lambda: not connection._is_reading)
            switch.set()
            await client.reader.readuntil(b"\r\n\r\n")
            await sending
            # the first bytes may lie in the upstream's reader, which h11 has them from
            await _until(lambda: len(received) + bytes(auth.raw[0]).count(b"x") >= 200_000)

    asyncio.run(run())


PROTOCOLS = {
    "what was asked": (b"websocket", b"WebSocket", True),
    "one of several": (b"chat, websocket", b"websocket", True),
    "another": (b"websocket", b"h2c", False),
    "one more": (b"websocket", b"websocket, h2c", False),
    "none": (b"websocket", b"", False),
    "the empty one": (b"websocket,", b",", False),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_only_what_was_asked_for_is_switched_to(tmp_path: Path, name: str) -> None:
    asked, chosen, is_switched = PROTOCOLS[name]

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(SWITCH.replace(b"websocket", chosen))
        await wire.reader.read(1)
        wire.close()

    async def run() -> None:
        async with (
            upstream(on_head=script) as auth,
            running(tmp_path, auth) as gateway,
            raw_client(gateway.port) as client,
        ):
            await client.send(UPGRADE.replace(b"websocket", asked))
            if is_switched:
                assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
                return
            reply = await client.reply()
            assert (reply.status, json_of(reply)["code"]) == (502, "upgrade_failed")
            assert auth.raw[0].count(b"GET ") == 1

    asyncio.run(run())


def test_a_connection_that_died_idle_is_replaced_freely_only_once(tmp_path: Path) -> None:
    """An upstream that closes on every request must not get one of each idle connection for each request."""
    gate = asyncio.Event()
    is_dying = False

    async def script(seen: Seen, wire: Wire) -> None:
        if is_dying:
            wire.close()
            return
        await gate.wait()
        await wire.send(OK)

    async def run() -> None:
        nonlocal is_dying
        async with upstream(script) as auth, running(tmp_path, auth, upstream_retry_count=0) as gateway:
            asking = [asyncio.create_task(ask(gateway.port, "GET", f"/api/v1/auth/{n}")) for n in range(10)]
            await _until(lambda: len(auth.seen) == 10)
            gate.set()
            await asyncio.gather(*asking)
            is_dying = True
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 502
            assert len(auth.seen) == 12

    asyncio.run(run())


class Lone:
    """A connection's owner and its user in one, which note how it ended."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ended = asyncio.Event()

    def give_back(self, connection: UpstreamConnection) -> None:
        self.events.append("given back")

    def let_go(self, connection: UpstreamConnection) -> None:
        self.events.append("upgraded")

    def forget(self, connection: UpstreamConnection) -> None:
        self.events.append("gone")
        self.ended.set()

    def reply_head(self, head: ReplyHead, body: bytes, is_end: bool) -> None:
        self.events.append(f"{head.status} {body!r} {is_end}")
        if "given back" in self.events:
            self.ended.set()

    def reply_interim(self, head: ReplyHead) -> None: ...
    def reply_body(self, body: bytes, is_end: bool) -> None: ...
    def reply_failed(self, reason: Reason, detail: str) -> None: ...
    def upstream_paused(self) -> None: ...
    def upstream_resumed(self) -> None: ...
    def later(self, work: Callable[[], None]) -> None: ...


@pytest.mark.parametrize("size", [10, 16 << 20], ids=["sent", "on its way"])
def test_an_answer_that_overtakes_its_request_ends_the_connection(size: int) -> None:
    """What is still to be written would stand in front of the next request, and not all read it as a body."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(OK)
        await asyncio.wait_for(lone.ended.wait(), 10)
        writer.close()

    async def run() -> list[str]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1024)
        async with server:
            port = server.sockets[0].getsockname()[1]
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: UpstreamConnection(lone, 1024), "127.0.0.1", port)
            connection.begin(lone, ReplyParser(), "POST", b"x" * size, is_complete=True)
            await asyncio.wait_for(lone.ended.wait(), 10)
            ended = list(lone.events)
            connection.drop()
            await asyncio.sleep(0)
            return ended

    lone = Lone()
    assert asyncio.run(run()) == (["given back", "200 b'ok' True"] if size == 10 else ["200 b'ok' True", "gone"])


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"SSH-2.0-OpenSSH\r\n", b"\r\n", b"h"])
def test_what_can_never_become_a_reply_is_not_waited_for(tmp_path: Path, start: bytes) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(start)
        await wire.reader.read(1)
        wire.close()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, json_of(reply)["code"]) == (502, "upstream_invalid")

    asyncio.run(run())


FORWARDS = {
    "7": "6",
    "007": "6",
    "1": "0",
    "999": "998",
    "1000": "999",
    "9" * 5000: "999",
    "-1": "-1",
    "x": "x",
    "0, 0": "0, 0",
    "": "",
    "0": None,
    "000": None,
}


@pytest.mark.parametrize("said", FORWARDS, ids=lambda said: said[:6])
def test_max_forwards_whatever_it_says(tmp_path: Path, said: str) -> None:
    passed = FORWARDS[said]

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            reply = await ask(gateway.port, "OPTIONS", "/api/v1/auth/x", headers={"Max-Forwards": said})
            assert reply.status == (204 if passed is None else 200)
            assert [seen.all("max-forwards") for seen in auth.seen] == ([] if passed is None else [[passed]])

    asyncio.run(run())


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("said", ["0", "7", "x"])
def test_max_forwards_of_other_methods_goes_on_as_it_came(tmp_path: Path, method: str, said: str) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            reply = await ask(gateway.port, method, "/api/v1/auth/x", headers={"Max-Forwards": said})
            assert reply.status == 200
            assert [seen.one("max-forwards") for seen in auth.seen] == [said]

    asyncio.run(run())


#: Heads whose bodies nobody reads, because their end is not known, or too far away, or nobody would wait for it.
UNREAD = {
    "two framings": b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    "a coding on HTTP/1.0": b"Transfer-Encoding: chunked\r\nConnection: keep-alive",
    "a body that is too long": b"Content-Length: 99999999",
    "an expectation": b"Expect: tea\r\nContent-Length: 99",
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_refused_head_that_is_a_429_in_the_end_closes_all_the_same(tmp_path: Path, name: str) -> None:
    """Who asks too often is told that first; what stands behind the head is no request for that."""
    version = b"1.0" if "1.0" in name else b"1.1"

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, limits_per_ip=1) as gateway:
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            async with raw_client(gateway.port) as client:
                head = b"POST /api/v1/auth/x HTTP/" + version + b"\r\nHost: h\r\n" + UNREAD[name] + b"\r\n\r\n"
                await client.send(head + b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
                reply = await client.reply("POST")
                assert (reply.status, json_of(reply)["code"]) == (429, "rate_limited")
                assert reply.all("connection") == ["close"]
                assert await client.rest() == b"", "what stands behind it was answered"

    asyncio.run(run())


def _padded(size: int) -> bytes:
    start = b"GET /livez HTTP/1.1\r\nHost: h\r\nX: "
    return start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"


def test_much_pipelined_that_ends_with_a_whole_head_is_not_the_last_that_is_read(tmp_path: Path) -> None:
    """One byte more than what stops the reading, so that it stops with the last byte, and all of it is whole heads."""
    released = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await released.wait()
        await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n")
            await _until(lambda: len(auth.seen) == 1)
            await client.send(_padded(1024) * 63 + _padded(1025))
            await _until(lambda: len(gateway._context.unread) == 1)
            released.set()
            async with asyncio.timeout(20):
                for _ in range(65):
                    assert (await client.reply()).status == 200
                await client.send(_padded(100))
                assert (await client.reply()).status == 200

    asyncio.run(run())
