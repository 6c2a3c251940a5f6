"""The other table's words: what an upstream does with a request, step by step, and what must come of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.conformance.case import P
from tests.conformance.rules import Rule
from tests.fakes import Wire


class Step(Enum):
    CLOSE = auto()  # FIN
    RESET = auto()  # RST
    AFTER_BYTES = auto()  # go on when the client has got something
    AFTER_REPLY = auto()  # go on when the client has its whole answer
    SILENCE = auto()  # nothing more, until the gateway hangs up


CLOSE, RESET, AFTER_BYTES, AFTER_REPLY, SILENCE = Step
Steps = tuple[bytes | Step, ...]
_LONGEST_IN_PIECES = 2000


@dataclass(frozen=True)
class Fault:
    """An upstream's doings, what the client gets for them, what the upstream saw, and the word in the log.

    Attributes:
        code: the problem's, where the answer is the gateway's own; else `body` is the upstream's.
        lines, lacks: fields that the client must have got (in lower case), and names that it must not.
        sends: what the client sends, {} stands for the target; `method` frames the answer.
        attempts: how often the upstream saw the request; `again` are its doings from the second on.
        is_reused: whether the next request comes over the same connection.
        is_early: whether the doings begin with the request's head, and not after its body.
        is_closing: whether the client's connection closes with the answer, and says so.
        is_cut_in_pieces: byte by byte the head may be relayed before what is wrong comes; then the answer is cut off.
    """

    name: str
    rule: Rule
    steps: Steps
    status: int = 200
    code: str = ""
    body: bytes = b"ok"
    is_whole: bool = True
    interim: tuple[int, ...] = ()
    lines: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    reason: str = "ok"
    sends: bytes = b"GET {} HTTP/1.1\r\nHost: h\r\n\r\n"
    attempts: int = 1
    again: Steps | None = None
    is_reused: bool = True
    is_early: bool = False
    is_closing: bool = False
    is_cut_in_pieces: bool = False

    @property
    def method(self) -> str:
        return self.sends.split(b" ", 1)[0].decode()


@dataclass
class Stage:
    """One case being played: who has got how far."""

    case: Fault
    number: int
    is_in_pieces: bool = False
    has_bytes: asyncio.Event = field(default_factory=asyncio.Event)
    has_reply: asyncio.Event = field(default_factory=asyncio.Event)
    is_played: asyncio.Event = field(default_factory=asyncio.Event)
    attempts: int = 0

    @property
    def target(self) -> str:
        return f"{P}/{self.number}"

    async def play(self, wire: Wire) -> None:
        self.attempts += 1
        again = self.case.again
        try:
            for step in self.case.steps if self.attempts == 1 or again is None else again:
                await self._step(step, wire)
        finally:  # the gateway may have hung up on it
            self.is_played.set()

    async def _step(self, step: bytes | Step, wire: Wire) -> None:
        if isinstance(step, bytes):
            await self._send(step, wire)
        elif step is CLOSE:
            wire.close()
        elif step is RESET:
            wire.reset()
        elif step is AFTER_BYTES:
            await self.has_bytes.wait()
        elif step is AFTER_REPLY:
            await self.has_reply.wait()
        else:
            self.is_played.set()
            while await wire.reader.read(65536):
                pass
            wire.close()

    async def _send(self, data: bytes, wire: Wire) -> None:
        size = 1 if self.is_in_pieces and len(data) < _LONGEST_IN_PIECES else len(data)
        for at in range(0, len(data), max(1, size)):
            await wire.send(data[at : at + size])
            await asyncio.sleep(0)


def reply(*lines: str, status: str = "200 OK", version: str = "1.1", body: bytes = b"") -> bytes:
    head = "\r\n".join([f"HTTP/{version} {status}", *lines, "", ""])
    return head.encode("latin-1") + body


def ok(*lines: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    return reply(*lines, "Content-Length: 2", status=status, version=version, body=b"ok")


def chunks(body: bytes, *lines: str, version: str = "1.1") -> bytes:
    return reply(*lines, "Transfer-Encoding: chunked", version=version, body=body)
