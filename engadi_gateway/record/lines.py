"""Lines to a descriptor that perhaps nobody reads: a thread of its own writes them, and traffic never waits for it.

Past the buffers of `sys.stdout` and `sys.stderr`: a thread that waits inside them holds their locks, which the end of
the interpreter waits for. What finds no room, or cannot be written, is lost and counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

#: Some seconds of access lines at full load.
_MAX_BYTES = 16 * 1024 * 1024
#: As much as an empty pipe takes: of a longer write one only knows at its end how far it came.
_PIECE_BYTES = 65_536
_CLOSING_S = 2.0
_POLL_MS = 100
_NEWLINE = ord("\n")


def descriptor_of(*streams: TextIO | None) -> int | None:
    """That of the first stream that has one. None: it was closed, and its number may be another file's by now."""
    for stream in streams:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if stream is not None:
                return stream.fileno()
    return None


class LineWriter:
    """Takes lines from any thread.

    Args:
        descriptor: stays open; None: all is lost.
        name: the thread's.
        note: makes the line that tells how many were lost so far, in front of the next one there is room for.
        max_bytes: what may wait; a longer piece is taken alone.
    """

    def __init__(
        self,
        descriptor: int | None,
        name: str,
        *,
        note: Callable[[int], str] | None = None,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self._descriptor = descriptor
        self._name = name
        self._note = note
        self._max_bytes = max_bytes
        self._changed = threading.Condition()  # guards all that follows; never held while something is written
        self._thread: threading.Thread | None = None
        self._waiting: deque[bytes] = deque()
        self._rest: bytes | memoryview = b""  # what is being written, without the pieces that were
        self._bytes = 0  # of both
        self._is_closing = False
        self._has_given_up = False
        self._told = 0
        self._is_mid_line = False  # of a line whose rest was lost
        self.lost = 0

    def write(self, data: bytes) -> None:
        """Take whole lines. Never blocks."""
        with self._changed:
            if self._descriptor is None or self._is_closing or not self._has_room(len(data)):
                self._lose(data)
                return
            if self._note is not None and self.lost > self._told:
                self._told = self.lost
                data = f"{self._note(self.lost)}\n".encode() + data
            self._waiting.append(data)
            self._bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=[self._descriptor], name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def _has_room(self, more: int) -> bool:
        return self._bytes == 0 or self._bytes + more <= self._max_bytes

    def _lose(self, data: bytes | memoryview) -> None:
        self.lost += bytes(data).count(b"\n")

    def _run(self, descriptor: int) -> None:
        while self._has_more():
            try:
                count = os.write(descriptor, self._rest[:_PIECE_BYTES])
            except BlockingIOError:  # somebody else made it so
                _wait_for_room(descriptor)
                continue
            except OSError:  # nobody will read it any more, or the disk is full
                self._done(len(self._rest), is_lost=True)
            else:
                self._done(count)

    def _has_more(self) -> bool:
        """Once there is something to write; False at the end."""
        with self._changed:
            while not self._rest and not self._waiting and not self._is_closing:
                self._changed.wait()
            if not self._rest and self._waiting:
                data = self._waiting.popleft()
                self._rest = memoryview(b"\n" + data if self._is_mid_line else data)
                self._bytes += self._is_mid_line
            return len(self._rest) > 0 and not self._has_given_up

    def _done(self, count: int, *, is_lost: bool = False) -> None:
        with self._changed:
            if self._has_given_up:  # and has counted it
                return
            if is_lost:
                self._lose(self._rest)
            else:
                self._is_mid_line = self._rest[count - 1] != _NEWLINE
            self._rest = self._rest[count:]
            self._bytes -= count

    def close(self, within_s: float = _CLOSING_S) -> None:
        """Write what waits; what is not written within so long is lost, for sure or perhaps. Blocking."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(within_s)
        with self._changed:
            if not self._has_given_up:
                self._has_given_up = True
                for data in (self._rest, *self._waiting):
                    self._lose(data)


class _Raw(io.RawIOBase):
    """Hands on whole lines; above a buffer's size, a line and its end come apart."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._begun = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        whole, end, self._begun = (self._begun + bytes(data)).rpartition(b"\n")
        if len(self._begun) > _PIECE_BYTES:  # nobody means to end it
            whole, end, self._begun = whole + end + self._begun, b"\n", b""
        if end:
            self._writer.write(whole + end)
        return len(data)


def stream_to(writer: LineWriter, encoding: str) -> TextIO:
    """A stream in place of `sys.stderr`; each line goes when it is whole."""
    return io.TextIOWrapper(io.BufferedWriter(_Raw(writer)), encoding, "backslashreplace", line_buffering=True)


def _wait_for_room(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll(_POLL_MS)
