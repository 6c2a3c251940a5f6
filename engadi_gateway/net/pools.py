"""All pools: one per target, made as targets come up, and kept as long as somebody uses them."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Collection, Mapping
from weakref import WeakValueDictionary

from engadi_gateway.net.origin import Origin, origin_of, target_name
from engadi_gateway.net.pool import TOLD_AT_ONCE, Pool, PoolLimits
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.net.sockets import bound_tls

#: URLs that were configured at one time or another.
_MEMO_SIZE = 4096


class Pools:
    """All pools, made as targets come up. One that leads nowhere any more lasts as long as somebody uses it."""

    def __init__(self, limits: PoolLimits, make_tls: Callable[[], ssl.SSLContext]) -> None:
        self._limits = limits
        self._make_tls = make_tls  # made when the first https target comes up: it costs 20 ms
        self._tls: ssl.SSLContext | None = None
        self._resolver = Resolver(limits.dns_cache_s)
        self._pools: dict[tuple[str, str, int], Pool] = {}
        #: Their connections, dials and requests keep them: so long they are swept, and taken back if their target is.
        self._retired: WeakValueDictionary[tuple[str, str, int], Pool] = WeakValueDictionary()
        self._known: dict[str, tuple[Origin, Pool]] = {}

    def at(self, url: str) -> tuple[Origin, Pool]:
        """What a configured URL says, and the pool of its target: one look-up a request."""
        known = self._known.get(url)
        if known is None:
            if len(self._known) >= _MEMO_SIZE:
                self._known.clear()
            origin = origin_of(url)
            known = self._known[url] = origin, self.of(origin)
        return known

    def of(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin.key)
        if pool is None:
            made = self._retired.pop(origin.key, None)
            pool = made or Pool(origin, self._limits, self._resolver, self._context(origin.scheme))
            self._pools[origin.key] = pool
        return pool

    def keep(self, urls: Collection[str]) -> None:
        """Those of these URLs; the others go with their last connection or request."""
        self._known = {url: known for url, known in self._known.items() if url in urls}
        wanted = {origin.key for origin, _ in self._known.values()}
        for key in self._pools.keys() - wanted:
            self._retired[key] = self._pools.pop(key)
        self._resolver.forget(time.monotonic())

    def _all(self) -> list[tuple[tuple[str, str, int], Pool]]:
        return [*self._pools.items(), *self._retired.items()]

    def take(self, limits: PoolLimits) -> None:
        """Other limits, for the pools that are there too; authorities are read again."""
        self._limits = limits
        self._resolver.cache_s = limits.dns_cache_s
        self._tls = None
        for (scheme, _, _), pool in self._all():
            pool.take_limits(limits, self._context(scheme))

    def _context(self, scheme: str) -> ssl.SSLContext | None:
        if scheme != "https":
            return None
        if self._tls is None:
            bound_tls()
            self._tls = self._make_tls()
        return self._tls

    def counts(self) -> dict[str, dict[str, int]]:
        """Per `scheme://host:port`."""
        return {target_name(key): pool.counts() for key, pool in self._all()}

    def urls(self) -> Mapping[str, str]:
        """The URLs that were asked for, with their targets' names."""
        return {url: target_name(origin.key) for url, (origin, _) in self._known.items()}

    def sweep(self, now: float) -> None:
        left = TOLD_AT_ONCE
        for _, pool in self._all():
            left -= pool.sweep(now, left)

    async def close(self) -> None:
        for _, pool in self._all():
            await pool.close()
        self._resolver.close()
