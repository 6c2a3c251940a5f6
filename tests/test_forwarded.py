"""Who the client is, whom to believe, and the head that an upstream gets."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.model import Framing
from engadi_gateway.wire.forwarded import (
    Client,
    client_lines,
    given_request_id,
    is_last_hop,
    is_loop,
    is_trusted,
    plain_address,
    resolve_client,
    upstream_head,
)
from tests.exchanges import head_of

TRUSTED = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1\t", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:0201", "192.0.2.1"),
        ("192.0.2.1:80", ""),
        ("[2001:db8::1]", ""),
        ("192.0.2.256", ""),
        ("192.0.2.01", ""),
        ("unknown", ""),
        ("_hidden", ""),
        ("", ""),
        ("%", ""),
        ("\xb2", ""),
    ],
)
def test_addresses_as_they_are_compared(text: str, address: str) -> None:
    assert plain_address(text) == address


@pytest.mark.parametrize(
    ("address", "is_in"), [("10.1.2.3", True), ("11.0.0.1", False), ("fd00::1", True), ("::1", False), ("x", False)]
)
def test_whom_to_trust(address: str, is_in: bool) -> None:
    assert is_trusted(address, TRUSTED) is is_in


FORGED = {
    b"x-forwarded-for": b"203.0.113.9",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-host": b"evil",
    b"x-request-id": b"mine",
}


@pytest.mark.parametrize("trusted", [(), TRUSTED], ids=["nobody is trusted", "others are"])
def test_a_strangers_word_is_nothing(trusted: tuple[ipaddress.IPv4Network, ...]) -> None:
    who = resolve_client("192.0.2.1", b"http", head_of(notes=FORGED), trusted)
    assert who == Client("192.0.2.1", b"192.0.2.1", b"http", b"api.example")


def test_a_trusted_peers_word() -> None:
    who = resolve_client("10.0.0.1", b"http", head_of(notes=FORGED), TRUSTED)
    assert who == Client("203.0.113.9", b"203.0.113.9, 10.0.0.1", b"https", b"evil")


def test_a_trusted_peer_that_says_nothing() -> None:
    who = resolve_client("10.0.0.1", b"https", head_of(), TRUSTED)
    assert who == Client("10.0.0.1", b"10.0.0.1", b"https", b"api.example")


WALKS: dict[str, tuple[bytes, str]] = {
    "one": (b"203.0.113.9", "203.0.113.9"),
    "a forged first": (b"6.6.6.6, 203.0.113.9", "203.0.113.9"),
    "past trusted ones": (b"203.0.113.9, 10.0.0.7,10.0.0.8", "203.0.113.9"),
    "past trusted ones in IPv6": (b"203.0.113.9, fd00::7", "203.0.113.9"),
    "all trusted: the first": (b"10.0.0.7, 10.0.0.8", "10.0.0.7"),
    "garbage stops at the last good": (b"203.0.113.9, evil, 10.0.0.7", "10.0.0.7"),
    "garbage last stops at the peer": (b"203.0.113.9, evil", "10.0.0.1"),
    "an empty member is garbage": (b"203.0.113.9,", "10.0.0.1"),
    "mapped": (b"::ffff:203.0.113.9", "203.0.113.9"),
    "mapped and trusted": (b"203.0.113.9, ::ffff:10.0.0.7", "203.0.113.9"),
    "a zone": (b"fe80::1%eth0", "fe80::1"),
    "no ASCII": (b"\xe4", "10.0.0.1"),
}


@pytest.mark.parametrize("name", WALKS)
def test_the_walk_from_the_right(name: str) -> None:
    received, address = WALKS[name]
    assert (
        resolve_client("10.0.0.1", b"http", head_of(notes={b"x-forwarded-for": received}), TRUSTED).address == address
    )


ADDRESSES = st.sampled_from(["10.0.0.7", "fd00::1", "203.0.113.9", "2001:db8::1", "evil", "", "::ffff:10.1.1.1"])


@given(st.lists(ADDRESSES, max_size=6), st.lists(ADDRESSES, max_size=6))
def test_what_stands_left_of_the_client_changes_nothing(left: list[str], right: list[str]) -> None:
    def client(parts: list[str]) -> str:
        notes = {b"x-forwarded-for": ", ".join(parts).encode()} if parts else {}
        return resolve_client("10.0.0.1", b"http", head_of(notes=notes), TRUSTED).address

    found = client(["198.51.100.5", *right])
    assert client([*left, "198.51.100.5", *right]) == found
    assert plain_address(found) == found


@pytest.mark.parametrize("proto", [b"", b"ws", b"https, http", b"HTTPS\t"])
def test_a_scheme_that_is_none_is_ours(proto: bytes) -> None:
    assert resolve_client("10.0.0.1", b"http", head_of(notes={b"x-forwarded-proto": proto}), TRUSTED).proto == b"http"


def test_the_case_of_a_scheme_does_not_matter() -> None:
    assert (
        resolve_client("10.0.0.1", b"http", head_of(notes={b"x-forwarded-proto": b"HTTPS"}), TRUSTED).proto == b"https"
    )


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"aA0._~+/=:-", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"a, b", False),
        (b'a"', False),
        (b"a\r\nX: y", False),
        (b"\xe4", False),
    ],
)
def test_a_request_id_is_kept_if_it_is_one(sent: bytes, kept: bool) -> None:
    head = head_of(notes={b"x-request-id": sent})
    assert given_request_id("10.0.0.1", head, TRUSTED) == (sent.decode() if kept else "")
    assert given_request_id("192.0.2.1", head, TRUSTED) == given_request_id("10.0.0.1", head, ()) == ""
    assert given_request_id("10.0.0.1", head_of(), TRUSTED) == ""


def test_what_an_upstream_is_told_of_a_client() -> None:
    who = Client("203.0.113.9", b"203.0.113.9, 10.0.0.1", b"https", b"api.example")
    lines = (
        b"X-Forwarded-For: 203.0.113.9, 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: api.example\r\n"
        b"X-Real-IP: 203.0.113.9\r\n"
    )
    assert client_lines(who, 0) == lines
    assert client_lines(who, 8000) == lines + b"X-Forwarded-Port: 8000\r\n"


# loops and hops


@pytest.mark.parametrize(
    ("via", "is_ours"),
    [(None, False), (b"1.1 other", False), (b"1.1 engadi-00ff", True), (b"1.0 a, 1.1 engadi-00ff, 1.1 b", True)],
)
def test_a_loop_is_seen_by_our_own_name(via: bytes | None, is_ours: bool) -> None:
    assert is_loop(head_of(notes={} if via is None else {b"via": via}), b"engadi-00ff") is is_ours


@pytest.mark.parametrize(
    ("method", "value", "is_last"),
    [("OPTIONS", b"0", True), ("OPTIONS", b"1", False), ("OPTIONS", None, False), ("GET", b"0", False)],
)
def test_the_last_hop_of_options(method: str, value: bytes | None, is_last: bool) -> None:
    assert is_last_hop(head_of(method, notes={} if value is None else {b"max-forwards": value})) is is_last


# the head


def test_the_upstreams_head_whole() -> None:
    head = head_of("POST")
    head.fields = b"Cookie: a\r\nX: \xe4\r\nCookie: b\r\n"
    head.content_length = 5
    raw = upstream_head(head, b"/b?c", b"origin:1", b"Via: 1.1 e\r\n", Framing.LENGTH)
    assert raw == (
        b"POST /b?c HTTP/1.1\r\nHost: origin:1\r\nCookie: a\r\nX: \xe4\r\nCookie: b\r\nVia: 1.1 e\r\nContent-Length: 5\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "framing", "line"),
    [
        ("POST", Framing.CHUNKED, b"Transfer-Encoding: chunked\r\n"),
        ("GET", Framing.CHUNKED, b"Transfer-Encoding: chunked\r\n"),
        ("POST", Framing.NONE, b"Content-Length: 0\r\n"),
        ("PUT", Framing.NONE, b"Content-Length: 0\r\n"),
        ("PATCH", Framing.NONE, b"Content-Length: 0\r\n"),
        ("GET", Framing.NONE, b""),
        ("DELETE", Framing.NONE, b""),
    ],
)
def test_one_framing_line_or_none(method: str, framing: Framing, line: bytes) -> None:
    raw = upstream_head(head_of(method), b"/a", b"h", b"", framing)
    assert raw == method.encode() + b" /a HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n"
