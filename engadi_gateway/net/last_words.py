"""The end of an upstream's connection: what it had said and nobody has read, and whether it meant to end there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Iterator

from engadi_gateway.net.sockets import READ_BYTES

#: Of what had come when a connection broke so much is read at once: the receive buffer holds many MiB.
_LAST_WORDS_BYTES = 128 << 10


def last_words(transport: asyncio.Transport) -> Iterator[bytes]:
    """What is still in the socket of a connection that broke.

    Who refuses an upload answers and closes, and our next write fails before all of that answer was read. A long answer
    is cut: it would come all at once, past whoever does not read. Over TLS nothing: a record may be cut in two.
    """
    if transport.get_extra_info("ssl_object") is not None:
        return
    descriptor = transport.get_extra_info("socket").fileno()
    left = _LAST_WORDS_BYTES
    with contextlib.suppress(OSError):
        while left > 0 and (data := os.read(descriptor, READ_BYTES)):
            left -= len(data)
            yield data


def is_end_said(transport: asyncio.Transport) -> bool:
    """Whether the peer has ended the connection in order; over TLS it has to say so (RFC 9112 section 9.8)."""
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False


def how_it_ended(exc: Exception | None) -> str:
    return "reset" if isinstance(exc, ConnectionResetError) else "closed"
