"""How much one connection may make us hold, and read at once: the sizes that asyncio leaves to others."""

from __future__ import annotations

import asyncio
from asyncio import sslproto
from typing import cast

#: asyncio's 256 KiB reads make the allocator trim and fault: large replies cost 2.5 times as much.
READ_BYTES = 65536
#: Input, and output, that waits in asyncio for somebody who reads slowly.
_WAITING_BYTES = 65536
#: A record of TLS is 16 KiB and some; asyncio allots 256 KiB to each connection, however idle.
_TLS_READ_BYTES = 18 << 10


def bound_tls() -> None:
    """From now on an idle connection over TLS takes little. It is for all of the process: asyncio has no other way."""
    sslproto.SSLProtocol.max_size = min(sslproto.SSLProtocol.max_size, _TLS_READ_BYTES)


def bound(transport: asyncio.BaseTransport) -> None:
    """Bound what this connection reads at once, and what waits in it. Plain ones let 64 KiB wait by themselves."""
    if hasattr(transport, "max_size"):
        transport.max_size = READ_BYTES
    if hasattr(transport, "set_read_buffer_limits"):  # TLS, whose own limits are 256 and 512 KiB
        transport.set_read_buffer_limits(_WAITING_BYTES)
        cast(asyncio.WriteTransport, transport).set_write_buffer_limits(_WAITING_BYTES)
