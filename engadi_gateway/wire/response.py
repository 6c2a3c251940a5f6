"""What upstreams send: a few looks at the whole head, one pass over its lines; names and start lines are remembered.

An upstream is trusted less than it deserves: folding, bare CR or LF, NUL, conflicting lengths, unknown codings are
refused, so that what passes here every client reads the same way (RFC 9112 sections 5.2, 6.3). Either h11 agrees with
this parser, or this one refuses; a fuzz test holds it to that.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from engadi_gateway.model import Framing
from engadi_gateway.wire.text import is_tame, remember

_START_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: (.*))?", re.DOTALL)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MAX_LENGTH_DIGITS = 18


class MalformedReplyError(Exception):
    """Raised when an upstream's head cannot be trusted."""


#: What is done with a field. Plain numbers: hashing and comparing members of an enum costs a microsecond a head.
_KEEP, _LENGTH, _DROP, _CODING, _CONNECTION, _DATE, _UPGRADE, _CORS, _RATE = range(9)
_NO_BODY, _COUNTED, _CHUNKED, _CLOSE = Framing.NONE, Framing.LENGTH, Framing.CHUNKED, Framing.CLOSE
_NO_TOKENS: frozenset[bytes] = frozenset()
_BLANK = b" \t"

_TABLE: dict[bytes, int] = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"date": _DATE,
    b"upgrade": _UPGRADE,
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"proxy-authenticate": _DROP,
    b"proxy-authorization": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
    b"x-request-id": _DROP,
    b"ratelimit": _RATE,
    b"ratelimit-policy": _RATE,
    b"x-ratelimit-limit": _RATE,
    b"x-ratelimit-remaining": _RATE,
    b"x-ratelimit-reset": _RATE,
}
_MEMO_SIZE = 1024


class _Names(dict[bytes, int]):
    """What is done with a field, by its name as it is spelt; a name is checked when it is first seen."""

    def __init__(self, drops_cors: bool) -> None:
        super().__init__()
        self._drops_cors = drops_cors

    def __missing__(self, name: bytes) -> int:
        if _NAME.fullmatch(name) is None:
            raise MalformedReplyError("malformed head")
        lower = name.lower()
        field = _TABLE.get(lower, _CORS if lower.startswith(b"access-control-") else _KEEP)
        if field == _CORS:
            field = _DROP if self._drops_cors else _KEEP
        remember(self, name, field, _MEMO_SIZE)
        return field


class _Starts(dict[bytes, tuple[bool, int, bytes]]):
    """Start lines: whether it is HTTP/1.1, status, phrase. There are few of them, so each is read once."""

    def __missing__(self, line: bytes) -> tuple[bool, int, bytes]:
        match = _START_LINE.fullmatch(line)
        if match is None:
            raise MalformedReplyError("malformed head")
        start = match[1] == b"1", int(match[2]), match[3] or b""
        remember(self, line, start, _MEMO_SIZE)
        return start


