"""What every connection shares: limits, time-outs, pools, sweeps, and the few calls up into the flow.

One object instead of globals, so that two gateways live in one process. `pipeline` is swapped whole when the
configuration changes; an exchange keeps the one it began with.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol

from engadi_gateway.errors import HeaderLine, Reason, Refusal
from engadi_gateway.net.deadlines import FixedWait, Sweep
from engadi_gateway.net.pools import Pools
from engadi_gateway.net.seats import Lingering, Seats
from engadi_gateway.net.sockets import Unread
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.exchange import Exchange, Identity, Wait
from engadi_gateway.settings.parsing import IpNetwork
from engadi_gateway.wire.forwarded import Client
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import HeadLimits
from engadi_gateway.wire.response import ReplyParser


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Client-side waits in seconds."""

    head_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    keep_alive_s: float = 75.0
    upgrade_idle_s: float = 3600.0
    linger_s: float = 2.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Defaults for routes without their own, and what bounds all of them together."""

    timeout_s: float = 30.0
    retry_count: int = 2
    backoff_s: float = 0.025
    backoff_max_s: float = 1.0
    buffer_bytes: int = 64 << 10
    budget_percent: int = 20
    budget_min: int = 3


@dataclass(slots=True)
class LocalReply:
    """The answer of a local target: the admin API and the health pages."""

    status: int
    lines: list[HeaderLine]
    body: bytes


class Handler(Protocol):
    """Who serves an exchange, as the client's connection sees it: `Forward`, or `LocalCall`."""

    def start(self, who: Client, body: bytes, *, is_complete: bool) -> None:
        """Begin, with what there is of the request's body."""
        ...

    def body(self, data: bytes) -> None: ...
    def body_end(self) -> None: ...
    def abandon(self, refusal: Refusal) -> None:
        """The body was bad."""
        ...

    def client_gone(self) -> None: ...
    def client_paused(self) -> None:
        """It does not read, or slowly."""
        ...

    def client_resumed(self) -> None: ...


class Switched(Protocol):
    """What takes and sends bytes in an exchange's place after a 101, as the client's connection sees it."""

    def up(self, data: bytes) -> None: ...
    def client_paused(self) -> None: ...
    def client_resumed(self) -> None: ...
    def ended_here(self, detail: str, reason: Reason = Reason.OK) -> None:
        """The client has closed, or the gateway stops."""
        ...

    def crashed(self) -> None:
        """A fault of ours."""
        ...


class Downstream(Protocol):
    """The client's connection as those see it who answer an exchange on it."""

    is_upload_paused: bool
    ends_by_closing: bool  # the reply under way has no other end than the connection's

    def write(self, data: bytes) -> None: ...
    def taken_mark(self) -> int:
        """Another number than before where the client has taken some of what was written."""
        ...

    def abort(self) -> None:
        """Cut: the client must see that what it got is not whole."""
        ...

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None: ...
    def answer(self, exchange: Exchange, reply: LocalReply) -> None: ...
    def closes_after(self, exchange: Exchange, *, is_last: bool) -> bool: ...
    def exchange_done(self, exchange: Exchange, *, is_clean: bool) -> None: ...
    def pause_upload(self) -> None: ...
    def resume_upload(self) -> None: ...
    def switched(self, splice: Switched) -> None: ...
    def finish_splice(self) -> None: ...
    def later(self, work: Callable[[], None]) -> None:
        """Do when its turn comes what takes long."""
        ...


class Upcalls(Protocol):
    """What the connections ask of the gateway."""

    def settled(self, exchange: Exchange) -> None:
        """One exchange ended: log and count it."""
        ...

    def local_refusal(self, exchange: Exchange) -> Refusal | None:
        """Why a local target would refuse it whatever its body is."""
        ...

    def serve_local(self, exchange: Exchange, body: bytes) -> Coroutine[Any, Any, LocalReply]: ...

    def judge(self, exchange: Exchange, wait: Wait) -> Coroutine[Any, Any, Identity | Refusal | None]:
        """Answer a stage that has to wait; None: walk again, the keys are there now."""
        ...

    def unreadable(self, reason: Reason) -> None:
        """A head that never became an exchange was refused."""
        ...

    def is_stalled(self) -> bool:
        """Whether new requests must wait for the request log."""
        ...

    def warn(self, text: str) -> None:
        """Tell whoever runs it."""
        ...

    def fault(self, where: str) -> None:
        """An unexpected exception is being handled: log it with its trace."""
        ...


