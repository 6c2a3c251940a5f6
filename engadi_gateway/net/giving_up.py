"""How forwarding ends without a whole reply: given up, cut, timed out, or left by its client.

The states of the reply decide how that is told: WAITING, and the client has seen nothing, so that it is refused;
RELAYING, and only breaking off can say that a body is not whole; DONE.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from enum import Enum, auto

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.net import blame
from engadi_gateway.net.pool import Pool
from engadi_gateway.net.retries import Retries
from engadi_gateway.net.upload import Upload
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.pipeline import permits


class Phase(Enum):
    """How far the reply is, as the client sees it."""

    WAITING = auto()
    RELAYING = auto()
    DONE = auto()


#: A member of an enumeration costs 45 ns each time that it is looked up in its class, and a request asks for twenty.
_WAITING, _RELAYING, _DONE = Phase


class GivingUp(Upload):
    """See the module; each of these ends is told to the client once, and the exchange leaves nothing behind."""

    # how each begins; on the class, because most end without having changed
    _phase = _WAITING
    _pool: Pool | None = None
    _retries: Retries | None = None  # since an attempt failed
    _paused_at = 0.0
    _paused_s = 0.0  # for so long the upstream was not read for the client's sake, before the pause of now

    _timeout_s: float

    # what its pool tells of a connection
    @abstractmethod
    def connected(self, connection: UpstreamConnection) -> None: ...
    @abstractmethod
    def connect_failed(self, reason: Reason, detail: str) -> None: ...
    @abstractmethod
    def not_connected(self) -> None: ...

    @property
    def _failure(self) -> blame.Failure | None:
        """Of the last attempt at the target of now."""
        return None if self._retries is None else self._retries.failure

    # the client, which reads slowly or not at all, and leaves

    def client_paused(self) -> None:
        self._paused_at = time.monotonic()
        super().client_paused()

    def client_resumed(self) -> None:
        self._paused_s = self._not_read_s()
        super().client_resumed()
        self.deadline = time.monotonic() + self._timeout_s

    def _not_read_s(self) -> float:
        return self._paused_s + (time.monotonic() - self._paused_at if self._is_client_paused else 0.0)

    def client_gone(self) -> None:
        """Cancel upstream at once; nobody's failure."""
        if self._failure is not None and self._phase is _WAITING:
            self.exchange.error_message = self._failure[1]
        self._end(Reason.CLIENT_CLOSED)

    def abandon(self, refusal: Refusal) -> None:
        """The client's own body was bad: give up upstream, and tell the client if it has seen nothing yet."""
        if self._phase is _WAITING:
            self._end(refusal.reason)
            self._client.refuse(self.exchange, refusal)
        else:
            self._cut(refusal.reason, refusal.detail)

    # no reply, or no end of it, in time

    def expired(self, now: float) -> None:
        """The sweep found the deadline passed; whose silence it was decides the reason."""
        if self._reads_on():
            self._await_client()
        elif self._is_client_paused:
            self._cut(Reason.CLIENT_STALLED, "the client does not read")
        elif self._is_body_awaited():
            self._await_body(now)
        elif self._connection is not None and self._connection.holds_reply:
            self.deadline = now + self._timeout_s
        elif self._phase is _RELAYING:
            self._cut(Reason.UPSTREAM_STALLED, "silence within the reply's body")
        else:
            if self._failure is None:
                permits.ran_out_of_time(self.exchange)
            reason, detail = self._no_reply()
            if reason is Reason.CONNECT_TIMEOUT:
                self.exchange.attempts += 1  # that has gone as far as the time did
            self._give_up(reason, detail)

    def _await_body(self, now: float) -> None:
        """The silence is the client's, in a reply too, and has its own time."""
        until = self._heard_at + self._context.timeouts.body_s
        if now < until:
            self.deadline = until
        elif self._phase is _RELAYING:
            self._cut(Reason.CLIENT_TIMEOUT, "silence within the request's body")
        else:
            self._end(Reason.CLIENT_TIMEOUT)
            self._client.refuse(self.exchange, Refusal(Reason.CLIENT_TIMEOUT))

    def _no_reply(self) -> blame.Failure:
        assert self._pool is not None
        return blame.of_no_reply(
            self._timeout_s,
            self._failure,
            is_asked=self._connection is not None,
            is_sent=self._is_body_complete,
            is_queued=self._pool.only_waits(self),
        )

    # the ends

    def _not_tried(self, reason: Reason, detail: str) -> None:
        """How an attempt before it failed says more."""
        if self._failure is not None:
            reason, failed = self._failure
            detail = f"{failed}; no other attempt: {detail}"
        self._give_up(reason, detail)

    def _cut(self, reason: Reason, detail: str) -> None:
        """The client has seen part of the reply: break off, so that it cannot look whole."""
        self.exchange.error_message = detail
        self._end(reason)
        self._client.abort()

    def _give_up(self, reason: Reason, detail: str) -> None:
        """The client has seen nothing yet: refuse."""
        self.exchange.error_message = detail
        self._end(reason)
        self._client.refuse(self.exchange, Refusal(reason))

    def _give_up_connection(self) -> None:
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
        elif self._pool is not None and self._phase is _WAITING:
            self._pool.leave(self)

    def _end(self, reason: Reason) -> None:
        """Leave nothing behind; the client settles the exchange."""
        if self._phase is _DONE:
            return
        if self._connection is not None or self._phase is _WAITING:
            self._give_up_connection()
        if self._retries is not None:
            self._retries.end()
        self._phase = _DONE
        if not self._is_body_complete and self._pool is not None:
            self._pool.upload_ends(self)
        self._context.flights.discard(self)
        self.exchange.reason = reason
