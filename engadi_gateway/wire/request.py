"""What clients send. The only door to h11: every head and every chunked body goes through it.

A fresh h11 connection parses each head (its public API only); this module adds what h11 leaves open: limits on
finished heads, bare LF, the Host value, one meaning of the target, versions, lengths beside codings (RFC 9112).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import h11

from engadi_gateway.errors import HeaderLine, Reason, Refusal, RefusedError
from engadi_gateway.model import Framing, RequestHead
from engadi_gateway.wire.chunked import ChunkedDecoder, MalformedBodyError
from engadi_gateway.wire.headers import HeaderPolicy, connection_tokens, joined, scan
from engadi_gateway.wire.target import normalise
from engadi_gateway.wire.text import is_tame

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{0,5})?")
HEAD_END = b"\r\n\r\n"
#: What has more of both, a large head or several at once, takes as long as many small ones, and waits for its turn.
SHORT_BYTES = 2048
_SHORT_LINES = 50
_SHORT_ESCAPES = 200
#: RFC 9112 section 5.2 has folded lines refused or joined; joined, somebody before us may have read two lines.
_FOLD = re.compile(rb"\n[ \t]")
_BLANK_LINES = re.compile(rb"(?:\r\n)+")
#: Bytes of framing that a chunk may cost before they count as body: sixteen digits and two line ends.
_CHUNK_ALLOWANCE_BYTES = 20
#: So many chunks are decoded at once, a tenth of a millisecond's worth; and what shares of a read are tried.
_CHUNKS_AT_ONCE = 16
_FIRST_SHARE_BYTES = 1024
_SHARE_BYTES = (128, 65536)
#: Methods and hosts are few; what strangers invent must not fill memory.
_MEMO_SIZE = 256
_NO_BODY = Framing.NONE
#: Of a target that is refused, so much stands in the log.
_SHOWN_PATH_BYTES = 1024
#: Of its fields, these say who sent it, if the peer may say so, and these are shown in a line of the access log.
_BELIEVED = frozenset((b"origin", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"))
_SHOWN = frozenset((b"user-agent", b"referer"))


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Sizes in bytes of one request's head."""

    max_head_bytes: int = 16 << 10
    max_header_lines: int = 100
    max_target_bytes: int = 8 << 10


class RefusedHeadError(RefusedError):
    """Raised for a head that could be read and is refused: it still is a request, which is logged and limited.

    Of a head that is not even coherent, `head` has the method and what stood for a path; its framing is CLOSE, for
    nobody knows where its body ends.
    """

    def __init__(self, refusal: Refusal, head: RequestHead) -> None:
        super().__init__(refusal)
        self.head = head


def _refused(reason: Reason, detail: str) -> RefusedError:
    return RefusedError(Refusal(reason, detail))


def without_blank_lines(data: bytes) -> bytes:
    """Without empty lines before a request line (RFC 9112 section 2.2): all, or it would depend on the reads."""
    blank = _BLANK_LINES.match(data)
    return data if blank is None else data[blank.end() :]


def asks_for_head(data: bytes) -> bool:
    """Of what may never be a whole request: whether its answer must have no body (RFC 9110 section 9.3.2)."""
    return data[:5] == b"HEAD "


def takes_long(data: bytes) -> bool:
    """Whether the first head, as far as it is there, has many lines, or many escapes, which its path may be full of."""
    end = data.find(HEAD_END)
    head = data if end < 0 else data[:end]
    return head.count(b"\n") > _SHORT_LINES or head.count(b"%") > _SHORT_ESCAPES


def first_head(data: bytes, limits: HeadLimits) -> bytes | None:
    """The whole head that `data` begins with, or None while it is not all there.

    Raises:
        RefusedError: HEADERS_TOO_LARGE, URI_TOO_LONG, or BAD_REQUEST for a line end that is a bare LF, or a control
            character.
    """
    end = data.find(HEAD_END)
    if end < 0 or end + 4 > limits.max_head_bytes:
        _check_unfinished(data, limits)
        return None
    head = data[: end + 4]  # the same object where that is all
    line_ends = head.count(b"\r\n")
    if not is_tame(head, line_ends):  # h11 takes most controls; RFC 9110 section 5.5: only where it is safe
        is_bare = head.count(b"\n") != line_ends
        raise _refused(Reason.BAD_REQUEST, "line end without CR" if is_bare else "control character in the head")
    return head


def _check_unfinished(data: bytes, limits: HeadLimits) -> None:
    """Refuse what is too large, or can never be a head; for the same reason however it was cut into reads."""
    start = data[: limits.max_head_bytes]
    if start.count(b"\n") != start.count(b"\r\n"):
        raise _refused(Reason.BAD_REQUEST, "line end without CR")
    if start[:1] and start[0] < 0x21 and start[:1] != b"\r":
        raise _refused(Reason.BAD_REQUEST, "no request line")
    if len(data) > limits.max_head_bytes:
        raise _too_large(start, limits)


