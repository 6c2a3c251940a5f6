"""What the load asks for: no two requests are the same, and each answer can be told from every other.

URL, user, token, trace, cookie, User-Agent, and which header lines there are in which order change from request to
request, because a server that remembers whole heads would look fast under a load that repeats itself. The bare forms get
the same bytes as the full ones.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, permutations

from tests.bench.upstream import REPLY_BYTES, body_of

#: Plain letters, because it stands in the configurations of nine programs.
SECRET = "the-key-of-the-benchmark-of-more-than-32-bytes"
ORIGIN = "https://app.test"
#: A token of more users than these is made when it is needed (3 us), not before.
_MOST_PREPARED = 10_000
_EXPIRES = 4_000_000_000
#: What clients differ in, besides their users: each of these kinds has lines, an order and a name of its own.
_KINDS = tuple(
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:%d.0) Gecko/20100101 bench/%d\r\n%b%b" % (number, number, *lines)
    for number, lines in enumerate(
        islice(
            permutations(
                (b"Accept: application/json\r\n", b"Accept-Encoding: gzip, br\r\n", b"Accept-Language: de\r\n",
                 b"Pragma: no-cache\r\n", b"Sec-Fetch-Mode: cors\r\n"),
                2,
            ),
            16,
        )
    )
)  # fmt: skip
_HEAD = (
    b"%b /api/v1/content/r%05d/%d?id=%b%b HTTP/1.1\r\nHost: bench.test\r\n%b"
    b"Origin: " + ORIGIN.encode() + b"\r\n"
    b"Authorization: Bearer %b\r\nCookie: session=%016x\r\ntraceparent: 00-%032x-%016x-01\r\n%b\r\n"
)
_UPLOAD = b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n"
#: Odd multipliers walk through all values without repeating one.
_STEP_64, _STEP_128 = 0x9E3779B97F4A7C15, 0xDA942042E4DD58B5DA942042E4DD58B5


@dataclass(frozen=True, slots=True)
class Shape:
    """How the requests of one load vary.

    Attributes:
        reply_bytes, upload_bytes: lengths of the bodies; an upload makes it a POST.
        users, addresses: how many different ones ask; 0 addresses: no X-Forwarded-For.
        spread: how many different first segments the paths have below the service.
    """

    reply_bytes: int = REPLY_BYTES
    upload_bytes: int = 0
    users: int = 1000
    addresses: int = 0
    spread: int = 10


def _encoded(document: object) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=")


_TOKEN_HEAD = _encoded({"alg": "HS256", "typ": "JWT"})


def token(user: int, secret: str = SECRET) -> bytes:
    """A JWT, HS256, of user number so."""
    signed = _TOKEN_HEAD + b"." + _encoded({"sub": f"user-{user}", "role": "user", "exp": _EXPIRES})
    signature = hmac.digest(secret.encode(), signed, "sha256")
    return signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


@lru_cache(maxsize=4)
def _prepared(users: int) -> Callable[[int], bytes]:
    if users > _MOST_PREPARED:
        return token
    tokens = [token(user) for user in range(users)]
    return tokens.__getitem__


def _address(number: int) -> bytes:
    return b"10.%d.%d.%d" % (number >> 16 & 255, number >> 8 & 255, number & 255)


class Requests:
    """Makes requests one after the other; `next` gives the bytes and the body that must come back."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._token = _prepared(shape.users)
        self._method = b"POST" if shape.upload_bytes else b"GET"
        self._length = b"" if shape.reply_bytes == REPLY_BYTES else b"&n=%d" % shape.reply_bytes
        self._upload = _UPLOAD % shape.upload_bytes if shape.upload_bytes else b""
        self.number = 0

    def next(self) -> tuple[bytes, bytes]:
        """The next request, and the body of its answer."""
        shape = self._shape
        number = self.number = self.number + 1
        mark = b"%x" % number
        extra = self._upload
        if shape.addresses:
            extra += b"X-Forwarded-For: %b\r\n" % _address(number % shape.addresses)
        head = _HEAD % (
            self._method, number % shape.spread, number, mark, self._length, _KINDS[number & 15],
            self._token(number % shape.users), number * _STEP_64 & 0xFFFFFFFFFFFFFFFF,
            number * _STEP_128 & (1 << 128) - 1, number * _STEP_64 & 0xFFFFFFFFFFFFFFFF, extra,
        )  # fmt: skip
        if shape.upload_bytes:
            head += body_of(mark, shape.upload_bytes)
        return head, body_of(mark, shape.reply_bytes)
