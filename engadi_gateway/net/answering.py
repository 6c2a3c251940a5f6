"""What a client's connection says of its own, and how an exchange ends on it: the answer, the next request, or a cut.

Each exchange is settled exactly once. Once a client has seen a part of an answer nothing else can be said: it is cut.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod

from engadi_gateway.errors import Reason, Refusal, rendered
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.context import Context, LocalReply, Switched
from engadi_gateway.net.endable import State
from engadi_gateway.net.receiving import Receiving
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.wire.problem import own_reply, refusal_reply
from engadi_gateway.wire.request import asks_for_head

#: Pipelined requests beyond this stay in the socket until those before them are answered.
MAX_PIPELINED_BYTES = 65536
_HEAD, _LINGER, _CLOSED = State.HEAD, State.LINGER, State.CLOSED


class Answering(Receiving):
    """See the module."""

    # what most never change; on the class, for more attributes than thirty make an object's all slower (CPython)
    _splice: Switched | None = None  # in its handler's place after a 101
    _deciding: asyncio.Task[None] | None = None

    def __init__(self, context: Context, batch: Batch) -> None:
        super().__init__(context, batch)
        self._is_closing = False
        self._is_write_paused = False

    @abstractmethod
    def _next(self) -> None:
        """The reply was taken: the next request's turn."""

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
            self._set_reading(len(self._buffer) <= MAX_PIPELINED_BYTES)
        if self._is_write_paused:
            self._expire_in(self._context.timeouts.write_s)
        elif self._buffer:
            self._next()
        else:
            self._context.idle.add(self, exchange.ended)

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

    def finish_splice(self) -> None:
        """The upstream closed: flush to the client, then close."""
        self._splice = None
        self._settle()
        self._finish(is_clean=True)

    # cut short

    def abort(self) -> None:
        """Cut: the client must see that it is not whole."""
        self._handler = self._splice = None
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
        if self._splice is not None:
            self._splice.crashed()
        if exchange.upstream_status or exchange.status not in {0, Reason.INTERNAL.status}:
            self.abort()
            return
        self._handler = None
        self.refuse(exchange, Refusal(Reason.INTERNAL))

    def cut(self) -> bool:
        """The end of the drain's patience; whether a request was under way. Where nothing was answered, 503 is."""
        exchange, handler, splice = self._exchange, self._handler, self._splice
        if splice is not None:
            self._splice = None
            splice.ended_here("the gateway had to stop", Reason.DRAINING)
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
