"""What a case of the tables is, and the words that they are written in."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.conformance.rules import Rule

P = "/api/v1/auth"  # a public route's prefix
PROTECTED = "/api/v1/content"


@dataclass(frozen=True)
class Got:
    """An answer as the client read it; `code` is the problem's. `method` is what was asked, which frames the answer."""

    status: int
    code: str = ""
    method: str = "GET"


@dataclass(frozen=True)
class Saw:
    """A request as the upstream read it. `lines` are among its fields, `lacks` are no names of its fields."""

    target: str
    method: str = "GET"
    body: bytes = b""
    lines: tuple[str, ...] = field(default=(), compare=False)
    lacks: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Case:
    """Bytes of a client, the answers to them in order, what the upstream saw, and whether the connection goes on.

    `in_pieces`: the answers when the bytes come one by one, where these are fewer: a refusal goes out before the body
    of its request is there, and then the connection closes and what would have followed is not read.
    """

    name: str
    rule: Rule
    raw: bytes
    client: tuple[Got, ...]
    upstream: tuple[Saw, ...] = ()
    is_open: bool = False
    in_pieces: tuple[Got, ...] = ()


def head(
    *lines: str, target: str = f"{P}/x", version: str = "1.1", host: str = "Host: h", method: str = "GET"
) -> bytes:
    rows = [f"{method} {target} HTTP/{version}", *([host] if host else []), *lines, "", ""]
    return "\r\n".join(rows).encode("latin-1")


def post(*lines: str, body: bytes = b"", target: str = f"{P}/x", version: str = "1.1") -> bytes:
    return head(*lines, method="POST", target=target, version=version) + body


def chunked(body: bytes, *lines: str) -> bytes:
    return post("Transfer-Encoding: chunked", *lines, body=body)


def good(name: str, rule: Rule, raw: bytes, *seen: Saw, is_open: bool = True) -> Case:
    """Every request of it was answered with 200 and reached the upstream; by default one GET of the usual path."""
    saw = seen or (Saw(f"{P}/x"),)
    return Case(name, rule, raw, tuple(Got(200, method=one.method) for one in saw), saw, is_open)


def bad(name: str, rule: Rule, raw: bytes, status: int = 400, code: str = "bad_request") -> Case:
    """Refused, closed, and nothing of it reached the upstream."""
    return Case(name, rule, raw, (Got(status, code),))


def kept(name: str, rule: Rule, raw: bytes, status: int, code: str) -> Case:
    """Refused, but understood: the connection goes on."""
    return Case(name, rule, raw, (Got(status, code),), is_open=True)
