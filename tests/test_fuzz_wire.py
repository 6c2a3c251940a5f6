"""What strangers send, made up by the machine; h11 is the oracle.

Replies and bodies: both read the same, or ours refuses. Requests: how the bytes are cut into reads changes nothing.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engadi_gateway.wire.chunked import MalformedBodyError
from engadi_gateway.wire.request import HeadLimits
from engadi_gateway.wire.response import MalformedReplyError
from tests.conformance.case import Case
from tests.conformance.tables import CASES
from tests.fuzz.oracle import Read, reply_by_h11, reply_by_us, taken

# replies

STARTS = st.sampled_from(
    [b"HTTP/1.1 200 OK"] * 4
    + [b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 x", b"HTTP/1.1 404", b"HTTP/1.1 500 ",
       b"HTTP/2.0 200 OK", b"HTTP/1.1 20 OK", b"http/1.1 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 599 \xe4", b"ICY 200 OK",
       b"HTTP/1.1 200 a\tb", b"HTTP/1.1 200 a\x01", b"HTTP/1.1 103 x", b"HTTP/1.1 101 x"]
)  # fmt: skip
LINES = st.sampled_from(
    [b"Content-Length: 3"] * 3
    + [b"Transfer-Encoding: chunked"] * 3
    + [b"Content-Length: 4", b"Content-Length: 3, 3", b"Content-Length:", b"Content-Length: +3", b"Content-Length: 03",
       b"content-length:\t3 ", b"Content-Length: 3 3", b"Content-Length: \x0b3", b"Content_Length: 3", b"Content-Length: 0",
       b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, chunked", b"TRANSFER-ENCODING: Chunked ",
       b"Transfer-Encoding:chunked", b"Transfer-Encoding: ", b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: ,chunked",
       b"X: y", b"X : y", b" X: y", b"\tX: y", b"X:\ty\t", b"X: \0", b"X: a\rb", b"X: a\nb", b"X: \x1f", b"X: \x7f", b"X",
       b"X:", b": v", b"\xe4: y", b"X: \xe4", b"X: a b  c", b"Set-Cookie: a=b", b"Set-Cookie: c=d", b"Connection: close",
       b"Connection: keep-alive, X", b"Connection: content-length", b"Connection: transfer-encoding", b"Keep-Alive: 1"]
)  # fmt: skip
PIECES = st.sampled_from(
    [b"0", b"1", b"2", b"a", b"A", b"F", b"\r\n", b"\r", b"\n", b";", b"x=y", b" ", b"\t", b"ab", b"0\r\n\r\n", b"1\r\nq\r\n",
     b"T: v\r\n", b"T : v\r\n", b" v\r\n", b"00", b"-", b"+", b"0x", b"\0", b"\xff", b":", b"2\r\nab\r\n", b"1 ;x\r\n", b"1;x\r\n",
     b"1 \r\n", b"0\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)  # fmt: skip


@settings(max_examples=1000)
@given(
    STARTS,
    st.lists(LINES, max_size=5),
    st.lists(PIECES, max_size=6),
    st.sampled_from(["GET", "HEAD"]),
    st.integers(1, 9),
)
def test_replies_both_read_the_same_or_ours_refuses(
    start: bytes, lines: list[bytes], pieces: list[bytes], method: str, step: int
) -> None:
    head, body = b"\r\n".join([start, *lines, b"", b""]), b"".join(pieces)
    try:
        ours = reply_by_us(head, body, method, step)
    except (MalformedReplyError, MalformedBodyError):
        return
    assert ours == reply_by_h11(head, body, method)


@settings(max_examples=600)
@given(st.data())
def test_a_good_reply_with_bytes_changed(data: st.DataObject) -> None:
    """Closer to what passes than lines made up: one or two bytes of a good reply are another's."""
    good = data.draw(
        st.sampled_from(
            [
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: y\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n",
                b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 10\r\n\r\n",
            ]
        )
    )
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 2))):
        raw[data.draw(st.integers(0, len(raw) - 5))] = data.draw(
            st.sampled_from(b"\r\n\t :;,-0123456789abcxCTX\0\x0b\x0c\x1c\x7f\x85\xff")
        )
    if raw.count(b"\r\n\r\n") != 1:
        return  # the connection would cut it elsewhere
    body = b"3\r\nabc\r\n0\r\n\r\n"
    try:
        ours = reply_by_us(bytes(raw), body, "GET", 1)
    except (MalformedReplyError, MalformedBodyError):
        return
    assert ours == reply_by_h11(bytes(raw), body, "GET")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@settings(max_examples=1000)
