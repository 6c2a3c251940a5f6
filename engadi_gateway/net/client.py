"""A client's connection: bytes in, requests out in order, replies back in the same order.

States: HEAD between requests and while one's head comes; DECIDING while a stage waits; BODY while the request's body
comes; REPLY once it is complete and the answer is awaited (what is pipelined stays in the buffer); SPLICED after a 101;
LINGER when the last answer was sent and what still comes is thrown away, so that no reset eats the answer (RFC 9112
section 9.6); CLOSED. One exchange is under way at a time, and each is settled exactly once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

from engadi_gateway.errors import Reason, Refusal, RefusedError, rendered
from engadi_gateway.model import Framing, Listener, RequestHead
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.context import Context, LocalReply
from engadi_gateway.net.endable import Endable, State
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
from engadi_gateway.wire.problem import own_reply, refusal_reply
from engadi_gateway.wire.request import (
    SHORT_BYTES,
    ChunkedBody,
    CountedBody,
    RefusedHeadError,
    asks_for_head,
    first_head,
    parse_head,
    takes_long,
    without_blank_lines,
)

#: Pipelined requests beyond this stay in the socket until those before them are answered.
_MAX_PIPELINED_BYTES = 65536
_LINGER_BYTES = 65536
_MAX_WAITS = 3


#: A member of an enumeration costs 45 ns each time that it is looked up in its class, and a request asks for twenty.
_HEAD, _DECIDING, _BODY, _REPLY, _SPLICED, _LINGER, _CLOSED = State


class ClientConnection(Endable):
    """See the module. `connections` is the set of all, for the drain."""

    is_made = False

    def __init__(
        self, context: Context, batch: Batch, listener: Listener, connections: set[ClientConnection], peer: str
    ) -> None:
        super().__init__(context)
        self._batch = batch
        self._listener = listener
        self._connections = connections
        self._peer = peer
        self._handler: Forward | LocalCall | None = None
        self._who: Client | None = None
        self._told: bytes | None = None  # the authority that `_who` is of, where that is all it depends on
        self._head: RequestHead | None = None  # that was read last; None: it could not be
        self._refused_head: Refusal | None = None
        self._body: ChunkedBody | CountedBody | None = None
        self._is_closing = False
        self._is_write_paused = False
        self._deciding: asyncio.Task[None] | None = None
        self._lingered = 0

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
                self._set_reading(len(buffer) <= _MAX_PIPELINED_BYTES)
            elif len(buffer) > SHORT_BYTES:
                if len(buffer) > _MAX_PIPELINED_BYTES:
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
            assert self._handler is not None
            self._handler.body(data)
        elif state is _LINGER:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:  # enough; to close on it would take the answer back
                self._set_reading(False)
        else:
            self._buffer += data
            if len(self._buffer) > _MAX_PIPELINED_BYTES:
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
        if self._deciding is not None:
            self._deciding.cancel()
        if handler is not None and state is _SPLICED:
            handler.splice_ended_here("reset by the client" if exc is not None else "closed by the client")
        elif handler is not None:
            handler.client_gone()
        if self._exchange is not None:
            if state is not _SPLICED:
                self._exchange.reason = Reason.CLIENT_CLOSED
                self._exchange.status = Reason.CLIENT_CLOSED.status
            self._settle()

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self._handler is not None:
            self._handler.client_paused()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._handler is not None:
            self._handler.client_resumed()
        elif self.state is _HEAD:
            self._context.closing.discard(self)
            self._next()

    # one head

    def _queue(self, *, is_long: bool) -> None:
        if not self._is_queued:
            self._is_queued = True
            (self._batch.add_long if is_long else self._batch.add)(self)

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

    # the body

    def _await_body(self) -> None:
        if self._later:
            self._feed_later_on()
        else:
            self._set_reading(True)  # what came before the decision may have filled the buffer

    def _first_body(self, reader: ChunkedBody | CountedBody) -> tuple[bytes, bool]:
        """What of the body is there already, and whether that is all."""
        data, later = reader.share(self._buffer)
        body, rest = reader.feed(data)
        if reader.is_complete:
            self._buffer = rest + later
        else:
            self._buffer, self._later = b"", later
        return body, reader.is_complete

    def _body_bytes(self, data: bytes) -> None:
        if self._later:
            self._later += data
            return
        handler, reader = self._handler, self._body
        assert handler is not None and reader is not None
        data, later = reader.share(data)
        try:
            body, rest = reader.feed(data)
        except RefusedError as error:
            handler.abandon(error.refusal)
            return
        if later and not reader.is_complete:
            self._later = later
            self._feed_later_on()
        if body:
            handler.body(body)
        if reader.is_complete and self._handler is handler:
            self._buffer += rest + later
            self.state = _REPLY
            handler.body_end()

    def _feed_later_on(self) -> None:
        """What would hold everybody up waits for its turn, and the socket with it."""
        self._set_reading(False)
        self._batch.later(self._feed_later)

    def _feed_later(self) -> None:
        if self.state is not _BODY or self.is_upload_paused or not self._later:
            return
        later, self._later = self._later, b""
        self.data_received(later)
        if not self._later and not self.is_upload_paused:
            self._set_reading(True)

    def pause_upload(self) -> None:
        self.is_upload_paused = True
        self._set_reading(False)

    def resume_upload(self) -> None:
        self.is_upload_paused = False
        if self._later:
            self._feed_later_on()
        else:
            self._set_reading(True)

    def later(self, work: Callable[[], None]) -> None:
        self._batch.later(work)

    # the answer

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def closes_after(self, exchange: Exchange, *, is_last: bool) -> bool:
        """Whether the connection ends with this reply; said in its head."""
        context = self._context
        self._is_closing = (
            is_last
            or not exchange.head.keep_alive
            or (context.is_draining and not self._buffer)  # what is here was accepted: it is answered first
            or 0 < context.keep_alive_requests <= self._requests
        )
        if exchange.head.is_http10 and not self._is_closing:
            exchange.reply_lines.append(b"Connection: keep-alive")  # what HTTP/1.0 takes it for is the contrary
        return self._is_closing

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer with a problem; whatever of the body was not read goes with the connection."""
        if self._exchange is not exchange:
            return
        is_clean = self._swallow_body(exchange)
        reason = exchange.reason = refusal.reason
        exchange.status = reason.status
        exchange.error_message = refusal.message or exchange.error_message
        is_closing = self.closes_after(exchange, is_last=reason.closes or not is_clean)
        date = self._context.date_now()
        is_head = exchange.head.method == "HEAD"
        reply_head, body = refusal_reply(
            refusal, exchange.request_id, exchange.reply_lines, date, is_head=is_head, is_closing=is_closing
        )
        exchange.bytes_out = len(body)
        self._transport.write(reply_head + body)
        self.exchange_done(exchange, is_clean=is_clean)

    def answer(self, exchange: Exchange, reply: LocalReply) -> None:
        """Answer with what a local target said."""
        if self._exchange is not exchange or self._transport.is_closing():
            return  # the client has left, of which we are told next
        exchange.status = reply.status
        is_closing = self.closes_after(exchange, is_last=False)
        is_head = exchange.head.method == "HEAD"
        lines = exchange.reply_lines + rendered(reply.lines)
        date = self._context.date_now()
        head, body = own_reply(reply.status, lines, reply.body, date, is_head=is_head, is_closing=is_closing)
        exchange.bytes_out = len(body)
        self._transport.write(head + body)
        self.exchange_done(exchange, is_clean=True)

    def _swallow_body(self, exchange: Exchange) -> bool:
        """Whether the request is behind us: a body that came whole with its head is thrown away."""
        if self.state is _REPLY:
            return True
        if self.state is _DECIDING:
            if self._body is None:  # there is none, or nobody knows how it ends
                return exchange.head.framing is Framing.NONE
            try:
                return self._first_body(self._body)[1]
            except RefusedError:
                return False
        return False

    def exchange_done(self, exchange: Exchange, *, is_clean: bool) -> None:
        """The reply is written: settle, then the next request, or the end."""
        if self._exchange is not exchange:
            return
        self._handler = None
        self._settle()
        if self._is_closing or not is_clean:
            self._finish(is_clean=is_clean)
            return
        self.state = _HEAD
        self._body = None
        self.is_upload_paused = False
        if not self._is_reading:
            self._set_reading(len(self._buffer) <= _MAX_PIPELINED_BYTES)
        if self._is_write_paused:
            self._expire_in(self._context.timeouts.write_s)
        elif self._buffer:
            self._queue(is_long=True)  # pipelined: it has had its share
        else:
            self._context.idle.add(self, exchange.ended)

    def _next(self) -> None:
        if self._buffer:
            self._queue(is_long=True)
        else:
            self._context.idle.add(self, time.monotonic())

    def _settle(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.ended = time.monotonic()
            self._context.upcalls.settled(exchange)

    def _answer_unread(self, refusal: Refusal) -> None:
        """Answer what never became an exchange."""
        date, request_id = self._context.date_now(), self._context.ids.next()
        lines = [b"X-Request-ID: " + request_id.encode("ascii")]
        is_head = self._is_head_asked
        reply = refusal_reply(refusal, request_id, lines, date, is_head=is_head, is_closing=True)
        self._transport.write(b"".join(reply))
        self._finish(is_clean=False)

    def abort(self) -> None:
        """Cut: the client must see that it is not whole."""
        self._handler = None
        self._settle()
        if self.state is not _CLOSED:
            self.state = _LINGER
            self._break_off(is_partial=True)

    def crash(self) -> None:
        """An exception of ours: one 500 for this request, and nobody else notices."""
        try:
            self._answer_crash()
        except Exception:
            self._context.upcalls.fault("the answer to a fault")
            self.abort()

    def _answer_crash(self) -> None:
        exchange, handler = self._exchange, self._handler
        if exchange is None:
            self._answer_unread(Refusal(Reason.INTERNAL))
            return
        if handler is not None:
            handler.client_gone()
        if exchange.upstream_status or exchange.status not in {0, Reason.INTERNAL.status}:
            self.abort()
            return
        self._handler = None
        self.refuse(exchange, Refusal(Reason.INTERNAL))

    # upgrades

    def switched(self) -> None:
        self.state = _SPLICED
        self._set_reading(True)  # what came before the 101 may have filled the buffer
        if self._buffer and self._handler is not None:
            data, self._buffer = self._buffer, b""
            self._handler.body(data)

    def finish_splice(self) -> None:
        """The upstream closed: flush to the client, then close."""
        self._handler = None
        self._settle()
        self._finish(is_clean=True)

    # waits and the drain

    def cut(self) -> bool:
        """The end of the drain's patience; whether a request was under way. Where nothing was answered, 503 is."""
        exchange, handler = self._exchange, self._handler
        if self.state is _SPLICED and handler is not None:
            self._handler = None
            handler.splice_ended_here("the gateway had to stop", Reason.DRAINING)
            self._settle()
            self._break_off(is_partial=True)
            return False
        refusal = Refusal(Reason.DRAINING, "not answered before the gateway had to stop")
        if exchange is None and self._is_whole_head_queued():  # it waits for the log, say
            self._is_head_asked = asks_for_head(self._buffer)
            self._context.upcalls.unreadable(refusal.reason)
            self._answer_unread(refusal)
            self._transport.close()
            return True
        if exchange is None:
            self._break_off(is_partial=self._transport.get_write_buffer_size() > 0)
            return False
        if self._deciding is not None:
            self._deciding.cancel()
        if handler is not None:
            handler.client_gone()
        self._handler = None
        if exchange.status:
            exchange.reason, exchange.error_message = refusal.reason, refusal.detail
            self.abort()
        else:
            self.refuse(exchange, refusal)
            self._transport.close()
        return True
