"""Who the client is, and the head that the upstream gets.

Trust: only peers in `trusted_proxies` may say whom they speak for; their X-Forwarded-For is read from the right, past
trusted addresses, to the first other one. Everybody else's forwarding fields were dropped when the head was scanned.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from engadi_gateway.errors import HeaderLine
from engadi_gateway.model import Framing, RequestHead
from engadi_gateway.options import IpNetwork

PSEUDONYM = b"engadi"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=:-]{1,128}")
_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))


@dataclass(frozen=True, slots=True)
class Client:
    """Whom a request comes from: `address` decides limits and logs; the others are written upstream."""

    address: str
    forwarded_for: bytes
    proto: bytes
    forwarded_host: bytes
    request_id: bytes


def plain_address(text: str) -> str:
    """An address as it is compared and logged: no zone, IPv4 for an IPv4-mapped one; "" if it is none."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


@lru_cache(maxsize=4096)
def is_trusted(address: str, trusted: tuple[IpNetwork, ...]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)


def resolve_client(peer: str, scheme: bytes, head: RequestHead, trusted: tuple[IpNetwork, ...]) -> Client:
    """Who asks, given the peer's address and what a trusted peer may have said."""
    if not trusted or not is_trusted(peer, trusted):
        return Client(peer, peer.encode("ascii"), scheme, head.authority, b"")
    notes = head.notes
    received = notes.get(b"x-forwarded-for", b"")
    address = _walk(peer, received, trusted)
    forwarded_for = received + b", " + peer.encode("ascii") if received else peer.encode("ascii")
    proto = notes.get(b"x-forwarded-proto", b"").lower()
    request_id = notes.get(b"x-request-id", b"")
    return Client(
        address,
        forwarded_for,
        proto if proto in {b"http", b"https"} else scheme,
        notes.get(b"x-forwarded-host", head.authority),
        request_id if _REQUEST_ID.fullmatch(request_id) else b"",
    )


def _walk(peer: str, received: bytes, trusted: tuple[IpNetwork, ...]) -> str:
    """Right to left; garbage stops the walk at the last good address."""
    client = peer
    for part in reversed(received.decode("latin-1").split(",")):
        address = plain_address(part)
        if not address:
            return client
        client = address
        if not is_trusted(address, trusted):
            return client
    return client


def is_loop(head: RequestHead, instance: bytes) -> bool:
    """Whether this very gateway is among those that passed the request on (RFC 9110 section 7.6.3)."""
    via = head.notes.get(b"via")
    return via is not None and instance in via


def is_last_hop(head: RequestHead) -> bool:
    """Whether the gateway must answer this OPTIONS itself (RFC 9110 section 7.6.2)."""
    return head.method == "OPTIONS" and head.notes.get(b"max-forwards") == b"0"


def upstream_head(
    head: RequestHead,
    target: bytes,
    host: bytes,
    own: list[HeaderLine],
    framing: Framing,
) -> bytes:
    """The head as the upstream gets it: Host first, what came and may pass, the gateway's own, framing built anew.

    Args:
        target: path and query to ask for.
        own: forwarding, identity and trace lines of the gateway.
        framing: LENGTH, CHUNKED or NONE.
    """
    parts = [b"%b %b HTTP/1.1\r\nHost: %b" % (head.method.encode("ascii"), target, host)]
    parts += [b"%b: %b" % line for line in head.lines]
    parts += [b"%b: %b" % line for line in own]
    if framing is Framing.CHUNKED:
        parts.append(b"Transfer-Encoding: chunked")
    elif framing is Framing.LENGTH or head.method in _BODY_METHODS:
        parts.append(b"Content-Length: %d" % head.content_length)
    parts.append(b"\r\n")
    return b"\r\n".join(parts)
