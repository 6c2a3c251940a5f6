"""Makes messages up: good ones with marks on them, then bent ones, as the authors of smuggling tools bend them.

Everything comes from one `random.Random`, so a seed and a number are all that is needed to see a message again.
"""

from __future__ import annotations

from random import Random

from tests.conformance import attacks, framing
from tests.conformance.case import PROTECTED, P
from tests.conformance.tables import CASES

#: What an upstream of the live run does with a request; the path says which.
KINDS = (
    "length",
    "length",
    "chunked",
    "empty",
    "head",
    "interim",
    "eof",
    "close",
    "stray",
    "late",
    "brim",
    "brim",
    "short",
    "reset",
)
#: Those after which a connection is in order, so that every request must have been counted.
ORDERLY = ("length", "length", "length", "chunked", "empty", "head", "interim")

METHODS = ("GET", "GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "BREW")
_FIELDS = (
    b"Accept: */*", b"Cookie: a=b", b"X-User-ID: root", b"X_User_ID: root", b"X-Forwarded-For: 6.6.6.6", b"Connection: keep-alive", b"Connection: X-Secret", b"X-Secret: 1",
    b"TE: trailers", b"Upgrade: h2c", b"Connection: Upgrade", b"Connection: close", b"Expect: 100-continue", b"X: \xe4", b"Content-Type: a/b", b"Keep-Alive: 5", b"Via: 1.0 x",
    b"Max-Forwards: 3", b"Transfer_Encoding: chunked", b"Content_Length: 9", b"X-Request-ID: mine", b"Origin: http://o.test",
)  # fmt: skip
#: Lines that change where a body ends, for some.
_BENT_FIELDS = (
    *attacks.HARMLESS, *attacks.REFUSED, *attacks.NOT_CHUNKED, b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: 05", b"Content-Length: 5, 5", b"Content-Length : 5", b"Content-Length: +5",
    b"Content-Length:", b"content-length: 5", b"Host: evil", b" Host: h", b"X: y\r", b"X: y\n", b"X: \0", b": x", b"", b" ", b"\t", b"X", b"Expect: tea", b"Connection: Content-Length", b"Connection: Transfer-Encoding",
)  # fmt: skip
_BYTES = (
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b":",
    b"\t",
    b" ",
    b"0",
    b"\x0b",
    b"\x85",
    b"\xff",
    b";",
    b",",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"a",
)
_SEEDS = [case.raw for case in CASES if len(case.raw) < 2000]
_CHUNK_SEEDS = [case.raw.partition(b"\r\n\r\n")[2] for case in framing.CHUNKS if len(case.raw) < 2000]


def chunked(rng: Random, body: bytes) -> bytes:
    """A body in chunks of random sizes, with extensions and trailers."""
    pieces = []
    while body:
        size = rng.randint(1, len(body))
        extension = rng.choice((b"", b"", b"", b";a=b", b';a="b"', b"; c"))
        spelt = b"%x" % size if rng.random() < 0.7 else b"%04X" % size
        pieces.append(spelt + extension + b"\r\n" + body[:size] + b"\r\n")
        body = body[size:]
    return (
        b"".join(pieces)
        + rng.choice((b"0", b"000", b"0;a"))
        + b"\r\n"
        + rng.choice((b"", b"", b"T: u\r\n", b"X-User-ID: root\r\n"))
        + b"\r\n"
    )


def request(rng: Random, mark: str, kinds: tuple[str, ...], token: str) -> bytes:
    """A good request: somebody's mark, a path that says what comes of it, a body or none."""
    method = rng.choice(METHODS)
    kind = rng.choice(kinds)
    prefix = rng.choice((P, P, P, PROTECTED, "/nowhere"))
    lines = [b"Host: h", b"X-Mark: " + mark.encode()]
    if prefix == PROTECTED and rng.random() < 0.7:
        lines.append(b"Authorization: Bearer " + token.encode())
    lines += rng.sample(_FIELDS, rng.choice((0, 0, 1, 2, 3)))
    framed = b""
    body = rng.choice(
        (
            b"",
            b"x",
            b"hello",
            b"GET /api/v1/auth/length/evil HTTP/1.1\r\nHost: h\r\n\r\n",
            b"0\r\n\r\n",
            b"y" * rng.randint(1, 3000),
        )
    )
    shape = (
        rng.choice(("none", "none", "length", "chunks"))
        if method in {"GET", "HEAD"}
        else rng.choice(("none", "length", "chunks"))
    )
    if shape == "length":
        lines.append(b"Content-Length: %d" % len(body))
        framed = body
    elif shape == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        framed = chunked(rng, body)
    rng.shuffle(lines)
    version = b"1.0" if rng.random() < 0.05 and shape != "chunks" else b"1.1"
    start = b"%b %b/%b/%b?q HTTP/%b" % (method.encode(), prefix.encode(), kind.encode(), mark.encode(), version)
    return b"\r\n".join([start, *lines, b"", b""]) + framed


def bent(rng: Random, raw: bytes) -> bytes:
    """The same with something wrong about it."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        raw = rng.choice(
            (_drop, _change, _insert, _insert, _add_line, _add_line, _add_line, _drop_line, _double_line, _cut, _seed)
        )(rng, raw)
    return raw


def _place(rng: Random, raw: bytes) -> int:
    return rng.randrange(len(raw)) if raw else 0


def _drop(rng: Random, raw: bytes) -> bytes:
    at = _place(rng, raw)
    return raw[:at] + raw[at + 1 :]


def _change(rng: Random, raw: bytes) -> bytes:
    at = _place(rng, raw)
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]


def _insert(rng: Random, raw: bytes) -> bytes:
    at = _place(rng, raw)
    return raw[:at] + rng.choice(_BYTES) + raw[at:]


def _line_ends(raw: bytes) -> list[int]:
    head = raw.partition(b"\r\n\r\n")[0]
    return [at for at in range(len(head)) if head[at : at + 2] == b"\r\n"] or [0]


def _add_line(rng: Random, raw: bytes) -> bytes:
    at = rng.choice(_line_ends(raw))
    return raw[:at] + b"\r\n" + rng.choice(_BENT_FIELDS) + raw[at:]


def _drop_line(rng: Random, raw: bytes) -> bytes:
    at = rng.choice(_line_ends(raw))
    return raw[:at] + raw[raw.find(b"\r\n", at + 2) :]


def _double_line(rng: Random, raw: bytes) -> bytes:
    at = rng.choice(_line_ends(raw))
    end = raw.find(b"\r\n", at + 2)
    return raw[:end] + raw[at:end] + raw[end:]


def _cut(rng: Random, raw: bytes) -> bytes:
    return raw[: _place(rng, raw)]


def _seed(rng: Random, raw: bytes) -> bytes:
    return rng.choice((rng.choice(_SEEDS), rng.choice(_SEEDS) + raw, raw + rng.choice(_SEEDS)))


def stream(rng: Random, marks: list[str], kinds: tuple[str, ...], token: str) -> bytes:
    """What one client sends: a request for each mark, some of them bent."""
    bend = rng.choice((0.0, 0.1, 0.3, 0.6))
    made = (request(rng, mark, kinds, token) for mark in marks)
    return b"".join(bent(rng, raw) if rng.random() < bend else raw for raw in made)


def cuts(rng: Random, length: int) -> list[int]:
    """Where a stream is cut into reads."""
    if length < 2:
        return []
    return sorted(rng.sample(range(1, length), min(length - 1, rng.choice((0, 1, 1, 2, 3, 8)))))


# replies

_STATUS_LINES = (
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 OK",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 x",
    b"HTTP/1.1 304 x",
    b"HTTP/1.1 404",
    b"HTTP/1.1 103 x",
    b"HTTP/1.1 101 x",
    b"HTTP/1.1 599 ",
)
_REPLY_FIELDS = (
    b"Content-Length: 5", b"Content-Length: 0", b"content-length:5", b"Content-Length: 05", b"Content-Length: 5, 5", b"Transfer-Encoding: chunked", b"TRANSFER-ENCODING: Chunked\t", b"Connection: close",
    b"Connection: keep-alive, X", b"Connection: Content-Length", b"X: y", b"x:\t \xe4 ", b"Set-Cookie: a=b", b"Set-Cookie: c=d", b"Keep-Alive: 1", b"Upgrade: x", b"Date: now", b"Trailer: x", b"X:",
)  # fmt: skip


def reply(rng: Random) -> tuple[bytes, bytes]:
    """A reply's head and what follows it, some of them bent."""
    lines = rng.sample(_REPLY_FIELDS, rng.randint(0, 4))
    head = b"\r\n".join([rng.choice(_STATUS_LINES), *lines, b"", b""])
    body = rng.choice(
        (
            b"",
            b"hello",
            b"hello and more",
            chunked(rng, b"hello"),
            chunked(rng, b"x" * rng.randint(0, 300)),
            rng.choice(_CHUNK_SEEDS),
        )
    )
    if rng.random() < 0.5:
        head = bent_head(rng, head)
    if rng.random() < 0.5:
        body = rng.choice((_drop, _change, _insert, _cut))(rng, body)
    return head, body + rng.choice((b"", b"", b"HTTP/1.1 200 OK\r\n\r\n"))


def bent_head(rng: Random, head: bytes) -> bytes:
    """Bent, but with its one empty line at its end still: a connection would cut it elsewhere else."""
    made = head
    for _ in range(rng.choice((1, 1, 2))):
        made = rng.choice((_drop, _change, _insert, _add_line, _double_line))(rng, made)
    return made if made.find(b"\r\n\r\n") == len(made) - 4 else head


def chunks(rng: Random) -> bytes:
    """A chunked body, most of them bent."""
    made = rng.choice((chunked(rng, b"x" * rng.randint(0, 40)), rng.choice(_CHUNK_SEEDS)))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        made = rng.choice((_drop, _change, _insert, _insert, _cut))(rng, made)
    return made
