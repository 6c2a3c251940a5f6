"""The chunked coding, strictly (RFC 9112 section 7.1): an incremental decoder and the frames we write.

Stricter than most: at most sixteen size digits, CRLF only, bounded extensions and trailers. Trailers are dropped: they
are never merged into headers (RFC 9110 section 6.5).
"""

from __future__ import annotations

import re
import sys

LAST_CHUNK = b"0\r\n\r\n"
#: Lines and data of so many chunks of a reply are read at once, which takes 0.2 ms; a read full of small ones takes 30.
STEPS_AT_ONCE = 2 * 64
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION = rb";[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?[ \t]*" % (_TOKEN, _TOKEN, _QUOTED)
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:(?:%b)+|[ \t]*)" % _EXTENSION)
#: What may still become one.
_SIZE_START = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;[\t\x20-\x7e\x80-\xff]*|[ \t]*)\r?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
#: A trailer that says where the body ends is a mistake, or somebody hopes that it is believed (RFC 9110 section 6.5.1).
_FRAMING = re.compile(rb"(?i:content-length|transfer-encoding):")
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 16384


class MalformedBodyError(Exception):
    """Raised when bytes are no chunked body."""


class ChunkedDecoder:
    """Feed it bytes as they come. `is_complete` once the last chunk and its trailers were read."""

    def __init__(self) -> None:
        self.is_complete = False
        self.chunks = 0
        self._pending = b""  # an unfinished line
        self._left = 0  # data bytes still to come of this chunk, and then its CRLF
        self._is_in_data = False
        self._trailer_bytes = -1  # -1 until the last chunk

    def feed(self, data: bytes, most_steps: int = sys.maxsize) -> tuple[bytes, bytes]:
        """Return (decoded bytes, what was not read): what follows the body, once complete.

        And before that what is beyond so many steps, each a line or a chunk's data: to be fed again, before any other.

        Raises:
            MalformedBodyError: nothing of this body can be trusted.
        """
        if self._pending:
            data, self._pending = self._pending + data, b""
        pieces: list[bytes] = []
        position = steps = 0
        while not self.is_complete and steps < most_steps:
            steps += 1
            step = self._data(data, position, pieces) if self._is_in_data else self._line(data, position)
            if step is None:
                return b"".join(pieces), b""
            position = step
        return b"".join(pieces), data[position:]

    def _data(self, data: bytes, position: int, pieces: list[bytes]) -> int | None:
        if self._left:
            piece = data[position : position + self._left]
            pieces.append(piece)
            self._left -= len(piece)
            position += len(piece)
            if self._left:
                return None
        end = data[position : position + 2]
        if end != b"\r\n":
            if b"\r\n".startswith(end):
                self._pending = end
                return None
            raise MalformedBodyError("no line end after the chunk")
        self._is_in_data = False
        return position + 2

    def _line(self, data: bytes, position: int) -> int | None:
        end = data.find(b"\n", position)
        if end < 0:
            self._pending = data[position:]
            if len(self._pending) > _MAX_LINE_BYTES:
                raise MalformedBodyError("line too long")
            self._check_start(self._pending)
            return None
        line = data[position:end]
        if line[-1:] != b"\r" or len(line) > _MAX_LINE_BYTES:
            raise MalformedBodyError("bad line end")
        if self._trailer_bytes < 0:
            self._begin_chunk(line[:-1])
        else:
            self._trailer(line[:-1])
        return end + 1

    def _check_start(self, line: bytes) -> None:
        """Refuse at once what can never become a size line, instead of waiting for its end."""
        if self._trailer_bytes < 0 and line not in {b"", b"\r"} and not _SIZE_START.fullmatch(line):
            raise MalformedBodyError("bad chunk size")

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise MalformedBodyError("bad chunk size")
        self._left = int(match[1], 16)
        self.chunks += 1
        if self._left:
            self._is_in_data = True
        else:
            self._trailer_bytes = 0

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.is_complete = True
            return
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > _MAX_TRAILER_BYTES or not _TRAILER.fullmatch(line) or _FRAMING.match(line):
            raise MalformedBodyError("bad trailer")


def chunk(data: bytes) -> bytes:
    """One chunk of ours; never of no bytes, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