@dataclass(slots=True)
class ReplyHead:
    """An upstream's head. `lines` are whole lines to pass on, without line end; `rate` those of its limits, in one.

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
    rate: bytes = b""


class ReplyParser:
    """Parses heads; what it drops besides hop-by-hop fields is fixed by configuration.

    Args:
        drops_cors: the gateway answers CORS itself, so the upstream's Access-Control-* must not stand beside it.
    """

    def __init__(self, drops_cors: bool = False) -> None:
        self._starts = _Starts()
        self._names = _Names(drops_cors)

    def parse(self, raw: bytes, method: str) -> ReplyHead:
        """Parse one whole head, with its empty line, of the answer to a request with `method`.

        Raises:
            MalformedReplyError: anything that two readers could read differently.
        """
        every = raw.split(b"\r\n")
        if raw[-4:] != b"\r\n\r\n" or not is_tame(raw, len(every) - 1):
            raise MalformedReplyError("malformed head")
        is_http11, status, phrase = self._starts[every[0]]
        lines: list[bytes] = []
        special: dict[int, bytes] = {}
        names, sent, has_date = self._names, None, False
        for line in every[1:-2]:  # long-hand, the usual cases first: this runs for each line of each reply
            name, colon, value = line.partition(b":")
            if not colon:
                raise MalformedReplyError("malformed head")
            field = names[name]
            if field == _KEEP:
                lines.append(line)
            elif field == _LENGTH:
                value = value.strip(_BLANK)
                if sent is not None and sent != value:
                    raise MalformedReplyError("conflicting lengths")
                sent = value
            elif field == _DATE:
                lines.append(line)
                has_date = True
            elif field != _DROP:
                _note(special, field, line if field == _RATE else value.strip(_BLANK))
        coding = special.get(_CODING)
        framing, length = _framing(coding, sent, status, method)
        is_reusable = is_http11 and framing is not _CLOSE
        upgrade = b""
        if special:
            tokens = self._connection(special, lines) if _CONNECTION in special else _NO_TOKENS
            is_reusable = (
                framing is not _CLOSE
                and b"close" not in tokens
                and (is_http11 or b"keep-alive" in tokens)
                and not (coding is not None and (sent is not None or not is_http11))
            )
            has_date = has_date and b"date" not in tokens
            upgrade = special.get(_UPGRADE, b"")
        return ReplyHead(
            status, phrase, lines, framing, length, is_reusable, has_date, upgrade, special.get(_RATE, b"")
        )

    @staticmethod
    def _connection(special: dict[int, bytes], lines: list[bytes]) -> frozenset[bytes]:
        tokens = frozenset(token.strip() for token in special[_CONNECTION].lower().split(b","))
        named = tokens - {b"close", b"keep-alive", b"upgrade", b""}
        if named:
            lines[:] = _unnamed(lines, named)
            if _RATE in special:
                special[_RATE] = b"\r\n".join(_unnamed(special[_RATE].split(b"\r\n"), named))
        return tokens


def _unnamed(lines: list[bytes], named: frozenset[bytes]) -> list[bytes]:
    return [line for line in lines if line[: line.index(b":")].lower() not in named]


def _note(special: dict[int, bytes], field: int, value: bytes) -> None:
    """Values are one list; of rate limits the lines are kept."""
    glue = b"\r\n" if field == _RATE else b", "
    special[field] = special[field] + glue + value if field in special else value


def _framing(coding: bytes | None, sent: bytes | None, status: int, method: str) -> tuple[Framing, int]:
    """RFC 9112 section 6.3, in its order; -1 for a length that was not sent."""
    if sent is not None and not (sent.isdigit() and len(sent) <= _MAX_LENGTH_DIGITS):
        raise MalformedReplyError("bad length")
    if coding is not None and coding.lower() != b"chunked":
        raise MalformedReplyError("unknown coding")
    length = -1 if sent is None or coding is not None else int(sent)
    if method == "HEAD" or status < 200 or status in {204, 304}:
        return _NO_BODY, length
    if coding is not None:
        return _CHUNKED, -1
    if length < 0:
        return _CLOSE, -1
    return (_COUNTED, length) if length else (_NO_BODY, 0)


_OWN_REMAINING = re.compile(rb"X-RateLimit-Remaining: ([0-9]+)")
_REMAINING = re.compile(rb"(?i)(?:^|\n)X-RateLimit-Remaining:[ \t]*([0-9]{1,18})|; *r=([0-9]{1,18})")
#: A low number there stalls clients for nothing: they have to ask again at once (draft-ietf-httpapi-ratelimit-headers).
REDIRECTS = frozenset((301, 302, 303, 307, 308))


def rate_lines(own: bytes | None, reply: ReplyHead) -> list[bytes]:
    """The rate-limit fields for the client: ours, `own`, if a rule was enforced, or an upstream's that leaves less."""
    if own is None:
        return [reply.rate]
    if reply.status in REDIRECTS:
        return []
    left = _OWN_REMAINING.search(own)
    is_less = left is not None and _remaining(reply.rate) < int(left[1])
    return [reply.rate if reply.rate and (reply.status == 429 or is_less) else own]


def _remaining(lines: bytes) -> float:
    """The least that any of them leaves."""
    return min((int(one or other) for one, other in _REMAINING.findall(lines)), default=math.inf)


def is_among(chosen: bytes, asked: bytes) -> bool:
    """Whether an upstream switched to what was asked for, and to nothing else (RFC 9110 section 7.8)."""
    offers = {name.strip() for name in asked.lower().split(b",")} - {b""}
    return all(name.strip() in offers for name in chosen.lower().split(b","))


#: Its whole sense is the Upgrade field, which it must have (RFC 9110 section 15.5.22).
_UPGRADE_REQUIRED = 426


def client_head(reply: ReplyHead, added: list[bytes], framing: Framing, date: bytes, *, is_closing: bool) -> bytes:
    """The head as the client gets it: the upstream's lines, the gateway's, framing and connection built anew.

    Args:
        added: the gateway's own lines.
        framing: of the body towards this client; CLOSE for HTTP/1.0 clients of unknown lengths.
        date: the Date line's value, used when the upstream sent none (RFC 9110 section 6.6.1).
    """
    parts = [b"HTTP/1.1 %d %b" % (reply.status, reply.phrase), *reply.lines, *added]
    if not reply.has_date:
        parts.append(b"Date: " + date)
    if framing is _CHUNKED:
        parts.append(b"Transfer-Encoding: chunked")
    elif reply.content_length >= 0 and reply.status >= 200 and reply.status != 204:
        parts.append(b"Content-Length: %d" % reply.content_length)
    if reply.upgrade and reply.status == _UPGRADE_REQUIRED:
        parts.append(b"Upgrade: " + reply.upgrade)
        parts.append(b"Connection: close, Upgrade" if is_closing else b"Connection: Upgrade")
    elif is_closing:
        parts.append(b"Connection: close")
    parts.append(b"\r\n")
    return b"\r\n".join(parts)


def informational_head(reply: ReplyHead) -> bytes:
    """A 1xx as the client gets it."""
    return b"\r\n".join([b"HTTP/1.1 %d %b" % (reply.status, reply.phrase), *reply.lines, b"\r\n"])


def switching_head(reply: ReplyHead, added: list[bytes]) -> bytes:
    """A 101 as the client gets it: but for 426 the one whose Upgrade is passed on (RFC 9110 section 7.8)."""
    start, upgrade = b"HTTP/1.1 101 " + reply.phrase, b"Upgrade: " + reply.upgrade
    return b"\r\n".join([start, *reply.lines, *added, upgrade, b"Connection: Upgrade", b"\r\n"])
