"""A client's connection: bytes in, requests out in order, replies back in the same order.

States: HEAD between requests and while one's head comes; DECIDING while a stage waits; BODY while the request's body
comes; REPLY once it is complete and the answer is awaited (what is pipelined stays in the buffer); SPLICED after a 101;
LINGER when the last answer was sent and what still comes is thrown away, so that no reset eats the answer (RFC 9112
section 9.6); CLOSED. One exchange is under way at a time, and each is settled exactly once.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from engadi_gateway.errors import Reason, Refusal, RefusedError
from engadi_gateway.model import Listener, RequestHead
from engadi_gateway.net.answering import MAX_PIPELINED_BYTES, Answering
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.context import Context, Switched
from engadi_gateway.net.endable import State
from engadi_gateway.net.forward import Forward
from engadi_gateway.net.local import LocalCall
from engadi_gateway.net.sockets import bound
from engadi_gateway.pipeline.exchange import Exchange, Wait
from engadi_gateway.wire.forwarded import (
    Client,
    given_request_id,
    is_last_hop,
    is_loop,
    resolve_client,
)
from engadi_gateway.wire.request import (
    SHORT_BYTES,
    RefusedHeadError,
    asks_for_head,
    first_head,
    parse_head,
    takes_long,
    without_blank_lines,
)

_LINGER_BYTES = 65536
_MAX_WAITS = 3


#: A member of an enumeration costs 45 ns each time that it is looked up in its class, and a request asks for twenty.
_HEAD, _DECIDING, _BODY, _REPLY, _SPLICED, _LINGER, _CLOSED = State


class ClientConnection(Answering):
    """See the module. `connections` is the set of all, for the drain."""

    is_made = False
    _lingered = 0  # bytes

    def __init__(
        self, context: Context, batch: Batch, listener: Listener, connections: set[ClientConnection], peer: str
    ) -> None:
        super().__init__(context, batch)
        self._listener = listener
        self._connections = connections
        self._peer = peer
        self._who: Client | None = None
        self._told: bytes | None = None  # the authority that `_who` is of, where that is all it depends on
        self._head: RequestHead | None = None  # that was read last; None: it could not be
        self._refused_head: Refusal | None = None

    # what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context = self._context
        self._transport = cast(asyncio.Transport, transport)
        bound(transport)
        self.is_made = True
        self._connections.add(self)
        if self.refused:
            context.upcalls.unreadable(Reason.OVERLOADED)
            self._answer_unread(Refusal(Reason.OVERLOADED, self.refused))
            return
        context.idle.add(self, time.monotonic())

    def data_received(self, data: bytes) -> None:
        if self.state is _HEAD:
            buffer = self._buffer = self._buffer + data if self._buffer else data
            if self._is_write_paused:  # no further request until the replies before it were read
                self._set_reading(len(buffer) <= MAX_PIPELINED_BYTES)
            elif len(buffer) > SHORT_BYTES:
                if len(buffer) > MAX_PIPELINED_BYTES:
                    self._set_reading(False)
                self._queue(is_long=takes_long(buffer))
            elif not self._is_queued:
                self._is_queued = True
                self._batch.add(self)
            return
        try:
            self._more(data)
        except Exception:  # a fault of ours is a 500 for this client, and nobody else notices
            self._context.upcalls.fault("request body")
            self.crash()

    def _more(self, data: bytes) -> None:
        state = self.state
        if state is _BODY:
            self._body_bytes(data)
        elif state is _SPLICED:
            assert self._splice is not None
            self._splice.up(data)
        elif state is _LINGER:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:  # enough; to close on it would take the answer back
                self._set_reading(False)
        else:
            self._buffer += data
            if len(self._buffer) > MAX_PIPELINED_BYTES:
                self._set_reading(False)

    def eof_received(self) -> bool:
        """A client that closed its side has left, as nginx sees it; a spliced one may have said its last word.

        It may still read, and a reply that only the connection's end ends must not look whole to it.
        """
        if self._exchange is not None and self.ends_by_closing:
            self._break_off(is_partial=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        state, self.state = self.state, _CLOSED
        context = self._context
        self._connections.discard(self)
        self._leave_queues()
        context.closing.discard(self)
        context.unread.discard(self)
        self.leave_seat()
        handler, self._handler = self._handler, None
        splice, self._splice = self._splice, None
        if self._deciding is not None:
            self._deciding.cancel()
        if splice is not None:
            splice.ended_here("reset by the client" if exc is not None else "closed by the client")
        if handler is not None:
            handler.client_gone()
        if self._exchange is not None:
            if state is not _SPLICED:
                self._exchange.reason = Reason.CLIENT_CLOSED
                self._exchange.status = Reason.CLIENT_CLOSED.status
            self._settle()

    def pause_writing(self) -> None:
        self._is_write_paused = True
        told = self._handler or self._splice
        if told is not None:
            told.client_paused()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        told = self._handler or self._splice
        if told is not None:
            told.client_resumed()
        elif self.state is _HEAD:
            self._context.closing.discard(self)
            self._next()

    # one head

    def _queue(self, *, is_long: bool) -> None:
        if not self._is_queued:
            self._is_queued = True
            (self._batch.add_long if is_long else self._batch.add)(self)

    def _next(self) -> None:
        if self._buffer:
            self._queue(is_long=True)  # pipelined: it has had its share
        else:
            self._context.idle.add(self, time.monotonic())

    def read_head(self, now: float) -> bool:
        """Parse one head; whether there is something to decide on."""
        self._is_queued = False
        if self.state is not _HEAD:
            return False
        buffer, context = self._buffer, self._context
        if buffer[:1] == b"\r":
            buffer = self._buffer = without_blank_lines(buffer)
        raw = None
        try:
            raw = first_head(buffer, context.head_limits)
            if raw is None:
                self._await_head(now)
                return False
            self._buffer = b"" if raw is buffer else buffer[len(raw) :]
            self._head, self._body = parse_head(raw, context.head_limits, context.header_policy, context.max_body_bytes)
        except RefusedHeadError as error:
            self._head, self._refused_head = error.head, error.refusal
        except RefusedError as error:
            self._head, self._refused_head = None, error.refusal
            self._is_head_asked = asks_for_head(raw or buffer)
        return True

    def decide(self, now: float, wall: float) -> bool:
        """Begin the exchange, and let the stages decide; whether there is something to act on."""
        context, head, refusal = self._context, self._head, self._refused_head
        if head is None:
            return True
        self._refused_head = None
        context.idle.discard(self)
        if self._is_head_awaited:
            self._is_head_awaited = False
            context.heads.discard(self)
        self._requests += 1
        if context.trusted or head.authority != self._told:  # a connection mostly asks for one host
            self._who = resolve_client(self._peer, self._listener, head, context.trusted)
            self._told = None if context.trusted else head.authority
        who = self._who
        assert who is not None
        pipeline = context.admin_pipeline if self._listener.is_admin else context.pipeline
        request_id = given_request_id(self._peer, head, context.trusted) or context.ids.next()
        exchange = self._exchange = Exchange(head, request_id, now, wall, pipeline)
        exchange.client_ip = who.address
        exchange.reply_lines.append(exchange.id_line)
        self.state = _DECIDING
        if refusal is not None or is_loop(head, context.instance):
            exchange.refusal = refusal or Refusal(Reason.LOOP)
        wait = pipeline.decide(exchange)
        if wait is not None:
            self._deciding = context.spawn(self._decide_later(wait), "identity")
            return False
        return True

    def _await_head(self, now: float) -> None:
        """The head's time runs from its first byte to its end, and not per read."""
        context = self._context
        if not self._buffer:  # empty lines are nothing, and no time begins anew by them
            if not self._is_head_awaited and self not in context.idle:
                context.idle.add(self, now)
            return
        self._set_reading(True)  # a head may be longer than what pipelined requests may fill
        if not self._is_head_awaited:
            self._is_head_awaited = True
            context.idle.discard(self)
            context.heads.add(self, now)

    async def _decide_later(self, wait: Wait | None) -> None:
        exchange = self._exchange
        assert exchange is not None
        try:
            for _ in range(_MAX_WAITS):
                if wait is None:
                    break
                exchange.remote_verdict = await self._context.upcalls.judge(exchange, wait)
                exchange.waited(time.monotonic())
                wait = exchange.pipeline.decide(exchange)
            if wait is not None:
                exchange.refusal = Refusal(Reason.AUTH_UNAVAILABLE)
            self._deciding = None
            if self.state is _DECIDING:
                self.act()
        except Exception:
            self._deciding = None
            self._context.upcalls.fault("identity")
            self.crash()

    def act(self) -> None:
        """Refuse, or hand on to who serves it."""
        if self._refused_head is not None:
            refusal, self._refused_head = self._refused_head, None
            self._context.upcalls.unreadable(refusal.reason)
            self._answer_unread(refusal)
            return
        exchange = self._exchange
        if exchange is None or self.state is not _DECIDING:
            return
        if exchange.refusal is not None:
            self.refuse(exchange, exchange.refusal)
            return
        head = exchange.head
        if is_last_hop(head):
            self.refuse(exchange, Refusal(Reason.OPTIONS))
            return
        body, is_complete = b"", True
        if self._body is not None:
            try:
                body, is_complete = self._first_body(self._body)
            except RefusedError as error:
                self.refuse(exchange, error.refusal)
                return
        self.state = _REPLY if is_complete else _BODY
        if not is_complete:
            self._await_body()
        handler = self._handler = (LocalCall if exchange.is_local else Forward)(self._context, self, exchange)
        if self._is_write_paused:
            handler.client_paused()
        assert self._who is not None
        handler.start(self._who, body, is_complete=is_complete)
        is_awaited = self.state is _BODY and self._handler is handler and not body
        if is_awaited and b"expect" in head.notes and not head.is_http10:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # upgrades

    def switched(self, splice: Switched) -> None:
        """Bytes up are for that one, instead of the handler."""
        self.state = _SPLICED
        self._handler, self._splice = None, splice
        self._set_reading(True)  # what came before the 101 may have filled the buffer
        if self._buffer:
            data, self._buffer = self._buffer, b""
            splice.up(data)
