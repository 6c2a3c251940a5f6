"""What upstreams send: one strict expression over the whole head, one pass over its lines.

An upstream is trusted less than it deserves: folding, bare CR or LF, NUL, conflicting lengths, unknown codings are
refused, so that what passes here every client reads the same way (RFC 9112 sections 5.2, 6.3). Either h11 agrees with
this parser, or this one refuses; a fuzz test holds it to that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from engadi_gateway.errors import HeaderLine
from engadi_gateway.model import Framing

_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
_DIGITS = re.compile(rb"[0-9]{1,18}")


class MalformedReplyError(Exception):
    """Raised when an upstream's head cannot be trusted."""


class _Field(IntEnum):
    KEEP = 0
    DROP = 1
    LENGTH = 2
    CODING = 3
    CONNECTION = 4
    DATE = 5
    UPGRADE = 6
    CORS = 7
    RATE = 8


_TABLE: dict[bytes, _Field] = {
    b"content-length": _Field.LENGTH,
    b"transfer-encoding": _Field.CODING,
    b"connection": _Field.CONNECTION,
    b"date": _Field.DATE,
    b"upgrade": _Field.UPGRADE,
    b"keep-alive": _Field.DROP,
    b"proxy-connection": _Field.DROP,
    b"proxy-authenticate": _Field.DROP,
    b"proxy-authorization": _Field.DROP,
    b"te": _Field.DROP,
    b"trailer": _Field.DROP,
    b"x-request-id": _Field.DROP,
    b"ratelimit": _Field.RATE,
    b"ratelimit-policy": _Field.RATE,
    b"x-ratelimit-limit": _Field.RATE,
    b"x-ratelimit-remaining": _Field.RATE,
    b"x-ratelimit-reset": _Field.RATE,
}
_MEMO_SIZE = 1024


class _Names(dict[bytes, _Field]):
    def __missing__(self, name: bytes) -> _Field:
        if len(self) >= _MEMO_SIZE:
            self.clear()
        lower = name.lower()
        default = _Field.CORS if lower.startswith(b"access-control-") else _Field.KEEP
        field = self[name] = _TABLE.get(lower, default)
        return field


@dataclass(slots=True)
class ReplyHead:
    """An upstream's head. `lines` are whole lines to pass on, without line end.

    `framing` is of the body that follows on the wire; `content_length` -1 when none was sent. `is_reusable` says
    whether the connection may serve again once the body has ended.
    """

    status: int
    phrase: bytes
    lines: list[bytes]
    framing: Framing
    content_length: int
    is_reusable: bool
    has_date: bool
    upgrade: bytes


class ReplyParser:
    """Parses heads; what it drops besides hop-by-hop fields is fixed by configuration.

    Args:
        drops_cors: the gateway answers CORS itself, so the upstream's Access-Control-* must not stand beside it.
        drops_rate: the gateway sends rate-limit fields; an upstream's, perhaps more generous, must not.
    """

    def __init__(self, drops_cors: bool = False, drops_rate: bool = False) -> None:
        self._names = _Names()
        self._dropped = frozenset(
            field for field, is_dropped in ((_Field.CORS, drops_cors), (_Field.RATE, drops_rate)) if is_dropped
        )

    def parse(self, raw: bytes, method: str) -> ReplyHead:
        """Parse one whole head, with its empty line, of the answer to a request with `method`.

        Raises:
            MalformedReplyError: anything that two readers could read differently.
        """
        match = _HEAD.fullmatch(raw)
        if match is None:
            raise MalformedReplyError("malformed head")
        status = int(match[2])
        lines: list[bytes] = []
        special: dict[_Field, bytes] = {}
        names = self._names
        for line in match[4].split(b"\r\n")[:-1]:
            field = names[line[: line.index(b":")]]
            if field == 0:  # the usual case first
                lines.append(line)
            elif field != _Field.DROP:
                self._special(field, line, lines, special)
        tokens = self._connection(special, lines)
        framing, length = _framing(special, status, method)
        is_reusable = (
            framing is not Framing.CLOSE
            and b"close" not in tokens
            and (match[1] == b"1" or b"keep-alive" in tokens)
            and not (_Field.CODING in special and (_Field.LENGTH in special or match[1] == b"0"))
        )
        upgrade = special.get(_Field.UPGRADE, b"")
        has_date = _Field.DATE in special and b"date" not in tokens
        return ReplyHead(status, match[3] or b"", lines, framing, length, is_reusable, has_date, upgrade)

    def _special(self, field: _Field, line: bytes, lines: list[bytes], special: dict[_Field, bytes]) -> None:
        if field in {_Field.CORS, _Field.RATE}:
            if field not in self._dropped:
                lines.append(line)
            return
        value = line[line.index(b":") + 1 :].strip(b" \t")
        if field is _Field.DATE:
            lines.append(line)
        elif field in special:
            value = _repeated(field, special[field], value)
        special[field] = value

    @staticmethod
    def _connection(special: dict[_Field, bytes], lines: list[bytes]) -> frozenset[bytes]:
        value = special.get(_Field.CONNECTION)
        if value is None:
            return frozenset()
        tokens = frozenset(token.strip() for token in value.lower().split(b","))
        named = tokens - {b"close", b"keep-alive", b"upgrade", b""}
        if named:
            lines[:] = [line for line in lines if line[: line.index(b":")].lower() not in named]
        return tokens


