"""What a client's connection does while nothing is under way on it: it waits, makes room for others, lingers, and goes.

The last answer is lingered over (RFC 9112 section 9.6): our side is closed, what still comes is thrown away for two
seconds, and whoever still reads has the time for it; to close with something unread would be a reset, and take the
answer back. A connection that waits is in one queue, `idle`, `heads` or `lingers`; one whose client does not read is in
`closing` instead, with a deadline of its own.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import abstractmethod
from enum import Enum, auto
from typing import cast

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.net.context import Context
from engadi_gateway.net.sockets import break_off, has_unread, taken_mark, unread_bytes
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.wire.request import HEAD_END, asks_for_head

#: What the kernel counts as not read once our side is closed, though nothing is left of what was written.
_FIN_BYTES = 1


class State(Enum):
    """Of a client's connection: `net.client` says what each means."""

    HEAD = auto()
    DECIDING = auto()
    BODY = auto()
    REPLY = auto()
    SPLICED = auto()
    LINGER = auto()
    CLOSED = auto()


_HEAD, _SPLICED, _LINGER, _CLOSED = State.HEAD, State.SPLICED, State.LINGER, State.CLOSED


class Endable(asyncio.Protocol):
    """See the module. `seat` is whose share of the seats it has; `refused`, why there is none for it."""

    seat: str | None = None
    refused = ""
    _taken_mark = 0
    _requests_then = 0
    _is_head_asked = False  # by what is no whole request

    def __init__(self, context: Context) -> None:
        self._context = context
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.state = _HEAD
        self._buffer = b""  # never changed in place: most requests come whole, and are read where they are
        self._later = b""
        self._exchange: Exchange | None = None
        self._requests = 0
        self._is_queued = False
        self._is_head_awaited = False
        self._is_reading = True
        self.is_upload_paused = False
        self.ends_by_closing = False
        self.deadline = math.inf

    @abstractmethod
    def _answer_unread(self, refusal: Refusal) -> None:
        """Answer what never became an exchange."""

    # waiting

    def leave_seat(self) -> None:
        seat, self.seat = self.seat, None
        if seat is not None:
            self._context.seats.leave(seat)

    def _wait_in_queue(self, now: float) -> None:
        queue = self._context.heads if self._is_head_awaited else self._context.idle
        queue.discard(self)
        queue.add(self, now)

    def _leave_queues(self) -> None:
        for queue in (self._context.lingers, self._context.idle, self._context.heads):
            queue.discard(self)
        self._context.lingering.discard(self)

    def timed_out(self, now: float) -> None:
        """The queue of heads, or of the idle, found this one late: 408 where a head had begun, else just close."""
        if self.state is _LINGER:
            self._lingered_out()
        if self.state is not _HEAD:
            return
        if self._is_whole_head_queued():
            self._wait_in_queue(now)
        elif self._buffer:
            self._is_head_asked = asks_for_head(self._buffer)
            self._context.upcalls.unreadable(Reason.CLIENT_TIMEOUT)
            self._answer_unread(Refusal(Reason.CLIENT_TIMEOUT))
        elif not self.close_if_idle():
            self._context.idle.add(self, now)

    def close_if_idle(self) -> bool:
        """Whether nothing is under way here, so that it was closed. A request in the socket would be lost by that."""
        if self.state is not _HEAD or self._buffer or has_unread(self._transport):
            return False
        self._leave_queues()
        self._close()
        return True

    @property
    def is_gone(self) -> bool:
        return self.state is _CLOSED

    def _is_whole_head_queued(self) -> bool:
        """A request that waits for its turn, and not for its client."""
        return self._is_queued and HEAD_END in self._buffer

    def give_way(self) -> bool:
        """Whether this one goes for somebody else: the idle lose nothing, and an unfinished head is no request yet.

        Who has not read all leaves the queue, and has its time for that: it must not stand before those who would go.
        """
        if self.state is _LINGER and self.unread_bytes() <= _FIN_BYTES:
            self._leave_queues()
            self.leave_seat()
            self._transport.abort()
            return True
        if self.state is _LINGER or (self.state is _HEAD and self._transport.get_write_buffer_size()):
            self._leave_queues()
            self._expire_in(self._context.timeouts.write_s)
            return False
        if self.state is not _HEAD or self._is_whole_head_queued():
            return False
        if not self._buffer and has_unread(self._transport):
            return False
        if self._buffer:
            self._context.upcalls.unreadable(Reason.OVERLOADED)
        self._leave_queues()
        self.leave_seat()
        self.state = _LINGER
        self._transport.abort()
        return True

    # its client

    def _set_reading(self, is_reading: bool) -> None:
        if is_reading != self._is_reading and self.state is not _CLOSED:
            self._is_reading = is_reading
            if is_reading:
                self._context.unread.discard(self)
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
                self._context.unread.add(self, self._transport)

    def peer_left(self, *, is_reset: bool) -> None:
        """It is not read, and so would not be told: whoever has left gets no answer, and costs nobody more.

        In a splice an orderly end is only the last word, and what stands before it is read when there is room for it.
        """
        if is_reset or self.state is not _SPLICED:
            self._break_off(is_partial=self._exchange is not None or self._transport.get_write_buffer_size() > 0)

    def unread_bytes(self) -> int:
        return unread_bytes(self._transport)

    def taken_mark(self) -> int:
        return taken_mark(self._transport)

    # the end

    def _finish(self, *, is_clean: bool) -> None:
        """Close; where bytes of the client may still be on their way, half-close and read them off first."""
        self._leave_queues()
        if self.state is _CLOSED:
            return
        self.state = _LINGER
        has_more = bool(self._buffer)
        self._buffer = b""
        self._later = b""
        self.is_upload_paused = False
        self._set_reading(True)
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            elif is_clean and not has_more:
                self._transport.close()  # TLS says itself that it is the end, and reads on
        except OSError:  # the client has reset it, which the loop has not told us yet
            self._transport.abort()
        if self.refused:  # it has no seat to give
            self._expire_in(self._context.timeouts.linger_s)
        else:
            self._context.lingers.add(self, time.monotonic())
            self._context.lingering.add(self)

    def _close(self) -> None:
        """Flush what there is, then close."""
        self.state = _LINGER
        self._transport.close()
        self._expire_in(self._context.timeouts.write_s)

    def _lingered_out(self) -> None:
        """Whoever still reads has the time for it."""
        if self.unread_bytes() > _FIN_BYTES:
            self._expire_in(self._context.timeouts.write_s)
        else:
            self._break_off(is_partial=False)

    def _expire_in(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self._taken_mark = self.taken_mark()
        self._requests_then = self._requests
        self._context.closing.add(self)

    def expired(self, now: float) -> None:
        """Did not read what was written."""
        if self._exchange is not None or (self.state is _HEAD and not self._transport.get_write_buffer_size()):
            self._context.closing.discard(self)  # it did, or has asked again
            if self._exchange is None and not self._is_queued:
                self._wait_in_queue(now)
        elif self._requests != self._requests_then or self._reads_on():
            self._expire_in(self._context.timeouts.write_s)
        else:
            self._context.closing.discard(self)
            self._break_off(is_partial=self._transport.get_write_buffer_size() > 0)

    def _reads_on(self) -> bool:
        """Slowly, but it reads, and there is something left to read."""
        return self.unread_bytes() > _FIN_BYTES and self.taken_mark() != self._taken_mark

    def _break_off(self, *, is_partial: bool) -> None:
        """Close at once; by a reset where an orderly close would look like the end of the reply (HTTP/1.0)."""
        break_off(self._transport, is_reset=is_partial and self.ends_by_closing)
