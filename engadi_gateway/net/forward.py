"""One exchange on its way to an upstream and back: the request, the reply, and the next attempt where one fails.

What every request does, from top to bottom. How it ends without a whole reply is in `giving_up`, with the states that
decide it; whether there is another attempt, in `retries`; what follows a 101, in `splice`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engadi_gateway.errors import FAILURE_STATUSES, Reason
from engadi_gateway.model import Framing
from engadi_gateway.net import blame
from engadi_gateway.net.context import Context, Downstream
from engadi_gateway.net.giving_up import GivingUp, Phase
from engadi_gateway.net.outgoing import upstream_request
from engadi_gateway.net.pool import Pool
from engadi_gateway.net.retries import Retries
from engadi_gateway.net.splice import Splice
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.pipeline import permits
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
)

#: A stranger behind us must not keep a client busy with 1xx for ever.
_MAX_INTERIM = 32
_FULL = "too many upgraded connections"
_NO_BODY, _CHUNKED, _TO_CLOSE = Framing.NONE, Framing.CHUNKED, Framing.CLOSE
_WAITING, _RELAYING = Phase.WAITING, Phase.RELAYING


class Forward(GivingUp):
    """Made for one exchange that every stage let pass; tells `client` how it ended, once."""

    # how each begins; on the class, because most end without having changed
    _out_framing = Framing.NONE
    _interim = 0

    def __init__(self, context: Context, client: Downstream, exchange: Exchange) -> None:
        route = exchange.route
        assert route is not None
        super().__init__(context, client, exchange)
        self._framing = exchange.head.framing
        self._body = []
        self._parser = context.reply_parsers[exchange.pipeline.answers_cors]
        self._timeout_s = context.retry.timeout_s if route.timeout is None else route.timeout
        self.deadline = exchange.now + self._timeout_s

    # the request

    def start(self, who: Client, body: bytes, *, is_complete: bool) -> None:
        """Send the request, with what there is of its body."""
        exchange, context = self.exchange, self._context
        self._who = who
        self._is_body_complete = is_complete
        pool = self._pool = self._aim()
        context.flights.add(self)
        if exchange.head.upgrade and pool.is_full_of_upgraded:
            self._not_tried(Reason.OVERLOADED, _FULL)
            return
        if body:
            self._keep(body)
        if not is_complete:
            self._heard(exchange.now)
            if not self._may_upload(exchange.now):
                return
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

    def _attempt(self, *, is_new: bool = False) -> None:
        """Take a connection; `connected` goes on, now or later."""
        assert self._pool is not None
        taken = self._pool.take(self, is_new=is_new, is_upload=not self._is_body_complete)
        if type(taken) is UpstreamConnection:
            self.connected(taken)
        elif type(taken) is Reason:
            self._not_tried(taken, "too many wait for a connection")

    def _may_upload(self, now: float) -> bool:
        """Whether the target may be sent a request of whose body more is to come; else that is the end of it."""
        may_upload = permits.awaits_body(self.exchange, now)
        if not may_upload:
            self._not_tried(Reason.BREAKER_OPEN, "another upload is the circuit's probe")
        return may_upload

    def connected(self, connection: UpstreamConnection) -> None:
        """Head and body so far in one write: two writes cost 8 %."""
        self._connection = connection
        self.exchange.attempts += 1
        self._started = time.monotonic()
        data = self._head_bytes if self._framing is _NO_BODY else self._with_body()
        was_paused = self._is_upload_paused or self._is_upstream_paused  # the latter by a connection that is gone
        if was_paused:
            self._is_upload_paused = self._is_upstream_paused = False
        connection.begin(self, self._parser, self.exchange.head.method, data, is_complete=self._is_body_complete)
        if self._is_client_paused:
            connection.pause_reading()
        if was_paused and not self._is_upstream_paused:
            self._client.resume_upload()
            if not self._is_body_complete:
                self._heard(self._started)

    def body(self, data: bytes) -> None:
        """More of the request's body, in order."""
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
            permits.has_body(self.exchange, now)
        if self._connection is not None:
            if self._framing is Framing.CHUNKED:
                self._connection.send(LAST_CHUNK)
            self._connection.request_complete()
        elif self._is_held or is_late:
            self._is_held = False
            self._attempt()

    # the reply

    def reply_head(self, head: ReplyHead, body: bytes, is_end: bool) -> None:
        exchange, context = self.exchange, self._context
        now = time.monotonic()
        if self._retries is not None:
            self._retries.end()
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
            permits.goes_on(exchange)

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

    def reply_interim(self, head: ReplyHead) -> None:
        self._interim += 1
        asked = self.exchange.head.upgrade
        if head.status == 101 and asked and is_among(head.upgrade, asked):
            self._switch(head)
        elif head.status == 101 or self._interim > _MAX_INTERIM:
            self._give_up_connection()
            reason = Reason.UPGRADE_FAILED if asked and head.status == 101 else Reason.UPSTREAM_INVALID
            self._failed((reason, "101 to what was not asked for, or too many 1xx"), was_sent=True)
        elif head.status != 100 and not self.exchange.head.is_http10:
            self._body = None  # the client has a byte of the answer: nothing is sent again
            self._client.write(informational_head(head))

    def _switch(self, head: ReplyHead) -> None:
        """Hand both connections on to a splice; who upgrades has sent no body."""
        exchange, context = self.exchange, self._context
        assert self._connection is not None and self._pool is not None
        if self._pool.is_full_of_upgraded:  # others were quicker
            self._give_up_connection()
            self._not_tried(Reason.OVERLOADED, _FULL)
            return
        if head.rate:
            self._choose_rate_lines(head)
        exchange.upstream_status = exchange.status = 101
        exchange.upstream_s = time.monotonic() - self._started
        permits.goes_on(exchange)
        connection, self._connection = self._connection, None
        self._phase = _RELAYING
        self._end(exchange.reason)
        Splice(context, self._client, exchange, connection, is_client_paused=self._is_client_paused).begin(head)

    def later(self, work: Callable[[], None]) -> None:
        self._client.later(work)

    # an attempt that failed

    def connect_failed(self, reason: Reason, detail: str) -> None:
        self.exchange.attempts += 1
        self._failed((reason, detail), was_sent=False)

    def not_connected(self) -> None:
        """All connections were in use for too long; nothing was tried."""
        self._not_tried(Reason.OVERLOADED, "no free connection in time")

    def reply_failed(self, reason: Reason, detail: str) -> None:
        """The connection told: it is gone, or what came was no reply."""
        connection, self._connection = self._connection, None
        assert connection is not None and self._pool is not None
        is_relaying = self._phase is _RELAYING
        if connection.is_lost:
            not_read_s = self._not_read_s() if is_relaying else 0.0
            reason, detail = blame.of_a_lost_connection((reason, detail), self._not_sent_s(), not_read_s)
        if is_relaying:
            self._cut(reason, detail)
            return
        was_dead = connection.served > 0 and not connection.has_spoken and reason is not Reason.CLIENT_TIMEOUT
        if was_dead:
            self._pool.distrust(connection, self._started)
        self._failed((reason, detail), was_sent=True, is_free=was_dead and self.exchange.attempts == 1)

    def _failed(self, failure: blame.Failure, *, was_sent: bool, is_free: bool = False) -> None:
        """Another attempt, or the end of all.

        is_free: the connection died idle, before it saw the request: once more on another is free, and only once. A
        byte of an answer shows that it did see it.
        """
        retries = self._retries = self._retries or Retries(self._context, self.exchange)
        retries.failure = failure
        retries.end()
        may_follow = retries.may_follow(failure[0], self.deadline, was_sent=was_sent, is_free=is_free)
        if self._body is None or not may_follow:
            self._give_up(*failure)
        elif is_free:
            self._note_failure()
            self._attempt(is_new=True)
        else:
            retries.later(self._attempt_again)

    def _attempt_again(self) -> None:
        if self._phase is not _WAITING:
            return
        exchange, now = self.exchange, time.monotonic()
        self._note_failure()
        if self._goes_elsewhere(now):
            if self._is_body_complete or self._may_upload(now):
                self._attempt()
        elif permits.may_ask_again(exchange):
            self._attempt()
        else:
            self._not_tried(Reason.BREAKER_OPEN, "the circuit has opened")

    def _note_failure(self) -> None:
        """It stays in the row if the next attempt goes well."""
        assert self._failure is not None
        self.exchange.error_message = f"attempt {self.exchange.attempts} failed: {self._failure[1]}"

    def _goes_elsewhere(self, now: float) -> bool:
        """Where another target may be asked, it is; how the one before it failed says nothing about it."""
        assert self._retries is not None and self._retries.failure is not None
        reason, _ = self._retries.failure
        if not self.exchange.pipeline.another_target(self.exchange, reason, now):
            return False
        self._retries.failure = None
        if self._pool is not None and not self._is_body_complete:
            self._pool.upload_ends(self)
        self._pool = self._aim()
        return True
