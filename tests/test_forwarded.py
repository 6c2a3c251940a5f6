"""Who the client is, whom to believe, and the head that an upstream gets."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.model import Framing, Listener
from engadi_gateway.wire.forwarded import (
    given_request_id,
    is_last_hop,
    is_loop,
    is_trusted,
    plain_address,
    resolve_client,
    upstream_head,
)
from tests.exchanges import head_of

HTTP, HTTPS, PORTLESS = Listener("http", 8000, False), Listener("https", 8443, False), Listener("http", 0, False)
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


def _lines(addresses: str, proto: str, host: str, address: str, port: int) -> bytes:
    names = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-IP", "X-Forwarded-Port")
    values = (addresses, proto, host, address, port)
    return "".join(f"{name}: {value}\r\n" for name, value in zip(names, values, strict=True)).encode()


FORGED = {
    b"x-forwarded-for": b"203.0.113.9",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-host": b"evil",
    b"x-forwarded-port": b"444",
    b"x-request-id": b"mine",
}


@pytest.mark.parametrize("trusted", [(), TRUSTED], ids=["nobody is trusted", "others are"])
def test_a_strangers_word_is_nothing(trusted: tuple[ipaddress.IPv4Network, ...]) -> None:
    who = resolve_client("192.0.2.1", HTTP, head_of(notes=FORGED), trusted)
    assert who == ("192.0.2.1", _lines("192.0.2.1", "http", "api.example", "192.0.2.1", 8000))


def test_a_trusted_peers_word() -> None:
    who = resolve_client("10.0.0.1", HTTP, head_of(notes=FORGED), TRUSTED)
    assert who == ("203.0.113.9", _lines("203.0.113.9, 10.0.0.1", "https", "evil", "203.0.113.9", 444))


def test_a_trusted_peer_that_says_nothing() -> None:
    who = resolve_client("10.0.0.1", HTTPS, head_of(), TRUSTED)
    assert who == ("10.0.0.1", _lines("10.0.0.1", "https", "api.example", "10.0.0.1", 8443))


def test_an_empty_host_is_none() -> None:
    who = resolve_client("10.0.0.1", HTTPS, head_of(notes={b"x-forwarded-host": b""}), TRUSTED)
    assert who == ("10.0.0.1", _lines("10.0.0.1", "https", "api.example", "10.0.0.1", 8443))
    nobody = replace(head_of(), authority=b"")
    assert b"Host" not in resolve_client("10.0.0.1", HTTPS, nobody, ()).lines


def test_a_door_without_a_port() -> None:
    assert b"Port" not in resolve_client("10.0.0.1", PORTLESS, head_of(), ()).lines


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
    "with a port": (b"203.0.113.9:51234", "203.0.113.9"),
    "with a port, past trusted ones": (b"6.6.6.6, 203.0.113.9:1 ,10.0.0.7:443, [fd00::7]:443", "203.0.113.9"),
    "IPv6 with a port": (b"[2001:DB8::1]:443", "2001:db8::1"),
    "IPv6 in brackets": (b"[2001:db8::1]", "2001:db8::1"),
    "mapped, with a port": (b"[::ffff:203.0.113.9]:443", "203.0.113.9"),
    "a port that is none": (b"203.0.113.9:http", "10.0.0.1"),
    "a port too many": (b"203.0.113.9:1:2", "10.0.0.1"),
    "a bracket too few": (b"[2001:db8::1:443", "10.0.0.1"),
    "no address with a port": (b"999.0.113.9:443", "10.0.0.1"),
    "no ASCII": (b"\xe4", "10.0.0.1"),
}


def test_a_walk_has_an_end() -> None:
    """A head has room for a thousand trusted addresses, and looking at each takes a while."""
    for hops, address in ((98, "198.51.100.7"), (99, "198.51.100.7"), (100, "10.0.0.1"), (1_000, "10.0.0.1")):
        received = ", ".join(["198.51.100.7", *["10.0.0.1"] * hops]).encode()
        notes = {b"x-forwarded-for": received}
        assert resolve_client("10.0.0.1", HTTP, head_of(notes=notes), TRUSTED).address == address, hops


@pytest.mark.parametrize("name", WALKS)
def test_the_walk_from_the_right(name: str) -> None:
    received, address = WALKS[name]
    assert resolve_client("10.0.0.1", HTTP, head_of(notes={b"x-forwarded-for": received}), TRUSTED).address == address


ADDRESSES = st.sampled_from(["10.0.0.7", "fd00::1", "203.0.113.9", "2001:db8::1", "evil", "", "::ffff:10.1.1.1"])


@given(st.lists(ADDRESSES, max_size=6), st.lists(ADDRESSES, max_size=6))
def test_what_stands_left_of_the_client_changes_nothing(left: list[str], right: list[str]) -> None:
    def client(parts: list[str]) -> str:
        notes = {b"x-forwarded-for": ", ".join(parts).encode()} if parts else {}
        return resolve_client("10.0.0.1", HTTP, head_of(notes=notes), TRUSTED).address

    found = client(["198.51.100.5", *right])
    assert client([*left, "198.51.100.5", *right]) == found
    assert plain_address(found) == found


@pytest.mark.parametrize("proto", [b"", b"ws", b"ws, https", b", https"])
def test_a_scheme_that_is_none_is_ours(proto: bytes) -> None:
    who = resolve_client("10.0.0.1", HTTP, head_of(notes={b"x-forwarded-proto": proto}), TRUSTED)
    assert b"X-Forwarded-Proto: http\r\n" in who.lines


@pytest.mark.parametrize("proto", [b"HTTPS", b"https, http", b"https ,ws"])
def test_of_several_schemes_the_first_is_the_clients(proto: bytes) -> None:
    who = resolve_client("10.0.0.1", HTTP, head_of(notes={b"x-forwarded-proto": proto}), TRUSTED)
    assert b"X-Forwarded-Proto: https\r\n" in who.lines


#: Scheme and port as a trusted peer tells them -> the port for the upstream; 0: none.
PORTS: dict[str, tuple[dict[bytes, bytes], int]] = {
    "both": ({b"x-forwarded-proto": b"https", b"x-forwarded-port": b"443"}, 443),
    "of several the first": ({b"x-forwarded-proto": b"https, http", b"x-forwarded-port": b"443, 8080"}, 443),
    "the port alone": ({b"x-forwarded-port": b"65535"}, 65535),
    "neither": ({}, 8000),
    "a scheme that is none": ({b"x-forwarded-proto": b"ws"}, 8000),
    "the scheme alone: ours is not the port that it was asked at": ({b"x-forwarded-proto": b"https"}, 0),
    **{
        f"the scheme, and {port!r}": ({b"x-forwarded-proto": b"https", b"x-forwarded-port": port}, 0)
        for port in (b"", b"0", b"65536", b"123456", b"-1", b"+1", b"https", b"0443", b"4 43")
    },
    "no scheme, and no port": ({b"x-forwarded-port": b"x"}, 8000),
}


@pytest.mark.parametrize("name", PORTS)
def test_the_port_goes_with_the_scheme(name: str) -> None:
    notes, port = PORTS[name]
    lines = resolve_client("10.0.0.1", HTTP, head_of(notes=notes), TRUSTED).lines.split(b"\r\n")
    assert [line for line in lines if b"-Port" in line] == ([b"X-Forwarded-Port: %d" % port] if port else [])


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


@given(st.one_of(st.ip_addresses(), st.text("0123456789.", max_size=16)).map(str), st.sampled_from([(), TRUSTED]))
def test_addresses_are_read_as_the_library_reads_them(text: str, trusted: tuple[ipaddress.IPv4Network, ...]) -> None:
    """There is a short way for those of IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        assert plain_address(text) == ""
        assert not is_trusted(text, trusted)
        return
    assert plain_address(text) == str(getattr(address, "ipv4_mapped", None) or address)
    assert is_trusted(text, trusted) is any(address in network for network in trusted)


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
