"""Request heads and bodies as values: what each says, what is refused and why, and that reads do not matter."""

from __future__ import annotations

import pytest

from engadi_gateway.errors import Reason, RefusedError
from engadi_gateway.model import Framing, RequestHead
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import (
    ChunkedBody,
    CountedBody,
    HeadLimits,
    first_head,
    parse_head,
    without_blank_lines,
)

LIMITS = HeadLimits()
SMALL = HeadLimits(max_head_bytes=256, max_header_lines=4, max_target_bytes=100)
HEAD = b"POST /a?b HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nContent-Length: 3\r\n\r\n"
CHUNKED_HEAD = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def _raw(*lines: str, start: str = "GET /a HTTP/1.1", host: str = "Host: h") -> bytes:
    return "\r\n".join([start, *([host] if host else []), *lines, "", ""]).encode("latin-1")


def _parsed(raw: bytes, max_body_bytes: int = 0) -> RequestHead:
    return parse_head(raw, LIMITS, HeaderPolicy(), max_body_bytes)[0]


def _body(max_body_bytes: int = 0) -> ChunkedBody:
    body = parse_head(CHUNKED_HEAD, LIMITS, HeaderPolicy(), max_body_bytes)[1]
    assert isinstance(body, ChunkedBody)
    return body


# taking heads


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_head_is_taken_when_it_is_whole_and_nothing_more(step: int) -> None:
    buffer = b""
    taken = None
    for at in range(0, len(HEAD), step):
        assert taken is None
        buffer += HEAD[at : at + step]
        taken = first_head(buffer, LIMITS)
    assert taken == HEAD
    assert first_head(HEAD + b"abcGET", LIMITS) == HEAD
    assert first_head(HEAD + HEAD, LIMITS) == HEAD


def _taking(raw: bytes, limits: HeadLimits) -> Reason:
    with pytest.raises(RefusedError) as raised:
        first_head(raw, limits)
    return raised.value.refusal.reason


TOO_MUCH: dict[str, tuple[bytes, Reason]] = {
    "an unfinished head": (b"GET / HTTP/1.1\r\nX: " + b"y" * 300, Reason.HEADERS_TOO_LARGE),
    "a finished head": (b"GET / HTTP/1.1\r\nX: " + b"y" * 300 + b"\r\n\r\n", Reason.HEADERS_TOO_LARGE),
    "an unfinished target": (b"GET /" + b"y" * 300, Reason.URI_TOO_LONG),
    "a finished target": (b"GET /" + b"y" * 300 + b" HTTP/1.1\r\nHost: h\r\n\r\n", Reason.URI_TOO_LONG),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_limits_hold_for_finished_and_for_unfinished_heads(name: str) -> None:
    raw, reason = TOO_MUCH[name]
    assert _taking(raw, SMALL) is reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"GET / HTTP/1.1\r\nX: y\nZ: " + b"y" * 300 + b"\r\n\r\n", Reason.BAD_REQUEST),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 300 + b"\n\r\n\r\n", Reason.HEADERS_TOO_LARGE),
        (b" GET / HTTP/1.1\r\nX: " + b"y" * 300 + b"\r\n\r\n", Reason.BAD_REQUEST),
        (b"GET /" + b"y" * 300 + b" HTTP/1.1\r\n\r\n", Reason.URI_TOO_LONG),
    ],
    ids=["a bare LF within the limit", "a bare LF beyond it", "a space first", "a target beyond it"],
)
@pytest.mark.parametrize("limits", [SMALL, HeadLimits(max_head_bytes=256)], ids=["short targets", "long targets"])
def test_what_is_too_large_is_refused_for_one_reason_however_it_comes(
    raw: bytes, reason: Reason, limits: HeadLimits
) -> None:
    assert _taking(raw, limits) is reason
    assert next(found for at in range(len(raw)) if (found := _taking_some(raw[: at + 1], limits))) is reason


def _taking_some(raw: bytes, limits: HeadLimits) -> Reason | None:
    try:
        first_head(raw, limits)
    except RefusedError as error:
        return error.refusal.reason
    return None


