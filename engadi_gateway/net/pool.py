"""Who gets which connection to a target, what is opened and what closed: all decided without waiting.

LIFO reuse, a bound on connections, a bound on those who wait and on how long. Dialling is the only task there is; a
request that finds an idle connection costs none.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from engadi_gateway.errors import Reason
from engadi_gateway.net.blame import Failure
from engadi_gateway.net.dial import Dial, dial_failure
from engadi_gateway.net.origin import Origin
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.net.upstream import UpstreamConnection

#: A connection that was idle for less is as good as one in use.
_LONG_IDLE_S = 5.0
#: The part of the connections for requests whose bodies are not complete, and may never be.
_UPLOADS = 0.8
#: Who has waited too long is told in 50 us; a thousand would hold up everybody: the others are told at the next tick.
TOLD_AT_ONCE = 200


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


class _Place(NamedTuple):
    """Of one who waits. `is_wary`: it has met a dead connection, and gets one that is dialled and nobody has used; for
    each of these a dial is under way."""

    since: float
    is_wary: bool = False


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
        self._waiters: OrderedDict[Waiter, _Place] = OrderedDict()  # whoever leaves is found at once
        self._uploads: set[Waiter] = set()  # that are not complete, with a connection or among those who wait for one
        self._late: OrderedDict[Waiter, _Place] = OrderedDict()  # uploads beyond their share, which wait before that

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
            self._waiters[waiter] = _Place(time.monotonic(), is_wary=is_new)
            self._dial()
            return None
        if len(self._waiters) - len(self._dials) >= self._limits.queue_size:
            return Reason.OVERLOADED
        self._waiters[waiter] = _Place(time.monotonic(), is_wary=is_new and self._has_dial_to_spare)
        return None

    @property
    def _has_dial_to_spare(self) -> bool:
        """One that no wary one gets. In a full pool there is: where a connection died, another is dialled at once."""
        return len(self._dials) > sum(place.is_wary for place in self._waiters.values())

    def _queue(self, upload: Waiter) -> Reason | None:
        if len(self._late) >= self._limits.queue_size:
            return Reason.OVERLOADED
        self._late[upload] = _Place(time.monotonic())
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
        elif (waiter := self._next_for(connection)) is None:
            self._keep(connection)
        elif connection.served == 0 or connection.is_fresh():
            connection.idle_since = time.monotonic()
            del self._waiters[waiter]
            waiter.connected(connection)
        else:
            connection.drop()  # once it is gone, another is dialled for who waits

    def _next_for(self, connection: UpstreamConnection) -> Waiter | None:
        """Who waits longest; but the wary come first to a new one, and have no use for a used one."""
        if not self._waiters:
            return None
        is_new = connection.served == 0
        fits = (waiter for waiter, place in self._waiters.items() if place.is_wary is is_new)
        return next(fits, next(iter(self._waiters)) if is_new else None)

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

    def sweep(self, now: float, most: int = TOLD_AT_ONCE) -> int:
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
    def _turn_away(queue: OrderedDict[Waiter, _Place], limit: float, most: int, kept: int = 0) -> int:
        """Those who are there since before the limit, and are not the last `kept`."""
        count = 0
        while count < most and len(queue) > kept and next(iter(queue.values())).since < limit:
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

    def _make(self) -> UpstreamConnection:
        return UpstreamConnection(self, self._limits.max_head_bytes)

    async def _connect(self) -> None:
        task = asyncio.current_task()
        failure: Failure | None = None
        connection: UpstreamConnection | None = None
        try:
            connection = await Dial(self._origin, self._tls, self._make).connect(
                self._resolver, self._limits.connect_timeout_s
            )
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
