"""Who the client is, and the head that the upstream gets.

Trust: only peers in `trusted_proxies` may say whom they speak for; their X-Forwarded-For is read from the right, past
trusted addresses, to the first other one. Everybody else's forwarding fields were dropped when the head was scanned.
Of scheme and port, where several proxies gave theirs, the first is what the client used.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

from engadi_gateway.model import Framing, Listener, RequestHead
from engadi_gateway.settings.parsing import IpNetwork

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=:-]{1,128}")
#: As it is written canonically, which is the only way that is taken.
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!$)|$)){4}")
#: As some proxies name a client (Azure's Application Gateway): with its port, and then IPv6 in brackets.
_WITH_PORT = re.compile(r"\s*(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::[0-9]{1,5})?\s*")
_PORT = re.compile(rb"[1-9][0-9]{0,4}")
_HIGHEST_PORT = 65535
#: So many proxies are walked past; longer lists are made up.
_MOST_HOPS = 100
_SCHEMES = frozenset((b"http", b"https"))
_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))
_CHUNKED, _NONE = Framing.CHUNKED, Framing.NONE


class Client(NamedTuple):
    """Whom a request comes from: `address` decides limits and logs; `lines`, with their ends, tell an upstream."""

    address: str
    lines: bytes


def plain_address(text: str) -> str:
    """An address as it is compared and logged: no zone, IPv4 for an IPv4-mapped one; "" if it is none."""
    text = text.strip()
    if _IPV4.fullmatch(text):  # a fifth of the cost
        return text
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


@lru_cache(maxsize=4096)
def is_trusted(address: str, trusted: tuple[IpNetwork, ...]) -> bool:
    """Whether a peer is; of an address that somebody names, of whom there may be millions, ask `_is_within`."""
    return _is_within(address, trusted)


def _is_within(address: str, networks: tuple[IpNetwork, ...]) -> bool:
    if _IPV4.fullmatch(address):
        number = int.from_bytes(bytes(map(int, address.split("."))), "big")
        return any(first <= number <= last for first, last in _ranges(networks))
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


@lru_cache(maxsize=16)
def _ranges(networks: tuple[IpNetwork, ...]) -> tuple[tuple[int, int], ...]:
    """The first and last addresses of those of IPv4."""
    return tuple((int(one.network_address), int(one.broadcast_address)) for one in networks if one.version == 4)


def resolve_client(peer: str, listener: Listener, head: RequestHead, trusted: tuple[IpNetwork, ...]) -> Client:
    """Who asks, given the peer's address and what a trusted peer may have said."""
    if not trusted or not is_trusted(peer, trusted):
        own = peer.encode("ascii"), listener.scheme.encode("ascii")
        return _client(peer, *own, head.authority, listener.port)  # which the connection remembers
    notes = head.notes
    received = notes.get(b"x-forwarded-for", b"")
    address = _walk(peer, received, trusted)
    forwarded_for = received + b", " + peer.encode("ascii") if received else peer.encode("ascii")
    proto, port = _first(notes.get(b"x-forwarded-proto", b"")).lower(), 0
    if proto not in _SCHEMES:
        proto, port = listener.scheme.encode("ascii"), listener.port
    port = _port(notes.get(b"x-forwarded-port", b"")) or port
    return _client(address, forwarded_for, proto, notes.get(b"x-forwarded-host") or head.authority, port)


def _first(value: bytes) -> bytes:
    """Of a list the first member, which the proxy gave that the client came to."""
    return value.partition(b",")[0].strip()


def _port(value: bytes) -> int:
    """The port that a trusted peer names; 0: none."""
    first = _first(value)
    port = int(first) if _PORT.fullmatch(first) else 0
    return port if port <= _HIGHEST_PORT else 0


def _client(address: str, forwarded_for: bytes, proto: bytes, host: bytes, port: int) -> Client:
    """`port` is of the door it came through, at the gateway or at the proxy that told the scheme; 0: not known."""
    host_line = b"X-Forwarded-Host: %b\r\n" % host if host else b""
    lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n%bX-Real-IP: %b\r\n" % (
        forwarded_for, proto, host_line, address.encode("ascii"),
    )  # fmt: skip
    return Client(address, lines + b"X-Forwarded-Port: %d\r\n" % port if port else lines)


def given_request_id(peer: str, head: RequestHead, trusted: tuple[IpNetwork, ...]) -> str:
    """The id that a trusted peer gave the request; "" where there is none that can be kept."""
    sent = head.notes.get(b"x-request-id")
    if sent is None or not trusted or not is_trusted(peer, trusted) or not _REQUEST_ID.fullmatch(sent):
        return ""
    return sent.decode("ascii")


def _walk(peer: str, received: bytes, trusted: tuple[IpNetwork, ...]) -> str:
    """Right to left; garbage stops the walk at the last good address."""
    client = peer
    parts = received.decode("latin-1").rsplit(",", _MOST_HOPS)
    for part in reversed(parts[-_MOST_HOPS:]):
        address = plain_address(part) or _without_port(part)
        if not address:
            return client
        client = address
        if not _is_within(address, trusted):
            return client
    return client


def _without_port(text: str) -> str:
    """The address of one that is written with a port, or in brackets; "" if it is none."""
    match = _WITH_PORT.fullmatch(text)
    return plain_address(match[1] or match[2]) if match is not None else ""


def is_loop(head: RequestHead, instance: bytes) -> bool:
    """Whether this very gateway is among those that passed the request on (RFC 9110 section 7.6.3)."""
    via = head.notes.get(b"via")
    return via is not None and instance in via


def is_last_hop(head: RequestHead) -> bool:
    """Whether the gateway must answer this OPTIONS itself (RFC 9110 section 7.6.2)."""
    value = head.notes.get(b"max-forwards")
    return head.method == "OPTIONS" and value is not None and value.isdigit() and not value.strip(b"0")


def upstream_head(
    head: RequestHead,
    target: bytes,
    host: bytes,
    own: bytes,
    framing: Framing,
) -> bytes:
    """The head as the upstream gets it: Host first, what came and may pass, the gateway's own, framing built anew.

    Args:
        target: path and query to ask for.
        own: forwarding, identity and trace lines of the gateway, each with its line end.
        framing: LENGTH, CHUNKED or NONE.
    """
    last = b""
    if framing is _CHUNKED:
        last = b"Transfer-Encoding: chunked\r\n"
    elif framing is not _NONE or head.method in _BODY_METHODS:
        last = b"Content-Length: %d\r\n" % head.content_length
    method = head.method.encode("ascii")
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b%b\r\n" % (method, target, host, head.fields, own, last)