def test_a_head_of_exactly_the_limit_is_taken() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: h\r\nX: "
    raw += b"y" * (SMALL.max_head_bytes - len(raw) - 4) + b"\r\n\r\n"
    assert first_head(raw, SMALL) == raw
    assert _taking(raw[:-4] + b"y\r\n\r\n", SMALL) is Reason.HEADERS_TOO_LARGE


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\nHost", b"GET / HTTP/1.1\nHost: h\r\n\r\n", b"\x16\x03", b" GET"])
def test_what_can_never_be_a_head_is_refused_at_once(raw: bytes) -> None:
    assert _taking(raw, LIMITS) is Reason.BAD_REQUEST


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_blank_lines_are_skipped_however_they_come(count: int, step: int) -> None:
    buffer = b""
    raw = b"\r\n" * count + HEAD
    for at in range(0, len(raw), step):
        buffer = without_blank_lines(buffer + raw[at : at + step])
    assert buffer == HEAD


def test_only_whole_blank_lines_are_skipped() -> None:
    for raw in (b"", b"\r", b"\n\r\n", b"\rGET", b"GET\r\n\r\n"):
        assert without_blank_lines(raw) == raw


def test_a_stated_length_splits_what_came() -> None:
    body = CountedBody(5)
    assert (body.feed(b""), body.is_complete) == ((b"", b""), False)
    assert (body.feed(b"abc"), body.is_complete) == ((b"abc", b""), False)
    assert (body.feed(b"defg"), body.is_complete) == ((b"de", b"fg"), True)
    exact = CountedBody(2)
    assert (exact.feed(b"ab"), exact.is_complete) == ((b"ab", b""), True)


# what a head says


def test_what_a_head_says() -> None:
    head, body = parse_head(HEAD, LIMITS, HeaderPolicy())
    assert isinstance(body, CountedBody)
    assert head == RequestHead(
        method="POST",
        target=b"/a?b",
        path="/a",
        host="h",
        authority=b"h",
        fields=b"X-A: 1\r\n",
        notes={b"host": b"h", b"content-length": b"3"},
        framing=Framing.LENGTH,
        content_length=3,
        has_encoded_slash=False,
        is_http10=False,
        keep_alive=True,
        upgrade=b"",
    )


HOSTS: dict[str, tuple[str, bytes]] = {
    "Host: h": ("h", b"h"),
    "Host: API.Example.:8080": ("api.example", b"API.Example.:8080"),
    "Host: [::1]:80": ("[::1]", b"[::1]:80"),
    "Host: 127.0.0.1:": ("127.0.0.1", b"127.0.0.1:"),
    "Host: under_score": ("under_score", b"under_score"),
    "Host:   padded\t": ("padded", b"padded"),
}


@pytest.mark.parametrize("line", HOSTS)
def test_the_host_for_matching(line: str) -> None:
    host, authority = HOSTS[line]
    head = _parsed(_raw(host=line))
    assert (head.host, head.authority) == (host, authority)


def test_an_absolute_target_replaces_the_host() -> None:
    head = _parsed(_raw(start="GET http://Other:81/x HTTP/1.1"))
    assert (head.host, head.authority, head.target) == ("other", b"Other:81", b"/x")


def test_http_10_may_leave_the_host_out() -> None:
    head = _parsed(_raw(start="GET / HTTP/1.0", host=""))
    assert (head.host, head.authority, head.is_http10, head.keep_alive) == ("", b"", True, False)