def _repeated(field: _Field, first: bytes, second: bytes) -> bytes:
    if field is _Field.LENGTH:
        if first != second:
            raise MalformedReplyError("conflicting lengths")
        return first
    return first + b", " + second


def _framing(special: dict[_Field, bytes], status: int, method: str) -> tuple[Framing, int]:
    """RFC 9112 section 6.3, in its order; -1 for a length that was not sent."""
    coding, sent = special.get(_Field.CODING), special.get(_Field.LENGTH)
    if sent is not None and not _DIGITS.fullmatch(sent):
        raise MalformedReplyError("bad length")
    if coding is not None and coding.lower() != b"chunked":
        raise MalformedReplyError("unknown coding")
    length = -1 if sent is None or coding is not None else int(sent)
    if method == "HEAD" or status < 200 or status in {204, 304}:
        return Framing.NONE, length
    if coding is not None:
        return Framing.CHUNKED, -1
    if length < 0:
        return Framing.CLOSE, -1
    return (Framing.LENGTH, length) if length else (Framing.NONE, 0)


def client_head(reply: ReplyHead, added: list[HeaderLine], framing: Framing, date: bytes, *, is_closing: bool) -> bytes:
    """The head as the client gets it: the upstream's lines, the gateway's, framing and connection built anew.

    Args:
        added: the gateway's own lines.
        framing: of the body towards this client; CLOSE for HTTP/1.0 clients of unknown lengths.
        date: the Date line's value, used when the upstream sent none (RFC 9110 section 6.6.1).
    """
    parts = [b"HTTP/1.1 %d %b" % (reply.status, reply.phrase)]
    parts += reply.lines
    parts += [b"%b: %b" % line for line in added]
    if not reply.has_date:
        parts.append(b"Date: " + date)
    if framing is Framing.CHUNKED:
        parts.append(b"Transfer-Encoding: chunked")
    elif reply.content_length >= 0 and reply.status >= 200 and reply.status != 204:
        parts.append(b"Content-Length: %d" % reply.content_length)
    if is_closing:
        parts.append(b"Connection: close")
    parts.append(b"\r\n")
    return b"\r\n".join(parts)


def informational_head(reply: ReplyHead) -> bytes:
    """A 1xx as the client gets it."""
    return b"\r\n".join([b"HTTP/1.1 %d %b" % (reply.status, reply.phrase), *reply.lines, b"\r\n"])


def switching_head(reply: ReplyHead, added: list[HeaderLine]) -> bytes:
    """A 101 as the client gets it: the one reply whose Upgrade and Connection are passed on (RFC 9110 section 7.8)."""
    lines = [*reply.lines, *(b"%b: %b" % line for line in added)]
    upgrade = b"Upgrade: " + reply.upgrade
    return b"\r\n".join([b"HTTP/1.1 101 " + reply.phrase, *lines, upgrade, b"Connection: Upgrade", b"\r\n"])
