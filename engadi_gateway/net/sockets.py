"""What asyncio leaves to others: how much a connection may make us hold, what the kernel has of it, a hard end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import select
import socket
import struct
import sys
import termios
from asyncio import sslproto
from typing import Protocol, cast

#: What is missing is the process's or the host's to give; it comes back when connections go.
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: asyncio's 256 KiB reads make the allocator trim and fault: large replies cost 2.5 times as much.
READ_BYTES = 65536
#: Input, and output, that waits in asyncio for somebody who reads slowly.
_WAITING_BYTES = 65536
#: A record of TLS is 16 KiB and some; asyncio allots 256 KiB to each connection, however idle.
_TLS_READ_BYTES = 18 << 10
#: Where Linux tells how many bytes the peer's kernel has acknowledged so far (`tcpi_bytes_acked`, since 4.1).
_TCP_INFO = getattr(socket, "TCP_INFO", 0) if sys.platform == "linux" else 0
_TCP_INFO_BYTES = 128
_ACKED = slice(120, 128)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: The peer has closed its side. Where the kernel does not tell, whoever left is noticed by the time-outs. PyPy has no
#: name for it.
_LEFT = getattr(select, "POLLRDHUP", 0x2000 if sys.platform == "linux" else 0)


class Left(Protocol):
    """Whose peer may leave."""

    def peer_left(self, *, is_reset: bool) -> None: ...


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


class Unread:
    """Connections that are not read just now, and so would not tell that their peer has left: asked at every tick."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._descriptors: dict[Left, int] = {}
        self._connections: dict[int, Left] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Left, transport: asyncio.Transport) -> None:
        descriptor = transport.get_extra_info("socket").fileno()
        if descriptor >= 0 and _LEFT:
            self._descriptors[connection] = descriptor
            self._connections[descriptor] = connection
            self._poll.register(descriptor, _LEFT)

    def discard(self, connection: Left) -> None:
        descriptor = self._descriptors.pop(connection, None)
        if descriptor is not None:
            del self._connections[descriptor]
            self._poll.unregister(descriptor)

    def sweep(self, now: float) -> None:
        for descriptor, events in self._poll.poll(0) if self._connections else ():
            connection = self._connections[descriptor]
            self.discard(connection)
            connection.peer_left(is_reset=bool(events & select.POLLERR))


def has_unread(transport: asyncio.Transport) -> bool:
    """Whether something has come that the loop has not told of yet."""
    sock = transport.get_extra_info("socket")
    if sock.fileno() < 0:  # closed under us (TLS), which we are told next
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def unread_bytes(transport: asyncio.Transport) -> int:
    """What was written and the other side has not taken yet; where the kernel does not tell, what we still hold."""
    held = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    try:
        return held + int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # closed already
        return held


def taken_mark(transport: asyncio.Transport) -> int:
    """Moves as the other side takes what was written, and stays while it takes nothing.

    Not of what is left alone: over TLS nobody sees what the transport underneath holds, and as long as that goes into
    the kernel what is seen does not fall, however steadily it is read. Where nobody counts what was taken (a unix
    socket), what is seen has to change, in whichever direction.
    """
    if _TCP_INFO:
        with contextlib.suppress(OSError):
            info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_BYTES)
            if len(info) == _TCP_INFO_BYTES:
                return int.from_bytes(info[_ACKED], sys.byteorder)
    return unread_bytes(transport)


def break_off(transport: asyncio.Transport, *, is_reset: bool) -> None:
    """Close at once, and by a reset where an orderly close would say that all is well."""
    sock = transport.get_extra_info("socket")
    if is_reset and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
