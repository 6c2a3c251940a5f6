"""What an upstream is asked, and what it is told of whom it is for. Values in, bytes out: explain shows the same."""

from __future__ import annotations

from engadi_gateway.model import Framing
from engadi_gateway.net.origin import Origin
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.wire.forwarded import Client, upstream_head

#: "The recipient's maximum supported value" (RFC 9110 section 7.6.2).
_MAX_FORWARDS = b"999"
_MAX_FORWARDS_DIGITS = 4


def upstream_request(exchange: Exchange, origin: Origin, who: Client, framing: Framing, instance: bytes) -> bytes:
    """A decided exchange's head as the upstream gets it."""
    assert exchange.route is not None
    head = exchange.head
    host = head.authority if exchange.route.preserve_host and head.authority else origin.authority
    target = head.target
    if exchange.strip_prefix_length:
        rest = target[exchange.strip_prefix_length :]
        target = rest if rest[:1] == b"/" else b"/" + rest
    if origin.base_path or target[:1] != b"/":
        target = origin.base_path + (target if target[:1] == b"/" else b"/" + target)
    return upstream_head(head, target, host, _own_lines(exchange, who, instance), framing)


def _own_lines(exchange: Exchange, who: Client, instance: bytes) -> bytes:
    """What the gateway says of a request: whom it is from, by which way it came, who asks; lines with their ends."""
    head, identity = exchange.head, exchange.identity
    notes = head.notes
    lines = b"%b%b\r\nVia: %b1.%d %b\r\n" % (
        who.lines, exchange.id_line, _before(notes), not head.is_http10, instance,
    )  # fmt: skip
    if exchange.strip_prefix_length:
        lines += b"X-Forwarded-Prefix: %b\r\n" % head.target[: exchange.strip_prefix_length]
    if identity is not None:
        lines += identity.block
    if head.upgrade:
        lines += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
    if b"max-forwards" in notes:
        lines += b"Max-Forwards: %b\r\n" % _hops_left(head.method, notes[b"max-forwards"])
    return lines


def _before(notes: dict[bytes, bytes]) -> bytes:
    """Those who passed it on before us, for Via (RFC 9110 section 7.6.3)."""
    return notes[b"via"] + b", " if b"via" in notes else b""


def _hops_left(method: str, value: bytes) -> bytes:
    """RFC 9110 section 7.6.2; of other methods, or no number, it is none of ours, and goes on as it came."""
    if method != "OPTIONS" or not value.isdigit():
        return value
    digits = value.lstrip(b"0") or b"1"  # of 0 there would be less
    return b"%d" % (int(digits) - 1) if len(digits) < _MAX_FORWARDS_DIGITS else _MAX_FORWARDS