def _too_large(start: bytes, limits: HeadLimits) -> RefusedError:
    if start.find(b"\r\n", 0, limits.max_target_bytes + 32) < 0:
        return _refused(Reason.URI_TOO_LONG, f"longer than {limits.max_target_bytes} bytes")
    return _refused(Reason.HEADERS_TOO_LARGE, f"longer than {limits.max_head_bytes} bytes")


def parse_head(
    raw: bytes, limits: HeadLimits, policy: HeaderPolicy, max_body_bytes: int = 0
) -> tuple[RequestHead, ChunkedBody | CountedBody | None]:
    """Parse one whole head; and what will read its body, if there is one.

    Args:
        raw: from the request line to the empty line, as `first_head` found it.
        max_body_bytes: refuse a longer body; 0: no limit.

    Raises:
        RefusedHeadError: a row of the table, for a head that h11 could read.
        RefusedError: whatever h11 refuses is a BAD_REQUEST, HEADERS_TOO_LARGE or NOT_IMPLEMENTED.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_head_bytes)
    try:
        connection.receive_data(raw)
        request = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise _of_h11(error) from None
    if type(request) is not h11.Request:
        raise _refused(Reason.BAD_REQUEST, "not a request")
    lines = request.headers.raw_items()
    if raw.count(b"\r\n") != len(lines) + 2 and _FOLD.search(raw):  # the count alone costs less
        raise _refused(Reason.BAD_REQUEST, "folded header line")
    try:
        head = _head_of(request, lines, limits, policy)
    except RefusedError as error:
        raise RefusedHeadError(error.refusal, _incoherent(request)) from None
    if b"expect" in head.notes and head.notes[b"expect"].lower() != b"100-continue" and not head.is_http10:
        raise RefusedHeadError(Refusal(Reason.EXPECTATION_FAILED, "only 100-continue is understood"), head)
    if head.framing is _NO_BODY:
        return head, None
    if head.content_length > max_body_bytes > 0:
        raise RefusedHeadError(Refusal(Reason.BODY_TOO_LARGE, f"longer than {max_body_bytes} bytes"), head)
    is_chunked = head.framing is Framing.CHUNKED
    return head, ChunkedBody(connection, max_body_bytes) if is_chunked else CountedBody(head.content_length)


def _of_h11(error: h11.RemoteProtocolError) -> RefusedError:
    rows = {
        431: (Reason.HEADERS_TOO_LARGE, "head too large"),
        501: (Reason.NOT_IMPLEMENTED, "a transfer coding other than chunked"),
    }
    return _refused(*rows.get(error.error_status_hint, (Reason.BAD_REQUEST, "malformed request head")))


def _head_of(
    request: h11.Request, raw_lines: list[HeaderLine], limits: HeadLimits, policy: HeaderPolicy
) -> RequestHead:
    if len(raw_lines) > limits.max_header_lines:
        raise _refused(Reason.HEADERS_TOO_LARGE, f"more than {limits.max_header_lines} header lines")
    if len(request.target) > limits.max_target_bytes:
        raise _refused(Reason.URI_TOO_LONG, f"longer than {limits.max_target_bytes} bytes")
    is_http10 = request.http_version == b"1.0"
    if not is_http10 and request.http_version != b"1.1":
        raise _refused(Reason.VERSION_UNSUPPORTED, "HTTP/1.1 and HTTP/1.0 are spoken here")
    method = _method(request.method)
    fields, notes = scan(raw_lines, policy)
    target, path, has_encoded_slash, target_authority = normalise(request.target, request.method)
    authority = notes.get(b"host", b"")
    host = _host_for_matching(authority) if authority or not is_http10 else ""
    if target_authority is not None:  # Host was checked all the same
        authority = target_authority
        host = _host_for_matching(authority)
    framing, length, keep_alive, upgrade = _NO_BODY, 0, not is_http10, b""
    if b"content-length" in notes or b"transfer-encoding" in notes:
        framing, length = _framing(notes, is_http10)
    if b"connection" in notes:
        keep_alive, upgrade = _connection(notes, is_http10, method, framing)
    return RequestHead(
        method, target, path, host, authority, fields, notes, framing, length, has_encoded_slash, is_http10,
        keep_alive, upgrade,
    )  # fmt: skip


@lru_cache(maxsize=32)
def _method(method: bytes) -> str:
    if method in {b"CONNECT", b"TRACE"} or not method.isupper():  # `get` is another than GET, but not to everybody
        raise _refused(Reason.NOT_IMPLEMENTED, "CONNECT, TRACE and methods in lower case are not served")
    return method.decode("ascii")


def _incoherent(request: h11.Request) -> RequestHead:
    """What can be said of a head that is refused: enough for the log, for CORS, and for the buckets of an address."""
    path = request.target.partition(b"?")[0][:_SHOWN_PATH_BYTES].decode("latin-1")
    return RequestHead(
        method=request.method.decode("ascii"),
        target=request.target,
        path=path,
        host="",
        authority=b"",
        fields=b"".join(b"%b: %b\r\n" % line for line in request.headers if line[0] in _SHOWN),
        notes=joined(line for line in request.headers if line[0] in _BELIEVED),
        framing=Framing.CLOSE,
        content_length=0,
        has_encoded_slash=False,
        is_http10=request.http_version < b"1.1",
        keep_alive=False,
        upgrade=b"",
    )


@lru_cache(maxsize=_MEMO_SIZE)
def _host_for_matching(authority: bytes) -> str:
    match = _HOST.fullmatch(authority)
    if match is None:
        raise _refused(Reason.BAD_REQUEST, "malformed Host")
    return match[1].decode("ascii").lower().rstrip(".")


def _framing(notes: dict[bytes, bytes], is_http10: bool) -> tuple[Framing, int]:
    """RFC 9112 sections 6.1 and 6.3: both lengths, or a coding on HTTP/1.0, is an attack or a fault."""
    if b"transfer-encoding" in notes:
        if b"content-length" in notes:
            raise _refused(Reason.BAD_REQUEST, "both Content-Length and Transfer-Encoding")
        if is_http10:
            raise _refused(Reason.BAD_REQUEST, "Transfer-Encoding on HTTP/1.0")
        return Framing.CHUNKED, 0
    length = int(notes.get(b"content-length", b"0"))
    return (Framing.LENGTH, length) if length else (_NO_BODY, 0)


def _connection(notes: dict[bytes, bytes], is_http10: bool, method: str, framing: Framing) -> tuple[bool, bytes]:
    tokens = connection_tokens(notes[b"connection"])
    keep_alive = b"close" not in tokens and (not is_http10 or b"keep-alive" in tokens)
    can_upgrade = b"upgrade" in tokens and method == "GET" and not is_http10 and framing is _NO_BODY
    return keep_alive, _upgrade(notes.get(b"upgrade", b"")) if can_upgrade else b""


#: Behind these, requests would go through the splice that no stage has seen.
_NEVER_SPLICED = (b"h2c", b"http", b"tls")


def _upgrade(value: bytes) -> bytes:
    protocols = [part.strip().lower() for part in value.split(b",")]
    return b"" if any(protocol.startswith(_NEVER_SPLICED) for protocol in protocols) else value


class CountedBody:
    """A request body of a stated length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_complete = False

    def share(self, data: bytes) -> tuple[bytes, bytes]:
        """All at once: it costs nothing."""
        return data, b""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Split what came: (body bytes, what follows the body once `is_complete`)."""
        left = self._left = self._left - len(data)
        if left > 0:
            return data, b""
        self.is_complete = True
        return (data[:left], data[left:]) if left else (data, b"")


class ChunkedBody:
    """A chunked request body. h11 decodes it; the strict decoder must agree on every byte, or it is refused.

    Two readers, because h11 passes chunk sizes of twenty digits and any amount of extensions; what the stricter one
    lets through, both read the same.
    """

    def __init__(self, connection: h11.Connection, max_body_bytes: int) -> None:
        self._h11 = connection
        self._gate = ChunkedDecoder()
        self._max_bytes = max_body_bytes
        self._received = 0
        self._decoded = 0
        self._share_bytes = _FIRST_SHARE_BYTES
        self.is_complete = False

    def share(self, data: bytes) -> tuple[bytes, bytes]:
        """What to feed now, and what in a later turn of the loop: a read full of small chunks takes 80 ms.

        Looks at the first share before it looks at all: where that is full of chunks it takes 70 us, half of what
        decoding a share does.
        """
        size = self._share_bytes
        is_fine = data.count(b"\r\n", 0, size) > _CHUNKS_AT_ONCE or data.count(b"\r\n") > _CHUNKS_AT_ONCE
        return (data[:size], data[size:]) if is_fine and len(data) > size else (data, b"")

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Decode what came: (body bytes, what follows the body once `is_complete`).

        Raises:
            RefusedError: BAD_REQUEST when malformed, BODY_TOO_LARGE past the limit; extensions count as body.
        """
        chunks = self._gate.chunks
        try:
            expected, rest = self._gate.feed(data)
            pieces = self._decode(data)
        except (h11.RemoteProtocolError, MalformedBodyError):
            raise _refused(Reason.BAD_REQUEST, "malformed chunked body") from None
        body = b"".join(pieces)
        if body != expected or self.is_complete != self._gate.is_complete:
            raise _refused(Reason.BAD_REQUEST, "ambiguous chunked body")
        is_fine = self._gate.chunks - chunks > _CHUNKS_AT_ONCE
        least, most = _SHARE_BYTES
        self._share_bytes = max(least, self._share_bytes // 2) if is_fine else min(most, self._share_bytes * 2)
        self._received += len(data) - len(rest)
        self._decoded += len(body)
        overhead = self._received - self._decoded - _CHUNK_ALLOWANCE_BYTES * (self._gate.chunks + 1)
        if 0 < self._max_bytes < self._decoded + max(0, overhead):
            raise _refused(Reason.BODY_TOO_LARGE, f"longer than {self._max_bytes} bytes")
        return body, rest

    def _decode(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        if not data:
            return pieces  # h11 would take it for the end of the connection
        self._h11.receive_data(data)
        while True:
            event = self._h11.next_event()
            if type(event) is h11.Data:
                pieces.append(bytes(event.data))
            elif type(event) is h11.EndOfMessage:
                self.is_complete = True
                return pieces
            else:
                return pieces
