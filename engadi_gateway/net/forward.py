"""One exchange on its way to an upstream and back: attempts, retries, relay, splice.

The states of the reply decide everything: WAITING until an upstream's head came, when an attempt may be made again;
RELAYING once the client has seen a byte of it, when a failure can only cut the connection, because a body that was cut
short must never look whole (RFC 9112 section 8); SPLICED after a 101; DONE.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum, auto

from engadi_gateway.errors import FAILURE_STATUSES, Reason, Refusal
from engadi_gateway.model import Framing
from engadi_gateway.net.context import Context, Downstream
from engadi_gateway.net.outgoing import upstream_request
from engadi_gateway.net.pool import Pool
from engadi_gateway.net.upload import Upload
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.pipeline.breaker import BreakerStage
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.wire.chunked import LAST_CHUNK, chunk
from engadi_gateway.wire.forwarded import Client
from engadi_gateway.wire.response import (
    REDIRECTS,
    ReplyHead,
    client_head,
    informational_head,
    is_among,
    rate_lines,
    switching_head,
)

#: Methods that may be sent twice (RFC 9110 section 9.2.2).
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
#: A stranger behind us must not keep a client busy with 1xx for ever.
_MAX_INTERIM = 32
#: Failures after which another attempt can go better. A time-out of the whole is none: no time is left.
_RETRYABLE = frozenset(
    (
        Reason.UPSTREAM_CLOSED,
        Reason.CONNECT_REFUSED,
        Reason.CONNECT_TIMEOUT,
        Reason.DNS_ERROR,
        Reason.DNS_TIMEOUT,
    )
)


#: Whom a client has kept waiting for longer than that may close when it likes, and that is no failure of the service.
_PATIENCE_S = 1.0
_FULL = "too many upgraded connections"
_NO_BODY, _CHUNKED, _TO_CLOSE = Framing.NONE, Framing.CHUNKED, Framing.CLOSE


class Phase(Enum):
    WAITING = auto()
    RELAYING = auto()
    SPLICED = auto()
    DONE = auto()


#: A member of an enumeration costs 45 ns each time that it is looked up in its class, and a request asks for twenty.
_WAITING, _RELAYING, _SPLICED, _DONE = Phase


class Forward(Upload):
    """Made for one exchange that every stage let pass; tells `client` how it ended, once."""

    # how each begins; on the class, because most end without having changed
    _phase = _WAITING
    _pool: Pool | None = None
    _out_framing = Framing.NONE
    _is_client_paused = False
    _taken_mark = 0
    _paused_at = 0.0
    _paused_s = 0.0  # for so long the upstream was not read for the client's sake, before the pause of now
    _is_retrying = False
    _failure: tuple[Reason, str] | None = None  # of the last attempt
    _is_upstream_paused = False
    _attempt_reused = False
    _interim = 0

    def __init__(self, context: Context, client: Downstream, exchange: Exchange) -> None:
        route = exchange.route
        assert route is not None
        super().__init__(context, client, exchange)
        retry = context.retry
        self._parser = context.reply_parsers[exchange.pipeline.answers_cors]
        self._timeout_s = retry.timeout_s if route.timeout is None else route.timeout
        self._retries_left = retry.retry_count if route.retry_count is None else route.retry_count
        self.deadline = exchange.now + self._timeout_s

    # the client's side

    def start(self, who: Client, body: bytes, *, is_complete: bool) -> None:
        """Send the request, with what there is of its body."""
        exchange, context = self.exchange, self._context
        self._who = who
        pool = self._pool = self._aim()
        self._is_body_complete = is_complete
        context.flights.add(self)
        if exchange.head.upgrade and pool.is_full_of_upgraded:
            self._not_tried(Reason.OVERLOADED, _FULL)
            return
        if body:
            self._keep(body)
        if not is_complete:
            self._heard(exchange.now)
            BreakerStage.awaits_body(exchange)
            self._is_held = pool.is_half_taken and not self._is_too_long_to_hold()
        if not self._is_held:
            self._attempt()

    def _aim(self) -> Pool:
        """The pool of the exchange's target, for which the head is made."""
        exchange, context = self.exchange, self._context
        assert exchange.target is not None
        origin, pool = context.pools.at(exchange.target.url)
        self._head_bytes = upstream_request(exchange, origin, self._who, self._framing, context.instance)
        return pool

    def body(self, data: bytes) -> None:
        """More of the request's body, in order."""
        if self._phase is _SPLICED:
            self._spliced_up(data)
            return
        self._heard(time.monotonic())
        self._keep(data)
        if self._connection is not None:
            self._connection.send(self._framed(data))
        elif self._is_held and self._is_too_long_to_hold():
            self._is_held = False
            self._attempt()

    def body_end(self) -> None:
        """The request's body is complete: from now on the upstream's time runs."""
        self._is_body_complete = True
        now = time.monotonic()
        self.deadline = now + self._timeout_s
        is_late = self._pool is not None and self._pool.upload_ends(self)
        if self._phase is _WAITING:
            BreakerStage.has_body(self.exchange, now)
        if self._connection is not None:
            if self._framing is Framing.CHUNKED:
                self._connection.send(LAST_CHUNK)
            self._connection.request_complete()
        elif self._is_held or is_late:
            self._is_held = False
            self._attempt()

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

    def client_paused(self) -> None:
        self._is_client_paused = True
        self._paused_at = time.monotonic()
        if self._connection is not None:
            self._connection.pause_reading()
        self._await_client()

    def _await_client(self) -> None:
        """It has so long to read on; who reads slowly is not who does not read."""
        self._taken_mark = self._client.taken_mark()
        self.deadline = time.monotonic() + self._context.timeouts.write_s

    def _reads_on(self) -> bool:
        return self._is_client_paused and self._client.taken_mark() != self._taken_mark

    def _not_read_s(self) -> float:
        return self._paused_s + (time.monotonic() - self._paused_at if self._is_client_paused else 0.0)

    def client_resumed(self) -> None:
        self._paused_s = self._not_read_s()
        self._is_client_paused = False
        if self._connection is not None:
            self._connection.resume_reading()
        if self._phase is _SPLICED:
            self._note_splice()
        else:
            self.deadline = time.monotonic() + self._timeout_s

    # attempts

    def _attempt(self, *, is_new: bool = False) -> None:
        """Take a connection; `connected` goes on, now or later."""
        assert self._pool is not None
        taken = self._pool.take(self, is_new=is_new, is_upload=not self._is_body_complete)
        if type(taken) is UpstreamConnection:
            self.connected(taken)
        elif type(taken) is Reason:
            self._not_tried(taken, "too many wait for a connection")

    def connected(self, connection: UpstreamConnection) -> None:
        """Head and body so far in one write: two writes cost 8 %."""
        self._connection = connection
        self._attempt_reused = connection.served > 0
        self.exchange.attempts += 1
        self._started = time.monotonic()
        data = self._head_bytes if self._framing is _NO_BODY else self._with_body()
        was_paused = self._is_upload_paused or self._is_upstream_paused  # the latter by a connection that is gone
        self._is_upload_paused = self._is_upstream_paused = False
        connection.begin(self, self._parser, self.exchange.head.method, data, is_complete=self._is_body_complete)
        if self._is_client_paused:
            connection.pause_reading()
        if was_paused and not self._is_upstream_paused:
            self._client.resume_upload()
            if not self._is_body_complete:
                self._heard(self._started)

    def connect_failed(self, reason: Reason, detail: str) -> None:
        self.exchange.attempts += 1
        self._failed(reason, detail, was_sent=False)

    def not_connected(self) -> None:
        """All connections were in use for too long; nothing was tried."""
        self._not_tried(Reason.OVERLOADED, "no free connection in time")

    def _not_tried(self, reason: Reason, detail: str) -> None:
        """How an attempt before it failed says more."""
        if self._failure is not None:
            reason, failed = self._failure
            detail = f"{failed}; no other attempt: {detail}"
        self._give_up(reason, detail)

    def reply_failed(self, reason: Reason, detail: str) -> None:
        """The connection told: it is gone, or what came was no reply."""
        connection, self._connection = self._connection, None
        if self._phase is _SPLICED:
            self.exchange.error_message = f"{detail} by the upstream"
            self._end(Reason.OK)
            self._client.finish_splice()
            return
        if connection is not None and connection.is_lost:
            reason, detail = self._whose_doing(reason, detail)
        if self._phase is _RELAYING:
            self._cut(reason, detail)
        else:
            is_unheard = connection is not None and not connection.has_spoken and reason is not Reason.CLIENT_TIMEOUT
            self._attempt_reused = self._attempt_reused and is_unheard
            if self._attempt_reused and connection is not None and self._pool is not None:
                self._pool.distrust(connection, self._started)
            self._failed(reason, detail, was_sent=True)

    def _whose_doing(self, reason: Reason, detail: str) -> tuple[Reason, str]:
        """An upstream that was kept waiting by the client, and then closed, has had enough of the client.

        Another attempt would wait for the same client, so there is none.
        """
        not_sent_s = time.monotonic() - max(self._heard_at, self._started) if self._is_body_awaited() else 0.0
        if not_sent_s > _PATIENCE_S:
            return Reason.CLIENT_TIMEOUT, f"{detail}, after {not_sent_s:.1f} s of silence within the request's body"
        not_read_s = self._not_read_s()
        if self._phase is _RELAYING and not_read_s > _PATIENCE_S:
            return Reason.CLIENT_STALLED, f"{detail}, after the client had not read for {not_read_s:.1f} s"
        return reason, detail

    def _failed(self, reason: Reason, detail: str, *, was_sent: bool) -> None:
        self._failure = reason, detail
        self._stop_retrying()
        if self._can_retry(reason, was_sent):
            self._retry(is_free=was_sent and self._is_stale())
        else:
            self._give_up(reason, detail)

    def _give_up(self, reason: Reason, detail: str) -> None:
        self._stop_retrying()
        self.exchange.error_message = detail
        self._end(reason)
        self._client.refuse(self.exchange, Refusal(reason))

    def _can_retry(self, reason: Reason, was_sent: bool) -> bool:
        exchange = self.exchange
        if reason not in _RETRYABLE or self._body is None or exchange.attempts == 0:
            return False
        if was_sent and exchange.head.method not in IDEMPOTENT:
            return False
        if was_sent and self._is_stale():
            return True
        if self._retries_left <= 0 or time.monotonic() >= self.deadline:
            return False
        return not self._context.budget.is_spent(len(self._context.flights))

    def _is_stale(self) -> bool:
        """Whether the connection died idle, before it saw the request: once more on another is free, and only once.

        A byte of an answer shows that it did see it.
        """
        return self._attempt_reused and self.exchange.attempts == 1

    def _retry(self, *, is_free: bool) -> None:
        if is_free:
            self._attempt(is_new=True)
            return
        policy = self._context.retry
        tried = self.exchange.attempts
        self._retries_left -= 1
        self._is_retrying = True
        self._context.budget.retrying += 1
        longest_s = min(policy.backoff_s * 2 ** (tried - 1), policy.backoff_max_s)
        self._context.loop.call_later(random.uniform(0, longest_s), self._attempt_again)  # noqa: S311 - jitter

    def _attempt_again(self) -> None:
        if self._phase is not _WAITING:
            return
        exchange = self.exchange
        assert self._failure is not None
        exchange.error_message = (
            f"attempt {exchange.attempts} failed: {self._failure[1]}"  # stays if this one goes well
        )
        if self._goes_elsewhere() or BreakerStage.may_ask_again(exchange):
            self._attempt()
        else:
            self._not_tried(Reason.BREAKER_OPEN, "the circuit has opened")

    def _goes_elsewhere(self) -> bool:
        """Where another target may be asked, it is; how the one before it failed says nothing about it."""
        assert self._failure is not None
        if not self.exchange.pipeline.another_target(self.exchange, self._failure[0], time.monotonic()):
            return False
        self._failure = None
        if self._pool is not None and not self._is_body_complete:
            self._pool.upload_ends(self)
        self._pool = self._aim()
        if not self._is_body_complete:
            BreakerStage.awaits_body(self.exchange)
        return True

    def _stop_retrying(self) -> None:
        if self._is_retrying:
            self._is_retrying = False
            self._context.budget.retrying -= 1

    # the upstream's side

    def reply_interim(self, head: ReplyHead) -> None:
        self._interim += 1
        asked = self.exchange.head.upgrade
        if head.status == 101 and asked and is_among(head.upgrade, asked):
            self._switch(head)
        elif head.status == 101 or self._interim > _MAX_INTERIM:
            self._give_up_connection()
            reason = Reason.UPGRADE_FAILED if asked and head.status == 101 else Reason.UPSTREAM_INVALID
            self._failed(reason, "101 to what was not asked for, or too many 1xx", was_sent=True)
        elif head.status != 100 and not self.exchange.head.is_http10:
            self._body = None  # the client has a byte of the answer: nothing is sent again
            self._client.write(informational_head(head))

    def reply_head(self, head: ReplyHead, body: bytes, is_end: bool) -> None:
        exchange, context = self.exchange, self._context
        now = time.monotonic()
        if self._is_retrying:
            self._stop_retrying()
        self._phase = _RELAYING
        self.deadline = now + self._timeout_s
        exchange.upstream_s = now - self._started
        exchange.upstream_status = exchange.status = head.status
        if head.status in FAILURE_STATUSES:
            exchange.reason = Reason.UPSTREAM_5XX
            exchange.reply_lines.append(b"Proxy-Status: engadi; received-status=%d" % head.status)
        framing = head.framing
        if framing is _TO_CLOSE or framing is _CHUNKED:
            framing = _TO_CLOSE if exchange.head.is_http10 else _CHUNKED
        self._out_framing = framing
        self._client.ends_by_closing = framing is _TO_CLOSE
        is_last = framing is _TO_CLOSE or not self._is_body_complete
        is_closing = self._client.closes_after(exchange, is_last=is_last)
        if head.rate or (exchange.rate_line is not None and head.status in REDIRECTS):
            self._choose_rate_lines(head)
        date = b"" if head.has_date else context.date_now()
        out = client_head(head, exchange.reply_lines, framing, date, is_closing=is_closing)
        if body:
            exchange.bytes_out += len(body)
        out += self._relayed(body, is_end) if framing is _CHUNKED else body
        if is_end:
            self._connection = None
        self._client.write(out)
        if is_end:
            self._complete()
        else:
            BreakerStage.goes_on(exchange)

    def _choose_rate_lines(self, head: ReplyHead) -> None:
        lines, own = self.exchange.reply_lines, self.exchange.rate_line
        if own is not None:
            lines.remove(own)
        lines += rate_lines(own, head)

    def reply_body(self, body: bytes, is_end: bool) -> None:
        self.exchange.bytes_out += len(body)
        if is_end:
            self._connection = None
        else:
            self.deadline = time.monotonic() + self._timeout_s
        self._client.write(self._relayed(body, is_end))
        if self._is_client_paused and not is_end:
            self._await_client()
        if is_end:
            self._complete()

    def _relayed(self, body: bytes, is_end: bool) -> bytes:
        if self._out_framing is not _CHUNKED:
            return body
        framed = chunk(body) if body else b""
        return framed + LAST_CHUNK if is_end else framed

    def _complete(self) -> None:
        self._end(self.exchange.reason)
        self._client.exchange_done(self.exchange, is_clean=self._is_body_complete)

    def upstream_paused(self) -> None:
        self._is_upstream_paused = True
        self._client.pause_upload()
        if self._phase is _SPLICED:
            self.deadline = time.monotonic() + self._context.timeouts.write_s

    def upstream_resumed(self) -> None:
        self._is_upstream_paused = False
        self._client.resume_upload()
        if self._phase is _SPLICED:
            self._note_splice()
        elif not self._is_body_complete:
            self._heard(time.monotonic())  # the client's time was not running

    def later(self, work: Callable[[], None]) -> None:
        self._client.later(work)

    # splice

    def _switch(self, head: ReplyHead) -> None:
        assert self._connection is not None and self._pool is not None
        if self._pool.is_full_of_upgraded:  # others were quicker
            self._give_up_connection()
            self._not_tried(Reason.OVERLOADED, _FULL)
            return
        if head.rate:
            self._choose_rate_lines(head)
        self._stop_retrying()
        self._phase = _SPLICED
        self.exchange.upstream_status = self.exchange.status = 101
        self.exchange.upstream_s = time.monotonic() - self._started
        BreakerStage.goes_on(self.exchange)
        self._note_splice()
        self._connection.splice()
        self._client.write(switching_head(head, self.exchange.reply_lines))
        self._client.switched()

    def _note_splice(self) -> None:
        """Something moves. It does not help a side that does not read: that may be gone, and we would not hear it."""
        if not (self._is_client_paused or self._is_upstream_paused):
            self.deadline = time.monotonic() + self._context.timeouts.upgrade_idle_s

    def _spliced_up(self, data: bytes) -> None:
        self.exchange.bytes_in += len(data)
        self._note_splice()
        if self._connection is not None:
            self._connection.send(data)

    def spliced(self, data: bytes) -> None:
        self.exchange.bytes_out += len(data)
        self._note_splice()
        self._client.write(data)

    def splice_ended_here(self, detail: str, reason: Reason = Reason.OK) -> None:
        """By the client, or by us: flush what is on its way to the upstream, then close it."""
        self.exchange.error_message = detail
        if self._connection is not None:
            self._connection.close_gracefully(self._context.timeouts.write_s)
            self._connection = None
        self._end(reason)

    # ends

    def expired(self, now: float) -> None:
        """The sweep found the deadline passed; whose silence it was decides the reason."""
        if self._reads_on():
            self._await_client()
        elif self._phase is _SPLICED:
            idle = f"nothing for {self._context.timeouts.upgrade_idle_s:g} s"
            side = "client" if self._is_client_paused else "upstream" if self._is_upstream_paused else ""
            self.exchange.error_message = f"the {side} does not read" if side else idle
            self._end(Reason.CLIENT_STALLED if self._is_client_paused else Reason.OK)
            self._client.abort()
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
                BreakerStage.ran_out_of_time(self.exchange)
            reason, detail = self._what_took_long()
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

    def _what_took_long(self) -> tuple[Reason, str]:
        within = f"within {self._timeout_s:g} s" if self._is_body_complete else "in time"
        if self._connection is not None:
            return Reason.UPSTREAM_TIMEOUT, f"no reply {within}" if self._is_body_complete else "it does not read"
        if self._failure is not None:
            return Reason.UPSTREAM_TIMEOUT, f"{self._failure[1]}; no other attempt {within}"
        assert self._pool is not None
        if self._pool.only_waits(self):
            return Reason.OVERLOADED, f"no free connection {within}"
        return Reason.CONNECT_TIMEOUT, f"no connection {within}"

    def _cut(self, reason: Reason, detail: str) -> None:
        """The client has seen part of the reply: break off, so that it cannot look whole."""
        self.exchange.error_message = detail
        self._end(reason)
        self._client.abort()

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
        if self._is_retrying:
            self._stop_retrying()
        self._phase = _DONE
        if not self._is_body_complete and self._pool is not None:
            self._pool.upload_ends(self)
        self._context.flights.discard(self)
        self.exchange.reason = reason
