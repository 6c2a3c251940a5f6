"""One GET for ourselves: health checks, the JWKS document, remote token validation.

A connection of its own, closed afterwards; no redirects; bounded time and size; TLS verified. The reply is read by the
same strict parser as everybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from engadi_gateway.errors import HeaderLine
from engadi_gateway.model import Framing
from engadi_gateway.net.dial import dial_failure
from engadi_gateway.net.origin import Origin, origin_of
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.wire.chunked import STEPS_AT_ONCE, ChunkedDecoder, MalformedBodyError
from engadi_gateway.wire.response import MalformedReplyError, ReplyHead, ReplyParser

_HEAD_BYTES = 64 << 10


class FetchReply(NamedTuple):
    """What came; `is_whole` is false where the body was longer than asked for, and `body` then ends early."""

    status: int
    body: bytes
    is_whole: bool = True


class FetchError(Exception):
    """Raised when there was no whole reply in time; the message is a word of the table of reasons, or a sentence."""


#: url, header lines, time-out in s, most bytes of the body -> reply; raises FetchError.
Fetch = Callable[[str, list[HeaderLine], float, int], Awaitable[FetchReply]]


class Fetcher:
    """Fetches with one TLS configuration.

    Names are looked up apart from those of traffic, which must not wait for a thousand dead ones that are checked.
    """

    def __init__(self, make_tls: Callable[[], ssl.SSLContext], dns_cache_s: float = 30.0) -> None:
        self._make_tls = make_tls
        self._tls: ssl.SSLContext | None = None
        self._resolver = Resolver(dns_cache_s)

    async def __call__(self, url: str, lines: list[HeaderLine], timeout_s: float, max_bytes: int) -> FetchReply:
        """GET `url`, reading at most `max_bytes` of the body.

        Raises:
            FetchError: see there.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._get(url, lines, max_bytes)
        except TimeoutError:
            raise FetchError("timeout") from None
        except (MalformedReplyError, MalformedBodyError, asyncio.LimitOverrunError) as error:
            raise FetchError(f"invalid reply: {error}") from None
        except asyncio.IncompleteReadError:
            raise FetchError("closed before the whole reply") from None
        except OSError as error:
            raise FetchError(dial_failure(error)[0].code) from None
        except UnicodeError:
            raise FetchError("no usable URL") from None

    def renew(self, dns_cache_s: float) -> None:
        """Remember names for as long from now on; read the authorities again when they are next needed."""
        self._tls = None
        self._resolver.cache_s = dns_cache_s

    def close(self) -> None:
        self._resolver.close()

    def _context(self, scheme: str) -> ssl.SSLContext | None:
        if scheme == "https" and self._tls is None:
            self._tls = self._make_tls()
        return self._tls if scheme == "https" else None

    async def _get(self, url: str, lines: list[HeaderLine], max_bytes: int) -> FetchReply:
        base, _, path = url.partition("://")[2].partition("/")
        origin = origin_of(f"{url.partition('://')[0]}://{base}")
        reader, writer = await self._open(origin)
        try:
            head = [b"GET /%b HTTP/1.1" % path.encode("ascii"), b"Host: " + origin.authority]
            head += [b"%b: %b" % line for line in (*lines, (b"Connection", b"close"), (b"User-Agent", b"engadi"))]
            writer.write(b"\r\n".join(head) + b"\r\n\r\n")
            reply = await self._head(reader)
            body = await _body(reader, reply, max_bytes)
            return FetchReply(reply.status, body[:max_bytes], len(body) <= max_bytes)
        finally:
            writer.transport.abort()  # all that was wanted is here: waiting for the peer's farewell could take for ever
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _open(self, origin: Origin) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The first of its addresses that takes a connection."""
        tls = self._context(origin.scheme)
        name = origin.host if tls else None
        failure = OSError("no address")
        for address in await self._resolver.resolve(origin.host, origin.port):
            try:
                return await asyncio.open_connection(
                    address, origin.port, ssl=tls, server_hostname=name, limit=_HEAD_BYTES
                )
            except OSError as error:
                failure = error
        raise failure

    @staticmethod
    async def _head(reader: asyncio.StreamReader) -> ReplyHead:
        parser = ReplyParser()
        while True:
            reply = parser.parse(await reader.readuntil(b"\r\n\r\n"), "GET")
            if reply.status >= 200:
                return reply


async def _body(reader: asyncio.StreamReader, reply: ReplyHead, max_bytes: int) -> bytes:
    """The body; where it is longer than `max_bytes`, its beginning and at least one byte more."""
    if reply.framing is Framing.NONE:
        return b""
    if reply.framing is Framing.LENGTH:
        return await reader.readexactly(min(reply.content_length, max_bytes + 1))
    decoder = ChunkedDecoder() if reply.framing is Framing.CHUNKED else None
    parts: list[bytes] = []
    size = 0
    while size <= max_bytes and not (decoder is not None and decoder.is_complete):
        data = await reader.read(65536)
        if not data and decoder is not None:
            raise FetchError("closed before the whole reply")
        if not data:
            break
        pieces = [data] if decoder is None else [piece async for piece in _decoded(decoder, data)]
        size += sum(map(len, pieces))
        parts += pieces
    return b"".join(parts)


async def _decoded(decoder: ChunkedDecoder, data: bytes) -> AsyncIterator[bytes]:
    """The body's bytes of what was read, some in each turn of the loop."""
    while data and not decoder.is_complete:
        piece, data = decoder.feed(data, STEPS_AT_ONCE)
        yield piece
        await asyncio.sleep(0)
