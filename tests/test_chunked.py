"""The chunked coding: what is written is read, however it is cut, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.wire.chunked import LAST_CHUNK, ChunkedDecoder, MalformedBodyError, chunk


def decode(raw: bytes, step: int) -> tuple[bytes, bytes, bool]:
    """(body, what follows, whether it is whole), fed `step` bytes at a time."""
    decoder = ChunkedDecoder()
    body, rest = b"", b""
    for at in range(0, len(raw), step):
        if decoder.is_complete:
            rest += raw[at : at + step]
            continue
        piece, rest = decoder.feed(raw[at : at + step])
        body += piece
    return body, rest, decoder.is_complete


GOOD: dict[str, tuple[bytes, bytes, bytes]] = {
    "nothing": (b"0\r\n\r\n", b"", b""),
    "a chunk": (b"2\r\nab\r\n0\r\n\r\n", b"ab", b""),
    "what follows": (b"0\r\n\r\nHTTP/1.1", b"", b"HTTP/1.1"),
    "zeros and capitals": (b"00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789", b""),
    "sixteen digits": (b"0000000000000001\r\nx\r\n0\r\n\r\n", b"x", b""),
    "extensions": (b'1;a=b;c="d"\r\nx\r\n0;e\r\n\r\n', b"x", b""),
    "a padded size": (b"1  \r\nx\r\n0\t\r\n\r\n", b"x", b""),
    "trailers": (b"0\r\nA: b\r\nC:\r\n\r\nrest", b"", b"rest"),
    "line ends in the data": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", b""),
    "the longest line": (b"1;" + b"x" * 4093 + b"\r\nx\r\n0\r\n\r\n", b"x", b""),
}


@pytest.mark.parametrize("step", [1, 2, 3, 5, 10_000])
@pytest.mark.parametrize("name", GOOD)
def test_good_bodies(name: str, step: int) -> None:
    raw, body, rest = GOOD[name]
    assert decode(raw, step) == (body, rest, True)


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_whole_before_its_end(name: str) -> None:
    raw, _, rest = GOOD[name]
    for end in range(len(raw) - len(rest)):
        assert not decode(raw[:end], 10_000)[2]


BAD: dict[str, bytes] = {
    "no size": b"\r\n",
    "no digits": b"g\r\n",
    "a sign": b"-1\r\n",
    "a prefix": b"0x1\r\n",
    "an underscore": b"1_0\r\n",
    "space before the size": b" 1\r\n",
    "space before the extension": b"1 ;a\r\n",
    "seventeen digits": b"00000000000000001\r\n",
    "bare LF after the size": b"1\n",
    "bare CR after the size": b"1\rx",
    "two CRs": b"1\r\r\n",
    "bare LF after the data": b"1\r\nx\n",
    "no line end after the data": b"1\r\nxy",
    "CR and something after the data": b"1\r\nx\ry",
    "a control in the extension": b"1;\x00\r\n",
    "a line beyond the limit": b"1;" + b"x" * 4094 + b"\r\n",
    "a line that never ends": b"1;" + b"x" * 4096,
    "a bare LF in the trailers": b"0\r\nA: b\n",
    "a trailer without colon": b"0\r\nA\r\n",
    "a trailer without name": b"0\r\n: b\r\n",
    "space before the colon": b"0\r\nA : b\r\n",
    "folding": b"0\r\nA: b\r\n c\r\n",
    "too many trailers": b"0\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 17,
}


@pytest.mark.parametrize("step", [1, 2, 3, 10_000])
@pytest.mark.parametrize("name", BAD)
def test_bad_bodies(name: str, step: int) -> None:
    with pytest.raises(MalformedBodyError):
        decode(BAD[name], step)


def test_what_can_never_be_a_size_is_refused_before_its_line_ends() -> None:
    for raw in (b"x", b"1x", b"HTTP/1.1 200", b"1 x", b"\0"):
        with pytest.raises(MalformedBodyError):
            ChunkedDecoder().feed(raw)


def test_chunks_are_counted_for_whoever_charges_for_them() -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"1\r\nx\r\n1\r\ny\r\n0\r\n\r\n")
    assert decoder.chunks == 3


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=10), st.integers(1, 50))
def test_our_chunks_are_read_whatever_the_reads(parts: list[bytes], tail: bytes, step: int) -> None:
    raw = b"".join(map(chunk, parts)) + LAST_CHUNK + tail
    assert decode(raw, step) == (b"".join(parts), tail, True)


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=20), st.binary(max_size=10), st.integers(1, 7))
def test_it_stops_after_so_many_steps_and_goes_on_with_what_it_left(parts: list[bytes], tail: bytes, most: int) -> None:
    decoder, rest, pieces, feeds = ChunkedDecoder(), b"".join(map(chunk, parts)) + LAST_CHUNK + tail, list[bytes](), 0
    while not decoder.is_complete:
        piece, rest = decoder.feed(rest, most)
        pieces.append(piece)
        feeds += 1
    assert (b"".join(pieces), rest) == (b"".join(parts), tail)
    assert feeds == -(-(2 * len(parts) + 2) // most), "a line and its data a chunk, and two lines at the end"
