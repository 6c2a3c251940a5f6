"""Replies full of small chunks take turns with everybody else: a share of a read now, the rest when its turn comes."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engadi_gateway import Gateway
from engadi_gateway.errors import Reason
from engadi_gateway.net.upstream import State, UpstreamConnection
from engadi_gateway.wire.chunked import LAST_CHUNK, chunk
from engadi_gateway.wire.response import ReplyHead, ReplyParser
from tests.certificates import server_tls_of
from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running, settings_for
from tests.world import until

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"
SHARE = 64  # chunks


def letters(count: int) -> bytes:
    """A body in which each part is where it belongs, or is seen not to be."""
    return b"".join(b"%d," % number for number in range(count))[:count]


def in_bits(body: bytes, size: int = 1) -> bytes:
    return b"".join(chunk(body[at : at + size]) for at in range(0, len(body), size))


class Reader:
    """Owner and user in one; notes the pieces of a body, and takes the turns that are asked for by hand."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ends: list[str] = []
        self.turns: list[Callable[[], None]] = []
        self.is_faulty = False

    def give_back(self, connection: UpstreamConnection) -> None:
        self.ends.append("given back")

    def forget(self, connection: UpstreamConnection) -> None:
        self.ends.append("gone")

    def reply_head(self, head: ReplyHead, body: bytes, is_end: bool) -> None:
        self.reply_body(body, is_end)

    def reply_body(self, body: bytes, is_end: bool) -> None:
        if self.is_faulty:
            raise ZeroDivisionError
        self.pieces.append(body)
        if is_end:
            self.ends.append("whole")

    def reply_failed(self, reason: Reason, detail: str) -> None:
        self.ends.append(reason.code)

    def later(self, work: Callable[[], None]) -> None:
        self.turns.append(work)

    def turn(self) -> int:
        """How much the next turn brings."""
        before = sum(map(len, self.pieces))
        self.turns.pop(0)()
        return sum(map(len, self.pieces)) - before

    def let_go(self, connection: UpstreamConnection) -> None: ...
    def reply_interim(self, head: ReplyHead) -> None: ...
    def upstream_paused(self) -> None: ...
    def upstream_resumed(self) -> None: ...


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Reader, UpstreamConnection]]:
    """A request under way, to an upstream that says nothing by itself."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader = Reader()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: UpstreamConnection(reader, 1 << 16), sock=ours)
        connection.begin(reader, ReplyParser(), "GET", b"x", is_complete=True)
        try:
            yield reader, connection
        finally:
            connection.drop()
            await asyncio.sleep(0)


def test_a_read_full_of_small_chunks_is_taken_share_by_share_and_nothing_is_read_meanwhile() -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            body = letters(3 * SHARE + 10)
            connection.data_received(HEAD + in_bits(body))
            assert (reader.pieces, len(reader.turns)) == ([body[:SHARE]], 1)
            assert (connection.transport.is_reading(), connection.holds_reply) == (False, True)
            assert [reader.turn() for _ in range(3)] == [SHARE, SHARE, 10]
            assert (connection.transport.is_reading(), connection.holds_reply, reader.turns) == (True, False, [])
            connection.data_received(in_bits(body) + LAST_CHUNK)
            while reader.turns:
                assert reader.turn() <= SHARE
            assert b"".join(reader.pieces) == body * 2
            assert (reader.ends, connection.transport.is_reading()) == (["given back", "whole"], True)
            assert connection.is_open

    asyncio.run(run())


def test_usual_chunks_wait_for_no_turn() -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            connection.data_received(HEAD + in_bits(bytes(65_000), 2048))
            connection.data_received(in_bits(bytes(65_000), 2048) + LAST_CHUNK)
            assert ([len(piece) for piece in reader.pieces], reader.turns) == ([65_000] * 2, [])

    asyncio.run(run())


def test_what_comes_all_the_same_is_read_behind_what_waits() -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            body = letters(1000)
            raw = in_bits(body) + LAST_CHUNK
            connection.data_received(HEAD + raw[:3000])
            connection.data_received(raw[3000:])
            while reader.turns:
                assert len(reader.turns) == 1
                assert reader.turn() <= SHARE
            assert (b"".join(reader.pieces), reader.ends) == (body, ["given back", "whole"])

    asyncio.run(run())


def test_a_client_that_does_not_read_is_not_read_for() -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            connection.data_received(HEAD + in_bits(letters(3 * SHARE)))
            connection.pause_reading()
            assert (reader.turn(), reader.turns) == (0, [])
            connection.resume_reading()
            connection.pause_reading()
            connection.resume_reading()
            assert (len(reader.turns), connection.transport.is_reading()) == (1, False)
            connection.pause_reading()
            assert reader.turn() == 0
            connection.resume_reading()
            assert [reader.turn() for _ in range(2)] == [SHARE, SHARE]
            assert (connection.transport.is_reading(), reader.turns) == (True, [])

    asyncio.run(run())


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "cut"])
@pytest.mark.parametrize("is_paused", [True, False], ids=["paused", "read"])
def test_the_end_of_the_connection_is_told_after_what_came_before(*, is_whole: bool, is_paused: bool) -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            body = letters(3 * SHARE)
            connection.data_received(HEAD + in_bits(body) + (LAST_CHUNK if is_whole else b""))
            if is_paused:
                connection.pause_reading()
            connection.transport.abort()
            await until(lambda: "gone" in reader.ends)
            connection.send(b"to nobody")
            connection.request_complete()
            assert reader.ends == ["gone"]
            if is_paused:
                assert reader.turn() == 0
                connection.resume_reading()
            while reader.turns:
                reader.turn()
            assert b"".join(reader.pieces) == body
            assert reader.ends == ["gone", "whole" if is_whole else "upstream_truncated"]
            assert connection.state is State.CLOSED

    asyncio.run(run())


def test_whoever_has_given_it_up_has_no_turn() -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            connection.data_received(HEAD + in_bits(letters(3 * SHARE)))
            connection.drop()
            assert reader.turn() == 0
            await until(lambda: reader.ends == ["gone"])
            assert reader.turns == []

    asyncio.run(run())


def test_what_is_no_chunk_ends_the_reply_when_its_turn_comes() -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            connection.data_received(HEAD + in_bits(letters(SHARE + 1)) + b"no chunk\r\n")
            assert (reader.turn(), reader.ends, reader.turns) == (0, ["upstream_truncated"], [])

    asyncio.run(run())


def test_a_fault_in_a_turn_ends_the_reply() -> None:
    async def run() -> None:
        async with asking() as (reader, connection):
            connection.data_received(HEAD + in_bits(letters(3 * SHARE)))
            reader.is_faulty = True
            with pytest.raises(ZeroDivisionError):
                reader.turn()
            assert (reader.ends, connection.state) == (["internal"], State.CLOSED)

    asyncio.run(run())


# with a gateway


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "cut"])
def test_a_reply_of_small_chunks_is_whole_where_it_was_whole(tmp_path: Path, *, is_whole: bool, is_tls: bool) -> None:
    """The end comes right behind it, over TLS in the same read."""
    body = letters(30_000)
    context: ssl.SSLContext | None = None
    if is_tls:
        context = server_tls_of(tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + in_bits(body) + (LAST_CHUNK if is_whole else b""))
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        url = f"http{'s' * is_tls}://localhost:{server.sockets[0].getsockname()[1]}"
        values: dict[str, Any] = {"upstream_tls_ca_file": str(tmp_path / "cert.pem")} if is_tls else {}
        async with server, Gateway(settings_for(tmp_path, {"auth": url}, **values)) as gateway:
            with mock.patch.object(gateway._batch, "later", wraps=gateway._batch.later) as later:
                reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, reply.body, reply.is_whole) == (200, body, is_whole)
            assert later.call_count >= 30_000 // SHARE // 5, "most of it waited for its turn"
            await until(lambda: not any(pool["active"] for pool in gateway.state()["pools"].values()))
            (row,) = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN))["items"]
            assert (row["reason"], row["bytes_out"]) == ("ok" if is_whole else "upstream_truncated", 30_000)

    asyncio.run(run())


def test_what_waits_for_its_turn_is_no_silence(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(HEAD + in_bits(letters(1000)) + LAST_CHUNK if seen.target.endswith("x") else OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            turns: list[Callable[[], None]] = []
            with mock.patch.object(gateway._batch, "later", turns.append):
                await client.send(GET)
                await until(lambda: bool(turns))
                gateway._context.flights.sweep(time.monotonic() + 31.0)
                while turns:
                    turns.pop()()
                reply = await client.reply()
            assert (reply.body, reply.is_whole) == (letters(1000), True)
            assert (await ask(gateway.port, "GET", "/api/v1/auth/y")).status == 200
            assert len(auth.raw) == 1, "the connection serves again"

    asyncio.run(run())
