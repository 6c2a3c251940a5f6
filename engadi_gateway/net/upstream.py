"""A connection to an upstream: bytes in, one reply at a time out to whoever holds it.

States: IDLE in the pool, HEAD while the reply's head is awaited, BODY, SPLICED after a 101, CLOSED. Anything that an
upstream sends while IDLE is a fault of its own: the connection is closed and never used again.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from enum import Enum, auto
from typing import cast

from engadi_gateway.errors import Reason
from engadi_gateway.model import Framing
from engadi_gateway.net.holders import Owner, Taker, User
from engadi_gateway.net.last_words import how_it_ended, is_end_said, last_words
from engadi_gateway.net.sockets import bound
from engadi_gateway.wire.chunked import STEPS_AT_ONCE, ChunkedDecoder, MalformedBodyError
from engadi_gateway.wire.response import MalformedReplyError, ReplyHead, ReplyParser

_START = b"HTTP/1."
_LENGTH, _CHUNKED, _NO_BODY = Framing.LENGTH, Framing.CHUNKED, Framing.NONE


class State(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    SPLICED = auto()
    CLOSED = auto()


#: A member of an enumeration costs 45 ns each time that it is looked up in its class, and a request asks for twenty.
_IDLE, _HEAD, _BODY, _SPLICED, _CLOSED = State


class UpstreamConnection(asyncio.Protocol):
    """One connection. `served` counts the requests it carried before the present one; `tls` is what it trusts."""

    tls: ssl.SSLContext | None = None
    is_lost = False  # it ended from outside, and not because of what it said
    _lost_by: Exception | None = None  # of which its user is told when all that came before was read
    _taker: Taker | None = None  # in its user's place after a 101

    def __init__(self, owner: Owner, max_head_bytes: int) -> None:
        self.owner = owner
        self.state = _IDLE
        self.served = 0
        self.idle_since = 0.0
        self.user: User | None = None
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._poll = select.poll()
        self._max_head_bytes = max_head_bytes
        self._parser: ReplyParser | None = None
        self._buffer = b""
        self._method = ""
        self._reply: ReplyHead | None = None
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._is_request_complete = False
        self._has_spoken = False
        self._is_paused = False  # by its user
        self._is_reading = True
        self._held = b""  # of a chunked body: it came, and waits for its turn
        self._is_turn_planned = False

    # what the pool asks

    def is_fresh(self) -> bool:
        """Neither stray bytes nor an end in the socket: asked right before each reuse (one poll, 0.6 us)."""
        return not self._poll.poll(0) and self.is_open

    @property
    def is_open(self) -> bool:
        """Nothing came that nobody asked for, as far as it was read."""
        return self.state is _IDLE and not self.transport.is_closing()

    @property
    def has_spoken(self) -> bool:
        """Whether anything came in answer to the present request."""
        return self._has_spoken or bool(self._buffer)

    @property
    def holds_reply(self) -> bool:
        """More of the reply is here: there is no silence."""
        return bool(self._held)

    # what the user does

    def begin(self, user: User, parser: ReplyParser, method: str, data: bytes, *, is_complete: bool) -> None:
        """Send a request's head with what there is of its body."""
        self.user = user
        self.state = _HEAD
        self._parser = parser
        self._method = method
        self._reply = None
        self._decoder = None
        self._has_spoken = False
        self._is_request_complete = is_complete
        self.transport.write(data)

    def send(self, data: bytes) -> None:
        if not self.is_lost:
            self.transport.write(data)

    def request_complete(self) -> None:
        """The request's last byte was written. A reply that ended before that cannot be followed by another."""
        self._is_request_complete = True

    def pause_reading(self) -> None:
        """Its user takes no more for now."""
        self._is_paused = True
        self._set_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if self._held:
            self._plan_turn()
        else:
            self._set_reading()

    def _set_reading(self) -> None:
        """As its user, and what is held, let it."""
        is_reading = not self._is_paused and not self._held
        if is_reading is not self._is_reading and not self.transport.is_closing():
            self._is_reading = is_reading
            if is_reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def splice(self, taker: Taker) -> None:
        """Whatever comes is for that one from now on."""
        self.user = None
        self._taker = taker
        self.state = _SPLICED
        self.owner.let_go(self)

    def drop(self) -> None:
        """Give up on this connection; its user hears nothing more."""
        self.user = self._taker = None
        self._close()

    def close_gracefully(self, within_s: float) -> None:
        """Flush, then close; for the end of a splice. An upstream that does not read is waited for so long."""
        self._taker = None
        self.state = _CLOSED
        self.transport.close()
        asyncio.get_running_loop().call_later(within_s, self.transport.abort)

    def _close(self) -> None:
        if self.state is not _CLOSED:
            self.state = _CLOSED
            self.transport.abort()

    # what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        bound(transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self.state is _HEAD:
            self._head_bytes(data)
        elif self.state is _BODY:
            self._body_bytes(data)
        elif self._taker is not None:
            self._taker.spliced(data)
        else:
            self._close()

    def eof_received(self) -> bool:
        """It says no more, and may read no more: what is unsent would be waited for before anybody was told.

        A spliced one may have said its last word, and still listen.
        """
        if self.user is not None:
            self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.user is not None and not self._is_paused:
            self._hear_last_words()
        self.is_lost = True
        self.owner.forget(self)
        if self._held and self._reply is not None:
            self._reply.is_reusable = False
            self._lost_by = exc
        else:
            self._tell_lost(exc)

    def _tell_lost(self, exc: Exception | None) -> None:
        state, self.state = self.state, _CLOSED
        user, self.user = self.user, None
        taker, self._taker = self._taker, None
        if taker is not None:
            taker.upstream_gone(how_it_ended(exc))
        if user is None:
            return
        if state is _HEAD:
            user.reply_failed(Reason.UPSTREAM_CLOSED, f"{how_it_ended(exc)} before the reply's head")
        elif state is _BODY and self._is_end_of_body(exc):
            user.reply_body(b"", True)
        elif state is _BODY:
            user.reply_failed(Reason.UPSTREAM_TRUNCATED, f"{how_it_ended(exc)} within the reply's body")

    def _hear_last_words(self) -> None:
        self._is_request_complete = False  # whatever else it was, this one is not used again
        for data in last_words(self.transport):
            self.data_received(data)
            if self.user is None or self._is_paused:
                return

    def _is_end_of_body(self, exc: Exception | None) -> bool:
        """Whether the connection's end is the body's."""
        is_to_close = self._reply is not None and self._reply.framing is Framing.CLOSE
        return exc is None and is_to_close and is_end_said(self.transport)

    def pause_writing(self) -> None:
        told = self.user or self._taker
        if told is not None:
            told.upstream_paused()

    def resume_writing(self) -> None:
        told = self.user or self._taker
        if told is not None:
            told.upstream_resumed()

    # the reply

    def _head_bytes(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n") + 4
        if end < 4 or end > self._max_head_bytes:
            self._buffer = buffer
            fault = self._head_fault(buffer)
            if fault:
                self._fail(Reason.UPSTREAM_INVALID, fault)
            return
        self._buffer = b""
        assert self._parser is not None
        try:
            reply = self._parser.parse(buffer[:end], self._method)
        except MalformedReplyError as error:
            self._fail(Reason.UPSTREAM_INVALID, str(error))
            return
        if reply.status < 200:
            self._interim(reply, buffer[end:])
        else:
            self._begin_body(reply, buffer[end:])

    def _head_fault(self, buffer: bytes) -> str:
        """Why an unfinished head can never become a good one, or "": nobody should wait for its end."""
        if len(buffer) > self._max_head_bytes:
            return "reply head too large"
        if buffer.count(b"\n") != buffer.count(b"\r\n"):
            return "line end without CR"
        return "" if buffer[:7] == _START[: len(buffer)] else "no status line"

    def _interim(self, reply: ReplyHead, rest: bytes) -> None:
        assert self.user is not None
        self._has_spoken = True
        self.user.reply_interim(reply)
        if rest and self.state is not _CLOSED:
            self.data_received(rest)

    def _begin_body(self, reply: ReplyHead, data: bytes) -> None:
        assert self.user is not None
        self._reply = reply
        user = self.user
        if len(data) == reply.content_length and reply.framing is _LENGTH:  # the usual one: all of it has come
            self._ended()
            user.reply_head(reply, data, True)
            return
        self.state = _BODY
        if reply.framing is _LENGTH:
            self._left = reply.content_length
        elif reply.framing is _CHUNKED:
            self._decoder = ChunkedDecoder()
        try:
            body, is_end = self._decode(data)
        except MalformedBodyError as error:
            self._fail(Reason.UPSTREAM_INVALID, str(error))
            return
        if is_end:
            self._ended()
        user.reply_head(reply, body, is_end)

    def _body_bytes(self, data: bytes) -> None:
        if self._held:
            self._held += data
            return
        try:
            body, is_end = self._decode(data)
        except MalformedBodyError:
            self._fail(Reason.UPSTREAM_TRUNCATED, "malformed chunked body")
            return
        user = self.user
        if is_end:
            self._ended()
        if user is not None:
            user.reply_body(body, is_end)

    def _decode(self, data: bytes) -> tuple[bytes, bool]:
        """Body bytes and whether the body ended; bytes after it mean that the connection is not used again."""
        reply = self._reply
        assert reply is not None
        if reply.framing is _LENGTH:
            left = self._left - len(data)
            self._left = left
            if left > 0:
                return data, False
            if left < 0:
                reply.is_reusable = False
                data = data[:left]
            return data, True
        if reply.framing is _CHUNKED:
            assert self._decoder is not None
            body, rest = self._decoder.feed(data, STEPS_AT_ONCE)
            is_end = self._decoder.is_complete
            if rest and is_end:
                reply.is_reusable = False
            elif rest:
                self._hold(rest)
            return body, is_end
        if reply.framing is _NO_BODY:
            if data:
                reply.is_reusable = False
            return b"", True
        return data, False

    def _hold(self, rest: bytes) -> None:
        """What would hold everybody up waits for its turn, and the socket with it."""
        self._held = rest
        self._set_reading()
        self._plan_turn()

    def _plan_turn(self) -> None:
        if not self._is_turn_planned and self.user is not None:
            self._is_turn_planned = True
            self.user.later(self._take_turn)

    def _take_turn(self) -> None:
        self._is_turn_planned = False
        if self._is_paused or not self._held or self.state is not _BODY:
            return
        held, self._held = self._held, b""
        try:
            self._body_bytes(held)
        except Exception:
            self._fail(Reason.INTERNAL, "a fault within the reply's body")
            raise
        if self._held:
            return
        if self.is_lost:
            self._tell_lost(self._lost_by)
        else:
            self._set_reading()

    def _ended(self) -> None:
        """Back to the pool, or closed. Before the user hears of the end: it may ask for a connection at once.

        Not to the pool while the request is still on its way: who answers early may not read the rest as its body.
        """
        assert self._reply is not None
        self.user = None
        is_sent = self._is_request_complete and not self.transport.get_write_buffer_size()
        if self._reply.is_reusable and is_sent:
            if not self._is_reading:
                self.resume_reading()  # a client too slow for 1xx is nothing to the next one
            self.state = _IDLE
            self.served += 1
            self.owner.give_back(self)
        else:
            self._close()

    def _fail(self, reason: Reason, detail: str) -> None:
        user, self.user = self.user, None
        self._close()
        if user is not None:
            user.reply_failed(reason, detail)
