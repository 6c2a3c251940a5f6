"""How ours reads bytes and how h11 reads them, in the same words, so that the two can be compared.

h11 is the oracle: the strictest reader at hand that is not ours. Where ours lets something pass, h11 must have read the
same; where ours refuses, there is nothing to compare.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import h11

from engadi_gateway.errors import Refusal, RefusedError
from engadi_gateway.model import Framing, RequestHead
from engadi_gateway.wire.chunked import ChunkedDecoder
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import (
    ChunkedBody,
    CountedBody,
    HeadLimits,
    first_head,
    parse_head,
    without_blank_lines,
)
from engadi_gateway.wire.response import ReplyParser

_LIMIT_BYTES = 1 << 20


class Read(NamedTuple):
    """A reply as somebody read it. `fields` are those that pass on, `rest` what follows it."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes
    is_whole: bool
    rest: bytes


_OURS_ALONE = frozenset(
    (b"connection", b"content-length", b"transfer-encoding", b"keep-alive", b"te", b"upgrade", b"trailer")
)


def _fields(lines: list[tuple[bytes, bytes]], hidden: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in lines if name not in _OURS_ALONE | hidden]


def _named(raw: bytes) -> frozenset[bytes]:
    """What the Connection lines of a head name."""
    values = re.findall(rb"(?im)^connection:([^\r\n]*)", raw)
    return frozenset(part.strip().lower() for value in values for part in value.split(b","))


def reply_by_us(head: bytes, body: bytes, method: str, step: int) -> Read:
    """Raises MalformedReplyError, MalformedBodyError where ours refuses."""
    reply = ReplyParser().parse(head, method)
    pairs = [line.split(b":", 1) for line in reply.lines]
    fields = _fields([(name.lower(), value.strip(b" \t")) for name, value in pairs], frozenset())
    if reply.framing is Framing.NONE:
        return Read(reply.status, fields, b"", True, body)
    if reply.framing is Framing.LENGTH:
        taken = body[: reply.content_length]
        return Read(reply.status, fields, taken, len(taken) == reply.content_length, body[reply.content_length :])
    if reply.framing is Framing.CLOSE:
        return Read(reply.status, fields, body, False, b"")
    return Read(reply.status, fields, *_decoded(body, step))


def _decoded(raw: bytes, step: int) -> tuple[bytes, bool, bytes]:
    decoder = ChunkedDecoder()
    body = b""
    for at in range(0, len(raw), step):
        piece, rest = decoder.feed(raw[at : at + step])
        body += piece
        if decoder.is_complete:
            return body, True, rest + raw[at + step :]
    return body, False, b""


def reply_by_h11(head: bytes, body: bytes, method: str) -> Read | None:
    """None where h11 refuses."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LIMIT_BYTES)
    asking = [("host", "h"), ("connection", "upgrade"), ("upgrade", "x")]  # so that a 101 is no surprise
    connection.send(h11.Request(method=method, target="/", headers=asking))
    connection.send(h11.EndOfMessage())
    data = b""
    try:
        connection.receive_data(head + body)
        reply = connection.next_event()
        if isinstance(reply, h11.InformationalResponse):
            return Read(reply.status_code, _fields(list(reply.headers), _named(head)), b"", True, body)
        if not isinstance(reply, h11.Response):
            return None
        while isinstance(event := connection.next_event(), h11.Data):
            data += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    is_whole = isinstance(event, h11.EndOfMessage)
    fields = _fields(list(reply.headers), _named(head))
    return Read(reply.status_code, fields, data, is_whole, connection.trailing_data[0] if is_whole else b"")


class Asked(NamedTuple):
    """A request as a strict server read it; `is_whole` is false where its body was cut off."""

    method: str
    target: str
    marks: tuple[str, ...]
    body: bytes
    is_whole: bool


MARK = "x-mark"


def requests_by_h11(raw: bytes, *, skips_blank_lines: bool = False) -> tuple[list[Asked], bool]:
    """The requests in a stream, as h11 reads them one after the other, and whether it refused what came then.

    h11 takes no empty lines before a request, which RFC 9112 section 2.2 asks for: `skips_blank_lines` does it for it.
    """
    found: list[Asked] = []
    goes_on = True
    while goes_on and (raw := raw.lstrip(b"\r\n") if skips_blank_lines else raw):
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LIMIT_BYTES)
        connection.receive_data(raw)
        try:
            request = connection.next_event()
            if not isinstance(request, h11.Request):
                return found, False
            found.append(_asked(request, b"", is_whole=False))
            body = b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += bytes(event.data)
        except h11.RemoteProtocolError:
            return found, True
        goes_on = isinstance(event, h11.EndOfMessage)
        found[-1] = _asked(request, body, is_whole=goes_on)
        raw = connection.trailing_data[0]
        goes_on = goes_on and connection.their_state is not h11.MUST_CLOSE and request.method != b"CONNECT"
    return found, False


def _asked(request: h11.Request, body: bytes, *, is_whole: bool) -> Asked:
    marks = tuple(value.decode("latin-1") for name, value in request.headers if name == MARK.encode())
    return Asked(request.method.decode(), request.target.decode("latin-1"), marks, body, is_whole)


class Intake:
    """What a client's connection does with bytes as they come: heads, bodies, the next; until one is refused."""

    def __init__(self, limits: HeadLimits, max_body_bytes: int = 0) -> None:
        self._limits = limits
        self._policy = HeaderPolicy()
        self._max_body_bytes = max_body_bytes
        self._buffer = b""
        self._reader: ChunkedBody | CountedBody | None = None
        self.is_in_body = False
        self.heads: list[RequestHead] = []
        self.bodies: list[bytes] = []
        self.refusal: Refusal | None = None

    def feed(self, data: bytes) -> None:
        if self.refusal is not None:
            return
        self._buffer += data
        try:
            while self._body() if self.is_in_body else self._head():
                pass
        except RefusedError as error:
            self.refusal = error.refusal

    def _head(self) -> bool:
        self._buffer = without_blank_lines(self._buffer)
        raw = first_head(self._buffer, self._limits)
        if raw is None:
            return False
        self._buffer = self._buffer[len(raw) :]
        head, self._reader = parse_head(raw, self._limits, self._policy, self._max_body_bytes)
        self.heads.append(head)
        self.bodies.append(b"")
        self.is_in_body = self._reader is not None
        return True

    def _body(self) -> bool:
        assert self._reader is not None
        piece, rest = self._reader.feed(self._buffer)
        self.is_in_body = not self._reader.is_complete
        self.bodies[-1] += piece
        self._buffer = rest
        return not self.is_in_body

    def outcome(self) -> tuple[list[RequestHead], list[bytes], bool]:
        """Heads, whole bodies, and whether the last was refused."""
        bodies = self.bodies[:-1] if self.is_in_body else self.bodies
        return self.heads, bodies, self.refusal is not None


def taken(raw: bytes, cuts: list[int], limits: HeadLimits | None = None) -> Intake:
    """An intake that was fed these bytes, cut at these places."""
    intake = Intake(limits or HeadLimits())
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        intake.feed(raw[start:end])
    return intake