REFUSED: dict[str, tuple[bytes, Reason]] = {
    "no request": (b"\r\n", Reason.BAD_REQUEST),
    "no Host": (_raw(host=""), Reason.BAD_REQUEST),
    "two Hosts": (_raw("Host: h"), Reason.BAD_REQUEST),
    "empty Host": (_raw(host="Host:"), Reason.BAD_REQUEST),
    "Host with a user": (_raw(host="Host: a@b"), Reason.BAD_REQUEST),
    "Host with a line end's letter": (_raw(host="Host: a\x85"), Reason.BAD_REQUEST),
    "a malformed Host beside an absolute target": (
        _raw(start="GET http://h/ HTTP/1.1", host="Host: a/b@c"), Reason.BAD_REQUEST),
    "an absolute target with a malformed authority": (_raw(start="GET http://a@b/ HTTP/1.1"), Reason.BAD_REQUEST),
    "HTTP/2.0": (_raw(start="GET / HTTP/2.0"), Reason.VERSION_UNSUPPORTED),
    "HTTP/1.2": (_raw(start="GET / HTTP/1.2"), Reason.VERSION_UNSUPPORTED),
    "HTTP/11": (_raw(start="GET / HTTP/11"), Reason.BAD_REQUEST),
    "CONNECT": (_raw(start="CONNECT h:80 HTTP/1.1"), Reason.NOT_IMPLEMENTED),
    "TRACE": (_raw(start="TRACE / HTTP/1.1"), Reason.NOT_IMPLEMENTED),
    "a method in lower case": (_raw(start="get / HTTP/1.1"), Reason.NOT_IMPLEMENTED),
    "a method of one letter in lower case": (_raw(start="GEt / HTTP/1.1"), Reason.NOT_IMPLEMENTED),
    "a coding that is none": (_raw("Transfer-Encoding: gzip"), Reason.NOT_IMPLEMENTED),
    "length and coding": (_raw("Content-Length: 1", "Transfer-Encoding: chunked"), Reason.BAD_REQUEST),
    "coding on HTTP/1.0": (_raw("Transfer-Encoding: chunked", start="POST / HTTP/1.0"), Reason.BAD_REQUEST),
    "two lengths": (_raw("Content-Length: 1", "Content-Length: 2"), Reason.BAD_REQUEST),
    "an expectation": (_raw("Expect: tea"), Reason.EXPECTATION_FAILED),
    "two tokens": (_raw("Authorization: a", "Authorization: b"), Reason.BAD_REQUEST),
    "too many lines": (_raw(*("X: y" for _ in range(100))), Reason.HEADERS_TOO_LARGE),
    "a long target": (_raw(start=f"GET /{'a' * 8192} HTTP/1.1"), Reason.URI_TOO_LONG),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name: str) -> None:
    raw, reason = REFUSED[name]
    with pytest.raises(RefusedError) as raised:
        _parsed(raw)
    assert raised.value.refusal.reason is reason


def test_limits_are_the_last_that_pass() -> None:
    assert _parsed(_raw(*("X: y" for _ in range(99)))).fields == b"X: y\r\n" * 99
    assert len(_parsed(_raw(start=f"GET /{'a' * 8191} HTTP/1.1")).target) == 8192


@pytest.mark.parametrize(("limit", "is_refused"), [(0, False), (2, True), (3, False)])
def test_a_length_is_held_against_the_limit_before_reading(limit: int, is_refused: bool) -> None:
    if not is_refused:
        assert _parsed(HEAD, limit).content_length == 3
        return
    with pytest.raises(RefusedError) as raised:
        _parsed(HEAD, limit)
    assert raised.value.refusal.reason is Reason.BODY_TOO_LARGE


FRAMINGS: dict[str, tuple[list[str], Framing, int]] = {
    "nothing": ([], Framing.NONE, 0),
    "length": (["Content-Length: 7"], Framing.LENGTH, 7),
    "the same length twice": (["Content-Length: 7", "Content-Length: 7"], Framing.LENGTH, 7),
    "zero": (["Content-Length: 0"], Framing.NONE, 0),
    "zeros before": (["Content-Length: 007"], Framing.LENGTH, 7),
    "chunked": (["Transfer-Encoding: Chunked"], Framing.CHUNKED, 0),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_framing(name: str) -> None:
    lines, framing, length = FRAMINGS[name]
    head = _parsed(_raw(*lines, start="POST / HTTP/1.1"))
    assert (head.framing, head.content_length) == (framing, length)


PERSISTENCE: dict[str, tuple[str, list[str], bool]] = {
    "1.1": ("1.1", [], True),
    "1.1 close": ("1.1", ["Connection: close"], False),
    "1.1 close among others": ("1.1", ["Connection: X, CLOSE"], False),
    "1.1 close in a second line": ("1.1", ["Connection: X", "Connection: close"], False),
    "1.0": ("1.0", [], False),
    "1.0 keep-alive": ("1.0", ["Connection: Keep-Alive"], True),
    "1.0 both": ("1.0", ["Connection: keep-alive, close"], False),
    "1.0 something": ("1.0", ["Connection: X"], False),
}


@pytest.mark.parametrize("name", PERSISTENCE)
def test_whether_the_connection_goes_on(name: str) -> None:
    version, lines, keep_alive = PERSISTENCE[name]
    assert _parsed(_raw(*lines, start=f"GET / HTTP/{version}")).keep_alive is keep_alive


UPGRADES: dict[str, tuple[str, list[str], bytes]] = {
    "websocket": ("GET / HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket"], b"websocket"),
    "named among others": ("GET / HTTP/1.1", ["Connection: keep-alive, upgrade", "Upgrade: x"], b"x"),
    "not named": ("GET / HTTP/1.1", ["Upgrade: websocket"], b""),
    "nothing to upgrade to": ("GET / HTTP/1.1", ["Connection: Upgrade"], b""),
    "on POST": ("POST / HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket"], b""),
    "on HTTP/1.0": ("GET / HTTP/1.0", ["Connection: Upgrade", "Upgrade: websocket"], b""),
    "with a body": ("GET / HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket", "Content-Length: 1"], b""),
    "h2c": ("GET / HTTP/1.1", ["Connection: Upgrade", "Upgrade: h2c"], b""),
    "h2c behind another": ("GET / HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket , H2C"], b""),
    "TLS": ("GET / HTTP/1.1", ["Connection: Upgrade", "Upgrade: TLS/1.0"], b""),
}


