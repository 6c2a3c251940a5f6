"""What can be seen of an option from outside: each probe looks at a running gateway and says one thing.

A probe can be asked again of the same gateway, after a reload. Where an option is a time, the sweeps are told a later
hour instead of waiting for it. Here: what the stages and the stores do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from typing import Any

from engadi_gateway.pipeline.identity import make_token
from engadi_gateway.store.questions import LogFilter
from tests.harness import SECRET, token
from tests.logrows import a_row
from tests.world import (
    APP,
    AUTH,
    BEARER,
    CONTENT,
    LATER_S,
    LONG_SECRET,
    SOON_S,
    Probe,
    World,
    get,
)

_DAY_MS = 86_400_000


# tokens


def a_token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    return make_token(secret, algorithm, {"sub": "alice", "role": "user", "exp": time.time() + 3600, **claims})


def headers_seen(*names: str, path: str = CONTENT + "/x") -> Probe:
    """Which of these fields the upstream gets, and from whom: all are sent by the client too, who is called mallory."""

    async def probe(world: World) -> dict[str, str]:
        own = {name: "mallory" for name in names if name != "authorization"}
        assert (await get(world, path, BEARER, headers=own)).status == 200
        seen = (world.auth if path.startswith(AUTH) else world.content).seen[-1]
        return {name: seen.one(name) for name in names if seen.all(name)}

    return probe


async def remembered_tokens(world: World) -> int:
    for user in ("a", "b"):
        assert (await get(world, CONTENT + "/x", token(user))).status == 200
    return len(world.gateway._state.tokens)


async def who_is_asked(world: World) -> list[str]:
    """Which service judges a token that is not ours."""
    before = [len(world.auth.seen), len(world.content.seen)]
    reply = await get(world, CONTENT + "/x", a_token(LONG_SECRET, "HS384"))
    asked = [
        name
        for name, server, seen in zip(("auth", "content"), (world.auth, world.content), before, strict=True)
        if any(request.target.endswith("/validate") for request in server.seen[seen:])
    ]
    return [str(reply.status), *asked]


# limits; then the breaker; then health


def reply_field(name: str, path: str = AUTH + "/x", bearer: str | None = None, **options: Any) -> Probe:
    async def probe(world: World) -> list[str]:
        return (await get(world, path, bearer, **options)).all(name)

    return probe


_hosts = itertools.count(1)


async def are_buckets_few(world: World) -> bool:
    for _ in range(60):  # a bucket each for who asks and where from
        await get(world, AUTH + "/x", headers={"X-Forwarded-For": f"198.51.100.{next(_hosts) % 256}"})
    return len(world.gateway._state.buckets) <= 100


async def neighbours_of_a_network(world: World) -> list[int]:
    """What two of them get; and what the seats of connections are counted by."""
    addresses = ("2001:db8:0:1::1", "2001:db8:0:2::1")
    statuses = [(await get(world, AUTH + "/x", headers={"X-Forwarded-For": ip})).status for ip in addresses]
    return [*statuses, world.gateway._context.seats.ipv6_prefix]


def _reset(world: World) -> None:
    world.gateway.breakers.reset("auth", time.monotonic())


async def failures_until_open(world: World) -> int:
    _reset(world)
    before = len(world.auth.seen)
    for _ in range(4):
        await get(world, AUTH + "/503")
    return len(world.auth.seen) - before


async def state_after_a_probe(world: World) -> str:
    _reset(world)
    await get(world, AUTH + "/503")
    world.gateway.breakers.note_healthy("auth", time.monotonic())
    await get(world, AUTH + "/x")
    return str(world.gateway.breakers.status("auth", time.monotonic())["state"])


async def told_to_wait(world: World) -> int:
    _reset(world)
    await get(world, AUTH + "/503")
    return int((await get(world, AUTH + "/x")).one("retry-after"))


async def health_path(world: World) -> str:
    await world.gateway.checker.check_now("auth")
    return world.auth.seen[-1].target


async def health(world: World) -> str:
    seen = await world.gateway.checker.check_now("auth")
    assert seen is not None
    return str(seen.status)


async def health_of_the_slow(world: World) -> str:
    world.released.clear()
    asking = asyncio.create_task(world.gateway.checker.check_now("auth"))
    await asyncio.wait([asking], timeout=SOON_S)
    world.released.set()
    seen = await asking
    assert seen is not None
    return str(seen.status)


async def health_after_a_fall(world: World) -> str:
    world.is_sick = False
    await health(world)
    world.is_sick = True
    return await health(world)


async def health_after_a_rise(world: World) -> str:
    world.is_sick = True
    await health(world)
    world.is_sick = False
    return await health(world)


# CORS


def preflight(field_name: str = "", asks: str = "PUT", headers: str = "", origin: str = APP) -> Probe:
    """A field of a preflight's answer, or its status."""

    async def probe(world: World) -> Any:
        sent = {"Origin": origin, "Access-Control-Request-Method": asks}
        if headers:
            sent["Access-Control-Request-Headers"] = headers
        reply = await get(world, CONTENT + "/x", method="OPTIONS", headers=sent)
        return reply.all(field_name) if field_name else reply.status

    return probe


# the log


async def rows_written(world: World) -> int:
    before = world.gateway.journal.stats().rows_written
    await get(world, AUTH + "/x")
    world.gateway._recorder.flush()
    await world.gateway.journal.written(20)
    return world.gateway.journal.stats().rows_written - before


async def logged_address(world: World) -> str:
    await get(world, AUTH + "/x")
    await world.gateway._console.flushed()
    page = await world.gateway.journal.logs(LogFilter(path=AUTH + "/x", limit=1))
    return str(page.items[0]["client_ip"])


async def is_an_old_row_kept(world: World) -> bool:
    now_ms, journal = int(time.time() * 1000), world.gateway.journal
    journal.put([a_row(request_id="old", created_at=now_ms - 5 * _DAY_MS)])
    await journal.written(20)
    await journal.prune(now_ms)
    return bool((await journal.logs(LogFilter(request_id="old"))).items)


async def waits_long_for_a_batch(world: World) -> bool:
    world.gateway._recorder.flush()
    await get(world, AUTH + "/x")
    timer = world.gateway._recorder._timer
    return timer is not None and timer.when() > asyncio.get_running_loop().time() + LATER_S / 2


async def rows_that_wait(world: World) -> int:
    world.gateway._recorder.flush()
    for _ in range(2):
        await get(world, AUTH + "/x")
    recorder = world.gateway._recorder
    return len(recorder._ended) + len(recorder._rows)


@contextlib.contextmanager
def _busy_writer(world: World) -> Any:
    release = threading.Event()
    world.gateway.journal._database.submit(lambda connection: release.wait(20))
    try:
        yield
    finally:
        release.set()


async def rows_shed(world: World) -> int:
    with _busy_writer(world):
        shed = world.gateway.journal.put([a_row() for _ in range(5)])
    await world.gateway.journal.written(20)
    return shed


async def is_stalled_when_full(world: World) -> bool:
    with _busy_writer(world):
        world.gateway.journal.put([a_row()])
        is_stalled = world.gateway._recorder.is_stalled
    await world.gateway.journal.written(20)
    return is_stalled
