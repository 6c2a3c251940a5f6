"""A pool with an upstream behind it, and who asks it for connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from engadi_gateway.errors import Reason
from engadi_gateway.net.origin import origin_of
from engadi_gateway.net.pool import Pool, PoolLimits
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.net.upstream import UpstreamConnection
from tests.fakes import Upstream, upstream
from tests.world import until

LIMITS = PoolLimits(max_connections=2, max_idle=2, queue_size=2)


class Waits:
    """Somebody who asked for a connection; `got` is what came of it."""

    def __init__(self) -> None:
        self.got: UpstreamConnection | Reason | None = None

    def connected(self, connection: UpstreamConnection) -> None:
        assert self.got is None
        self.got = connection

    def connect_failed(self, reason: Reason, detail: str) -> None:
        assert self.got is None
        assert detail
        self.got = reason

    def not_connected(self) -> None:
        assert self.got is None
        self.got = Reason.OVERLOADED

    @property
    def connection(self) -> UpstreamConnection:
        assert isinstance(self.got, UpstreamConnection)
        return self.got


class Names(Resolver):
    """A resolver that knows these addresses, once it is allowed to answer."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(30.0)
        self.addresses = list(addresses)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def resolve(self, host: str, port: int) -> list[str]:
        await self.may_answer.wait()
        return self.addresses


@asynccontextmanager
async def a_pool(
    limits: PoolLimits = LIMITS, names: Resolver | None = None, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Pool, Upstream]]:
    async with upstream() as server:
        origin = origin_of(f"{'https' if tls else 'http'}://named.test:{port or server.port}")
        pool = Pool(origin, limits, names or Names("127.0.0.1"), tls)
        yield pool, server
        await pool.close()
        await until(lambda: not any(pool.counts().values()))


async def asked(pool: Pool) -> Waits:
    """Ask, and wait until there is an answer."""
    waiter = ask(pool)
    await until(lambda: waiter.got is not None)
    return waiter


def ask(pool: Pool) -> Waits:
    waiter = Waits()
    waiter.got = pool.take(waiter)
    return waiter


def told_in_pool(check: Callable[[Pool, Upstream], Awaitable[None]], **how: Any) -> None:
    async def run() -> None:
        async with a_pool(**how) as (pool, server):
            await check(pool, server)

    asyncio.run(run())