@given(st.lists(PIECES, max_size=9), st.integers(1, 9))
@example([b"1\r\nq\r\n", b"0", b"\n", b"\r\n"], 1)
@example([b"1 ;x\r\n", b"a", b"\r\n"], 1)
def test_chunks_both_read_the_same_or_ours_refuses(pieces: list[bytes], step: int) -> None:
    raw = b"".join(pieces)
    try:
        ours = reply_by_us(CHUNKED, raw, "GET", step)
    except MalformedBodyError:
        return
    assert ours == reply_by_h11(CHUNKED, raw, "GET")


def test_the_oracle_can_disagree() -> None:
    """A comparison that could not fail would prove nothing."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    assert reply_by_h11(head, b"abcd", "GET") == Read(200, [], b"abc", True, b"d")
    assert reply_by_h11(head, b"ab", "GET") == Read(200, [], b"ab", False, b"")
    assert reply_by_h11(CHUNKED, b"2\r\nab\r\n0\r\n\r\nx", "GET") == Read(200, [], b"ab", True, b"x")
    assert reply_by_h11(CHUNKED, b"g\r\n", "GET") is None


# requests


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_split_at_every_byte(case: Case) -> None:
    """In two at every place, and byte by byte: the same requests, the same reason."""
    raw = case.raw
    whole = taken(raw, [])
    splits = [[at] for at in range(1, len(raw), max(1, len(raw) // 400))] + [list(range(1, len(raw)))]
    for cuts in splits:
        split = taken(raw, cuts)
        assert split.outcome() == whole.outcome()
        if whole.refusal is not None and split.refusal is not None:
            assert split.refusal.reason is whole.refusal.reason


START_PARTS = st.sampled_from(
    [b"GET / HTTP/1.1\r\n"] * 3
    + [b"POST /a HTTP/1.1\r\n"] * 3
    + [b"HEAD /a HTTP/1.0\r\n", b"GET  / HTTP/1.1\r\n", b"GET /\r HTTP/1.1\r\n", b"\r\n", b"\r", b"\n", b" ", b"\x16"]
)
HEAD_PARTS = st.sampled_from(
    [b"Host: h\r\n"] * 4
    + [b"\r\n"] * 4
    + [b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
       b"Content-Length: x\r\n", b"X: y\n", b"X: y\r", b"X : y\r\n", b" y\r\n", b"X" * 90 + b": y\r\n", b"Expect: tea\r\n"]
)  # fmt: skip
BODY_PARTS = st.sampled_from(
    [b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"1;x\r\na\r\n", b"g\r\n", b"\r\n"]
)


@settings(max_examples=600)
@given(
    st.lists(st.tuples(START_PARTS, st.lists(HEAD_PARTS, max_size=4), st.lists(BODY_PARTS, max_size=3)), max_size=3),
    st.data(),
)
def test_how_a_stream_is_cut_changes_nothing(
    requests: list[tuple[bytes, list[bytes], list[bytes]]], data: st.DataObject
) -> None:
    raw = b"".join(start + b"".join(head) + b"".join(body) for start, head, body in requests)
    limits = HeadLimits(max_head_bytes=200, max_header_lines=4, max_target_bytes=64)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=6))) if len(raw) > 1 else []
    whole = taken(raw, [], limits)
    assert taken(raw, cuts, limits).outcome() == whole.outcome()
    assert taken(raw, list(range(1, len(raw))), limits).outcome() == whole.outcome()


@settings(max_examples=400)
@given(st.lists(HEAD_PARTS, max_size=5), st.lists(BODY_PARTS, max_size=4))
def test_a_request_that_passes_is_read_by_h11_as_a_server_the_same(head: list[bytes], body: list[bytes]) -> None:
    """What goes on to an upstream is what a strict reader of the received bytes would have understood."""
    raw = b"POST /a HTTP/1.1\r\n" + b"".join(head) + b"".join(body)
    intake = taken(raw, [])
    heads, bodies, is_refused = intake.outcome()
    if is_refused or not heads or not bodies:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method.decode(), request.target) == (heads[0].method, heads[0].target)
    data = b""
    while isinstance(event := connection.next_event(), h11.Data):
        data += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert data == bodies[0]
