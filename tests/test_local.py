"""What the gateway answers itself: bodies are gathered and bounded, silence ends them, a handler may take its time."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.net.local import LocalCall
from engadi_gateway.store.questions import LogFilter
from tests.fakes import RawClient, raw_client
from tests.harness import ADMIN, ask, ask_on, json_of
from tests.world import World, a_world, until

BASE = "/api/v1/gateway"
ROUTE = b'{"path_pattern": "/x", "target_service": "auth", "is_public": true}'


def _head(framing: str, method: str = "POST") -> bytes:
    return (
        f"{method} {BASE}/routes HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n"
    ).encode()


def _flight(world: World) -> LocalCall:
    (flight,) = world.gateway._context.flights._items
    assert isinstance(flight, LocalCall)
    return flight


async def _gathered(world: World, size: int) -> None:
    """Wait until so much of a body has come in."""

    def is_in() -> bool:
        flights = list(world.gateway._context.flights._items)
        return bool(flights) and _flight(world).exchange.bytes_in == size

    await until(is_in)


async def _routes(world: World) -> int:
    return int(json_of(await ask(world.port, "GET", f"{BASE}/routes", bearer=ADMIN))["total"])


def _told(folder: Path, check: Any, **values: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), a_world(folder, **values) as world:
            async with raw_client(world.port) as client:
                await check(world, client)
            await until(lambda: not len(world.gateway._context.flights))

    asyncio.run(run())


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_in_pieces_is_gathered(tmp_path: Path, is_chunked: bool) -> None:
    async def check(world: World, client: RawClient) -> None:
        await client.send(_head("Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(ROUTE)}"))
        for start in range(0, len(ROUTE), 25):
            piece = ROUTE[start : start + 25]
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            if start + 25 < len(ROUTE):
                await _gathered(world, start + 25)
        if is_chunked:
            await client.send(b"0\r\n\r\n")
        made = await client.reply("POST")
        assert (made.status, json_of(made)["path_pattern"]) == (201, "/x")
        await world.gateway._console.flushed()
        (row,) = (await world.gateway.journal.logs(LogFilter(method="POST"))).items
        assert (row["bytes_in"], row["bytes_out"]) == (len(ROUTE), len(made.body))
        assert (await ask_on(client, "GET", "/x")).status == 200, "and the connection goes on"

    _told(tmp_path, check)


def test_a_body_that_grows_too_long_is_refused_before_its_end(tmp_path: Path) -> None:
    async def check(world: World, client: RawClient) -> None:
        before = await _routes(world)
        await client.send(_head("Transfer-Encoding: chunked") + b"400\r\n" + b" " * 0x400 + b"\r\n")
        await _gathered(world, 0x400)
        await client.send(b"1\r\n \r\n")
        refused = await client.reply("POST")
        assert (refused.status, refused.one("connection")) == (413, "close")
        assert await _routes(world) == before

    _told(tmp_path, check, admin_max_body_bytes=0x400)


def test_a_body_that_stops_coming_is_a_408_and_each_piece_buys_time(tmp_path: Path) -> None:
    async def check(world: World, client: RawClient) -> None:
        await client.send(_head("Content-Length: 9") + b"a")
        await _gathered(world, 1)
        first = _flight(world).deadline
        await client.send(b"b")
        await until(lambda: _flight(world).deadline > first)
        world.gateway._context.flights.sweep(first)
        assert len(world.gateway._context.flights) == 1
        world.gateway._context.flights.sweep(time.monotonic() + 31)
        refused = await client.reply("POST")
        assert (refused.status, json_of(refused)["code"]) == (408, "client_timeout")

    _told(tmp_path, check, server_body_timeout=30.0)


def test_a_handler_is_not_hurried(tmp_path: Path) -> None:
    async def check(world: World, client: RawClient) -> None:
        async with world.gateway.configuration.writing():
            await client.send(_head(f"Content-Length: {len(ROUTE)}") + ROUTE)
            await until(lambda: any(task.get_name() == "local" for task in world.gateway._context.tasks))
            world.gateway._context.flights.sweep(time.monotonic() + 1e6)
        assert (await client.reply("POST")).status == 201

    _told(tmp_path, check)


def test_a_handlers_fault_is_a_500_that_says_nothing_and_a_line_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(world: World, client: RawClient) -> None:
        async def breaks(*_: object) -> None:
            raise ZeroDivisionError("the secret of the house")

        monkeypatch.setattr(world.gateway.api, "serve", breaks)
        with caplog.at_level(logging.ERROR, "engadi"):
            reply = await ask_on(client, "GET", f"{BASE}/routes", bearer=ADMIN)
        assert (reply.status, json_of(reply)["code"]) == (500, "internal")
        assert b"secret" not in reply.body
        assert f"local {BASE}/routes" in caplog.text
        assert "the secret of the house" in caplog.text

    _told(tmp_path, check)


def test_head_gets_the_head_alone(tmp_path: Path) -> None:
    async def check(world: World, client: RawClient) -> None:
        whole = await ask_on(client, "GET", "/livez")
        head = await ask_on(client, "HEAD", "/livez")
        assert (head.status, head.body, head.one("content-length")) == (200, b"", str(len(whole.body)))
        assert (await ask_on(client, "GET", "/livez")).body == whole.body

    _told(tmp_path, check)