class RetryBudget:
    """Retries under way are at most a share of the requests in flight, and a few are always allowed."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.retrying = 0
        self.take(policy)

    def take(self, policy: RetryPolicy) -> None:
        """Another policy; the retries under way stay counted."""
        self._share = policy.budget_percent / 100
        self._least = policy.budget_min

    def is_spent(self, in_flight: int) -> bool:
        return self.retrying >= max(self._least, self._share * in_flight)


#: The digit of a uuid in which two bits are fixed (RFC 9562 section 4.1), by the digit that was drawn.
_VARIANTS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


class RequestIds:
    """uuid4 texts from blocks of random bytes: a fifth of the cost of `uuid.uuid4()`.

    Those of one block share their middle, because each slice costs; 80 of the 122 random bits are an id's own, which
    makes no two of a block's two hundred alike.
    """

    _BLOCK = 2048
    _DIGITS = 20

    def __init__(self) -> None:
        self._digits = ""
        self._middle = ""
        self._at = 0

    def next(self) -> str:
        at = self._at
        if at + self._DIGITS > len(self._digits):
            m, self._digits, at = os.urandom(8).hex(), os.urandom(self._BLOCK).hex(), 0
            self._middle = f"-{m[:4]}-4{m[4:7]}-{_VARIANTS[m[7]]}{m[8:11]}-"
        self._at = at + self._DIGITS
        return f"{self._digits[at : at + 8]}{self._middle}{self._digits[at + 8 : at + 20]}"

    def new_trace(self) -> bytes:
        """The traceparent of a trace that begins here and that nobody asked to record (W3C Trace Context, section 3.2).

        Of digits as an id has; the two that are fixed keep them from being all zeros, which would be invalid.
        """
        trace_id, parent_id = self.next().replace("-", ""), self.next().replace("-", "")[16:]
        return f"00-{trace_id}-{parent_id}-00".encode("ascii")


class DateLine:
    """The Date value, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._value = b""

    def at(self, wall: float) -> bytes:
        second = int(wall)
        if second != self._second:
            self._second, self._value = second, formatdate(second, usegmt=True).encode("ascii")
        return self._value


@dataclass
class Context:
    """See the module. `instance` is what Via calls this very process."""

    loop: asyncio.AbstractEventLoop
    upcalls: Upcalls
    pipeline: Pipeline
    admin_pipeline: Pipeline
    header_policy: HeaderPolicy
    head_limits: HeadLimits
    timeouts: Timeouts
    retry: RetryPolicy
    pools: Pools
    budget: RetryBudget
    trusted: tuple[IpNetwork, ...] = ()
    max_body_bytes: int = 10 << 20
    max_local_body_bytes: int = 1 << 20
    keep_alive_requests: int = 1000
    instance: bytes = field(default_factory=lambda: b"engadi-" + os.urandom(4).hex().encode("ascii"))
    is_draining: bool = False
    flights: Sweep = field(default_factory=Sweep)  # exchanges whose target was asked
    closing: Sweep = field(default_factory=Sweep)  # connections that end soon, or whose client does not read
    heads: FixedWait = field(default_factory=lambda: FixedWait(10.0))
    idle: FixedWait = field(default_factory=lambda: FixedWait(75.0))
    lingers: FixedWait = field(default_factory=lambda: FixedWait(2.0))  # whose last answer was sent
    lingering: Lingering = field(default_factory=Lingering)
    reply_parsers: tuple[ReplyParser, ReplyParser] = field(  # by whether the exchange's pipeline answers CORS
        default_factory=lambda: (ReplyParser(drops_cors=False), ReplyParser(drops_cors=True))
    )
    unread: Unread = field(default_factory=Unread)
    ids: RequestIds = field(default_factory=RequestIds)
    date: DateLine = field(default_factory=DateLine)
    seats: Seats = field(default_factory=Seats)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def date_now(self) -> bytes:
        return self.date.at(time.time())

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that is remembered until it ends, and whose exception is a logged fault."""
        task = self.loop.create_task(self._guarded(work, name), name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step, it would complain on stderr
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception:
            self.upcalls.fault(name)
