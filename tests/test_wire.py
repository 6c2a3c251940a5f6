"""Heads, bodies and replies as values: every case whole, byte by byte, and against h11 as the oracle."""

from __future__ import annotations

import json

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engadi_gateway.errors import Fault, Reason, Refusal, RefusedError
from engadi_gateway.model import Framing
from engadi_gateway.wire.chunked import ChunkedDecoder, MalformedBodyError, chunk
from engadi_gateway.wire.headers import HeaderPolicy, scan
from engadi_gateway.wire.problem import problem_body, refusal_reply
from engadi_gateway.wire.request import HeadLimits, parse_head, skip_blank_lines, take_head
from engadi_gateway.wire.response import MalformedReplyError, ReplyHead, ReplyParser, client_head

LIMITS = HeadLimits()
HEAD = b"POST /a?b HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nContent-Length: 3\r\n\r\n"


# taking heads


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_head_is_taken_when_it_is_whole_and_nothing_more(step: int) -> None:
    buffer = bytearray()
    taken = None
    for at in range(0, len(HEAD), step):
        assert taken is None
        buffer += HEAD[at : at + step]
        taken = take_head(buffer, LIMITS)
    assert (taken, bytes(buffer)) == (HEAD, b"")
    buffer = bytearray(HEAD + b"abcGET")
    assert (take_head(buffer, LIMITS), bytes(buffer)) == (HEAD, b"abcGET")


def test_blank_lines_before_a_request_line_are_skipped_half_ones_wait() -> None:
    for blank, left in ((b"\r\n", b"GET"), (b"\r\n\r\n\r\n", b"GET"), (b"\r\n\n", b"\nGET"), (b"\r", b"\rGET")):
        buffer = bytearray(blank + b"GET")
        skip_blank_lines(buffer)
        assert buffer == left


def _reason(raw: bytes, limits: HeadLimits = LIMITS) -> Reason:
    with pytest.raises(RefusedError) as raised:
        take_head(bytearray(raw), limits)
    return raised.value.refusal.reason


def test_limits_hold_for_finished_and_for_unfinished_heads() -> None:
    small = HeadLimits(max_head_bytes=256, max_target_bytes=100)
    line = b"GET / HTTP/1.1\r\nX: " + b"y" * 300
    assert _reason(line, small) is Reason.HEADERS_TOO_LARGE
    assert _reason(line + b"\r\n\r\n", small) is Reason.HEADERS_TOO_LARGE
    assert _reason(b"GET /" + b"y" * 300, small) is Reason.URI_TOO_LONG


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\nHost", b"GET / HTTP/1.1\nHost: h\r\n\r\n", b"\x16\x03"])
def test_what_can_never_be_a_head_is_refused_at_once(raw: bytes) -> None:
    assert _reason(raw) is Reason.BAD_REQUEST


def test_what_a_head_says() -> None:
    head, body = parse_head(HEAD, LIMITS, HeaderPolicy())
    assert (head.method, head.target, head.path, head.host, head.authority) == ("POST", b"/a?b", "/a", "h", b"h")
    assert (head.framing, head.content_length, head.keep_alive) == (Framing.LENGTH, 3, True)
    assert body is not None
    assert body.feed(b"abcd") == (b"abc", b"d")
    assert head.lines == [(b"X-A", b"1")]


# header lines


@pytest.mark.parametrize(
    "name",
    [b"X-User-Id", b"x-USER-name", b"X_User_Id", b"X.User", b"X-Auth-Request", b"X-Forwarded-Foo", b"X-Mine", b"Proxy"],
)
def test_names_that_never_pass(name: bytes) -> None:
    assert scan([(name, b"v"), (b"Ok", b"v")], HeaderPolicy(["X-Mine"]))[0] == [(b"Ok", b"v")]


def test_underscores_can_be_refused() -> None:
    with pytest.raises(RefusedError):
        scan([(b"a_b", b"v")], HeaderPolicy(rejects_underscores=True))


def test_the_memo_of_spellings_is_bounded() -> None:
    policy = HeaderPolicy()
    for number in range(10_000):
        scan([(b"X-%d" % number, b"v")], policy)
    assert len(policy) <= 2048


