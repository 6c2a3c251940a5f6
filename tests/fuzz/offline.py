"""The parts of the fuzz that need no socket: a round is one made-up message, and a fault is a sentence."""

from __future__ import annotations

from random import Random

from engadi_gateway.model import Framing, RequestHead
from engadi_gateway.wire.chunked import LAST_CHUNK, MalformedBodyError, chunk
from engadi_gateway.wire.forwarded import upstream_head
from engadi_gateway.wire.request import HeadLimits
from engadi_gateway.wire.response import MalformedReplyError
from tests.fuzz import grammar
from tests.fuzz.oracle import reply_by_h11, reply_by_us, requests_by_h11, taken

#: How many of the short streams are cut at each of their bytes, which costs as much as everything else.
_EVERYWHERE = 0.2
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def replies(rng: Random) -> list[str]:
    """A reply: h11 and ours read the same, or ours refuses."""
    head, body = grammar.reply(rng)
    return _compared(head, body, rng.choice(("GET", "GET", "HEAD")), rng.randint(1, 9))


def chunks(rng: Random) -> list[str]:
    """A chunked body: h11 and ours read the same, or ours refuses."""
    return _compared(CHUNKED_HEAD, grammar.chunks(rng), "GET", rng.choice((1, 2, 3, 7, 10_000)))


def _compared(head: bytes, body: bytes, method: str, step: int) -> list[str]:
    try:
        ours = reply_by_us(head, body, method, step)
    except (MalformedReplyError, MalformedBodyError):
        return []
    theirs = reply_by_h11(head, body, method)
    return [] if ours == theirs else [f"{head + body!r} to {method}: ours {ours}, h11 {theirs}"]


def streams(rng: Random) -> list[str]:
    """Requests one behind the other: cut into reads anywhere they say the same; h11 agrees; so does what goes on."""
    raw = grammar.stream(rng, [f"m{number}" for number in range(rng.randint(1, 4))], grammar.KINDS, "t")
    limits = HeadLimits(max_head_bytes=rng.choice((400, 16 << 10)), max_header_lines=rng.choice((8, 100)))
    whole = taken(raw, [], limits)
    faults = []
    every = [list(range(1, len(raw)))] if len(raw) < 2000 else []
    if len(raw) < 300 and rng.random() < _EVERYWHERE:
        every += [[at] for at in range(1, len(raw))]
    for places in (*every, grammar.cuts(rng, len(raw))):
        split = taken(raw, places, limits)
        reasons = (whole.refusal and whole.refusal.reason, split.refusal and split.refusal.reason)
        if split.outcome() != whole.outcome() or reasons[0] is not reasons[1]:
            faults.append(f"{raw!r} cut at {places[:9]} says something else")
    heads, bodies, _ = whole.outcome()
    return faults + _as_received(raw, heads, bodies) + _as_sent(raw, heads, bodies)


def _as_received(raw: bytes, heads: list[RequestHead], bodies: list[bytes]) -> list[str]:
    """A strict server that got the client's bytes found the same requests, as far as ours passed them."""
    theirs = [asked for asked in requests_by_h11(raw, skips_blank_lines=True)[0] if asked.is_whole][: len(bodies)]
    ours = [(head.method, body) for head, body in zip(heads, bodies, strict=False)]
    last = (number + 1 for number, head in enumerate(heads) if not head.keep_alive or head.is_http10)
    until_close = next(last, len(ours))  # h11 keeps no connection of HTTP/1.0
    found = [(asked.method, asked.body) for asked in theirs][:until_close]
    return [] if found == ours[:until_close] else [f"{raw!r}: ours {ours[:until_close]}, h11 {found}"]


def _as_sent(raw: bytes, heads: list[RequestHead], bodies: list[bytes]) -> list[str]:
    """What an upstream would get for them: as many requests, with these bodies, and nothing left over."""
    whole = list(zip(heads, bodies, strict=False))
    sent = b"".join(_framed(head, body) for head, body in whole)
    asked, is_refused = requests_by_h11(sent)
    found = [(one.method, one.target.encode("latin-1"), one.body, one.is_whole) for one in asked]
    want = [(head.method, head.target, body, True) for head, body in whole]
    return [] if found == want and not is_refused else [f"{raw!r} goes on as {sent!r}, in which h11 finds {found}"]


def _framed(head: RequestHead, body: bytes) -> bytes:
    start = upstream_head(head, head.target, b"upstream", b"X-Request-ID: x\r\n", head.framing)
    if head.framing is Framing.CHUNKED:
        return start + (chunk(body) if body else b"") + LAST_CHUNK
    return start + body
