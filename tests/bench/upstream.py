"""The upstream of the benchmark: `python -m tests.bench.upstream PORT`. As little work as Python can do.

`?id=MARK` asks for 1 KiB that begins with that mark, `&n=BYTES` for another length. An uploaded body must be the mark
and dots, or the answer is 400: so the load knows that what arrived here is what it sent.
"""

from __future__ import annotations

import re
import select
import socket
import sys

REPLY_BYTES = 1024
_ASKED = re.compile(rb"[?&]id=([0-9a-z]+)(?:&n=([0-9]+))?")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\nX-Mark: %b\r\nContent-Length: %d\r\n\r\n"
_BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
_RECEIVE_BYTES = 262_144


def body_of(mark: bytes, length: int) -> bytes:
    """The body that belongs to a mark, in both directions."""
    return mark.ljust(length, b".")


def answer(head: bytes, body: bytes) -> bytes:
    """The reply to a request."""
    asked = _ASKED.search(head)
    mark, length = (asked[1], int(asked[2] or REPLY_BYTES)) if asked else (b"-", REPLY_BYTES)
    if body and body != body_of(mark, len(body)):
        return _BAD
    return _OK % (mark, length) + mark.ljust(length, b".")


def unchunked(data: bytes) -> bytes | None:
    """The body in chunked framing; None while it is not complete."""
    body: list[bytes] = []
    position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        size = int(data[position:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(body) if data.endswith(b"\r\n\r\n") else None
        body.append(data[end + 2 : end + 2 + size])
        position = end + 4 + size
    return None


class Connection:
    """One connection of a proxy; requests come one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.unsent = b""

    def read(self) -> bool:
        """Answer what has come; False at the end of the connection."""
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not data:
            return False
        if not self.received and data.startswith(b"GET ") and data.endswith(b"\r\n\r\n"):
            self.send(answer(data, b""))
            return True
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        complete = whole_body(head, body) if end else None
        if complete is not None:
            self.received = b""
            self.send(answer(head, complete))
        return True

    def send(self, data: bytes) -> None:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            return
        self.unsent = data[sent:] if sent < len(data) else b""


def whole_body(head: bytes, body: bytes) -> bytes | None:
    """The body after a head, once all of it is there."""
    if _CHUNKED.search(head + b"\r\n"):
        return unchunked(body)
    length = _LENGTH.search(head + b"\r\n")
    return body if len(body) >= (int(length[1]) if length else 0) else None


def serve(listener: socket.socket) -> None:
    """For ever."""
    epoll = select.epoll()
    door = listener.fileno()
    epoll.register(door, select.EPOLLIN)
    connections: dict[int, Connection] = {}
    while True:
        for number, events in epoll.poll():
            if number == door:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[sock.fileno()] = Connection(sock)
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            connection = connections[number]
            had_unsent = bool(connection.unsent)
            if events & select.EPOLLOUT:
                connection.send(connection.unsent)
            elif not connection.read():
                del connections[number]
                connection.sock.close()
                continue
            if bool(connection.unsent) != had_unsent:
                epoll.modify(number, select.EPOLLOUT if connection.unsent else select.EPOLLIN)


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listener:
        serve(listener)


if __name__ == "__main__":
    main()
