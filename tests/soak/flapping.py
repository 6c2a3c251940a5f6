"""An upstream that flaps: it cuts connections wherever they can be cut, and keeps count of what it was sent.

Every request carries a mark, in its target, in a header and all through its body; every reply of ours bears the mark
of the request it answers, in a header and all through its body. So neither side needs to remember anything to tell
whether bytes have strayed.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import cast

SIZES = (0, 1, 17, 300, 300, 5_000, 5_000, 70_000)
_HEAD = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1\r\n((?:[!-9;-~]+: [\t -~]*\r\n)+)\r\n")
_DIGITS = re.compile(rb"[0-9]+")
#: Which lines of a reply a client must find again, and nobody else.
MARK = "X-Mark"


def body_of(mark: str, salt: str = "") -> bytes:
    """What a reply to the request of this mark holds (with a salt: what the request itself holds)."""
    text = f"<{mark}{salt}>".encode()
    size = SIZES[zlib.crc32(text) % len(SIZES)]
    return (text * (size // len(text) + 1))[:size]


class Fin:
    """A step: close in good order."""


class Rst:
    """A step: a reset, as a crashing process gives."""


class Done:
    """A step: the reply is whole; what follows happens to a connection that may be in use again."""


Step = bytes | float | type[Fin] | type[Rst] | type[Done]


@dataclass
class Request:
    """One request as it was read; `number` counts the earlier attempts of the same mark."""

    method: str
    mark: str
    body: bytes
    is_first_on_connection: bool


@dataclass
class Counts:
    """What the upstream saw."""

    requests: int = 0
    posts: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    reused_first: set[str] = field(default_factory=set)  # marks first sent on a connection that had served before
    retries: int = 0
    costly: int = 0  # retries under way that the budget had to allow
    most_costly: int = 0


def plain(mark: str, method: str) -> bytes:
    body = body_of(mark)
    head = f"HTTP/1.1 200 OK\r\n{MARK}: {mark}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if method == "HEAD" else head + body


def chunked(mark: str, method: str, dice: random.Random) -> bytes:
    body = body_of(mark)
    head = f"HTTP/1.1 200 OK\r\n{MARK}: {mark}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    if method == "HEAD":
        return head
    pieces, at = [head], 0
    while at < len(body):
        size = dice.randrange(1, 20_000)
        piece = body[at : at + size]
        pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at += size
    return b"".join([*pieces, b"0\r\n\r\n"])


def until_close(mark: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\n{MARK}: {mark}\r\n\r\n".encode() + body_of(mark)


def some_reply(mark: str, method: str, dice: random.Random) -> bytes:
    return plain(mark, method) if dice.random() < 0.5 else chunked(mark, method, dice)


def _cut(data: bytes, dice: random.Random, first: int = 0) -> bytes:
    """A proper beginning of it."""
    return data[: dice.randrange(first, len(data))] if len(data) > first else data


def _body_at(data: bytes) -> int:
    return data.find(b"\r\n\r\n") + 4


def _well(mark: str, method: str, dice: random.Random) -> list[Step]:
    return [some_reply(mark, method, dice)]


def _dripping(mark: str, method: str, dice: random.Random) -> list[Step]:
    data = some_reply(mark, method, dice)
    steps: list[Step] = []
    for _ in range(6):
        at = dice.randrange(len(data) + 1)
        steps += [data[:at], dice.random() * 0.01]
        data = data[at:]
    steps = [step for step in [*steps, data] if step != b""]
    while isinstance(steps[-1], float):
        steps.pop()
    return steps


def _until_close(mark: str, method: str, dice: random.Random) -> list[Step]:
    return [until_close(mark), Fin] if method != "HEAD" else [plain(mark, method)]


def _cut_in_body(mark: str, method: str, dice: random.Random) -> list[Step]:
    data = some_reply(mark, method, dice)
    part = _cut(data, dice, _body_at(data))
    ends: list[Step] = [dice.choice((0.0, 0.003)), dice.choice((Fin, Rst))]
    return [part, *ends] if part != data else [part, Done, *ends]


def _reset_until_close(mark: str, method: str, dice: random.Random) -> list[Step]:
    """The one cut of a close-delimited body that can be told from its end."""
    data = until_close(mark)
    if method == "HEAD":
        return [plain(mark, method)]
    return [_cut(data, dice, _body_at(data)), 0.003, Rst]


def _left_idle(mark: str, method: str, dice: random.Random) -> list[Step]:
    """Closed while idle, at about the moment when it is used again."""
    return [some_reply(mark, method, dice), Done, dice.random() * 0.01, dice.choice((Fin, Rst))]


def _stray(mark: str, method: str, dice: random.Random) -> list[Step]:
    """A whole reply nobody asked for, right behind the one that was."""
    return [some_reply(mark, method, dice) + plain("stray", "GET")]


def _stray_at_the_edge(mark: str, method: str, dice: random.Random) -> list[Step]:
    """The same, but the reply fills what the gateway reads at once to the last byte."""
    if method == "HEAD":
        return _stray(mark, method, dice)
    body = body_of(mark)
    head = f"HTTP/1.1 200 OK\r\n{MARK}: {mark}\r\nContent-Length: {len(body)}\r\nX-Filler: ".encode()
    filler = b"x" * (65536 - len(head) - 4 - len(body))
    if len(body) >= 60_000:
        return _stray(mark, method, dice)
    return [head + filler + b"\r\n\r\n" + body + plain("stray", "GET")]


#: name -> steps. What is sent unasked and after a pause is never a whole reply: where the connection is in use again,
#: nobody can tell that from an answer (HTTP/1.1 has nothing to tell it by).
FATES: dict[str, Callable[[str, str, random.Random], Sequence[Step]]] = {
    "well": _well,
    "dripping": _dripping,
    "until close": _until_close,
    "close": lambda mark, method, dice: [
        some_reply(mark, method, dice).replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
        Fin,
    ],
    "closed before the head": lambda mark, method, dice: [Fin],
    "reset before the head": lambda mark, method, dice: [dice.choice((0.0, 0.002)), Rst],
    "cut in the head": lambda mark, method, dice: [
        _cut(data := some_reply(mark, method, dice), dice)[: _body_at(data) - 1],
        dice.choice((0.0, 0.002)),
        dice.choice((Fin, Rst)),
    ],
    "cut in the body": _cut_in_body,
    "reset in a body that ends with the connection": _reset_until_close,
    "closed while idle": _left_idle,
    "a reply too many": _stray,
    "a reply too many, unread": _stray_at_the_edge,
    "stray bytes, later": lambda mark, method, dice: [
        some_reply(mark, method, dice),
        Done,
        dice.random() * 0.01,
        b"what is this\r\n\r\n",
    ],
    "malformed head": lambda mark, method, dice: [b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n"],
    "cut after 1xx": lambda mark, method, dice: [
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        dice.choice((0.0, 0.002)),
        dice.choice((Fin, Rst)),
    ],
    "well after 1xx": lambda mark, method, dice: [
        b"HTTP/1.1 102 Processing\r\n\r\n" * 3,
        some_reply(mark, method, dice),
    ],
    "malformed chunk": lambda mark, method, dice: [
        chunked(mark, method, dice)[:-5] + (b"" if method == "HEAD" else b"zz\r\n"),
        Fin,
    ],
    "503": lambda mark, method, dice: [
        f"HTTP/1.1 503 Service Unavailable\r\n{MARK}: {mark}\r\nContent-Length: 0\r\n\r\n".encode()
    ],
    "no answer": lambda mark, method, dice: [30.0, Rst],
}
#: Too slow to be frequent.
RARE = ("no answer",)
GOOD = ("well", "dripping", "until close", "close", "well after 1xx")


class Connection(asyncio.Protocol):
    """Reads requests strictly, one at a time: a second one before the first was answered is a fault."""

    def __init__(self, upstream: Flapping) -> None:
        self.upstream = upstream
        self.transport = cast(asyncio.Transport, None)
        self.is_gone = False
        self._buffer = b""
        self._served = 0
        self._is_busy = False
        self._answers: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.upstream.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True
        self.upstream.connections.discard(self)
        for answer in self._answers:
            answer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._is_busy:
            self.upstream.counts.wrong.append(f"bytes before the answer: {data[:80]!r}")
            self.reset()
        elif b"\r\n\r\n" in self._buffer:
            try:
                request = self._request()
            except ValueError as error:
                self.upstream.counts.wrong.append(f"{error}: {self._buffer[:300]!r}")
                self.reset()
                return
            if request is not None:
                self._served += 1
                self._is_busy = True
                answer = asyncio.get_running_loop().create_task(self._answer(request, self._served))
                self._answers.add(answer)
                answer.add_done_callback(self._answers.discard)

    def _request(self) -> Request | None:
        match = _HEAD.match(self._buffer)
        if match is None:
            raise ValueError("malformed head")
        lines = [line.split(b": ", 1) for line in match[3].split(b"\r\n")[:-1]]
        headers = {name.lower(): value for name, value in lines}
        if len(headers) != len(lines):
            raise ValueError("a line twice")
        body, rest = _body(headers, self._buffer[match.end() :])
        if body is None:
            return None
        if rest:
            raise ValueError("bytes after the request")
        self._buffer = b""
        mark = match[2].rpartition(b"/")[2].decode()
        if headers.get(b"x-mark") != mark.encode() or headers.get(b"x-request-id") != mark.encode():
            raise ValueError("target and header of different requests")
        if body and body != body_of(mark, "^"):
            raise ValueError("head and body of different requests")
        return Request(match[1].decode(), mark, body, self._served == 0)

    async def _answer(self, request: Request, number: int) -> None:
        upstream, counts = self.upstream, self.upstream.counts
        is_costly = upstream.note(request)
        counts.costly += is_costly
        counts.most_costly = max(counts.most_costly, counts.costly)
        try:
            for step in upstream.fate(request):
                if step is Done:
                    self._is_busy = False
                elif number == self._served or isinstance(step, float):
                    await self._do(step)
                else:  # in use again: an orderly close could look like the end of that reply, so it is a reset
                    self.reset()
        finally:
            counts.costly -= is_costly
        if number == self._served:
            self._is_busy = False

    async def _do(self, step: Step) -> None:
        if isinstance(step, bytes):
            self.transport.write(step)
        elif isinstance(step, float):
            await asyncio.sleep(step)
        elif step is Fin:
            self.transport.close()
        else:
            self.reset()

    def reset(self) -> None:
        if not self.is_gone:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


def _body(headers: dict[bytes, bytes], data: bytes) -> tuple[bytes | None, bytes]:
    """The body and what follows it; None while it is not whole."""
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if length is not None and coding is not None:
        raise ValueError("two framings")
    if coding is not None:
        return _chunked_body(data)
    size = int(length or b"0")
    return (data[:size], data[size:]) if len(data) >= size else (None, b"")


def _chunked_body(data: bytes) -> tuple[bytes | None, bytes]:
    body: list[bytes] = []
    while True:
        line, end, rest = data.partition(b"\r\n")
        if not end:
            return None, b""
        size = int(line, 16)
        if len(rest) < size + 2:
            return None, b""
        if rest[size : size + 2] != b"\r\n":
            raise ValueError("malformed chunk")
        data = rest[size + 2 :]
        if not size:
            return b"".join(body), data
        body.append(rest[:size])


class Flapping:
    """The server. `fault_share` of the requests meet a fault; `set_down` closes the door and cuts what is open."""

    def __init__(self, dice: random.Random, faults: Sequence[str]) -> None:
        self.dice = dice
        self.faults = faults
        self.fault_share = 0.1
        self.counts = Counts()
        self.connections: set[Connection] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.reset()

    def note(self, request: Request) -> bool:
        """Count it; whether it is a retry that the budget had to allow."""
        counts = self.counts
        counts.requests += 1
        counts.posts[request.mark] += request.method == "POST"
        earlier = counts.attempts[request.mark]
        counts.attempts[request.mark] += 1
        counts.retries += earlier > 0
        if not earlier and not request.is_first_on_connection:
            counts.reused_first.add(request.mark)
        return earlier > (request.mark in counts.reused_first)

    def fate(self, request: Request) -> Sequence[Step]:
        dice = self.dice
        names: Sequence[str] = self.faults if dice.random() < self.fault_share else GOOD
        name = dice.choice(names)
        if name in RARE and dice.random() > 0.02:
            name = "well"
        self.counts.fates[name] += 1
        return FATES[name](request.mark, request.method, dice)