def test_authorization_can_be_kept_to_ourselves() -> None:
    lines, notes = scan([(b"Authorization", b"t")], HeaderPolicy(note_only=["authorization"]))
    assert (lines, notes) == ([], {b"authorization": b"t"})


# chunks


def _decode(raw: bytes, step: int) -> tuple[bytes, bytes, bool]:
    decoder = ChunkedDecoder()
    body, rest = b"", b""
    for at in range(0, len(raw), step):
        if decoder.is_complete:
            rest += raw[at : at + step]
            continue
        piece, rest = decoder.feed(raw[at : at + step])
        body += piece
    return body, rest, decoder.is_complete


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=10), st.integers(1, 50))
def test_our_chunks_are_read_whatever_the_reads(parts: list[bytes], tail: bytes, step: int) -> None:
    raw = b"".join(map(chunk, parts)) + b"0\r\n\r\n" + tail
    assert _decode(raw, step) == (b"".join(parts), tail, True)


def _h11_body(raw: bytes) -> tuple[bytes, bytes, bool] | None:
    """What h11 makes of a chunked body: (body, rest, complete), None where it refuses."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    connection.next_event()
    body = b""
    try:
        while isinstance(event := connection.next_event(), h11.Data):
            body += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    return body, connection.trailing_data[0], isinstance(event, h11.EndOfMessage)


PIECES = st.sampled_from(
    [b"0", b"1", b"2", b"a", b"A", b"F", b"\r\n", b"\r", b"\n", b";", b"x=y", b" ", b"\t", b"ab", b"0\r\n\r\n", b"1\r\nq\r\n",
     b"T: v\r\n", b"00", b"-", b"+", b"0x", b"\0", b"\xff", b":", b"2\r\nab\r\n"]
)  # fmt: skip


@settings(max_examples=600)
@given(st.lists(PIECES, max_size=9), st.integers(1, 9))
@example([b"1\r\nq\r\n", b"0", b"\n", b"\r\n"], 1)
def test_chunks_against_h11_both_agree_or_ours_refuses(pieces: list[bytes], step: int) -> None:
    raw = b"".join(pieces)
    theirs = _h11_body(raw)
    try:
        ours = _decode(raw, step)
    except MalformedBodyError:
        return
    assert theirs is not None, "ours must be the stricter one"
    if ours[2] or theirs[2]:
        assert ours == theirs
    else:
        assert ours[0] == theirs[0]


# replies

REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\n"


def test_what_a_reply_says() -> None:
    assert ReplyParser().parse(REPLY, "GET") == ReplyHead(
        200, b"OK", [b"Content-Type: text/plain"], Framing.LENGTH, 3, True, False, b""
    )
    head = ReplyParser().parse(REPLY, "HEAD")
    assert (head.framing, head.content_length) == (Framing.NONE, 3)


@pytest.mark.parametrize(
    ("lines", "framing", "is_reusable"),
    [
        (b"", Framing.CLOSE, False),
        (b"Content-Length: 0\r\n", Framing.NONE, True),
        (b"Transfer-Encoding: Chunked\r\n", Framing.CHUNKED, True),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", Framing.CHUNKED, False),
        (b"Content-Length: 3\r\nConnection: close\r\n", Framing.LENGTH, False),
        (b"Content-Length: 3\r\nContent-Length: 3\r\n", Framing.LENGTH, True),
    ],
)
def test_framing_of_replies(lines: bytes, framing: Framing, is_reusable: bool) -> None:
    head = ReplyParser().parse(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n", "GET")
    assert (head.framing, head.is_reusable) == (framing, is_reusable)


def test_http_10_is_reusable_only_when_it_says_so() -> None:
    for line, is_reusable in ((b"", False), (b"Connection: keep-alive\r\n", True)):
        raw = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n" + line + b"\r\n"
        assert ReplyParser().parse(raw, "GET").is_reusable is is_reusable


LINES = st.sampled_from(
    [b"Content-Length: 3", b"Content-Length: 4", b"Content-Length: 3, 3", b"Content-Length:", b"Content-Length: +3",
     b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, chunked", b"X: y", b"X : y",
     b" X: y", b"X:\ty\t", b"X: \0", b"X: a\rb", b"X: a\nb", b"Connection: close", b"Connection: keep-alive, X", b": v",
     b"X", b"\xe4: y", b"X: \xe4", b"TRANSFER-ENCODING: chunked", b"Set-Cookie: a=b"]
)  # fmt: skip
STARTS = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 x", b"HTTP/1.1 200", b"HTTP/1.1 200 ",
     b"HTTP/2.0 200 OK", b"HTTP/1.1 20 OK", b"http/1.1 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 599 \xe4", b"ICY 200 OK"]
)  # fmt: skip


def _framing_h11(raw: bytes, method: str) -> tuple[int, list[tuple[bytes, bytes]], str] | None:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    try:
        connection.receive_data(raw)
        event = connection.next_event()
        assert isinstance(event, h11.Response)
        connection.receive_data(b"3\r\nabc\r\n0\r\n\r\n")
        after = connection.next_event()
    except (h11.RemoteProtocolError, AssertionError):
        return None
    lengths = [value for name, value in event.headers if name == b"content-length"]
    kind = "none" if isinstance(after, h11.EndOfMessage) else "body"
    if isinstance(after, h11.Data) and bytes(after.data) == b"abc":
        kind = "chunked"
    elif kind == "body":
        kind = "length" if lengths else "close"
    return event.status_code, [(name, value) for name, value in event.headers if name in {b"x", b"set-cookie"}], kind


@settings(max_examples=800)
@given(STARTS, st.lists(LINES, max_size=4), st.sampled_from(["GET", "HEAD"]))
def test_reply_heads_against_h11_both_agree_or_ours_refuses(start: bytes, lines: list[bytes], method: str) -> None:
    raw = b"\r\n".join([start, *lines, b"", b""])
    try:
        ours = ReplyParser().parse(raw, method)
    except MalformedReplyError:
        return
    theirs = _framing_h11(raw, method)
    assert theirs is not None, "ours must be the stricter one"
    status, fields, kind = theirs
    assert ours.status == status
    assert {Framing.NONE: "none", Framing.LENGTH: "length", Framing.CHUNKED: "chunked", Framing.CLOSE: "close"}[
        ours.framing
    ] == kind
    if not any(line.startswith(b"Connection: keep-alive, X") for line in lines):
        kept = [line.split(b":", 1) for line in ours.lines]
        assert [(n.lower(), v.strip(b" \t")) for n, v in kept if n.lower() in {b"x", b"set-cookie"}] == fields


def test_a_reply_head_for_the_client() -> None:
    reply = ReplyParser().parse(REPLY, "GET")
    raw = client_head(reply, [b"X-Request-ID: i"], Framing.LENGTH, b"now", is_closing=True)
    assert raw == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Request-ID: i\r\nDate: now\r\nContent-Length: 3\r\n"
        b"Connection: close\r\n\r\n"
    )


# problems


def test_a_problem_says_what_it_may() -> None:
    refusal = Refusal(Reason.INVALID_FIELDS, "d", faults=(Fault("/a", "no"),))
    assert json.loads(problem_body(refusal, "0b5e")) == {
        "type": "urn:engadi:problem:invalid_fields",
        "title": "Some fields are not valid",
        "status": 422,
        "code": "invalid_fields",
        "instance": "urn:uuid:0b5e",
        "request_id": "0b5e",
        "detail": "d",
        "errors": [{"pointer": "/a", "detail": "no"}],
    }


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.code)
def test_every_row_gives_a_reply_that_h11_reads(reason: Reason) -> None:
    if reason.status in {200, 499, 504} and not reason.title:
        return
    raw = refusal_reply(Refusal(reason), "i", [b"Vary: Origin"], b"now", is_head=False, is_closing=False)
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == reason.status
    names = [name for name, _ in event.headers]
    assert (b"proxy-status" in names) is bool(reason.proxy_error)
    assert (b"cache-control", b"no-store") in list(event.headers)
    if reason.status != 204:
        body = connection.next_event()
        assert isinstance(body, h11.Data)
        assert json.loads(bytes(body.data))["code"] == reason.code


def test_codes_are_stable_words_and_unique() -> None:
    codes = [reason.code for reason in Reason]
    assert len(set(codes)) == len(codes) == len(Reason.__members__)
