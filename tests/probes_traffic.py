"""What can be seen of an option from outside: each probe looks at a running gateway and says one thing.

A probe can be asked again of the same gateway, after a reload. Where an option is a time, the sweeps are told a later
hour instead of waiting for it. Here: connections on both sides.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from typing import Any
from unittest import mock

from tests.fakes import RawClient, Reply, raw_client
from tests.harness import ask_on, json_of
from tests.world import (
    AUTH,
    BEARER,
    LATER_S,
    NAMED,
    SILENT,
    SOON_S,
    Probe,
    World,
    get,
    until,
)

# the client's side


def status_of(path: str = AUTH + "/x", bearer: str | None = None, method: str = "GET", **options: Any) -> Probe:
    """The status that one request gets; `options` as `ask` has them."""

    async def probe(world: World) -> int:
        return (await get(world, path, bearer, method, **options)).status

    return probe


def sizes_taken(path: str, bearer: str | None, *sizes: int) -> Probe:
    """Which of these body sizes are not too large."""

    async def probe(world: World) -> list[int]:
        replies = [await get(world, path, bearer, "POST", body=b"x" * size) for size in sizes]
        return [size for size, reply in zip(sizes, replies, strict=True) if reply.status != 413]

    return probe


async def health_name(world: World) -> str:
    return str(json_of(await get(world, "/health"))["service"])


async def backlog(world: World) -> int:
    """What the kernel knows of the listening socket (tcp_info: the largest number that may wait)."""
    info = world.gateway._front.doors[0].socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("8B6I", info)[8 + 5])


async def whom_the_upstream_sees(world: World) -> str:
    await get(world, AUTH + "/x", headers={"X-Forwarded-For": "198.51.100.7, 203.0.113.9"})
    return world.auth.seen[-1].one("x-real-ip")


async def late_head(world: World) -> int:
    async with raw_client(world.port) as client:
        await client.send(b"GET /api/v1/auth/x HTTP/1.1\r\nHo")
        await until(lambda: len(world.gateway._context.heads))
        world.gateway._context.heads.sweep(time.monotonic() + LATER_S)
        await client.send(b"st: h\r\n\r\n")
        return (await client.reply()).status


async def late_body(world: World) -> int:
    async with raw_client(world.port) as client:
        await client.send(b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na")
        await until(lambda: len(world.gateway._context.flights))
        world.gateway._context.flights.sweep(time.monotonic() + LATER_S)
        await client.send(b"b")
        return (await client.reply()).status


async def late_next_request(world: World) -> bool:
    """Whether an idle connection is still there."""
    async with raw_client(world.port) as client:
        await ask_on(client, "GET", AUTH + "/x")
        await until(lambda: len(world.gateway._context.idle))
        world.gateway._context.idle.sweep(time.monotonic() + LATER_S)
        return await is_served(client)


async def is_served(client: RawClient) -> bool:
    try:
        return (await ask_on(client, "GET", AUTH + "/x")).status == 200
    except (EOFError, ConnectionError):
        return False


async def late_reader(world: World) -> bool:
    """Whether a client that did not read gets the whole reply in the end."""
    async with raw_client(world.port) as client:
        await client.send(b"GET /api/v1/auth/big HTTP/1.1\r\nHost: h\r\n\r\n")
        context = world.gateway._context
        await until(lambda: any(getattr(flight, "_is_client_paused", False) for flight in context.flights._items))
        context.flights.sweep(time.monotonic() + LATER_S)
        return (await client.reply()).is_whole


async def requests_of_a_connection(world: World) -> int:
    async with raw_client(world.port) as client:
        for number in range(1, 6):
            reply = await ask_on(client, "GET", AUTH + "/x")
            if "close" in reply.all("connection"):
                return number
    return 0


async def first_of_two_connections(world: World) -> bool:
    async with raw_client(world.port) as first:
        assert await is_served(first)
        async with raw_client(world.port) as second:
            assert await is_served(second)
            return await is_served(first)


async def second_of_two_connections(world: World) -> bool:
    async with raw_client(world.port) as first, raw_client(world.port) as second:
        assert await is_served(first)
        return await is_served(second)


# the upstream's side


async def late_upstream(world: World) -> int:
    world.released.clear()
    asking = asyncio.create_task(get(world, AUTH + "/hold"))
    before = len(world.auth.seen)
    await until(lambda: len(world.auth.seen) > before)
    world.gateway._context.flights.sweep(time.monotonic() + LATER_S)
    world.released.set()
    return (await asking).status


async def dial_ends_soon(world: World) -> bool:
    asking = asyncio.create_task(get(world, SILENT + "/x", BEARER))
    await asyncio.wait([asking], timeout=SOON_S)
    has_ended = asking.done()
    world.gateway._context.flights.sweep(time.monotonic() + 10 * LATER_S)
    assert (await asking).status == 504
    return has_ended


def times_sent(path: str = "/close", method: str = "GET", body: bytes | None = None) -> Probe:
    async def probe(world: World) -> int:
        before = len(world.auth.seen)
        await get(world, AUTH + path, method=method, body=body)
        return len(world.auth.seen) - before

    return probe


async def backoffs(world: World) -> list[float]:
    """The longest waits between the attempts of one request."""
    drawn: list[float] = []

    def draw(low: float, high: float) -> float:
        if low == 0:
            drawn.append(high)
        return 0.0

    with mock.patch.object(random, "uniform", draw):
        await get(world, AUTH + "/close")
    return drawn


async def _held(world: World, count: int) -> tuple[list[asyncio.Task[Reply]], dict[str, int]]:
    """So many requests at once that get no answer yet, and how the pool stands."""
    world.released.clear()
    asking = [asyncio.create_task(get(world, AUTH + "/hold")) for _ in range(count)]

    def counts() -> dict[str, int]:
        return next(iter(world.gateway.state()["pools"].values()), {"active": 0, "waiting": 0, "dialling": 0})

    def is_settled() -> bool:
        now = counts()
        return not now["dialling"] and now["active"] + now["waiting"] + sum(map(asyncio.Task.done, asking)) == count

    await until(is_settled)
    return asking, counts()


async def connections_at_once(world: World) -> int:
    asking, counts = await _held(world, 2)
    world.released.set()
    await asyncio.gather(*asking)
    return counts["active"]


async def idle_upstream(world: World) -> int:
    return sum(counts["idle"] for counts in world.gateway.state()["pools"].values())


async def kept_idle(world: World) -> int:
    asking, _ = await _held(world, 3)
    world.released.set()
    await asyncio.gather(*asking)
    return await idle_upstream(world)


async def idle_later(world: World) -> int:
    await get(world, AUTH + "/x")
    world.gateway._pools.sweep(time.monotonic() + LATER_S)
    return await idle_upstream(world)


async def turned_away(world: World) -> int:
    asking, _ = await _held(world, 3)
    world.released.set()
    return sum(reply.status == 503 for reply in await asyncio.gather(*asking))


async def turned_away_later(world: World) -> int:
    asking, _ = await _held(world, 2)
    world.gateway._pools.sweep(time.monotonic() + LATER_S)
    world.released.set()
    return sum(reply.status == 503 for reply in await asyncio.gather(*asking))


async def late_splice(world: World) -> bytes:
    """What an echo still answers."""
    async with raw_client(world.port) as client:
        await client.send(b"GET /api/v1/auth/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
        world.gateway._context.flights.sweep(time.monotonic() + LATER_S)
        try:
            await client.send(b"ping")
            return await client.reader.readexactly(4)
        except (EOFError, ConnectionError):
            return b""


async def upgraded(world: World) -> list[int]:
    """Two upgrades, then a request, for which there is a connection in any case."""
    statuses = []
    async with raw_client(world.port) as one, raw_client(world.port) as other:
        for client in (one, other):
            await client.send(
                b"GET /api/v1/auth/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
            )
            statuses.append(int((await client.reader.readuntil(b"\r\n\r\n"))[9:12]))
        statuses.append((await get(world, AUTH + "/x")).status)
    return statuses


async def look_ups(world: World) -> int:
    """How often the resolver is asked for two connections to a named upstream."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        if host == "localhost":
            asked.append(host)
        return real(host, *args, **options)

    with mock.patch.object(socket, "getaddrinfo", look_up):
        for _ in range(2):
            assert (await get(world, NAMED + "/last", BEARER)).status == 200
    return len(asked)


async def databases(world: World) -> list[str]:
    return sorted(path.name for path in world.folder.glob("*.db"))
