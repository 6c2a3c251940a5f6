"""Who gets which connection, what to open, what to close: one pool per target, decided without waiting.

LIFO reuse, a bound on connections, a bound on those who wait and on how long. Dialling is the only task there is; a
request that finds an idle connection costs none.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from engadi_gateway.errors import Reason
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.net.sockets import bound_tls
from engadi_gateway.net.upstream import UpstreamConnection


@dataclass(frozen=True, slots=True)
class Origin:
    """Everything that makes two connections the same, and what a request to it needs."""

    scheme: str
    host: str
    port: int
    authority: bytes
    base_path: bytes
    key: tuple[str, str, int]


def target_name(key: tuple[str, str, int]) -> str:
    """How a target is written, of its scheme, host and port."""
    return "{}://{}:{}".format(*key)


#: A connection that was idle for less is as good as one in use.
_LONG_IDLE_S = 5.0
#: The part of the connections for requests whose bodies are not complete, and may never be.
_UPLOADS = 0.8
#: Who has waited too long is told in 50 us; a thousand would hold up everybody: the others are told at the next tick.
_TOLD_AT_ONCE = 200
#: URLs that were configured at one time or another.
_MEMO_SIZE = 4096


def origin_of(url: str) -> Origin:
    """A configured base URL, validated when it was configured."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    host = parts.hostname or ""
    default = 443 if scheme == "https" else 80
    port = parts.port or default
    name = f"[{host}]" if ":" in host else host
    authority = name if port == default else f"{name}:{port}"
    path = parts.path.rstrip("/").encode("ascii")
    return Origin(scheme, host, port, authority.encode("ascii"), path, (scheme, host, port))


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Numbers per target; times in seconds."""

    max_connections: int = 100
    max_idle: int = 100
    max_upgraded: int = 1000
    idle_timeout_s: float = 55.0
    queue_size: int = 1000
    queue_timeout_s: float = 5.0
    connect_timeout_s: float = 3.0
    max_head_bytes: int = 64 << 10
    dns_cache_s: float = 30.0


class Waiter(Protocol):
    """Who asked for a connection and had to wait."""

    def connected(self, connection: UpstreamConnection) -> None: ...
    def connect_failed(self, reason: Reason, detail: str) -> None: ...
    def not_connected(self) -> None:
        """Waited too long for others to finish; nothing was tried."""


class Pool:
    """The connections to one target."""

    def __init__(self, origin: Origin, limits: PoolLimits, resolver: Resolver, tls: ssl.SSLContext | None) -> None:
        self._origin = origin
        self._limits = limits
        self._resolver = resolver
        self._tls = tls
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._upgraded: set[UpstreamConnection] = set()  # and these beside them
        self._dials: set[asyncio.Task[None]] = set()
        self._waiters: OrderedDict[Waiter, float] = OrderedDict()  # and since when; whoever leaves is found at once
        self._uploads: set[Waiter] = set()  # that are not complete, with a connection or among those who wait for one
        self._late: OrderedDict[Waiter, float] = OrderedDict()  # uploads beyond their share, which wait before that

    def __repr__(self) -> str:
        return f"<Pool {self._origin.authority.decode()} {self.counts()}>"

    def counts(self) -> dict[str, int]:
        """Connections by state, dials under way, and who waits."""
        return {
            "active": len(self._all) - len(self._idle),
            "idle": len(self._idle),
            "dialling": len(self._dials),
            "waiting": len(self._waiters) + len(self._late),
            "upgraded": len(self._upgraded),
        }

    def take(
        self, waiter: Waiter, *, is_new: bool = False, is_upload: bool = False
    ) -> UpstreamConnection | Reason | None:
        """1. the idle connection used last; 2. a new one is dialled, or 3. the waiter queues (None); 4. a refusal.

        is_new: not one that was idle; the oldest of these makes room if need be.
        is_upload: it is not complete, and tells when it is, or asks no more (`upload_ends`).
        """
        if is_upload and waiter not in self._uploads:
            if not self._has_room_for_uploads:
                return self._queue(waiter)
            self._uploads.add(waiter)
        if is_new and self._idle and len(self._all) >= self._limits.max_connections:
            self._idle.pop(0).drop()
        while self._idle and not is_new:
            connection = self._idle.pop()
            if connection.is_fresh():
                return connection
            connection.drop()
        if len(self._all) + len(self._dials) < self._limits.max_connections:
            self._waiters[waiter] = time.monotonic()
            self._dial()
            return None
        if len(self._waiters) - len(self._dials) >= self._limits.queue_size:
            return Reason.OVERLOADED
        self._waiters[waiter] = time.monotonic()
        return None

    def _queue(self, upload: Waiter) -> Reason | None:
        if len(self._late) >= self._limits.queue_size:
            return Reason.OVERLOADED
        self._late[upload] = time.monotonic()
        return None

    @property
    def _has_room_for_uploads(self) -> bool:
        """Some connections are left to who can be answered; but one is the uploads' in any case."""
        return not self._uploads or len(self._uploads) + 1 <= self._limits.max_connections * _UPLOADS

    @property
    def _has_place(self) -> bool:
        """For one more, if only among those who wait."""
        is_full = not self._idle and len(self._all) + len(self._dials) >= self._limits.max_connections
        return not is_full or len(self._waiters) - len(self._dials) < self._limits.queue_size

    def upload_ends(self, upload: Waiter) -> bool:
        """It is complete, or asks no more, and so the next one may; whether it had to wait for others to be that."""
        was_late = self._late.pop(upload, None) is not None
        self._uploads.discard(upload)
        self._let_uploads_in()
        return was_late

    def _let_uploads_in(self) -> None:
        """Not where they would be turned away: by its end each lets in the next, a thousand deep."""
        while self._late and self._has_room_for_uploads and self._has_place:
            upload, _ = self._late.popitem(last=False)
            taken = self.take(upload, is_upload=True)
            if type(taken) is UpstreamConnection:
                upload.connected(taken)
            elif taken is not None:
                upload.not_connected()

    def only_waits(self, waiter: Waiter) -> bool:
        """Whether nothing is being dialled for this one: others have to finish first."""
        return all(one is not waiter for one in islice(self._waiters, len(self._dials)))

    @property
    def is_full_of_upgraded(self) -> bool:
        """Whether as many connections are tunnels as may be (`[upstream] max_upgraded`)."""
        return len(self._upgraded) >= self._limits.max_upgraded

    @property
    def is_half_taken(self) -> bool:
        """Whether those who may take their time with a connection must leave the rest to others."""
        return (len(self._all) - len(self._idle) + len(self._dials)) * 2 >= self._limits.max_connections

    def leave(self, waiter: Waiter) -> None:
        """The waiter waits no more (its client left, its time is up)."""
        self._waiters.pop(waiter, None)

    def distrust(self, dead: UpstreamConnection, used_at: float) -> None:
        """One that had been idle for long was dead when it was used: so are those that were idle even longer.

        Their host has restarted, say. One that was in use a moment ago died of what it was asked.
        """
        if used_at - dead.idle_since > _LONG_IDLE_S:
            while self._idle and self._idle[0].idle_since <= dead.idle_since:
                self._idle.pop(0).drop()

    def give_back(self, connection: UpstreamConnection) -> None:
        """To who waits, or to the idle; what an upstream sent behind its reply must be nobody's answer."""
        if connection.tls is not self._tls:
            connection.drop()  # opened under other authorities than those of now
        elif not self._waiters:
            self._keep(connection)
        elif connection.served == 0 or connection.is_fresh():
            connection.idle_since = time.monotonic()
            self._waiters.popitem(last=False)[0].connected(connection)
        else:
            connection.drop()  # once it is gone, another is dialled for who waits

    def _keep(self, connection: UpstreamConnection) -> None:
        if len(self._idle) < self._limits.max_idle:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.drop()

    def let_go(self, connection: UpstreamConnection) -> None:
        """An upgraded one takes no place of those that requests share."""
        self._all.discard(connection)
        self._upgraded.add(connection)
        self._dial_for_waiters()

    def forget(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        self._upgraded.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._dial_for_waiters()

    def sweep(self, now: float, most: int = _TOLD_AT_ONCE) -> int:
        """Close what was idle too long; turn away who waited too long, so many at once. Returns how many these were."""
        limit = now - self._limits.idle_timeout_s
        while self._idle and self._idle[0].idle_since < limit:
            self._idle.pop(0).drop()
        limit = now - self._limits.queue_timeout_s
        late = self._turn_away(self._waiters, limit, most, len(self._dials))
        late += self._turn_away(self._late, limit, most - late)
        self._let_uploads_in()
        return late

    @staticmethod
    def _turn_away(queue: OrderedDict[Waiter, float], limit: float, most: int, kept: int = 0) -> int:
        """Those who are there since before the limit, and are not the last `kept`."""
        count = 0
        while count < most and len(queue) > kept and next(iter(queue.values())) < limit:
            queue.popitem(last=False)[0].not_connected()
            count += 1
        return count

    def take_limits(self, limits: PoolLimits, tls: ssl.SSLContext | None) -> None:
        """Other limits from now on; what was opened under other authorities is not used again."""
        self._limits, self._tls = limits, tls
        while len(self._idle) > (0 if tls is not None else limits.max_idle):
            self._idle.pop(0).drop()
        self._dial_for_waiters()
        self._let_uploads_in()

    async def close(self) -> None:
        dials = list(self._dials)
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        for connection in [*self._all, *self._upgraded]:
            connection.drop()
        self._idle.clear()

    def _dial_for_waiters(self) -> None:
        while (
            len(self._waiters) > len(self._dials) and len(self._all) + len(self._dials) < self._limits.max_connections
        ):
            self._dial()

    def _dial(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._dials.add(task)

    async def _connect(self) -> None:
        task = asyncio.current_task()
        failure: tuple[Reason, str] | None = None
        connection: UpstreamConnection | None = None
        try:
            connection = await self._open()
        except Exception as error:  # whatever a dial can raise has a row of the table
            reason, detail = dial_failure(error)
            failure = reason, f"{self._origin.authority.decode('ascii')}: {detail}"
        finally:
            assert task is not None
            self._dials.discard(task)
        if connection is not None and not (connection.is_open if connection.tls else connection.is_fresh()):
            connection.drop()
            failure = Reason.UPSTREAM_CLOSED, "closed, or spoke, before it was asked anything"
        if connection is not None and failure is None:
            self._all.add(connection)
            self.give_back(connection)
        elif failure is not None and self._waiters:
            self._waiters.popitem(last=False)[0].connect_failed(*failure)
            self._dial_for_waiters()

    async def _open(self) -> UpstreamConnection:
        stage = Reason.DNS_TIMEOUT
        try:
            ends_at = asyncio.get_running_loop().time() + self._limits.connect_timeout_s
            async with asyncio.timeout_at(ends_at):
                addresses = await self._resolver.resolve(self._origin.host, self._origin.port)
                stage = Reason.CONNECT_TIMEOUT
                return await self._try_all(addresses, ends_at)
        except TimeoutError:
            raise DialTimeoutError(stage) from None

    async def _try_all(self, addresses: list[str], ends_at: float) -> UpstreamConnection:
        """Each address has its share of the time that is left: one that is silent must not use up all."""
        clock = asyncio.get_running_loop().time
        error: Exception = OSError("no address")
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                async with asyncio.timeout((ends_at - clock()) / left):
                    return await self._try_one(address)
            except OSError as failure:  # a TimeoutError is one
                error = failure
        raise error

    async def _try_one(self, address: str) -> UpstreamConnection:
        loop, tls = asyncio.get_running_loop(), self._tls
        _, connection = await loop.create_connection(
            lambda: UpstreamConnection(self, self._limits.max_head_bytes),
            address,
            self._origin.port,
            ssl=tls,
            server_hostname=self._origin.host if tls else None,
        )
        connection.tls = tls
        if tls is not None:
            await self._past_the_handshake(connection)
        return connection

    async def _past_the_handshake(self, connection: UpstreamConnection) -> None:
        """Read what came right behind it: tickets (RFC 8446 section 4.6.1) are fine, and whatever else closes it.

        A poll could not tell them apart. Two turns: what the first one finds readable is read in the second.
        """
        try:
            for _ in range(2):
                await asyncio.sleep(0)
        except BaseException:
            connection.drop()
            raise


class DialTimeoutError(Exception):
    """Raised when a connection was not there in time; says which part took too long."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.title)
        self.reason = reason


def dial_failure(error: Exception) -> tuple[Reason, str]:
    """The row of the table for what a dial raised."""
    if isinstance(error, DialTimeoutError):
        return error.reason, error.reason.title
    if isinstance(error, ssl.SSLError):
        is_certificate = isinstance(error, ssl.SSLCertVerificationError)
        reason = Reason.TLS_CERTIFICATE if is_certificate else Reason.TLS_ERROR
        said = getattr(error, "verify_message", "") or getattr(error, "reason", "") or "TLS failed"
        return reason, "it does not speak TLS" if said == "WRONG_VERSION_NUMBER" else said
    if isinstance(error, socket.gaierror | UnicodeError):  # the latter for a name that could never be one
        return Reason.DNS_ERROR, "name not found"
    if isinstance(error, OSError):
        return _socket_failure(error)
    return Reason.INTERNAL, type(error).__name__


def _socket_failure(error: OSError) -> tuple[Reason, str]:
    if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}:
        return Reason.OVERLOADED, "no file descriptor left"
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):  # who is not there, refuses
        return Reason.UPSTREAM_CLOSED, "closed while connecting (does it speak TLS?)"
    return Reason.CONNECT_REFUSED, os.strerror(error.errno) if error.errno else "not reachable"


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
        left = _TOLD_AT_ONCE
        for _, pool in self._all():
            left -= pool.sweep(now, left)

    async def close(self) -> None:
        for _, pool in self._all():
            await pool.close()
        self._resolver.close()
