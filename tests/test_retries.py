"""Another attempt after one that failed: what may be sent again, how often, and what is said when there is none."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.gateway.gateway import Gateway
from tests.fakes import OK, Seen, Wire, upstream
from tests.harness import ADMIN, ask, json_of, newest_rows, running, settings_for
from tests.world import until


@pytest.mark.parametrize(("status", "times"), [(100, 2), (103, 1)])
def test_nothing_is_sent_again_once_a_byte_of_the_answer_went_out(tmp_path: Path, status: int, times: int) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 %d X\r\n\r\n" % status)
        wire.close()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, upstream_retry_count=1) as gateway:
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 502
            assert len(auth.seen) == times

    asyncio.run(run())


@pytest.mark.parametrize(("method", "is_retried"), [("GET", True), ("PUT", True), ("POST", False), ("PATCH", False)])
def test_only_idempotent_methods_are_sent_again(tmp_path: Path, method: str, is_retried: bool) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        if seen.connection == 0:
            wire.close()
        else:
            await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            reply = await ask(gateway.port, method, "/api/v1/auth/x", body=b"abc")
            assert reply.status == (200 if is_retried else 502)
            assert [seen.body for seen in auth.seen] == [b"abc"] * (2 if is_retried else 1)

    asyncio.run(run())


def test_a_post_that_was_never_sent_is_tried_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, upstream_retry_backoff=0.2) as gateway:
            port = auth.port
            await auth.stop()
            asking = asyncio.create_task(ask(gateway.port, "POST", "/api/v1/auth/x", body=b"abc"))
            await asyncio.sleep(0.001)
            await auth.start(port)
            reply = await asking
            assert reply.status == 200
            assert [seen.body for seen in auth.seen] == [b"abc"]

    asyncio.run(run())


def test_retries_are_budgeted(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        wire.close()

    async def run() -> None:
        values: dict[str, Any] = {
            "upstream_retry_count": 10,
            "upstream_retry_budget_min": 1,
            "upstream_retry_budget_percent": 0,
            "upstream_retry_backoff": 0.05,
            "breaker_enabled": False,
        }
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            asking = [ask(gateway.port, "GET", "/api/v1/auth/x") for _ in range(20)]
            assert {reply.status for reply in await asyncio.gather(*asking)} == {502}
            assert len(auth.seen) < 20 + 20, "twenty requests with ten retries each would be 220"

    asyncio.run(run())


def test_a_circuit_that_opens_ends_the_attempts(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, breaker_failure_threshold=1) as gateway:

            async def trip_and_leave(seen: Seen, wire: Wire) -> None:
                breaker, now = gateway.breakers.of("auth"), time.monotonic()
                breaker.failed(breaker.take_permit(now), now, gateway.breakers.limits, "the test's")
                wire.close()

            auth.script = trip_and_leave
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, json_of(reply)["code"], len(auth.seen)) == (502, "upstream_closed", 1)
            (row,) = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN))["items"]
            said = "closed before the reply's head; no other attempt: the circuit has opened"
            assert (row["attempts"], row["error_message"]) == (1, said)
            assert gateway._context.budget.retrying == 0

    asyncio.run(run())


def test_retries_under_way_stay_counted_over_a_reload(tmp_path: Path) -> None:
    async def run() -> None:
        settings = settings_for(tmp_path, {"auth": "http://127.0.0.1:1"}, upstream_retry_backoff=0.2)
        async with Gateway(settings) as gateway:
            asking = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/x"))
            while not gateway._context.budget.retrying:
                await asyncio.sleep(0.001)
            await gateway.reload(settings)
            assert gateway._context.budget.retrying == 1
            assert (await asking).status == 502
            assert gateway._context.budget.retrying == 0

    asyncio.run(run())


def test_a_get_never_suffers_from_connections_that_died_idle(tmp_path: Path) -> None:
    count = 8
    all_there = asyncio.Barrier(count)

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.connection >= count:
            await wire.send(OK)
        elif seen.target.endswith("warm"):
            await all_there.wait()
            await wire.send(OK)
        else:
            wire.writer.transport.abort()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, upstream_retry_count=0) as gateway:
            await asyncio.gather(*(ask(gateway.port, "GET", "/api/v1/auth/warm") for _ in range(count)))
            replies = [await ask(gateway.port, "GET", "/api/v1/auth/x") for _ in range(count + 1)]
            assert [reply.status for reply in replies] == [200] * (count + 1)
            said = {(row["attempts"], row["error_message"]) for row in await newest_rows(gateway, 2 * count + 1)}
            assert said == {(1, None), (2, "attempt 1 failed: closed before the reply's head")}

    asyncio.run(run())


def test_an_attempt_that_failed_is_told_though_no_other_could_be_made(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("die"):
            await until(lambda: len(pools[0]._waiters) == 1)
            wire.close()
        else:
            await released.wait()
            await wire.send(OK)

    pools: list[Any] = []

    async def run() -> None:
        values = {"upstream_max_connections": 1, "upstream_queue_timeout": 0.1}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            pools.append(gateway._pools.at(auth.url)[1])
            dying = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/die"))
            await until(lambda: len(pools[0]._all) == 1)
            holding = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/hold"))
            assert (await dying).status == 502
            released.set()
            assert (await holding).status == 200
            row = (await newest_rows(gateway, 2))[1]
            said = "closed before the reply's head; no other attempt: no free connection in time"
            assert (row["reason"], row["attempts"], row["error_message"]) == ("upstream_closed", 1, said)

    asyncio.run(run())
