"""Upstreams' heads: what each says, how its body ends, what is passed on, what is never believed."""

from __future__ import annotations

import pytest

from engadi_gateway.model import Framing
from engadi_gateway.wire.response import (
    MalformedReplyError,
    ReplyHead,
    ReplyParser,
    client_head,
    informational_head,
    rate_lines,
    switching_head,
)

DATE = b"Tue, 24 Nov 2026 16:55:10 GMT"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\n"


def _parsed(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK", method: str = "GET") -> ReplyHead:
    return ReplyParser().parse(b"\r\n".join([start, *lines, b"", b""]), method)


def test_what_a_reply_says() -> None:
    assert ReplyParser().parse(REPLY, "GET") == ReplyHead(
        status=200,
        phrase=b"OK",
        lines=[b"Content-Type: text/plain"],
        framing=Framing.LENGTH,
        content_length=3,
        is_reusable=True,
        has_date=False,
        upgrade=b"",
    )


CHUNKED = b"Transfer-Encoding: Chunked"
#: Start line, method, lines -> framing, length, whether the connection may serve again. RFC 9112 section 6.3.
FRAMINGS: dict[str, tuple[bytes, str, list[bytes], Framing, int, bool]] = {
    "nothing said": (b"HTTP/1.1 200 OK", "GET", [], Framing.CLOSE, -1, False),
    "length": (b"HTTP/1.1 200 OK", "GET", [b"Content-Length: 3"], Framing.LENGTH, 3, True),
    "zero": (b"HTTP/1.1 200 OK", "GET", [b"Content-Length: 0"], Framing.NONE, 0, True),
    "the same length twice": (b"HTTP/1.1 200 OK", "GET", [b"Content-Length: 3"] * 2, Framing.LENGTH, 3, True),
    "chunked": (b"HTTP/1.1 200 OK", "GET", [CHUNKED], Framing.CHUNKED, -1, True),
    "chunked with a length": (b"HTTP/1.1 200 OK", "GET", [b"Content-Length: 3", CHUNKED], Framing.CHUNKED, -1, False),
    "chunked on 1.0": (b"HTTP/1.0 200 OK", "GET", [CHUNKED], Framing.CHUNKED, -1, False),
    "chunked on 1.0 with keep-alive": (
        b"HTTP/1.0 200 OK", "GET", [CHUNKED, b"Connection: keep-alive"], Framing.CHUNKED, -1, False),
    "HEAD with a length": (b"HTTP/1.1 200 OK", "HEAD", [b"Content-Length: 3"], Framing.NONE, 3, True),
    "HEAD with chunks": (b"HTTP/1.1 200 OK", "HEAD", [CHUNKED], Framing.NONE, -1, True),
    "HEAD with nothing": (b"HTTP/1.1 200 OK", "HEAD", [], Framing.NONE, -1, True),
    "204 with a length": (b"HTTP/1.1 204 No Content", "GET", [b"Content-Length: 3"], Framing.NONE, 3, True),
    "304 with a length": (b"HTTP/1.1 304 Not Modified", "GET", [b"Content-Length: 3"], Framing.NONE, 3, True),
    "103": (b"HTTP/1.1 103 Early Hints", "GET", [], Framing.NONE, -1, True),
    "close": (b"HTTP/1.1 200 OK", "GET", [b"Content-Length: 3", b"Connection: x, Close"], Framing.LENGTH, 3, False),
    "1.0": (b"HTTP/1.0 200 OK", "GET", [b"Content-Length: 3"], Framing.LENGTH, 3, False),
    "1.0 keep-alive": (
        b"HTTP/1.0 200 OK", "GET", [b"Content-Length: 3", b"Connection: Keep-Alive"], Framing.LENGTH, 3, True),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMINGS)
def test_framing_and_reuse(name: str) -> None:
    start, method, lines, framing, length, is_reusable = FRAMINGS[name]
    head = _parsed(*lines, start=start, method=method)
    assert (head.framing, head.content_length, head.is_reusable) == (framing, length, is_reusable)


MALFORMED: dict[str, bytes] = {
    "another protocol": b"ICY 200 OK\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "lower case": b"http/1.1 200 OK\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "status 999": b"HTTP/1.1 999 OK\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\n\r\n",
    "two spaces": b"HTTP/1.1  200 OK\r\n\r\n",
    "a control in the phrase": b"HTTP/1.1 200 O\x00K\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nX: y\r\n\r\n",
    "bare LF at the end": b"HTTP/1.1 200 OK\r\nX: y\n\n",
    "bare CR in a value": b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
    "folding": b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: y\r\n\r\n",
    "8-bit in a name": b"HTTP/1.1 200 OK\r\n\xe4: y\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n",
    "a length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n",
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    "a length of nineteen digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1" * 19 + b"\r\n\r\n",
    "a bad length beside a coding": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a coding twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "not whole": b"HTTP/1.1 200 OK\r\nX: y\r\n",
    "something after it": b"HTTP/1.1 200 OK\r\n\r\nx",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_two_readers_could_read_differently_is_no_reply(name: str) -> None:
    with pytest.raises(MalformedReplyError):
        ReplyParser().parse(MALFORMED[name], "GET")


@pytest.mark.parametrize(
    ("start", "phrase"),
    [(b"HTTP/1.1 200", b""), (b"HTTP/1.1 200 ", b""), (b"HTTP/1.1 200 Gr\xfc\xdfe  dich", b"Gr\xfc\xdfe  dich")],
)
def test_phrases(start: bytes, phrase: bytes) -> None:
    assert _parsed(start=start).phrase == phrase


# what is passed on


def test_lines_pass_as_they_came_and_in_their_order() -> None:
    lines = [b"Set-Cookie: a", b"X:\ty \t", b"set-cookie: b", b"Empty:", b"X: \xe4"]
    assert _parsed(*lines).lines == lines


def test_hop_by_hop_fields_end_here() -> None:
    lines = [
        b"Connection: X-Hop, x-other, Access-Control-Max-Age",
        b"X-HOP: 1",
        b"X-Other: 2",
        b"Access-Control-Max-Age: 3",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: x",
        b"Upgrade: h2",
        b"TE: x",
        b"Trailer: x",
        b"X-Request-ID: theirs",
        b"X-Stays: 1",
    ]
    assert _parsed(*lines).lines == [b"X-Stays: 1"]


def test_a_date_that_connection_names_is_none() -> None:
    """RFC 9110 section 6.6.1: the reply must then get one of ours."""
    head = _parsed(b"Date: then", b"Connection: Date")
    assert (head.lines, head.has_date) == ([], False)
    assert _parsed(b"Date: then").has_date


CORS = b"Access-Control-Allow-Origin: *"
RATE = [
    b"RateLimit: x",
    b"ratelimit-policy: x",
    b"X-RateLimit-Limit: 9",
    b"X-RateLimit-Remaining: 9",
    b"X-RateLimit-Reset: 9",
]


@pytest.mark.parametrize("drops_cors", [False, True])
def test_what_the_gateway_says_itself_an_upstream_does_not(drops_cors: bool) -> None:
    raw = b"\r\n".join([b"HTTP/1.1 200 OK", CORS, *RATE, b"X: y", b"", b""])
    head = ReplyParser(drops_cors).parse(raw, "GET")
    assert head.lines == [*([] if drops_cors else [CORS]), b"X: y"]
    assert head.rate == b"\r\n".join(RATE)


def test_a_limit_that_connection_names_is_the_connections() -> None:
    named = b"Connection: X-RateLimit-Remaining, ratelimit"
    assert _parsed(*RATE, named).rate == b"\r\n".join([RATE[1], RATE[2], RATE[4]])


OWN = (
    b'X-RateLimit-Limit: 10\r\nX-RateLimit-Remaining: 5\r\nX-RateLimit-Reset: 99\r\nRateLimit: "a";r=5;t=1,"b";r=7;t=1'
)


@pytest.mark.parametrize(
    ("own", "status", "theirs", "wanted"),
    [
        (None, 200, b"X-RateLimit-Remaining: 9", b"X-RateLimit-Remaining: 9"),
        (None, 302, b"X-RateLimit-Remaining: 9", b"X-RateLimit-Remaining: 9"),
        (OWN, 200, b"", OWN),
        (OWN, 304, b"", OWN),
        (OWN, 302, b"", b""),
        (OWN, 302, b"X-RateLimit-Remaining: 1", b""),
        (OWN, 200, b"X-RateLimit-Remaining: 4", b"X-RateLimit-Remaining: 4"),
        (OWN, 200, b"x-ratelimit-remaining:4", b"x-ratelimit-remaining:4"),
        (OWN, 200, b"X-RateLimit-Remaining: 5", OWN),
        (OWN, 200, b"X-RateLimit-Remaining: 6", OWN),
        (OWN, 200, b"X-RateLimit-Remaining: many", OWN),
        (OWN, 200, b'RateLimit: "up";r=1;t=30', b'RateLimit: "up";r=1;t=30'),
        (OWN, 200, b'RateLimit: "up";r=6;t=30', OWN),
        (OWN, 200, b'RateLimit-Policy: "up";q=1', OWN),
        (OWN, 429, b'RateLimit: "up";r=9;t=30', b'RateLimit: "up";r=9;t=30'),
        (OWN, 429, b"", OWN),
    ],
)
def test_whoever_leaves_less_is_told(own: bytes | None, status: int, theirs: bytes, wanted: bytes) -> None:
    lines = [b"HTTP/1.1 %d X" % status, *([theirs] if theirs else []), b"", b""]
    assert b"\r\n".join(rate_lines(own, ReplyParser().parse(b"\r\n".join(lines), "GET"))) == wanted


def test_the_memo_of_names_is_bounded_and_forgets_nothing_that_matters() -> None:
    parser = ReplyParser(drops_cors=True)
    for number in range(3000):
        raw = b"HTTP/1.1 200 OK\r\nX-%d: y\r\nKeep-Alive: x\r\n%b\r\n\r\n" % (number, CORS)
        assert parser.parse(raw, "GET").lines == [b"X-%d: y" % number]
    assert len(parser._names) <= 1024


def test_no_memo_keeps_what_is_long_or_too_much() -> None:
    parser = ReplyParser()
    for number in range(2000):
        phrase = b"%d" % number + b"x" * (number % 2 * 100)
        head = parser.parse(b"HTTP/1.1 200 %b\r\nX%b: y\r\n\r\n" % (phrase, b"-" * 100), "GET")
        assert (head.phrase, len(head.lines)) == (phrase, 1)
    assert len(parser._starts) <= 1024
    assert all(len(text) <= 64 for text in (*parser._starts, *parser._names))


# heads for the client

ADDED = [b"X-Request-ID: i"]


def test_a_head_for_the_client_whole() -> None:
    raw = client_head(ReplyParser().parse(REPLY, "GET"), ADDED, Framing.LENGTH, DATE, is_closing=True)
    assert raw == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Request-ID: i\r\nDate: "
        + DATE
        + b"\r\nContent-Length: 3\r\n"
        b"Connection: close\r\n\r\n"
    )


#: Start line, method, lines, framing towards the client -> the framing line of its head, if any.
OUT: dict[str, tuple[bytes, str, list[bytes], Framing, bytes]] = {
    "chunked": (b"HTTP/1.1 200 OK", "GET", [CHUNKED], Framing.CHUNKED, b"Transfer-Encoding: chunked"),
    "chunks and a length": (
        b"HTTP/1.1 200 OK", "GET", [b"Content-Length: 9", CHUNKED], Framing.CHUNKED, b"Transfer-Encoding: chunked"),
    "until the end, to 1.0": (b"HTTP/1.1 200 OK", "GET", [CHUNKED], Framing.CLOSE, b""),
    "zero": (b"HTTP/1.1 200 OK", "GET", [b"Content-Length: 0"], Framing.NONE, b"Content-Length: 0"),
    "HEAD keeps the length": (b"HTTP/1.1 200 OK", "HEAD", [b"Content-Length: 7"], Framing.NONE, b"Content-Length: 7"),
    "304 keeps the length": (b"HTTP/1.1 304 x", "GET", [b"Content-Length: 7"], Framing.NONE, b"Content-Length: 7"),
    "204 has none": (b"HTTP/1.1 204 x", "GET", [b"Content-Length: 7"], Framing.NONE, b""),
}  # fmt: skip


@pytest.mark.parametrize("name", OUT)
def test_framing_is_built_anew(name: str) -> None:
    start, method, lines, framing, line = OUT[name]
    raw = client_head(_parsed(*lines, start=start, method=method), [], framing, DATE, is_closing=False)
    _, *fields = raw.split(b"\r\n")[:-2]
    assert fields == [b"Date: " + DATE, *([line] if line else [])]


def test_an_upstreams_date_is_kept() -> None:
    raw = client_head(_parsed(b"Date: theirs"), [], Framing.CLOSE, DATE, is_closing=True)
    assert raw == b"HTTP/1.1 200 OK\r\nDate: theirs\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "is_closing", "lines"),
    [
        (426, False, [b"Upgrade: a, b", b"Connection: Upgrade"]),
        (426, True, [b"Upgrade: a, b", b"Connection: close, Upgrade"]),
        (200, False, []),
        (200, True, [b"Connection: close"]),
    ],
)
def test_a_426_says_to_what(status: int, is_closing: bool, lines: list[bytes]) -> None:
    head = _parsed(b"Upgrade: a", b"Upgrade: b", b"Date: x", b"Content-Length: 0", start=b"HTTP/1.1 %d x" % status)
    raw = client_head(head, [], Framing.NONE, DATE, is_closing=is_closing)
    assert raw.split(b"\r\n")[1:-2] == [b"Date: x", b"Content-Length: 0", *lines]


def test_a_426_that_does_not_say_to_what() -> None:
    raw = client_head(_parsed(b"Date: x", start=b"HTTP/1.1 426 x"), [], Framing.NONE, DATE, is_closing=False)
    assert raw == b"HTTP/1.1 426 x\r\nDate: x\r\n\r\n"


def test_interim_replies_pass_without_framing() -> None:
    head = _parsed(b"Link: </a>", b"Content-Length: 3", start=b"HTTP/1.1 103 Early Hints")
    assert informational_head(head) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def test_a_switch_of_protocols_names_its_upgrade() -> None:
    head = _parsed(b"Upgrade: websocket", b"Connection: Upgrade", b"X: y", start=b"HTTP/1.1 101 Switching Protocols")
    assert head.upgrade == b"websocket"
    assert switching_head(head, ADDED) == (
        b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\nX-Request-ID: i\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    )