@pytest.mark.parametrize("name", UPGRADES)
def test_what_may_switch_protocols(name: str) -> None:
    start, lines, upgrade = UPGRADES[name]
    assert _parsed(_raw(*lines, start=start)).upgrade == upgrade


def test_an_expectation_of_http_10_is_none() -> None:
    """RFC 9110 section 10.1.1: a server must ignore it there."""
    assert _parsed(_raw("Expect: tea", start="GET / HTTP/1.0")).is_http10


# chunked bodies


def test_a_chunked_body_that_comes_after_its_head() -> None:
    """Nothing of it may be there when the head is acted on: that is no end of the connection."""
    body = _body()
    assert body.feed(b"") == (b"", b"")
    assert body.feed(b"2\r\nab\r\n") == (b"ab", b"")
    assert body.feed(b"") == (b"", b"")
    assert body.feed(b"0\r\n\r\nGET") == (b"", b"GET")
    assert body.is_complete


BAD_BODIES: dict[str, bytes] = {
    "no size": b"\r\n",
    "no hexadecimal": b"x\r\n",
    "a sign": b"+1\r\na\r\n",
    "a prefix": b"0x1\r\na\r\n",
    "seventeen digits": b"0" * 16 + b"1\r\na\r\n",
    "bare LF": b"1\na\r\n",
    "data longer than said": b"1\r\nab\r\n",
    "a control in an extension": b"1;\x01\r\na\r\n",
    "a line without end": b"1;" + b"x" * 5000,
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a trailer without name": b"0\r\n: y\r\n\r\n",
}


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_malformed_body_is_the_clients_fault(name: str, step: int) -> None:
    raw, body = BAD_BODIES[name], _body()
    with pytest.raises(RefusedError) as raised:
        for at in range(0, len(raw), step):
            body.feed(raw[at : at + step])
    assert raised.value.refusal.reason is Reason.BAD_REQUEST


TOO_LONG: dict[str, bytes] = {
    "data": b"b\r\n" + b"x" * 11 + b"\r\n",
    "chunks": b"1\r\nx\r\n" * 11,
    "an extension": b"1;" + b"x" * 60 + b"\r\nx\r\n",
    "trailers": b"0\r\n" + b"X: yyyyyyyyyyyyyyyyyy\r\n" * 4 + b"\r\n",
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_data_extensions_and_trailers_count_as_body(name: str) -> None:
    with pytest.raises(RefusedError) as raised:
        _body(10).feed(TOO_LONG[name])
    assert raised.value.refusal.reason is Reason.BODY_TOO_LARGE


def test_small_chunks_are_not_charged_for_their_framing() -> None:
    body = _body(10)
    assert body.feed(b"0000000000000001\r\nx\r\n" * 10 + b"0\r\n\r\n") == (b"x" * 10, b"")
    assert body.is_complete


def test_trailers_are_dropped_and_what_follows_is_given_back() -> None:
    assert _body().feed(b"2\r\nab\r\n0\r\nX-User-ID: root\r\n\r\nGET /") == (b"ab", b"GET /")
