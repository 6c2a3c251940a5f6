"""All pools: one a target, and none for longer than somebody uses it."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace

from engadi_gateway.errors import Reason
from engadi_gateway.net.origin import origin_of
from engadi_gateway.net.pool import Pool
from engadi_gateway.net.pools import Pools
from tests.fakes import Upstream, upstream
from tests.pooled import LIMITS, ask, asked, told_in_pool
from tests.world import until


def test_of_thousands_who_waited_too_long_some_are_turned_away_at_each_tick_the_first_first() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        waiters = [ask(pool) for _ in range(1000)]
        for turn in range(1, 6):
            pools = Pools(LIMITS, ssl.create_default_context)
            pools._pools = {("http", "a", 1): pool, ("http", "b", 1): pool}
            pools.sweep(time.monotonic() + 60.0)
            told = [waiter.got is Reason.OVERLOADED for waiter in waiters]
            assert told == [True] * 200 * turn + [False] * (1000 - 200 * turn)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_size=1000))


def test_there_is_a_pool_a_target_and_tls_only_for_those_that_ask_for_it() -> None:
    made: list[ssl.SSLContext] = []

    def make() -> ssl.SSLContext:
        made.append(ssl.create_default_context())
        return made[-1]

    async def run() -> None:
        pools = Pools(LIMITS, make)
        plain = pools.of(origin_of("http://127.0.0.1:1/a"))
        assert pools.of(origin_of("http://127.0.0.1:1/b")) is plain
        assert pools.of(origin_of("http://127.0.0.1:2")) is not plain
        assert not made
        pools.of(origin_of("https://127.0.0.1:1"))
        pools.of(origin_of("https://127.0.0.1:2"))
        assert len(made) == 1
        assert sorted(pools.counts()) == [
            "http://127.0.0.1:1", "http://127.0.0.1:2", "https://127.0.0.1:1", "https://127.0.0.1:2",
        ]  # fmt: skip
        await pools.close()

    asyncio.run(run())


def test_pools_that_lead_nowhere_go_with_their_last_use_and_come_back_with_their_target() -> None:
    async def run() -> None:
        async with upstream() as server:
            pools = Pools(LIMITS, ssl.create_default_context)
            idle, name = f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{server.port}"
            for number in range(1, 100):
                pools.at(f"http://127.0.0.1:{number}/base")
            _, pool = pools.at(idle)
            pool.give_back((await asked(pool)).connection)
            pools.keep([idle, "http://127.0.0.1:1/base", "http://never.asked"])
            assert sorted(pools.counts()) == sorted([name, "http://127.0.0.1:1"])
            assert sorted(pools.urls()) == sorted([idle, "http://127.0.0.1:1/base"])
            pools.keep([])
            assert (list(pools.counts()), pools.urls()) == ([name], {}), "its connection is still there"
            assert pools.at(idle)[1] is pool
            pools.keep([])
            del pool
            assert pools.counts()[name]["idle"] == 1
            pools.sweep(time.monotonic() + LIMITS.idle_timeout_s + 1)
            await until(lambda: not pools.counts())
            await pools.close()

    asyncio.run(run())


def test_a_request_whose_pool_leads_nowhere_any_more_is_still_served_and_cleaned_up_after() -> None:
    """It waited to try again, say, and nothing else was there."""

    async def run() -> None:
        async with upstream() as server:
            pools = Pools(LIMITS, ssl.create_default_context)
            _, pool = pools.at(f"http://127.0.0.1:{server.port}")
            pools.keep([])
            connection = (await asked(pool)).connection
            pool.give_back(connection)
            await pools.close()
            await until(lambda: not any(pool.counts().values()))
            assert not connection.is_open

    asyncio.run(run())
